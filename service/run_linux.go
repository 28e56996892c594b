// Under systemd and in the foreground: signals are the requests, kardianos/service calls
// Start and Stop.

package service

import (
	"os"

	kservice "github.com/kardianos/service"
	"golang.org/x/sys/unix"
)

func (s *supervisor) run() error {
	tty := ownTerminal()
	hangup := func() {
		if tty.gone() {
			s.requestStop()
		} else {
			s.requestReload()
		}
	}
	defer onSignals(map[os.Signal]func(){
		unix.SIGTERM: s.requestStop, unix.SIGINT: s.requestStop, unix.SIGHUP: hangup, unix.SIGUSR1: s.requestReopen,
	})()

	carrier, err := kservice.New(program{s}, &kservice.Config{
		Name:   s.opts.Name,
		Option: kservice.KeyValue{"RunWait": s.serve},
	})
	if err != nil {
		return err
	}
	return carrier.Run()
}
