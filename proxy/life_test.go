package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// raw reads all that comes on a client's socket, heartbeats too.
type raw struct {
	mu     sync.Mutex
	frames []amqp.Frame
	ended  time.Time
}

func readRaw(c net.Conn) *raw {
	r := &raw{}
	_ = c.SetReadDeadline(time.Time{})
	go func() {
		rd := amqp.NewReader(4096, 0)
		for {
			f, err := rd.Next()
			if f == nil && err == nil {
				_, err = rd.Fill(c)
			}
			r.mu.Lock()
			if f != nil {
				r.frames = append(r.frames, append(amqp.Frame(nil), f...))
			}
			if err != nil {
				r.ended = time.Now()
				r.mu.Unlock()
				return
			}
			r.mu.Unlock()
		}
	}()
	return r
}

func (r *raw) count(want func(amqp.Frame) bool) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.frames {
		if want(f) {
			n++
		}
	}
	return n
}

func isBeat(f amqp.Frame) bool { return f.Type() == amqp.FrameHeartbeat }

func isMethod(m amqp.Method) func(amqp.Frame) bool {
	return func(f amqp.Frame) bool { return f.Type() == amqp.FrameMethod && f.Method() == m }
}

// Heartbeats go out each half interval on their own; a client silent for two is closed.
func TestHeartbeatsOfAClient(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{Heartbeat: 10})
		in := readRaw(c.Conn())
		begin := time.Now()
		for range 12 {
			time.Sleep(5 * time.Second)
			r.must(c.Send(amqp.Heartbeat))
		}
		if n := in.count(isBeat); n < 10 || n > 14 {
			t.Errorf("%d heartbeats in a minute with an interval of 10 s, want about 12", n)
		}
		last := time.Now()
		time.Sleep(30 * time.Second)
		in.mu.Lock()
		defer in.mu.Unlock()
		if d := in.ended.Sub(last); in.ended.IsZero() || d < 20*time.Second || d > 20500*time.Millisecond {
			t.Errorf("the client fell silent after %v and was closed after %v more, want 20 s", last.Sub(begin), d)
		}
	})
}

// A client whose frames wait for the broker is not silent, and hears heartbeats meanwhile.
func TestHeartbeatsGoOnWhileTheBrokerDoesNotRead(t *testing.T) {
	withScript(t, 4<<10, func(c *Config) { c.Heartbeat = 0 }, func(r *rig) {
		done := make(chan *proxytest.Client)
		go func() {
			c, err := r.login(proxytest.ClientConfig{Heartbeat: 4})
			if err != nil {
				t.Error(err)
			}
			done <- c
		}()
		p := r.sc.Accept()
		p.OpenTuned(amqp.Tune{ChannelMax: 100, FrameMax: 131072})
		c := <-done
		r.must(c.OpenChannel(1))
		p.Hold()
		body := make([]byte, 80_000)
		for range 3 {
			r.must(c.Publish(1, "", "q", body))
			synctest.Wait()
		}
		in := readRaw(c.Conn())
		for range 10 {
			time.Sleep(2 * time.Second)
			r.must(c.Send(amqp.Heartbeat))
		}
		if n := in.count(isBeat); n < 8 {
			t.Errorf("%d heartbeats in 20 s, want about 10", n)
		}
		time.Sleep(9 * time.Second) // longer than two intervals; the reader is held up
		p.Read()
		synctest.Wait()
		in.mu.Lock()
		ended := in.ended
		in.mu.Unlock()
		if !ended.IsZero() {
			t.Fatal("the client was closed though it had sent all along")
		}
		if n := r.bodies(r.sc.Records()); len(n) != 3 {
			t.Errorf("%d publishes arrived, want 3", len(n))
		}
		_ = c.Hangup()
	})
}

func TestSilentUpstreamEnds(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.Heartbeat = 0 }, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "q", 0, nil))
		p.OpenChannel()
		p.Expect(amqp.QueueDeclare)
		p.SendMethod(1, amqp.QueueDeclareOk, "q", 0, 0)
		in := readRaw(c.Conn())
		time.Sleep(60 * time.Second)
		if n := in.count(isMethod(amqp.ConnectionClose)); n != 0 {
			t.Error("the client was closed within the broker's heartbeat")
		}
		time.Sleep(60 * time.Second)
		if n := in.count(isMethod(amqp.ConnectionClose)); n != 1 {
			t.Errorf("the client heard connection.close %d times, want once", n)
		}
		beats := 0
		for _, rec := range r.sc.Records() {
			if isBeat(rec.Frame) {
				beats++
			}
		}
		if beats < 1 || beats > 3 {
			t.Errorf("the broker heard %d heartbeats in a minute with an interval of 60 s, want 2", beats)
		}
		_ = c.Hangup()
	})
}

// A client that takes no data ends after write_timeout.
func TestWriteTimeout(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.Heartbeat = 0 }, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
		id := p.OpenChannel()
		p.Expect(amqp.BasicGet)
		begin := time.Now()
		p.Send(proxytest.Method(id, amqp.BasicGetOk, 1, 0, "", "q", 0), proxytest.Header(id, 600<<10))
		for range 6 {
			p.Send(proxytest.Body(id, make([]byte, 100<<10)))
		}
		if !r.eventually(time.Minute, func() bool { return r.s.Stats().Clients == 0 }) {
			t.Fatal("the client is still there")
		}
		if took := time.Since(begin); took < 29*time.Second || took > 33*time.Second {
			t.Errorf("the client ended after %v, want 30 s", took)
		}
		_ = c.Hangup()
	})
}

// The broker's words reach each client of the upstream once, whatever becomes of the socket.
func TestBrokerClosesTheConnection(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		a, p := r.pair(proxytest.ClientConfig{})
		b := r.client(proxytest.ClientConfig{})
		for _, c := range []*proxytest.Client{a, b} {
			r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "q", 0, nil))
			p.OpenChannel()
			p.Expect(amqp.QueueDeclare)
		}
		ia, ib := readRaw(a.Conn()), readRaw(b.Conn())
		p.Send(proxytest.CloseBytes(0, 320, "CONNECTION_FORCED - operator", 0))
		p.Expect(amqp.ConnectionCloseOk)
		p.Close()
		time.Sleep(5 * time.Second)
		for i, in := range []*raw{ia, ib} {
			n := in.count(func(f amqp.Frame) bool {
				return isMethod(amqp.ConnectionClose)(f) && amqp.ParseClose(f).Text == "CONNECTION_FORCED - operator"
			})
			if n != 1 || in.count(isMethod(amqp.ConnectionClose)) != 1 {
				t.Errorf("client %d heard the broker's words %d times, want once", i, n)
			}
		}
		done := make(chan error)
		go func() {
			c, err := r.login(proxytest.ClientConfig{})
			if err == nil {
				_ = c.Hangup()
			}
			done <- err
		}()
		r.sc.AcceptOpen() // the next login finds a fresh upstream
		r.must(<-done)
	})
}

// Clients hear that the broker is lost, and nothing of its address or the network's words, which are the log's.
func TestWhatClientsHearOfALostBroker(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.SendMethod(1, amqp.BasicGet, 0, "q", 1))
		p.OpenChannel()
		p.Expect(amqp.BasicGet)
		p.Cut()
		_, err := c.Await(1, amqp.BasicGetEmpty)
		r.hears(err, amqp.ConnectionForced)
		var e *amqp.Error
		if errors.As(err, &e) && e.Text != "CONNECTION_FORCED - the connection to the broker was lost" {
			t.Errorf("the client hears %q", e.Text)
		}
		if line := lineWith(r.log(), "upstream lost"); !strings.Contains(line, "broker=broker:5672") || !strings.Contains(line, "connection reset by peer") {
			t.Errorf("logged\n%s", line)
		}
	})
}

// What comes in one segment with open-ok is not left lying.
func TestBlockedRightBehindOpenOk(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		p, done := r.loginUntilOpen(proxytest.ClientConfig{})
		p.Send(proxytest.Method(0, amqp.ConnectionOpenOk, ""), proxytest.Method(0, amqp.ConnectionBlocked, "low on memory"))
		c := <-done
		r.must(c.OpenChannel(1))
		r.must(c.Publish(1, "", "q", nil))
		_, err := c.Await(0, amqp.ConnectionBlocked)
		r.must(err)
		_ = c.Hangup()
	})
}

// Blocked and unblocked reach who publishes, once each, late ones too, and not who reads;
// also when the upstream ends meanwhile.
func TestAlarm(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		pub, get, late := r.client(proxytest.ClientConfig{}), r.client(proxytest.ClientConfig{}), r.client(proxytest.ClientConfig{})
		_, err := pub.DeclareQueue(1, "q", 0)
		r.must(err)
		r.must(pub.Publish(1, "", "q", []byte("x")))
		synctest.Wait()
		r.b.Block("memory")
		synctest.Wait()
		if st := r.s.Stats(); st.UpstreamsBlocked == 0 || !st.BrokerUp {
			t.Errorf("amid the alarm %d upstreams are blocked, the broker is up: %v", st.UpstreamsBlocked, st.BrokerUp)
		}
		inPub, inLate := readRaw(pub.Conn()), readRaw(late.Conn())
		r.must(late.Publish(1, "", "q", []byte("y")))
		for range 5 {
			r.must(pub.Publish(1, "", "q", []byte("z")))
		}
		synctest.Wait()
		m, err := get.Get(1, "q", true)
		r.must(err)
		if string(m.Body) != "x" {
			t.Errorf("got %q amid the alarm, want x", m.Body)
		}
		r.b.Unblock()
		synctest.Wait()
		if n := r.s.Stats().UpstreamsBlocked; n != 0 {
			t.Errorf("after the alarm %d upstreams are blocked", n)
		}
		for i, in := range []*raw{inPub, inLate} {
			b, u := in.count(isMethod(amqp.ConnectionBlocked)), in.count(isMethod(amqp.ConnectionUnblocked))
			if b != 1 || u != 1 {
				t.Errorf("publisher %d heard blocked %d times and unblocked %d times, want once each", i, b, u)
			}
		}
		if f, err := get.NextWithin(time.Second); err == nil {
			t.Errorf("the reader heard %s", proxytest.Describe(f))
		}
		for _, c := range []*proxytest.Client{pub, get, late} {
			_ = c.Hangup()
		}
	})
}

// A soft error may come while the client is half way through a publish: it answers and goes on.
func TestChannelClosedHalfWayThroughAPublish(t *testing.T) {
	for _, spilled := range []bool{false, true} {
		withScript(t, 0, nil, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{})
			size := 100
			if spilled {
				size = 200_000
			}
			r.must(c.Publish(1, "", "gone", nil))
			p.OpenChannel()
			p.ExpectContent(amqp.BasicPublish)
			r.must(c.Send(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0), proxytest.Header(1, uint64(size)), proxytest.Body(1, make([]byte, 50))))
			synctest.Wait()
			p.Send(proxytest.CloseBytes(1, 404, "NOT_FOUND", amqp.BasicPublish))
			p.Expect(amqp.ChannelCloseOk)
			e, err := c.Closed(1)
			r.must(err)
			r.hears(e, 404, "NOT_FOUND")
			r.must(c.OpenChannel(1))
			r.must(c.Publish(1, "", "q", []byte("after")))
			p.OpenChannel()
			if _, _, body := p.ExpectContent(amqp.BasicPublish); string(body) != "after" {
				t.Errorf("got %q", body)
			}
			_ = c.Hangup()
		})
	}
}

// A channel that declared without awaiting the answer moves only when that has arrived.
func TestMoveWaitsForDeclarationsWithoutAnswer(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "q", 1<<4, nil)))
		id := p.OpenChannel()
		p.Expect(amqp.QueueDeclare)
		r.must(c.SendMethod(1, amqp.BasicConsume, 0, "q", "t", 2, nil)) // no-ack: a session
		q := r.sc.AcceptOpen()
		p.ExpectOn(id, amqp.ChannelClose)
		q.ExpectNothing(time.Second)
		p.SendMethod(id, amqp.ChannelCloseOk)
		q.OpenChannel()
		q.Expect(amqp.BasicConsume)
		_ = c.Hangup()
	})
}

// Stopping: idle clients have drain_timeout, then hear 320; what was read and answered arrives.
func TestDrain(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		idle, busy := r.client(proxytest.ClientConfig{}), r.client(proxytest.ClientConfig{})
		_, err := busy.DeclareQueue(1, "q", 0)
		r.must(err)
		r.must(busy.Confirm(1))
		in := readRaw(idle.Conn())
		begin := time.Now()
		stopped := make(chan time.Time)
		go func() { r.must(r.s.Shutdown(context.Background())); stopped <- time.Now() }()
		synctest.Wait()
		if _, err := r.in.Dial(context.Background(), "", ""); err == nil {
			t.Error("a client was accepted while stopping")
		}
		var confirmed int
		for {
			if busy.Publish(1, "", "q", fmt.Append(nil, confirmed)) != nil || busy.WaitConfirms(1) != nil {
				break
			}
			confirmed++
			time.Sleep(100 * time.Millisecond)
		}
		end := <-stopped
		if d := end.Sub(begin); d < 20*time.Second || d > 24*time.Second {
			t.Errorf("stopping took %v, want drain_timeout = 20 s and a little", d)
		}
		if n := in.count(isMethod(amqp.ConnectionClose)); n != 1 {
			t.Errorf("the idle client heard connection.close %d times, want once", n)
		}
		if n := r.b.Messages("/", "q"); n < confirmed || confirmed < 150 {
			t.Errorf("%d messages are in the queue, %d were confirmed", n, confirmed)
		}
		select {
		case <-r.s.Done():
		default:
			t.Error("Done is not closed")
		}
	})
}

// Publishes answered with a quiet close just before the end arrive all the same.
func TestDrainLosesNothingAnswered(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		r.must(c.Close())
		var sent atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					conn, err := r.in.Dial(context.Background(), "", "")
					if err != nil {
						return
					}
					c := proxytest.NewClient(conn, proxytest.ClientConfig{})
					if c.Handshake() == nil && c.OpenChannel(1) == nil && c.Publish(1, "", "q", []byte("x")) == nil &&
						c.CloseChannel(1) == nil && c.Close() == nil {
						sent.Add(1)
					}
					_ = c.Hangup()
					time.Sleep(time.Millisecond)
				}
			})
		}
		time.Sleep(300 * time.Millisecond)
		r.must(r.s.Shutdown(context.Background()))
		wg.Wait()
		if n := r.b.Messages("/", "q"); n < int(sent.Load()) || sent.Load() < 100 {
			t.Errorf("%d messages arrived of %d whose close was answered", n, sent.Load())
		}
	})
}

// A reload to another broker uses up what stands; what comes goes to the new one.
func TestReload(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		cfg := *r.s.cfg()
		cfg.Upstream.Port = 5999
		cfg.MaxChannels = 0
		if _, err := r.s.Reload(cfg); err == nil || r.s.cfg().Upstream.Port != 5672 {
			t.Errorf("a bad configuration was taken: %v", err)
		}
		cfg.MaxChannels = 7
		cfg.Listeners = []Listener{{Address: "127.0.0.1:1", Mode: PoolAuto}}
		need, err := r.s.Reload(cfg)
		if err != nil || len(need) != 1 {
			t.Errorf("got %v, %v; want one setting that needs a restart", need, err)
		}
		r.must(c.Publish(1, "", "q", []byte("old")))
		d := r.client(proxytest.ClientConfig{})
		_, err = d.DeclareQueue(1, "q", 0)
		r.must(err)
		if n := r.b.Counts().Open; n != 2 {
			t.Errorf("%d connections at the broker, want one from before the reload and one from after", n)
		}
		r.must(c.Close())
		if !r.eventually(2*time.Second, func() bool { return r.b.Counts().Open == 1 }) {
			t.Error("the upstream from before the reload stays")
		}
		r.must(d.Close())
	})
}

// Whatever a broker that is none sends, the proxy ends that connection and no more.
func TestGarbageFromTheBroker(t *testing.T) {
	for i, bad := range [][]byte{
		bytes.Repeat([]byte{0xff}, 64),
		proxytest.Method(9, amqp.BasicDeliver, "t", 1, 0, "", "q"),
		proxytest.Body(9, []byte("x")), proxytest.Header(9, 1), proxytest.Body(1, []byte("x")), proxytest.Header(1, 5),
		proxytest.Method(9, amqp.ChannelCloseOk), proxytest.Method(1, amqp.ChannelCloseOk),
		amqp.AppendFrame(nil, amqp.FrameMethod, 1, nil), amqp.AppendFrame(nil, amqp.FrameMethod, 0, []byte{1}),
		amqp.AppendFrame(nil, amqp.FrameHeader, 1, nil), amqp.AppendFrame(nil, amqp.FrameMethod, 1, []byte{0, 60, 0, 60}),
		amqp.AppendFrame(nil, amqp.FrameMethod, 1, []byte{0, 60, 0, 60, 200}), amqp.AppendFrame(nil, amqp.FrameMethod, 1, []byte{0, 60, 0, 71}),
		amqp.AppendFrame(nil, amqp.FrameMethod, 1, []byte{0, 60, 0, 80}), amqp.AppendFrame(nil, amqp.FrameMethod, 1, []byte{0, 20, 0, 40}),
		amqp.AppendFrame(nil, amqp.FrameMethod, 0, []byte{0, 10, 0, 50}), amqp.AppendFrame(nil, amqp.FrameMethod, 0, []byte{0, 10, 0, 60}),
		proxytest.Method(0, amqp.ConnectionUnblocked), proxytest.Method(0, amqp.ConnectionUpdateSecretOk),
		proxytest.Method(1, amqp.BasicQosOk), proxytest.Method(1, amqp.TxCommitOk), proxytest.Method(1, amqp.BasicCancel, "x", 0),
		proxytest.Method(1, amqp.BasicAck, uint64(1)<<63, 1), amqp.AppendFrame(nil, 77, 1, []byte("x")), []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		{1, 0, 1, 0xff, 0xff, 0xff, 0xff},
	} {
		withScript(t, 0, nil, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{FrameMax: 4096})
			r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "q", 0, nil))
			p.OpenChannel()
			p.Expect(amqp.QueueDeclare)
			p.Send(bad)
			synctest.Wait()
			if p.Err() == nil {
				p.SendMethod(1, amqp.QueueDeclareOk, "q", 0, 0)
			}
			_, err := c.Await(1, amqp.QueueDeclareOk)
			var e *amqp.Error
			if err != nil && !errors.As(err, &e) && !errors.Is(err, io.EOF) && i < 20 {
				t.Errorf("case %d: the client hears %v", i, err)
			}
			_ = c.Hangup()
		})
	}
}

// A client that ends while its frames wait for the broker leaves no channel open there,
// and closes none that it had not opened.
func TestClientEndsWhileItsRunWaits(t *testing.T) {
	withScript(t, 4<<10, func(c *Config) { c.MaxUpstreams, c.CloseTimeout, c.Heartbeat = 1, time.Minute, 0 }, func(r *rig) {
		done := make(chan *proxytest.Client)
		go func() {
			c, err := r.login(proxytest.ClientConfig{})
			if err != nil {
				t.Error(err)
			}
			done <- c
		}()
		p := r.sc.Accept()
		p.OpenTuned(amqp.Tune{ChannelMax: 100, FrameMax: 131072})
		a := <-done
		r.must(a.OpenChannel(1))
		b := r.client(proxytest.ClientConfig{Heartbeat: 2})
		c := r.client(proxytest.ClientConfig{Heartbeat: 2})
		d := r.client(proxytest.ClientConfig{})
		r.must(c.Publish(1, "", "q", []byte("before"))) // its channel is bound before the jam
		p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		p.Hold()
		small := proxytest.PublishBytes(1, "", "q", make([]byte, 20_000), 0)
		r.must(a.Send(small)) // its reader writes, and waits
		synctest.Wait()
		for range 20 {
			r.must(d.Send(small)) // this one fills the queue
			synctest.Wait()
		}
		r.must(b.Publish(1, "", "q", []byte("opened late")))
		r.must(c.Send(proxytest.PublishBytes(1, "", "q", []byte("closed late"), 0), proxytest.Method(1, amqp.ChannelClose, 200, "", 0, 0)))
		synctest.Wait()
		b.Abort()
		c.Abort()
		time.Sleep(5 * time.Second) // a heartbeat cannot be written
		p.Read()
		if n := r.s.Stats().Clients; n > 3 {
			t.Errorf("%d clients", n)
		}
		r.sc.Wait("two closes", func(rs []proxytest.Record) bool { return proxytest.Count(rs, amqp.ChannelClose) == 2 })
		synctest.Wait()
		open := map[uint16]bool{}
		for _, rec := range r.sc.Records() {
			f := rec.Frame
			if f.Channel() == 0 {
				continue
			}
			switch isOpen := isMethod(amqp.ChannelOpen)(f); {
			case isOpen:
				open[f.Channel()] = true
			case !open[f.Channel()]:
				t.Fatalf("%v on a channel that is not open\n%s", rec, r.sc.Log())
			case isMethod(amqp.ChannelClose)(f):
				delete(open, f.Channel())
			}
		}
		r.bodies(r.sc.Records())
		_ = a.Hangup()
		_ = d.Hangup()
	})
}

// A client was not silent while it waited for the broker's verdict.
func TestHeartbeatsAfterASlowLogin(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		p, done := r.loginUntilOpen(proxytest.ClientConfig{Heartbeat: 1})
		time.Sleep(4 * time.Second)
		p.SendMethod(0, amqp.ConnectionOpenOk, "")
		c := <-done
		time.Sleep(500 * time.Millisecond)
		r.must(c.Send(amqp.Heartbeat))
		r.must(c.OpenChannel(1))
		_ = c.Hangup()
	})
}

// A client that is being closed is not cut short because it came to rest just then.
func TestCloseOfARestingClient(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		synctest.Wait()
		r.s.mu.Lock()
		for _, x := range r.s.clients.appendTo(nil, nil) {
			x.phase.Store(phaseClosing) // as closeLocked does, before its words have left
			x.closeAt.Store(x.env.now() + int64(closeGrace))
			_ = x.conn.SetReadDeadline(time.Unix(1, 0)) // as rest does, which saw it running
		}
		r.s.mu.Unlock()
		time.Sleep(closeGrace / 2)
		if n := r.s.Stats().Clients; n != 1 {
			t.Error("the client's socket was closed without waiting for it")
		}
		time.Sleep(closeGrace)
		if n := r.s.Stats().Clients; n != 0 {
			t.Error("the client is still there")
		}
		_ = c.Hangup()
	})
}

// A broker that halts publishers by channel.flow has its answer from the client.
func TestFlowFromTheBroker(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Publish(1, "", "q", nil))
		id := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		for active := range 2 {
			p.SendMethod(id, amqp.ChannelFlow, active)
			_, err := c.Await(1, amqp.ChannelFlow)
			r.must(err)
			r.must(c.SendMethod(1, amqp.ChannelFlowOk, active))
			p.ExpectOn(id, amqp.ChannelFlowOk)
		}
		r.must(c.SendMethod(1, amqp.ChannelFlowOk, 1)) // nobody asked
		e, err := c.Closed(0)
		r.must(err)
		r.hears(e, amqp.CommandInvalid, "unimplemented method")
		_ = c.Hangup()
	})
}

// slowClose is a connection whose end takes its time, as with TLS, which says goodbye first.
type slowClose struct{ net.Conn }

func (c slowClose) Close() error {
	time.Sleep(5 * time.Second)
	return c.Conn.Close()
}

// While the socket of a dead upstream is being closed nobody is sent there, and the clock
// that all heartbeats hang on goes on.
func TestUpstreamThatEndsSlowly(t *testing.T) {
	withScript(t, 0, func(c *Config) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			return slowClose{conn}, err
		}
	}, func(r *rig) {
		c, _ := r.pair(proxytest.ClientConfig{}) // nothing of it is there when the upstream ends
		u := r.s.allPools()[0].ups[0]
		clock := r.s.now()
		u.lastRead.Store(clock - int64(10*time.Minute)) // the janitor finds it silent
		time.Sleep(time.Second)
		if took := time.Duration(r.s.now() - clock); took < 900*time.Millisecond {
			t.Errorf("the clock went on by %v in a second", took)
		}
		r.must(c.Publish(1, "", "q", nil))
		r.sc.AcceptOpen().OpenChannel()
		_ = c.Hangup()
	})
}
