// The clients of a crowd: one process of them. They send heartbeats, count those they hear, and who is lost comes back.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// crowdWork says what to do: "connect", then "publish", then "count" any number of times.
type crowdWork struct {
	Do        string
	Addr      string
	Net       int // they come from 127.0.Net.1 and those that follow
	Clients   int
	Heartbeat time.Duration
}

// crowdCount is the answer, to "count" with all that has happened so far.
type crowdCount struct {
	Open, Lost, Back, Tries int
	Sent, Heard             int // heartbeats
	Why                     string
	P50, P99, Max           time.Duration // from the loss of a connection to a confirmed message on the next
}

func (c *crowdCount) add(o crowdCount) {
	c.Open, c.Lost, c.Back, c.Tries = c.Open+o.Open, c.Lost+o.Lost, c.Back+o.Back, c.Tries+o.Tries
	c.Sent, c.Heard = c.Sent+o.Sent, c.Heard+o.Heard
	c.P50, c.P99, c.Max = max(c.P50, o.P50), max(c.P99, o.P99), max(c.Max, o.Max) // those of one proxy are lost
	if o.Why != "" {
		c.Why = o.Why
	}
}

const (
	// perAddress is how many clients come from one address: it may have half of the proxy's handshakes.
	perAddress = 1000
	// crowdAtATime is how many connect side by side.
	crowdAtATime = 64
	// crowdPause is how long a client waits, give or take a half, after a try that failed. The first is made at once.
	crowdPause = time.Second
)

// members are the clients of this process.
type members struct {
	w       crowdWork
	clients []*proxytest.Client // until they rest
	conns   []atomic.Pointer[net.Conn]

	open, lost, back, tries, sent, heard atomic.Int64

	mu   sync.Mutex
	away []time.Duration
	why  error
}

func crowdRole(in io.Reader, out io.Writer) error {
	var m *members
	return answerLines(in, out, func(w crowdWork) (crowdCount, error) {
		switch {
		case w.Do == "connect":
			m = &members{w: w, clients: make([]*proxytest.Client, w.Clients), conns: make([]atomic.Pointer[net.Conn], w.Clients)}
			go m.beat()
			return crowdCount{}, m.each(m.connect)
		case m == nil:
			return crowdCount{}, errors.New("nobody is connected")
		case w.Do == "publish":
			if err := m.each(func(i int) error { return publishOne(m.clients[i]) }); err != nil {
				return crowdCount{}, err
			}
			m.rest()
			return crowdCount{}, nil
		}
		return m.count(), nil
	})
}

// each does something for every member, some at a time, and gives the first error.
func (m *members) each(do func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for range crowdAtATime {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < m.w.Clients; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					once.Do(func() { first = fmt.Errorf("client %d: %w", i, err) })
				}
			}
		})
	}
	wg.Wait()
	return first
}

// connect logs a member in and opens its channel.
func (m *members) connect(i int) error {
	dial := proxytest.DialerFrom(fmt.Sprintf("127.0.%d.%d", m.w.Net, 1+i/perAddress))
	dial.KeepAlive = -1 // heartbeats are what is measured
	c, err := proxytest.Dial(proxytest.ClientConfig{Addr: m.w.Addr, Dial: dial.DialContext, Heartbeat: uint16(m.w.Heartbeat / time.Second), Timeout: 30 * time.Second})
	if err != nil {
		return err
	}
	if err := c.OpenChannel(1); err != nil {
		c.Abort()
		return err
	}
	conn := c.Conn()
	m.clients[i] = c
	m.conns[i].Store(&conn)
	return conn.SetDeadline(time.Time{}) // that of its last step is none for its heartbeats
}

// publishOne has a message confirmed.
func publishOne(c *proxytest.Client) error {
	if err := c.Confirm(1); err != nil {
		return err
	}
	if err := c.Publish(1, "", "bench", make([]byte, 100)); err != nil {
		return err
	}
	return c.WaitConfirms(1)
}

// beat sends each member's heartbeats, one after the other, so that they are spread as those of clients that came by and by.
func (m *members) beat() {
	every := m.w.Heartbeat / 2
	began := time.Now()
	for round := time.Duration(0); ; round++ {
		for i := range m.conns {
			time.Sleep(time.Until(began.Add(round*every + every*time.Duration(i)/time.Duration(len(m.conns)))))
			if conn := m.conns[i].Load(); conn != nil {
				if _, err := (*conn).Write(amqp.Heartbeat); err == nil {
					m.sent.Add(1)
				}
			}
		}
	}
}

// rest has every member wait for what comes.
func (m *members) rest() {
	for i := range m.clients {
		c := m.clients[i]
		m.clients[i] = nil // with its buffers: tens of thousands of them are the machine's memory
		m.open.Add(1)
		go m.live(i, c.Conn(), c.Unread())
	}
}

// live listens on a member's connection; when it is lost there is another, until the process ends.
func (m *members) live(i int, conn net.Conn, unread []byte) {
	for {
		err := m.listen(conn, unread)
		lost := time.Now()
		m.conns[i].Store(nil)
		m.open.Add(-1)
		m.lost.Add(1)
		m.fail(err)
		conn.Close()
		conn, unread = m.again(i)
		m.mu.Lock()
		m.away = append(m.away, time.Since(lost))
		m.mu.Unlock()
		m.open.Add(1)
		m.back.Add(1)
	}
}

// listen counts heartbeats until the connection is lost.
func (m *members) listen(conn net.Conn, unread []byte) error {
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	rd := amqp.NewReader(64, 0)
	from := io.MultiReader(bytes.NewReader(bytes.Clone(unread)), conn)
	for {
		f, err := rd.Next()
		switch {
		case err != nil:
			return err
		case f == nil:
			if _, err := rd.Fill(from); err != nil {
				return err
			}
		case f.Type() == amqp.FrameHeartbeat:
			m.heard.Add(1)
		default:
			return fmt.Errorf("got %s, want heartbeats alone", proxytest.Describe(f))
		}
	}
}

// again connects a member anew, at once and then after a pause each time, until a message is confirmed.
func (m *members) again(i int) (net.Conn, []byte) {
	for {
		m.tries.Add(1)
		err := m.connect(i)
		if err == nil {
			c := m.clients[i]
			m.clients[i] = nil
			if err = publishOne(c); err == nil {
				return c.Conn(), c.Unread()
			}
			m.conns[i].Store(nil)
			c.Abort()
		}
		m.fail(err)
		time.Sleep(crowdPause/2 + rand.N(crowdPause))
	}
}

func (m *members) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.why = err
}

func (m *members) count() crowdCount {
	c := crowdCount{Open: int(m.open.Load()), Lost: int(m.lost.Load()), Back: int(m.back.Load()), Tries: int(m.tries.Load()),
		Sent: int(m.sent.Load()), Heard: int(m.heard.Load())}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.why != nil {
		c.Why = m.why.Error()
	}
	if n := len(m.away) - 1; n >= 0 {
		slices.Sort(m.away)
		c.P50, c.P99, c.Max = m.away[n/2], m.away[n*99/100], m.away[n]
	}
	return c
}
