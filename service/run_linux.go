// Under systemd and in the foreground: signals are the requests, kardianos/service calls
// Start and Stop.

package service

import (
	"os"
	"os/signal"

	kservice "github.com/kardianos/service"
	"golang.org/x/sys/unix"
)

func (s *supervisor) run() error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1)
	done := make(chan struct{})
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for {
			select {
			case sig := <-signals:
				switch sig {
				case unix.SIGHUP:
					s.requestReload()
				case unix.SIGUSR1:
					offer(s.reopen)
				default:
					s.requestStop()
				}
			case <-done:
				return
			}
		}
	}()
	defer func() {
		signal.Stop(signals)
		close(done)
		<-heard
	}()

	carrier, err := kservice.New(program{s}, &kservice.Config{
		Name:   s.opts.Name,
		Option: kservice.KeyValue{"RunWait": s.serve},
	})
	if err != nil {
		return err
	}
	return carrier.Run()
}
