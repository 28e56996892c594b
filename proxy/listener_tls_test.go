package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func newCerts(t *testing.T) *proxytest.Certs {
	t.Helper()
	c, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issued is a certificate of the CA for a name.
func issued(t *testing.T, ca *proxytest.Certs, leaf x509.Certificate) tls.Certificate {
	t.Helper()
	cert, key, err := ca.Issue(leaf)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func serverOf(t *testing.T, ca *proxytest.Certs, names ...string) *ServerTLS {
	t.Helper()
	s := &ServerTLS{MinVersion: tls.VersionTLS12, ClientCert: ClientCertNone}
	for _, n := range names {
		s.Certificates = append(s.Certificates, issued(t, ca, x509.Certificate{Subject: pkix.Name{CommonName: n}, DNSNames: []string{n}}))
		s.Files = append(s.Files, n)
	}
	return s
}

// withTLS is a test of a proxy whose only listener speaks TLS. make is called in the bubble,
// whose clock certificates must suit.
func withTLS(t *testing.T, make func() *ServerTLS, test func(*rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0)}
		r.b = proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: r.to})
		r.start(func(cfg *Config) { cfg.Listeners[0].TLS = make() })
		test(r)
		r.settled()
	})
}

// socket is a connection to the proxy over which nothing is spoken.
func (r *rig) socket() net.Conn {
	r.t.Helper()
	c, err := r.in.Dial(bg, "tcp", "")
	r.must(err)
	return c
}

func (r *rig) shakes() []uint64 { return r.s.Stats().Listeners[0].TLSHandshakes }

// What is spoken over TLS is what is spoken without: logins, publishes of any size, deliveries,
// a reader that rests meanwhile, a close.
func TestTLSListener(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			var ca *proxytest.Certs
			withTLS(t, func() *ServerTLS { ca = newCerts(t); return serverOf(t, ca, "localhost") }, func(r *rig) {
				cfg := ca.Client()
				cfg.MinVersion, cfg.MaxVersion = version, version
				c := r.client(proxytest.ClientConfig{TLS: cfg})
				_, err := c.DeclareQueue(1, "q", 0)
				r.must(err)
				big := strings.Repeat("x", 300<<10)
				r.must(c.Confirm(1))
				r.must(c.Publish(1, "", "q", []byte(big)))
				r.must(c.WaitConfirms(1))
				time.Sleep(3 * restAfter) // its reader gets a fresh stack
				m, err := c.Get(1, "q", true)
				r.must(err)
				if string(m.Body) != big {
					t.Errorf("a body of %d octets came back", len(m.Body))
				}
				if l := r.s.ListClients(); len(l) != 1 || l[0].TLS != tls.VersionName(version) {
					t.Errorf("the list of clients is %+v", l)
				}
				r.must(c.Close())
				if n := r.shakes(); n[tlsOK] != 1 {
					t.Errorf("handshakes: %v", n)
				}
			})
		})
	}
}

// Who speaks something else is told apart, and costs the others nothing.
func TestSomethingElseThanTLS(t *testing.T) {
	for sent, want := range map[string]string{
		string(amqp.ProtocolHeader[:]):        "client refused: it sent plain AMQP; this port speaks TLS",
		"GET / HTTP/1.1\r\n\r\n":              "client refused: it sent an HTTP request; this port speaks TLS",
		"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n":  "client refused: it sent a PROXY header, which listener.proxy_protocol takes; this port speaks TLS",
		"hello, is somebody there, as it was": "client refused: it sent something else than TLS; this port speaks TLS",
		"":                                    "",
	} {
		withTLS(t, func() *ServerTLS { return serverOf(t, newCerts(t), "localhost") }, func(r *rig) {
			c := r.socket()
			_, err := io.WriteString(c, sent)
			r.must(err)
			if sent == "" {
				r.must(c.Close())
			}
			_, err = io.ReadAll(c)
			if sent != "" && err != nil {
				t.Errorf("%q: the connection ends with %v", sent, err)
			}
			synctest.Wait()
			if log := r.log(); want != "" && strings.Count(log, want) != 1 || want == "" && strings.Contains(log, "client refused") {
				t.Errorf("%q is logged as\n%s", sent, log)
			}
			if n := r.shakes(); n[tlsFailed] != uint64(min(len(sent), 1)) {
				t.Errorf("%q: handshakes %v", sent, n)
			}
		})
	}
}

// The certificate is the one that the name asks for, else the first.
func TestCertificateByName(t *testing.T) {
	var ca *proxytest.Certs
	withTLS(t, func() *ServerTLS { ca = newCerts(t); return serverOf(t, ca, "one.example", "two.example") }, func(r *rig) {
		for name, want := range map[string]string{"one.example": "one.example", "two.example": "two.example", "three.example": "one.example", "": "one.example"} {
			c := tls.Client(r.socket(), &tls.Config{ServerName: name, InsecureSkipVerify: true})
			r.must(c.Handshake())
			if got := c.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
				t.Errorf("%q meets the certificate of %s, want %s", name, got, want)
			}
			_ = c.Close()
		}
	})
}

// Certificates of clients: none is asked for, one may be shown, or must.
func TestClientCertificates(t *testing.T) {
	for _, c := range []struct {
		ask    ClientCert
		shows  string
		result int
		line   string
	}{
		{ClientCertNone, "", tlsOK, ""},
		{ClientCertNone, "strange", tlsOK, ""},
		{ClientCertOptional, "", tlsOK, ""},
		{ClientCertOptional, "good", tlsOK, ""},
		{ClientCertOptional, "strange", tlsUnknownAuthority, "unknown authority"},
		{ClientCertRequired, "good", tlsOK, ""},
		{ClientCertRequired, "", tlsNoCertificate, "client didn't provide a certificate"},
		{ClientCertRequired, "strange", tlsUnknownAuthority, "unknown authority"},
		{ClientCertRequired, "old", tlsExpired, "expired"},
	} {
		t.Run(string(c.ask)+" "+c.shows, func(t *testing.T) {
			var ca *proxytest.Certs
			var shown map[string]tls.Certificate
			withTLS(t, func() *ServerTLS {
				ca = newCerts(t)
				name := pkix.Name{CommonName: "shop"}
				shown = map[string]tls.Certificate{
					"good":    issued(t, ca, x509.Certificate{Subject: name}),
					"old":     issued(t, ca, x509.Certificate{Subject: name, NotAfter: time.Now().Add(-time.Minute)}),
					"strange": issued(t, newCerts(t), x509.Certificate{Subject: name}),
				}
				s := serverOf(t, ca, "localhost")
				s.ClientCert = c.ask
				if c.ask != ClientCertNone {
					s.ClientCAs = ca.Pool
				}
				return s
			}, func(r *rig) {
				cfg := ca.Client()
				if pair, ok := shown[c.shows]; ok {
					cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
				}
				cc := r.connect(proxytest.ClientConfig{TLS: cfg})
				err := cc.Handshake()
				if (err == nil) != (c.result == tlsOK) {
					t.Errorf("the client hears %v", err)
				}
				_ = cc.Hangup()
				synctest.Wait()
				if n := r.shakes(); n[c.result] != 1 {
					t.Errorf("handshakes %v, want a %s", n, TLSResults[c.result])
				}
				if log := r.log(); c.line != "" && (!strings.Contains(log, `msg="client refused: TLS"`) || !strings.Contains(log, c.line)) {
					t.Errorf("logged\n%s", log)
				}
			})
		})
	}
}

// A renewed certificate is shown from the next client on, and who is connected stays. Sessions
// are resumed over a reload that changes nothing, and not once an authority has gone.
func TestRenewal(t *testing.T) {
	var ca, other *proxytest.Certs
	withTLS(t, func() *ServerTLS {
		ca, other = newCerts(t), newCerts(t)
		s := serverOf(t, ca, "localhost")
		s.ClientCert, s.ClientCAs = ClientCertRequired, ca.Pool.Clone()
		s.ClientCAs.AppendCertsFromPEM(other.CAPEM)
		return s
	}, func(r *rig) {
		pair := issued(t, other, x509.Certificate{Subject: pkix.Name{CommonName: "shop"}})
		cfg := ca.Client()
		cfg.Certificates = []tls.Certificate{pair}
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		connect := func() (*proxytest.Client, *tls.Conn, error) {
			conn := tls.Client(r.socket(), cfg)
			c := proxytest.NewClient(conn, proxytest.ClientConfig{})
			return c, conn, c.Handshake()
		}
		stays, _, err := connect()
		r.must(err)
		resumed := func() bool {
			t.Helper()
			c, conn, err := connect()
			r.must(err)
			defer func() { r.must(c.Close()) }()
			return conn.ConnectionState().DidResume
		}
		if !resumed() {
			t.Fatal("a session is not resumed")
		}
		reload := func(s *ServerTLS) {
			t.Helper()
			conf := *r.s.cfg()
			conf.Listeners = []Listener{conf.Listeners[0]}
			conf.Listeners[0].TLS = s
			if need, err := r.s.Reload(conf); err != nil || len(need) != 0 {
				t.Fatal(need, err)
			}
		}
		same := *r.s.cfg().Listeners[0].TLS
		reload(&same)
		if !resumed() {
			t.Error("a reload without a change ended a session")
		}
		next := serverOf(t, ca, "localhost")
		next.ClientCert, next.ClientCAs = ClientCertRequired, ca.Pool
		reload(next)
		if _, conn, err := connect(); err == nil {
			t.Errorf("a client of an authority that was removed is in, resumed: %v", conn.ConnectionState().DidResume)
		}
		cfg.Certificates = []tls.Certificate{issued(t, ca, x509.Certificate{})}
		cfg.ClientSessionCache = nil
		c, conn, err := connect()
		r.must(err)
		if got := conn.ConnectionState().PeerCertificates[0]; !got.Equal(next.Certificates[0].Leaf) {
			t.Error("the old certificate is shown still")
		}
		r.must(c.Close())
		r.must(stays.OpenChannel(1))
		r.must(stays.Close())
	})
}

// What a stranger may send before he has logged in is bounded, whatever he wraps it in, and so is his time.
func TestStrangerInTLS(t *testing.T) {
	plain := func() *ServerTLS { return serverOf(t, newCerts(t), "localhost") }
	t.Run("long hello", func(t *testing.T) {
		withTLS(t, plain, func(r *rig) {
			c := r.socket()
			sent := []byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff} // a record of 16 KiB, a hello of 64 KiB
			sent = append(sent, make([]byte, 16<<10-4)...)
			for range 4 {
				if _, err := c.Write(sent); err != nil {
					break
				}
				copy(sent, []byte{22, 3, 1, 0x40, 0, 0, 0, 0, 0})
			}
			_, _ = io.ReadAll(c)
			synctest.Wait()
			if !strings.Contains(r.log(), errBeforeLogin.Error()) {
				t.Errorf("logged\n%s", r.log())
			}
		})
	})
	t.Run("one octet at a time", func(t *testing.T) {
		withTLS(t, plain, func(r *rig) {
			c, began := r.socket(), time.Now()
			for _, b := range append([]byte{22, 3, 1, 2, 0, 1}, make([]byte, 500)...) {
				if _, err := c.Write([]byte{b}); err != nil {
					break
				}
				time.Sleep(time.Second)
			}
			if took := time.Since(began); took > r.s.cfg().HandshakeTimeout+2*time.Second {
				t.Errorf("he was let go on for %v", took)
			}
			left := func() int {
				r.s.limits.mu.Lock()
				defer r.s.limits.mu.Unlock()
				return r.s.limits.handshakes
			}
			r.eventually(time.Second, func() bool { return left() == 0 })
			if n := left(); n != 0 || !strings.Contains(r.log(), "its handshake took too long") {
				t.Errorf("%d handshakes are counted, logged\n%s", n, r.log())
			}
		})
	})
	t.Run("a shutdown meanwhile", func(t *testing.T) {
		withTLS(t, plain, func(r *rig) {
			_ = r.socket()
			synctest.Wait()
			began := time.Now()
			r.must(r.s.Shutdown(bg))
			if took := time.Since(began); took > r.s.cfg().DrainTimeout+5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	})
}

// A client that takes nothing holds up nobody but itself, its close included.
func TestClosingASlowTLSClient(t *testing.T) {
	var ca *proxytest.Certs
	withTLS(t, func() *ServerTLS { ca = newCerts(t); return serverOf(t, ca, "localhost") }, func(r *rig) {
		r.client(proxytest.ClientConfig{TLS: ca.Client()})
		r.s.Kick(1, "")
		time.Sleep(3 * closeGrace) // it does not answer
		if n := r.s.Stats().Clients; n != 0 {
			t.Errorf("%d clients", n)
		}
	})
}

// The watchdog's question goes to the first listener, whatever it asks of clients.
func TestSelfCheckOverTLS(t *testing.T) {
	ca := newCerts(t)
	tlsConf := serverOf(t, ca, "elsewhere.example")
	tlsConf.ClientCert, tlsConf.ClientCAs = ClientCertRequired, ca.Pool
	cfg := DefaultConfig()
	cfg.Listeners = []Listener{{Address: "127.0.0.1:0", Mode: PoolAuto, TLS: tlsConf}}
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.SelfCheck(t.Context()); err != nil {
		t.Error(err)
	}
	conn, err := net.Dial("tcp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(conn, ca.Client())
	defer func() { _ = c.Close() }()
	if _, err = c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("somebody else without a certificate hears %v", err)
	}
}

// A listener's TLS that cannot be spoken is the configuration's fault.
func TestServerTLSIsChecked(t *testing.T) {
	ca := newCerts(t)
	for want, change := range map[string]func(*ServerTLS){
		"without a certificate":                 func(s *ServerTLS) { s.Certificates = nil },
		"neither 1.2 nor 1.3":                   func(s *ServerTLS) { s.MinVersion = tls.VersionTLS11 },
		"without an authority":                  func(s *ServerTLS) { s.ClientCert = ClientCertOptional },
		`allowed is "none", "optional" or "req`: func(s *ServerTLS) { s.ClientCert = "maybe" },
	} {
		s := serverOf(t, ca, "localhost")
		change(s)
		cfg := DefaultConfig()
		cfg.Listeners[0].TLS = s
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
