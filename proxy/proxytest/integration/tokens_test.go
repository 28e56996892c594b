// Tokens that the proxy fetches for a user, before a RabbitMQ that looks at them: connections that stand are
// told of the next one before the last one ends. The test is the issuer.

//go:build linux

package integration

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// signer makes JSON Web Tokens (RFC 7519).
type signer struct{ key *rsa.PrivateKey }

func newSigner(t *testing.T) signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key}
}

// public is the key that tokens are verified with, in PEM.
func (s signer) public(t *testing.T) string {
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// token lets svc do everything for a while.
func (s signer) token(life time.Duration) (string, error) {
	b64 := base64.RawURLEncoding
	claims, err := json.Marshal(map[string]any{"sub": "svc", "client_id": "proxy", "aud": []string{"rabbitmq"}, "exp": time.Now().Add(life).Unix(),
		"jti": rand.Text(), "scope": []string{"rabbitmq.configure:*/*", "rabbitmq.write:*/*", "rabbitmq.read:*/*"}})
	if err != nil {
		return "", err
	}
	text := b64.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT","kid":"id1"}`)) + "." + b64.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	signed, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	return text + "." + b64.EncodeToString(signed), err
}

func tokensRenewed(t *testing.T, b *rabbit.Broker, s signer) {
	const life = 5 * time.Second
	var asked atomic.Int64
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if id, secret, ok := req.BasicAuth(); !ok || id != "proxy" || secret != "cl13nt-secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		token, err := s.token(life + time.Second)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": token, "token_type": "bearer", "expires_in": int(life.Seconds())})
	}))
	defer issuer.Close()
	secret := filepath.Join(t.TempDir(), "client-secret")
	if err := os.WriteFile(secret, []byte("cl13nt-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startProxy(t, true, b.URL(), fmt.Sprintf("[[listener]]\n[[user]]\nname = \"shop\"\npassword_hash = %q\nprovider = \"oauth2\"\nbroker_user = \"svc\"\ntoken_url = %q\nclient_id = \"proxy\"\nclient_secret_file = %q\n",
		hashOfTest12, issuer.URL+"/token", secret))
	client := func(cfg proxytest.ClientConfig) *proxytest.Client {
		t.Helper()
		cfg.Timeout = patience
		c, err := proxytest.Dial(cfg)
		if err == nil {
			err = c.OpenChannel(1)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// What a token that has ended does, straight.
	token, err := s.token(2 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	forgetful := client(proxytest.ClientConfig{Addr: b.Addr(), User: "svc", Password: token})
	defer forgetful.Hangup()
	own := client(proxytest.ClientConfig{Addr: p.addr, User: "shop", Password: "test12"})
	defer own.Hangup()
	shared := client(proxytest.ClientConfig{Addr: p.addr, User: "shop", Password: "test12"})
	defer shared.Hangup()
	if err := shared.Confirm(1); err != nil {
		t.Fatal(err)
	}
	work := func() {
		t.Helper()
		if _, err := own.DeclareQueue(1, "", proxytest.Exclusive); err != nil {
			t.Fatal(err)
		}
		err := shared.Publish(1, "", "nowhere", []byte("x"))
		if err == nil {
			err = shared.WaitConfirms(1)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	work()
	if asked.Load() != 1 {
		t.Errorf("the issuer was asked %d times for one user", asked.Load())
	}
	began := time.Now()
	eventually(t, "both connections are told of two new tokens, says the broker", func() error {
		if n := strings.Count(b.Log(5000), "updated secret, reason: token refresh"); n < 4 {
			return fmt.Errorf("it has heard of %d", n)
		}
		return nil
	})
	// The first token has ended.
	if left := life + time.Second - time.Since(began); left > 0 {
		time.Sleep(left + time.Second)
	}
	work()
	if _, err := forgetful.DeclareQueue(1, "", proxytest.Exclusive); err == nil {
		t.Error("the broker does not look when a token ends: this test says nothing")
	} else {
		t.Logf("without renewal: %v", err)
	}
	// A login on new connections, with the token in force.
	late := client(proxytest.ClientConfig{Addr: p.addr, User: "shop", Password: "test12"})
	defer late.Hangup()
	if _, err := late.DeclareQueue(1, "", proxytest.Exclusive); err != nil {
		t.Error(err)
	}
	t.Logf("%d tokens in %v", asked.Load(), time.Since(began).Round(time.Second))
	for _, secret := range []string{"cl13nt-secret", "eyJ"} {
		if strings.Contains(p.log.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}
