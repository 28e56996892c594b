// Command brokers starts every RabbitMQ of the testbed for one's own use and says
// where they listen; they end with it.

//go:build linux

package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

func main() {
	os.Exit(run())
}

func run() int {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	started := 0
	for _, v := range rabbit.Versions {
		b, err := rabbit.Start(v)
		if err != nil {
			fmt.Fprintln(os.Stderr, "brokers:", err)
			continue
		}
		defer b.Close()
		started++
		fmt.Printf("RabbitMQ %s  amqp://guest:guest@%s  amqps://guest:guest@localhost:%d  CA %s\n",
			v, b.Addr(), b.TLSPort, b.CAFile)
	}
	if started == 0 {
		return 1
	}
	fmt.Println("Ctrl-C ends them.")
	<-stop
	return 0
}
