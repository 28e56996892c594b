// The rows of the table: what is done, what is aimed at.

package main

import (
	"fmt"
	"time"
)

// goal is what amqproxysvc should reach beside HAProxy.
type goal struct {
	ratio float64       // of HAProxy's rate, at least
	cpu   time.Duration // for an operation, at most
}

func (g goal) String() string {
	s := ""
	if g.ratio > 0 {
		s = fmt.Sprintf("≥ %g×", g.ratio)
	}
	if g.cpu > 0 {
		if s != "" {
			s += ", "
		}
		s += "≤ " + micros(g.cpu)
	}
	return s
}

// row is one kind of work.
type row struct {
	id, title string
	work      work
	goal      goal
	atDrain   bool // what arrives counts, not what is sent
	latency   bool // p50 and p99 are shown
	way       way  // what of it is TLS
	scaling   bool // left out of the quick run
	bare      bool // the stand-in's CPU is shown too: that of a bare server
}

func publishRow(id, title string, clients, size int, g goal) row {
	return row{id: id, title: title, goal: g, atDrain: true, work: work{Op: opPublish, Clients: clients, Channels: 1, Size: size}}
}

const connectTitle = "connect+channel+publish+disconnect, 8 side by side"

var connectWork = work{Op: opConnect, Clients: 8, Size: 100}

// brokerRow is the work that a real broker makes differ most from the stand-in, whose
// connects cost next to nothing.
func brokerRow() row {
	return row{id: "connect-broker", title: connectTitle + ", a real broker", goal: goal{ratio: 4.5}, latency: true, work: connectWork}
}

// scalingBatch is how many messages a write holds where the number of clients or channels
// grows: the same everywhere, so that only that number differs.
const scalingBatch = 16

func rows() []row {
	rs := []row{
		publishRow("publish-1", "publish 100 B, 1 client", 1, 100, goal{0.5, 300}),
		publishRow("publish-4", "publish 100 B, 4 clients", 4, 100, goal{0.5, 300}),
		publishRow("publish-10k", "publish 10 kB, 4 clients", 4, 10_000, goal{ratio: 0.8}),
		publishRow("publish-1M", "publish 1 MB, 4 clients", 4, 1_000_000, goal{ratio: 0.7}),
		{id: "confirms", title: "confirms, window 1000, 4 clients", goal: goal{ratio: 0.4},
			work: work{Op: opConfirms, Clients: 4, Channels: 1, Size: 100, Batch: 250, Window: 1000}},
		{id: "one-by-one", title: "publish + confirm one by one", goal: goal{ratio: 0.8}, latency: true,
			work: work{Op: opOneByOne, Clients: 1, Channels: 1, Size: 100}},
		{id: "consume", title: "consume no-ack 100 B, 1 client", goal: goal{0.8, 250},
			work: work{Op: opConsume, Clients: 1, Channels: 1, Size: 100}},
		{id: "connect", title: connectTitle, bare: true, goal: goal{4.5, 80 * time.Microsecond}, latency: true, work: connectWork},
	}
	for _, n := range []int{1, 10, 100, 1000, 10_000} {
		r := publishRow(fmt.Sprintf("clients-%d", n), fmt.Sprintf("publish 100 B in 16s, %s clients", grouped(n)), n, 100, goal{})
		r.work.Batch, r.scaling = scalingBatch, true
		rs = append(rs, r)
	}
	for _, n := range []int{1, 10, 100, 200} {
		r := publishRow(fmt.Sprintf("channels-%d", n), fmt.Sprintf("publish 100 B in 16s, 1 client, %d channels", n), 1, 100, goal{})
		r.work.Batch, r.work.Channels, r.scaling = scalingBatch, n, true
		rs = append(rs, r)
	}
	for _, size := range []int{100, 1000, 10_000, 100_000, 1_000_000} {
		r := publishRow(fmt.Sprintf("size-%d", size), fmt.Sprintf("publish %s B, 1 client", grouped(size)), 1, size, goal{})
		r.scaling = true
		rs = append(rs, r)
	}
	for _, clients := range []int{1, 4} {
		r := publishRow(fmt.Sprintf("tls-%d", clients), fmt.Sprintf("publish 100 B, %d clients, TLS to the broker", clients), clients, 100, goal{})
		r.way, r.scaling = toBroker, clients != 1
		rs = append(rs, r)
	}
	tlsConsume := row{id: "tls-consume", title: "consume no-ack 100 B, 1 client, TLS to the broker", way: toBroker, scaling: true,
		work: work{Op: opConsume, Clients: 1, Channels: 1, Size: 100}}
	rs = append(rs, tlsConsume)
	for _, clients := range []int{1, 4} {
		r := publishRow(fmt.Sprintf("tls-in-%d", clients), fmt.Sprintf("publish 100 B, %d clients, TLS to the proxy", clients), clients, 100, goal{})
		r.way, r.scaling = fromClients, clients != 4
		rs = append(rs, r)
	}
	return rs
}
