// Addresses of direct reply-to, which RabbitMQ decodes when something is routed to them,
// and closes the connection with 541 over those that it cannot.

package amqp

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
)

const replyTo = "amq.rabbitmq.reply-to."

// BadReplyTo reports whether a routing key or a queue's name is a direct reply-to address
// that cannot be one: after the prefix base64 of an Erlang process id in external term
// format, a dot, and a key.
func BadReplyTo(name []byte) bool {
	if len(name) <= len(replyTo) || string(name[:len(replyTo)]) != replyTo {
		return false
	}
	code, key, ok := bytes.Cut(name[len(replyTo):], []byte{'.'})
	if !ok || len(code) == 0 || bytes.IndexByte(key, '.') >= 0 {
		return false // no queue is called so, and none is looked for
	}
	pid, err := base64.StdEncoding.DecodeString(string(code))
	if err != nil || len(pid) < 2 || pid[0] != 131 {
		return true
	}
	rest := 0
	switch pid[1] {
	case 88: // NEW_PID_EXT
		rest = 12
	case 103: // PID_EXT
		rest = 9
	default:
		return true
	}
	node := pid[2:]
	switch {
	case len(node) >= 2 && (node[0] == 'w' || node[0] == 's'):
		return len(node) != 2+int(node[1])+rest
	case len(node) >= 3 && (node[0] == 'd' || node[0] == 'v'):
		return len(node) != 3+int(binary.BigEndian.Uint16(node[1:]))+rest
	}
	return true
}

// badRoutes reports whether the headers CC or BCC route to a bad reply-to address.
func badRoutes(headers []byte) bool {
	if !bytes.Contains(headers, []byte("CCA")) { // either name, and the type of an array
		return false
	}
	for _, name := range [...]string{"CC", "BCC"} {
		typ, v, ok := Lookup(headers, name)
		if !ok || typ != 'A' {
			continue
		}
		for len(v) > 0 {
			n, why := checkValue(v, 0)
			if why != "" {
				break // the table was checked: cannot be
			}
			if v[0] == 'S' && BadReplyTo(v[5:n]) {
				return true
			}
			v = v[n:]
		}
	}
	return false
}
