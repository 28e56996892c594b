package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// issuer gives tokens, each good for a hundred seconds, in the bubble of a test.
type issuer struct {
	r  *rig
	mu sync.Mutex
	n  int
	// answer, if it is set, takes the place of a token.
	answer func(w http.ResponseWriter, req *http.Request)
	held   chan struct{} // nil: answers at once
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	i.mu.Lock()
	i.n++
	n, answer, held := i.n, i.answer, i.held
	i.mu.Unlock()
	if held != nil {
		<-held
	}
	if answer != nil {
		answer(w, req)
		return
	}
	if id, secret, ok := req.BasicAuth(); !ok || id != "proxy" || secret != "cl13nt-secret" || req.FormValue("grant_type") != "client_credentials" || req.FormValue("scope") != "a b" {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprint(w, `{"error": "invalid_client", "error_description": "not with cl13nt-secret"}`)
		return
	}
	token := fmt.Sprint("t0ken-", n)
	i.r.b.SetUser("svc", token)
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"access_token": %q, "token_type": "bearer", "expires_in": 100}`, token)
}

func (i *issuer) asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.n
}

func (i *issuer) set(answer func(http.ResponseWriter, *http.Request)) {
	i.mu.Lock()
	i.answer = answer
	i.mu.Unlock()
}

func withIssuer(t *testing.T, bc proxytest.BrokerConfig, test func(*rig, *issuer)) {
	bc.Users = map[string]string{}
	withBroker(t, bc, func(c *Config) {
		c.Users = []User{{Name: "shop", Password: hashOf(t, "local"), Broker: OAuth2{User: "svc", TokenURL: "http://issuer/token", ClientID: "proxy",
			Secret: broker.NewSecret("cl13nt-secret"), Scope: "a b"}}}
	}, func(r *rig) {
		ln := proxytest.ListenMem("issuer:80", 0)
		i := &issuer{r: r}
		srv := &http.Server{Handler: i}
		go func() { _ = srv.Serve(ln) }()
		before := tokenClient.Transport
		transport := &http.Transport{DialContext: ln.Dial, DisableKeepAlives: true}
		tokenClient.Transport = transport
		defer func() {
			tokenClient.Transport = before
			transport.CloseIdleConnections()
			_ = srv.Close()
		}()
		test(r, i)
		for _, secret := range []string{"cl13nt", "t0ken"} {
			if strings.Contains(r.log(), secret) {
				t.Errorf("the log has %q:\n%s", secret, r.log())
			}
		}
	})
}

// One token serves a user's clients; it is renewed in time, and connections that stand are told.
func TestTokensAreRenewed(t *testing.T) {
	var mu sync.Mutex
	var told []string
	bc := proxytest.BrokerConfig{Intercept: func(c *proxytest.BrokerConn, f amqp.Frame) bool {
		if f.Type() == amqp.FrameMethod && f.Method() == amqp.ConnectionUpdateSecret {
			a := amqp.ReadArgs(f)
			mu.Lock()
			told = append(told, string(a.LongStr()))
			mu.Unlock()
		}
		return false
	}}
	withIssuer(t, bc, func(r *rig, i *issuer) {
		done := make(chan error, 20)
		for range 20 { // at once
			go func() {
				c, err := r.login(asShop)
				if err == nil {
					err = c.Close()
				}
				done <- err
			}()
		}
		for range 20 {
			r.must(<-done)
		}
		c := r.client(asShop)
		own := r.client(asShop)
		_, err := own.DeclareQueue(1, "own", proxytest.Exclusive)
		r.must(err)
		if n := i.asked(); n != 1 {
			t.Errorf("the issuer was asked %d times for one user", n)
		}
		time.Sleep(79 * time.Second)
		synctest.Wait()
		if n := i.asked(); n != 1 {
			t.Errorf("the token was renewed after less than four fifths of its life (%d asked)", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		mu.Lock()
		got := fmt.Sprint(told)
		mu.Unlock()
		if i.asked() != 2 || got != "[t0ken-2 t0ken-2]" {
			t.Errorf("the issuer was asked %d times, the broker told %v; want both connections told of the second token", i.asked(), got)
		}
		// The broker takes it, so that the next login is served with it.
		_, err = c.DeclareQueue(1, "q", 0)
		r.must(err)
		late := r.client(asShop)
		_, err = late.DeclareQueue(1, "late", proxytest.Exclusive)
		r.must(err)
		if i.asked() != 2 {
			t.Errorf("the issuer was asked %d times", i.asked())
		}
		if st := r.s.Stats(); len(st.Tokens) != 1 || st.Tokens[0].User != "shop" || st.Tokens[0].Ends.Before(time.Now()) {
			t.Errorf("tokens are %+v", st.Tokens)
		}
		for _, x := range []*proxytest.Client{c, own, late} {
			r.must(x.Close())
		}
	})
}

// An issuer that is away, refuses or makes no sense: clients are told to come again, and hear nothing of it.
func TestNoToken(t *testing.T) {
	withIssuer(t, proxytest.BrokerConfig{}, func(r *rig, i *issuer) {
		for why, answer := range map[string]func(http.ResponseWriter, *http.Request){
			"invalid_client": func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusUnauthorized)
				_, _ = fmt.Fprint(w, `{"error": "invalid_client", "error_description": "cl13nt-secret"}`)
			},
			"500 Internal Server Error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "t0ken", http.StatusInternalServerError) },
			"302 Found": func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://elsewhere/")
				w.WriteHeader(302)
			},
			"cannot be understood": func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "<html>t0ken</html>") },
		} {
			r.s.users.Load().users["shop"].stored.atLocked("").told = false
			i.set(answer)
			_, err := r.login(asShop)
			r.hears(err, amqp.ConnectionForced, "no credential")
			if strings.Contains(err.Error(), "issuer") {
				t.Errorf("the client hears %v", err)
			}
			if !strings.Contains(r.log(), why) {
				t.Errorf("the log does not say %q:\n%s", why, r.log())
			}
			time.Sleep(2 * tokenRetry)
		}
		i.set(nil)
		c := r.client(asShop)
		i.set(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusBadGateway) })
		asked := i.asked()
		time.Sleep(95 * time.Second) // amid the renewals that fail
		if n := i.asked() - asked; n < 2 || n > 20 {
			t.Errorf("an issuer that fails was asked %d times in 15 s", n)
		}
		i.set(nil)
		time.Sleep(4 * time.Second)
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		r.must(c.Close())
		r.must(r.client(asShop).Close())
		if !strings.Contains(r.log(), "a user's token could not be renewed") {
			t.Error("the log does not tell that a renewal failed")
		}
	})
}
