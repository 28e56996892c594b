//go:build linux

// Command broker starts RabbitMQ 3.10 behind the usual ports 5672 and 5671 of 127.0.0.1,
// where a package's default configuration looks for it. For a network name space of the
// test's own. It prints the authority's certificate file once it serves, and ends with it.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "broker:", err)
		os.Exit(1)
	}
}

func run() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	b, err := rabbit.Start(rabbit.V310)
	if err != nil {
		return err
	}
	defer b.Close()
	for from, to := range map[string]string{"127.0.0.1:5672": b.Addr(), "127.0.0.1:5671": b.TLSAddr()} {
		ln, err := net.Listen("tcp", from)
		if err != nil {
			return err
		}
		defer ln.Close()
		go forward(ln, to)
	}
	fmt.Println(b.CAFile)
	<-stop
	return nil
}

// forward ends when the listener is closed; its connections end with the process.
func forward(ln net.Listener, to string) {
	for {
		client, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer client.Close()
			broker, err := net.Dial("tcp", to)
			if err != nil {
				return
			}
			defer broker.Close()
			go func() {
				_, _ = io.Copy(broker, client) // ends as both sides close
				_ = broker.Close()
			}()
			_, _ = io.Copy(client, broker)
		}()
	}
}
