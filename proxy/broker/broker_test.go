package broker

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

type rig struct {
	b    *Broker
	sc   *proxytest.Script
	to   *proxytest.MemListener
	cfg  Config
	mu   sync.Mutex
	asks int // dials
	logs strings.Builder
}

func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logs.Write(p)
}

func (r *rig) dials() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asks
}

// withBroker is a test of a Broker before a scripted one.
func withBroker(t *testing.T, test func(*rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{to: proxytest.ListenMem("broker:5672", 0)}
		r.sc = proxytest.NewScript(t, r.to)
		r.cfg = Config{Targets: []Target{{Host: "broker", Port: 5672}}, ConnectTimeout: 5 * time.Second,
			RetryDelay: time.Second, WaitTimeout: 5 * time.Second, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				r.mu.Lock()
				r.asks++
				r.mu.Unlock()
				return r.to.Dial(ctx, network, address)
			}}
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		r.b = New(ctx, slog.New(slog.NewTextHandler(io.Writer(r), nil)), func(f func()) { wg.Go(f) }, r.cfg)
		test(r)
		stop()
		r.b.Close()
		wg.Wait()
		time.Sleep(greetedFor) // timers of the bubble end
		for l, turns := range r.b.turns {
			if len(turns) != 0 {
				t.Errorf("%d turns of lane %d are not given back", len(turns), l)
			}
		}
	})
}

var ctx = context.Background()

func props() []byte {
	return amqp.AppendTableField(nil, "capabilities", amqp.AppendBoolField(nil, FailureClose, true))
}

// in runs f beside the script.
func in(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func (r *rig) login(l Lane, user string) <-chan error {
	return in(func() error {
		k, err := r.b.Login(ctx, l, Credential{User: user, Secret: NewSecret("s3cret")}, props())
		if err != nil {
			return err
		}
		defer k.Close()
		return k.Open(ctx, "/")
	})
}

func TestLoginAndOpen(t *testing.T) {
	withBroker(t, func(r *rig) {
		done := r.login(Known, "u")
		l := r.sc.AcceptOpen().Login
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if l.User != "u" || l.Password != "s3cret" || l.VHost != "/" {
			t.Errorf("the broker heard %+v", l)
		}
		if i := r.b.Info(); i == nil || i.Product != "RabbitMQ" || !i.AtLeast(3, 10) || i.AtLeast(3, 11) || !i.Confirms || !i.FailureClose {
			t.Errorf("learned %+v", i)
		}
	})
}

// The broker's verdicts are its own words, whatever the half of the handshake.
func TestVerdicts(t *testing.T) {
	withBroker(t, func(r *rig) {
		done := r.login(Strangers, "u")
		p := r.sc.Accept()
		p.Start()
		p.Send(proxytest.CloseBytes(0, 403, "ACCESS_REFUSED - no", 0))
		var e *amqp.Error
		if err := <-done; !errors.As(err, &e) || e.Code != 403 || e.Text != "ACCESS_REFUSED - no" {
			t.Errorf("heard %v", err)
		}
		done = r.login(Known, "u")
		p = r.sc.Accept()
		p.Start()
		p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
		p.Expect(amqp.ConnectionTuneOk)
		p.Expect(amqp.ConnectionOpen)
		p.Send(proxytest.CloseBytes(0, 530, "NOT_ALLOWED - vhost", 0))
		if err := <-done; !errors.As(err, &e) || e.Code != 530 || e.Text != "NOT_ALLOWED - vhost" {
			t.Errorf("heard %v", err)
		}
		if r.b.Down() != nil {
			t.Error("a verdict counts as an outage")
		}
	})
}

// Who does not announce authentication_failure_close is refused by the end of the socket,
// be it a reset; who does has lost the broker then.
func TestRefusedByTheEndOfTheSocket(t *testing.T) {
	for _, reset := range []bool{false, true} {
		for _, announced := range []bool{false, true} {
			withBroker(t, func(r *rig) {
				p := []byte{}
				if announced {
					p = props()
				}
				done := in(func() error {
					_, err := r.b.Login(ctx, Known, Credential{User: "u", Secret: NewSecret("x")}, p)
					return err
				})
				peer := r.sc.Accept()
				peer.Start()
				if reset {
					peer.Cut()
				} else {
					peer.Close()
				}
				err := <-done
				var e *amqp.Error
				if refused := errors.As(err, &e) && e.Code == amqp.AccessRefused; refused == announced {
					t.Errorf("reset %v, announced %v: heard %v", reset, announced, err)
				}
			})
		}
	}
}

// Refused: at once for retry_delay, then one probe, whose verdict all who came meanwhile share.
func TestBreaker(t *testing.T) {
	withBroker(t, func(r *rig) {
		r.to.Refuse(fmt.Errorf("dial: %w", syscall.ECONNREFUSED))
		var un *Unreachable
		if err := <-r.login(Known, "u"); !errors.As(err, &un) {
			t.Fatalf("heard %v", err)
		}
		if un.ForClients() != "the broker cannot be reached" || !strings.Contains(un.Error(), "broker:5672") {
			t.Errorf("clients hear %q, the log %q", un.ForClients(), un.Error())
		}
		for range 10 {
			if err := <-r.login(Known, "u"); !errors.As(err, &un) {
				t.Fatalf("heard %v", err)
			}
		}
		if r.dials() != 1 || r.b.Down() == nil {
			t.Errorf("%d dials, down: %v; want one within retry_delay", r.dials(), r.b.Down())
		}
		r.to.Refuse(nil)
		time.Sleep(time.Second)
		if r.b.Down() != nil {
			t.Error("still open after retry_delay")
		}
		var all []<-chan error
		for range 10 {
			all = append(all, r.login(Known, "u"))
		}
		synctest.Wait()
		if n := r.dials(); n != 2 {
			t.Errorf("%d dials, want one probe", n)
		}
		first := r.sc.Accept()
		answered := in(func() error { first.Open(); return nil })
		<-answered
		for range 9 {
			p := r.sc.Accept()
			go p.Open()
		}
		for _, done := range all {
			if err := <-done; err != nil {
				t.Errorf("after the outage: %v", err)
			}
		}
	})
}

// One dial without an answer is no outage, three in a row are. What this process lacks never is.
func TestWhatIsNoOutage(t *testing.T) {
	withBroker(t, func(r *rig) {
		for i := range slowInARow {
			if r.b.Down() != nil {
				t.Fatalf("%d dials without an answer are an outage", i)
			}
			err := <-r.login(Known, "u") // the script never answers
			var un *Unreachable
			if !errors.As(err, &un) || !strings.Contains(un.ForClients(), "no answer within connect_timeout = 5s") {
				t.Errorf("heard %v", err)
			}
		}
		if r.b.Down() == nil {
			t.Error("three dials without an answer are no outage")
		}
	})
	withBroker(t, func(r *rig) {
		for _, lack := range []error{syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL} {
			r.to.Refuse(fmt.Errorf("socket: %w", lack))
			if err := <-r.login(Known, "u"); err == nil || r.b.Down() != nil {
				t.Errorf("%v: heard %v, down %v", lack, err, r.b.Down())
			}
		}
	})
	for err, want := range map[error]outcome{
		syscall.EHOSTUNREACH: away, syscall.ECONNREFUSED: away, io.EOF: away, x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}: away,
		&net.DNSError{IsNotFound: true}: away, &net.DNSError{IsTemporary: true}: slow, context.Canceled: noVerdict, context.DeadlineExceeded: slow,
	} {
		if got := judge(fmt.Errorf("dial: %w", err)); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

// A dial ends when nobody waits for it, and tells nothing of the broker then.
func TestNobodyWaits(t *testing.T) {
	withBroker(t, func(r *rig) {
		for range 2 * slowInARow {
			c, cancel := context.WithCancel(ctx)
			done := in(func() error {
				_, err := r.b.Login(c, Strangers, Credential{User: "u", Secret: NewSecret("x")}, props())
				return err
			})
			synctest.Wait()
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("heard %v", err)
			}
		}
		if r.b.Down() != nil || r.logs.Len() > 0 {
			t.Errorf("down: %v; log: %s", r.b.Down(), r.logs.String())
		}
	})
}

// A turn for a vhost that may not be there lasts until the broker has judged it.
func TestVHostsAtATime(t *testing.T) {
	withBroker(t, func(r *rig) {
		const more = 10
		var all []<-chan error
		for range VHostsAtATime + more {
			all = append(all, r.login(VHosts, "u"))
		}
		loggedIn := make(chan *proxytest.Peer, VHostsAtATime+more)
		for range VHostsAtATime {
			p := r.sc.Accept()
			p.Start()
			p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
			p.Expect(amqp.ConnectionTuneOk)
			p.Expect(amqp.ConnectionOpen)
			loggedIn <- p
		}
		synctest.Wait()
		if n := r.dials(); n != VHostsAtATime {
			t.Fatalf("%d dials while %d vhosts are not open yet, want no more", n, VHostsAtATime)
		}
		for i := range more { // a verdict and a connection that dies give the turn back
			if p := <-loggedIn; i%2 == 0 {
				p.Send(proxytest.CloseBytes(0, 530, "NOT_ALLOWED - vhost", 0))
			} else {
				p.Cut()
			}
			go r.sc.Accept().Open()
		}
		for range VHostsAtATime - more {
			(<-loggedIn).SendMethod(0, amqp.ConnectionOpenOk, "")
		}
		failed := 0
		for _, done := range all {
			if err := <-done; err != nil {
				failed++
			}
		}
		if failed != more {
			t.Errorf("%d failed, want %d", failed, more)
		}
	})
}

// A vhost that was only looked at keeps its turn until the broker has answered the goodbye, or has had its time for it;
// one that serves gives it back at once.
func TestVHostsThatAreLeft(t *testing.T) {
	withBroker(t, func(r *rig) {
		turns := func() int {
			synctest.Wait()
			return len(r.b.turns[VHosts])
		}
		opened := func() *Link {
			var k *Link
			done := in(func() (err error) {
				if k, err = r.b.Login(ctx, VHosts, Credential{User: "u", Secret: NewSecret("s3cret")}, props()); err != nil {
					return err
				}
				return k.Open(ctx, "/")
			})
			r.sc.AcceptOpen()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			return k
		}
		left := opened()
		done := in(func() error { left.Quit(ctx); return nil })
		if n := turns(); n != 1 {
			t.Errorf("%d turns are taken while the broker is told goodbye, want one", n)
		}
		<-done // it did not answer
		if n := turns(); n != 0 {
			t.Errorf("%d turns are taken when the link is closed", n)
		}
		serves := opened()
		if n := turns(); n != 1 {
			t.Errorf("%d turns are taken before it is known what the link is for, want one", n)
		}
		serves.Stand()
		if n := turns(); n != 0 {
			t.Errorf("%d turns are taken while the link serves", n)
		}
		serves.End(false)
		serves.Close()
	})
}

// Strangers wait for one another, and never hold up who is known.
func TestLanes(t *testing.T) {
	withBroker(t, func(r *rig) {
		var all []<-chan error
		for range StrangersAtATime + 10 {
			all = append(all, r.login(Strangers, "stranger"))
		}
		synctest.Wait()
		if n := r.dials(); n != StrangersAtATime {
			t.Fatalf("%d dials of strangers at a time, want %d", n, StrangersAtATime)
		}
		known := r.login(Known, "known")
		synctest.Wait()
		if n := r.dials(); n != StrangersAtATime+1 {
			t.Fatalf("the known user waits behind strangers")
		}
		for range StrangersAtATime + 1 {
			p := r.sc.Accept()
			go p.Open()
		}
		if err := <-known; err != nil {
			t.Error(err)
		}
		for range 10 {
			p := r.sc.Accept()
			go p.Open()
		}
		for _, done := range all {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// The broker's greeting is fetched once for all who wait; the next login takes that connection.
func TestGreeting(t *testing.T) {
	withBroker(t, func(r *rig) {
		g := r.b.Greet()
		if g == nil || r.b.Greet() != g {
			t.Fatal("nothing is known of the broker, but it is not asked, or twice")
		}
		done := in(func() error { <-g.Done(); return g.Err() })
		p := r.sc.Accept()
		p.ExpectHeader()
		p.Send(amqp.AppendStart(nil, proxytest.RabbitMQProperties("3.10.8"), "PLAIN", "en_US"))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if r.b.Greet() != nil {
			t.Error("it has just greeted, but is asked again")
		}
		login := r.login(Strangers, "u")
		p.Expect(amqp.ConnectionStartOk)
		p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
		p.Expect(amqp.ConnectionTuneOk)
		p.Expect(amqp.ConnectionOpen)
		p.SendMethod(0, amqp.ConnectionOpenOk, "")
		if err := <-login; err != nil {
			t.Fatal(err)
		}
		if n := r.dials(); n != 1 {
			t.Errorf("%d dials, want one", n)
		}
		time.Sleep(2 * upFor)
		if r.b.Greet() == nil {
			t.Error("no connection stands, but it counts as being up")
		}
		r.sc.Accept().Cut()
	})
}

// A greeted connection that died while it waited is replaced; one that nobody takes is closed.
func TestGreetedConnectionDies(t *testing.T) {
	greeted := func(r *rig) *proxytest.Peer {
		g := r.b.Greet()
		p := r.sc.Accept()
		p.ExpectHeader()
		p.Send(amqp.AppendStart(nil, proxytest.RabbitMQProperties("3.10.8"), "PLAIN", "en_US"))
		<-g.Done()
		return p
	}
	withBroker(t, func(r *rig) {
		greeted(r).Cut()
		synctest.Wait()
		done := r.login(Known, "u")
		r.sc.AcceptOpen()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	withBroker(t, func(r *rig) {
		p := greeted(r)
		time.Sleep(greetedFor + time.Second)
		p.ExpectEnd()
	})
}

// While the broker is away the greeting fails, at once within retry_delay.
func TestNoGreeting(t *testing.T) {
	withBroker(t, func(r *rig) {
		r.to.Refuse(syscall.ECONNREFUSED)
		for range 5 {
			g := r.b.Greet()
			<-g.Done()
			if g.Err() == nil {
				t.Fatal("greeted by nobody")
			}
		}
		if r.dials() != 1 {
			t.Errorf("%d dials, want one", r.dials())
		}
	})
}

// The second target is taken when the first cannot be reached; Set keeps what is known of both.
func TestTargets(t *testing.T) {
	withBroker(t, func(r *rig) {
		dial := r.cfg.Dial
		var asked []string
		r.cfg.Targets, r.cfg.InOrder = []Target{{Host: "a", Port: 1}, {Host: "b", Port: 2}}, true
		r.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			asked = append(asked, address)
			if address == "a:1" {
				return nil, syscall.ECONNREFUSED
			}
			return dial(ctx, network, address)
		}
		if r.b.Set(r.cfg) != LeftAll {
			t.Error("other targets are no move")
		}
		for range 2 {
			done := r.login(Known, "u")
			r.sc.AcceptOpen()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if r.b.Set(r.cfg) != LeftNone {
				t.Error("the same targets are a move")
			}
		}
		if got := fmt.Sprint(asked); got != "[a:1 b:2 b:2]" {
			t.Errorf("asked %s", got)
		}
		if r.b.Down() != nil {
			t.Error("one target is away, but not the broker")
		}
	})
}

// A start-ok that RabbitMQ would cut the connection for is refused here.
func TestStartOkTooLarge(t *testing.T) {
	withBroker(t, func(r *rig) {
		done := in(func() error {
			_, err := r.b.Login(ctx, Strangers, Credential{User: "u", Secret: NewSecret(strings.Repeat("p", 4096))}, props())
			return err
		})
		p := r.sc.Accept()
		p.ExpectHeader()
		p.Send(amqp.AppendStart(nil, proxytest.RabbitMQProperties("3.10.8"), "PLAIN", "en_US"))
		var e *amqp.Error
		if err := <-done; !errors.As(err, &e) || e.Code != amqp.FrameError {
			t.Errorf("heard %v", err)
		}
	})
}

func TestSecretIsNotPrinted(t *testing.T) {
	c := Credential{User: "u", Secret: NewSecret("hunter2")}
	// Fields that fmt cannot ask are printed as they are.
	hidden := struct {
		s Secret
		c Credential
		p *Credential
		m map[Credential]*Secret
	}{c.Secret, c, &c, map[Credential]*Secret{c: &c.Secret}}
	var out strings.Builder
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "c", c, "s", c.Secret, "p", &c, "h", hidden, "e", fmt.Errorf("no: %v", hidden))
	}
	for _, f := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out.WriteString(fmt.Sprintf(f+f+f+f+f, c, c.Secret, &c, hidden, &hidden))
	}
	for _, v := range []any{c, c.Secret, &c, map[string]Secret{"k": c.Secret}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
	}
	out.WriteString(c.Secret.String() + c.Secret.GoString() + c.Secret.LogValue().String())
	for _, leak := range []string{"hunter", fmt.Sprintf("%x", "hunter"), fmt.Sprint([]byte("hunter"))[1:20]} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("%q is in\n%s", leak, out.String())
		}
	}
	if !strings.Contains(out.String(), redacted) || c.Secret.Reveal() != "hunter2" {
		t.Error("nothing is printed, or nothing is kept")
	}
}

// Secrets are keys of maps: equal ones are the same.
func TestSecretsCompare(t *testing.T) {
	if NewSecret("a") != NewSecret(string([]byte{'a'})) || NewSecret("a") == NewSecret("b") || NewSecret("") != (Secret{}) || (Secret{}).Reveal() != "" {
		t.Error("equal secrets differ, or different ones do not")
	}
}
