// What a broker tells of itself.

package broker

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// Info is what a broker's handshake told of it.
type Info struct {
	Properties       []byte // inside of server-properties
	Mechanisms       string
	Product, Version string
	// Confirms: it announces publisher_confirms.
	Confirms bool
	// FailureClose: a refused login is answered before the socket is closed.
	FailureClose bool
	Tune         amqp.Tune
	// Loopback: it was reached on this machine's own loopback, from where it takes users that it
	// takes from nowhere else.
	Loopback bool
}

// FailureClose is the capability of saying connection.close to a client that is refused at login.
const FailureClose = "authentication_failure_close"

// FirstFrame is the largest frame, in octets with all that belongs to it, that the broker takes
// before tune; 0: not known. RabbitMQ cuts the connection of a client that sends a larger one.
func (i *Info) FirstFrame() int {
	if i.Product != "RabbitMQ" {
		return 0
	}
	if i.AtLeast(4, 1) {
		return 8192
	}
	return 4096
}

// AtLeast compares the broker's version.
func (i *Info) AtLeast(major, minor int) bool {
	parts := strings.SplitN(i.Version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, err1 := strconv.Atoi(parts[0])
	b, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (a > major || a == major && b >= minor)
}

// parseStart reads connection.start.
func parseStart(f amqp.Frame) (*Info, error) {
	if f.Method() != amqp.ConnectionStart {
		return nil, fmt.Errorf("it sent %v where start was due", f.Method())
	}
	a := amqp.ReadArgs(f)
	a.Octet()
	a.Octet()
	props := append([]byte(nil), a.LongStr()...)
	info := &Info{Properties: props, Mechanisms: string(a.LongStr())}
	if why := amqp.CheckTable(props); a.Bad || why != "" {
		return nil, errors.New("its connection.start cannot be understood")
	}
	info.Product = amqp.LookupString(props, "product")
	info.Version = amqp.LookupString(props, "version")
	info.Confirms = Announces(props, "publisher_confirms")
	info.FailureClose = Announces(props, FailureClose)
	return info, nil
}

// Announces reports whether properties have a capability.
func Announces(properties []byte, capability string) bool {
	typ, caps, ok := amqp.Lookup(properties, "capabilities")
	return ok && typ == 'F' && amqp.LookupBool(caps, capability)
}
