// Of the answer to `stats`: what there is one of for each listener and for each AMQP code.

package admin

import "github.com/amqproxysvc/amqproxysvc/proxy"

// Listener is one address that clients come to.
type Listener struct {
	Address      string `json:"address"`
	TLS          bool   `json:"tls"`
	Clients      int    `json:"clients"`
	ClientsTotal uint64 `json:"clients_total"`
}

// ErrorCount is how often clients were told an error.
type ErrorCount struct {
	Of    string `json:"of"`   // what was closed: connection, channel
	Code  int    `json:"code"` // AMQP's; 0: one that the specification has not
	Count uint64 `json:"count"`
}

func listenersOf(all []proxy.ListenerStats) []Listener {
	out := make([]Listener, 0, len(all))
	for _, l := range all {
		out = append(out, Listener{Address: l.Address, TLS: l.TLSHandshakes != nil, Clients: l.Clients, ClientsTotal: l.Accepted})
	}
	return out
}

// errorsOf are those that there were.
func errorsOf(s *proxy.Stats) []ErrorCount {
	out := []ErrorCount{}
	for i, code := range proxy.ErrorCodes {
		if n := s.ConnectionErrors[i]; n > 0 {
			out = append(out, ErrorCount{"connection", int(code), n})
		}
		if n := s.ChannelErrors[i]; n > 0 {
			out = append(out, ErrorCount{"channel", int(code), n})
		}
	}
	return out
}
