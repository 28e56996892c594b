// A link: one connection to the broker through its handshake. The first half, up to tune, is
// the broker's verdict on user and secret; connection.open its verdict on the vhost.

package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

const (
	// readBuffer is a link's own read buffer; busy ones borrow more.
	readBuffer = 4 << 10
	// startFrameMax bounds the broker's frames before tune.
	startFrameMax = 1 << 20
	// UnboundedFrame bounds a frame where frame_max 0 was negotiated: some bound there must be.
	UnboundedFrame = 16 << 20
)

// Link is one connection to the broker.
type Link struct {
	Conn   net.Conn
	Reader *amqp.Reader
	Target Target
	Info   *Info
	// Tune is what was settled on, after Open.
	Tune amqp.Tune
	// Took is the time from the dial to tune.
	Took time.Duration
	// Answered is the shortest time in which the broker answered during the handshake: the way there and back, and little more.
	Answered time.Duration

	b      *Broker
	health *health    // of its target; nil: it is not counted there
	ip     netip.Addr // of the other end, where that has one
	began  time.Time
	waited bool   // for a login or a vhost, without being read: it may have died meanwhile
	turn   func() // gives back the turn that it has until it serves or is closed; nil: it has none
	ended  sync.Once
	left   sync.Once
}

// greet connects and waits for connection.start.
func (b *Broker) greet(ctx context.Context, cfg *settings, t Target) (*Link, error) {
	conn, err := cfg.Dial(ctx, "tcp", t.Address())
	if err != nil {
		return nil, err
	}
	if v := cfg.ProxyProtocol; v != 0 {
		if err := tell(conn, v, clientOf(ctx)); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	if t.TLS != nil {
		if conn, err = startTLS(ctx, conn, t); err != nil {
			return nil, err
		}
	}
	k := &Link{Conn: conn, Reader: amqp.NewReader(readBuffer, startFrameMax), Target: t, b: b}
	if err := k.greeting(ctx); err != nil {
		_ = conn.Close()
		heard := k.Reader.Buffered()
		return nil, &greetError{err, bytes.Clone(heard[:min(len(heard), 8)])}
	}
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		k.Info.Loopback = a.IP.IsLoopback()
		k.ip = a.AddrPort().Addr().Unmap().WithZone("")
	}
	return k, nil
}

// greeting sends the protocol header and reads connection.start.
func (k *Link) greeting(ctx context.Context) error {
	return k.within(ctx, func() error {
		f, err := k.ask(amqp.ProtocolHeader[:])
		if err == nil {
			k.Info, err = parseStart(f)
		}
		return err
	})
}

// Greets reports what is wrong, if anything, with the greeting of whoever is at conn's other end.
func Greets(ctx context.Context, conn net.Conn) error {
	k := &Link{Conn: conn, Reader: amqp.NewReader(readBuffer, startFrameMax)}
	return k.greeting(ctx)
}

func startTLS(ctx context.Context, conn net.Conn, to Target) (net.Conn, error) {
	cfg := to.TLS
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		cfg.ServerName = to.Host
	}
	t := tls.Client(conn, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, &tlsError{err}
	}
	return t, nil
}

// within runs f, whose reads and writes end with ctx.
func (k *Link) within(ctx context.Context, f func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = k.Conn.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() {
		return ctx.Err() // the deadline stands: the connection is of no use any more
	}
	return err
}

// ask writes p and reads the method of channel 0 that answers it.
func (k *Link) ask(p []byte) (amqp.Frame, error) {
	asked := time.Now()
	if _, err := k.Conn.Write(p); err != nil {
		return nil, err
	}
	f, err := k.next()
	if took := time.Since(asked); err == nil && (k.Answered == 0 || took < k.Answered) {
		k.Answered = took
	}
	return f, err
}

// next reads until the next method of channel 0.
func (k *Link) next() (amqp.Frame, error) {
	for {
		f, err := k.Reader.Next()
		if err != nil {
			return nil, err
		}
		if f == nil {
			if b := k.Reader.Buffered(); len(b) >= 5 && string(b[:4]) == "AMQP" {
				return nil, fmt.Errorf("it speaks another protocol version (%v)", b[4:])
			}
			if _, err := k.Reader.Fill(k.Conn); err != nil {
				return nil, err
			}
			continue
		}
		if f.Type() == amqp.FrameMethod && f.Channel() == 0 {
			return f, nil
		}
	}
}

// logIn is the handshake from start-ok to tune.
func (k *Link) logIn(ctx context.Context, c Credential, props []byte) error {
	var verdict *amqp.Error
	err := k.within(ctx, func() error {
		mechanism, response := "PLAIN", []byte("\x00"+c.User+"\x00"+c.Secret.Reveal())
		if !hasWord(k.Info.Mechanisms, mechanism) && hasWord(k.Info.Mechanisms, "AMQPLAIN") {
			mechanism = "AMQPLAIN"
			response = amqp.AppendStringField(amqp.AppendStringField(nil, "LOGIN", c.User), "PASSWORD", c.Secret.Reveal())
		}
		if c.External {
			mechanism, response = "EXTERNAL", nil
			if !hasWord(k.Info.Mechanisms, mechanism) {
				verdict = amqp.Errorf(amqp.AccessRefused, 0, "Login was refused using authentication mechanism EXTERNAL: the broker offers %s", k.Info.Mechanisms)
				return nil
			}
		}
		startOk := amqp.AppendStartOk(nil, props, mechanism, response, "en_US")
		if most := k.Info.FirstFrame(); most > 0 && len(startOk) > most {
			verdict = amqp.FrameTooLarge(amqp.FrameMethod, uint32(len(startOk)-amqp.FrameOverhead), uint32(most-amqp.FrameOverhead))
			return nil
		}
		f, err := k.ask(startOk)
		if err != nil {
			if isCut(err) && !k.waited && !(k.Info.FailureClose && Announces(props, FailureClose)) {
				// Without authentication_failure_close this is how a broker refuses (spec 1.4.2.2);
				// with it, the broker died.
				verdict, err = RefusedLogin(mechanism), nil
			}
			return err
		}
		switch f.Method() {
		case amqp.ConnectionClose:
			verdict = amqp.ParseClose(f)
			_, _ = k.Conn.Write(amqp.AppendMethod(nil, 0, amqp.ConnectionCloseOk))
			return nil
		case amqp.ConnectionTune:
		default:
			return fmt.Errorf("it sent %v where tune was due", f.Method())
		}
		t, ok := amqp.ParseTune(f)
		if !ok || (t.FrameMax != 0 && t.FrameMax < amqp.FrameMinSize) {
			return errors.New("its tune cannot be understood")
		}
		info := *k.Info
		info.Tune = t
		k.Info = &info
		return nil
	})
	switch {
	case verdict != nil:
		return verdict
	case err != nil:
		return k.broke(ctx, err)
	}
	k.waited = false
	k.Took = time.Since(k.began)
	k.b.info.Store(k.Info)
	return nil
}

// Open is the second half: tune-ok and connection.open in one go. A verdict on the vhost is an *amqp.Error. What is
// open is then for Stand, Quit or Close, what is not for Close: the link's turn lasts until then.
func (k *Link) Open(ctx context.Context, vhost string) error {
	cfg := k.b.conf.Load()
	if k.waited {
		k.began = time.Now()
	}
	ctx, cancel := context.WithDeadline(ctx, k.began.Add(cfg.ConnectTimeout))
	defer cancel()
	t := k.Info.Tune
	if want := cfg.Heartbeat; want > 0 && (t.Heartbeat == 0 || int(want/time.Second) < int(t.Heartbeat)) {
		t.Heartbeat = uint16(want / time.Second)
	}
	k.Tune = t
	var verdict *amqp.Error
	err := k.within(ctx, func() error {
		f, err := k.ask(amqp.AppendOpen(amqp.AppendTune(nil, amqp.ConnectionTuneOk, t), vhost))
		if err != nil {
			return err
		}
		switch f.Method() {
		case amqp.ConnectionClose:
			verdict = amqp.ParseClose(f)
			_, _ = k.Conn.Write(amqp.AppendMethod(nil, 0, amqp.ConnectionCloseOk))
			return nil
		case amqp.ConnectionOpenOk:
			return nil
		}
		return fmt.Errorf("it sent %v where open-ok was due", f.Method())
	})
	switch {
	case verdict != nil:
		return verdict
	case err != nil:
		return k.broke(ctx, err)
	}
	k.Reader.MaxFrame = t.FrameMax
	if t.FrameMax == 0 {
		k.Reader.MaxFrame = UnboundedFrame
	}
	return nil
}

// Wait notes that the link is left alone until its vhost is named.
func (k *Link) Wait() { k.waited = true }

// lost is the error of a connection that ended while nobody looked.
type lost struct{ err error }

func (e *lost) Error() string { return fmt.Sprintf("the connection to the broker was lost: %v", e.err) }
func (e *lost) Unwrap() error { return e.err }

// stale reports whether err is about a connection that waited unread, and not about the broker.
func (k *Link) stale(err error) bool {
	var l *lost
	return errors.As(err, &l)
}

// Lost reports whether err is only that a connection died while it waited for its vhost to be named.
func Lost(err error) bool {
	var l *lost
	return errors.As(err, &l)
}

// broke is the error of a handshake that did not come to its end after the broker had greeted:
// that is about one user or vhost, and no outage for the others.
func (k *Link) broke(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case k.waited:
		return &lost{err}
	}
	e := k.b.conf.Load().unreachable(k.Target, err)
	k.b.log.Warn("broker cannot be reached", "address", e.Address, "error", e.Err)
	return e
}

// Stand counts the link as one that serves: the broker is known to be up while there is one.
func (k *Link) Stand() {
	k.giveTurn()
	k.b.standing.Add(1)
}

// End ends what Stand began. lost: the broker or the network ended it.
func (k *Link) End(lost bool) {
	k.ended.Do(func() {
		if lost {
			k.b.lastUp.Store(0)
		}
		k.b.standing.Add(-1)
	})
	k.leave()
}

// leave counts the link at its target no more.
func (k *Link) leave() {
	k.left.Do(func() {
		if k.health != nil {
			k.health.links.Add(-1)
		}
	})
}

func (k *Link) giveTurn() {
	if k.turn != nil {
		k.turn()
	}
}

// Close ends a link that nobody serves on. It does not wait.
func (k *Link) Close() {
	k.giveTurn()
	k.leave()
	if k.Target.TLS != nil {
		go func() { _ = k.Conn.Close() }() // TLS says goodbye first
		return
	}
	_ = k.Conn.Close()
}

// quitFor bounds the wait for a broker's answer to a close.
const quitFor = time.Second

// Quit ends a link whose vhost is open and that nobody serves on as a client ought to: brokers log whoever only hangs
// up. It waits for the answer, not for long.
func (k *Link) Quit(ctx context.Context) {
	defer k.Close()
	ctx, cancel := context.WithTimeout(ctx, quitFor)
	defer cancel()
	_ = k.within(ctx, func() error {
		_, err := k.Conn.Write(amqp.AppendClose(nil, 0, &amqp.Error{Code: amqp.ReplySuccess, Text: "Goodbye"}))
		for err == nil {
			var f amqp.Frame
			if f, err = k.next(); err == nil && f.Method() == amqp.ConnectionCloseOk {
				return nil
			}
		}
		return err
	})
}

// Moved reports whether the link's target is no longer among those configured.
func (k *Link) Moved() bool { return !k.b.conf.Load().leads(k) }

// RefusedLogin is what RabbitMQ says of a wrong user or password.
func RefusedLogin(mechanism string) *amqp.Error {
	return amqp.Errorf(amqp.AccessRefused, 0, "Login was refused using authentication mechanism %s. "+
		"For details see the broker logfile.", mechanism)
}

func hasWord(words, word string) bool {
	for _, w := range strings.Fields(words) {
		if w == word {
			return true
		}
	}
	return false
}
