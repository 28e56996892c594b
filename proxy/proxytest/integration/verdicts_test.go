// Clients over TLS, with and without a certificate: what the broker says of them, with its plugin
// rabbitmq_auth_mechanism_ssl, and what the proxy says, as their libraries tell it.

//go:build linux

package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// attempt is a login that a client program tries.
type attempt struct {
	Mechanism string `json:"mechanism"`
	User      string `json:"user"`
	Password  string `json:"password"`
	Cert      string `json:"cert"` // files; "": none is shown
	Key       string `json:"key"`
}

// attempts are logins of all kinds that a library knows the mechanisms of. Wrong ones are of a user of its
// own: who fails often waits.
func attempts(t *testing.T, ca *proxytest.Certs, dir, library string, mechanisms []string) (all []attempt, names []string) {
	files := map[string][2]string{"none": {}}
	for _, cn := range []string{"shop-web", "stranger"} {
		cert, key, err := ca.Issue(x509.Certificate{Subject: pkix.Name{CommonName: cn}})
		if err != nil {
			t.Fatal(err)
		}
		pair := [2]string{filepath.Join(dir, library+cn+".pem"), filepath.Join(dir, library+cn+".key")}
		for i, data := range [][]byte{cert, key} {
			if err := os.WriteFile(pair[i], data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		files[cn] = pair
	}
	for _, mechanism := range mechanisms {
		for _, cn := range []string{"none", "shop-web", "stranger"} {
			a := attempt{Mechanism: mechanism, Cert: files[cn][0], Key: files[cn][1]}
			if mechanism == "EXTERNAL" {
				all, names = append(all, a), append(names, mechanism+", certificate "+cn)
				continue
			}
			for user, password := range map[string]string{"guest": "guest", library: "wrong"} {
				a.User, a.Password = user, password
				all, names = append(all, a), append(names, mechanism+" as "+user+", certificate "+cn)
			}
		}
	}
	return all, names
}

// config is what a client shows over TLS.
func (a attempt) config(t *testing.T) *tls.Config {
	cfg := &tls.Config{InsecureSkipVerify: true} // the programs look at the server
	if a.Cert != "" {
		pair, err := tls.LoadX509KeyPair(a.Cert, a.Key)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg
}

// verdictLibraries tell what their clients hear of each attempt, in their own words.
var verdictLibraries = []struct {
	name       string
	program    []string // takes PORT CAFILE ATTEMPTS; nil: inside
	mechanisms []string
	inside     func(a attempt, cfg *tls.Config, addr string) error
}{
	{name: "php-amqp", program: []string{"php", "clients/verdicts-php-amqp.php"}, mechanisms: []string{"PLAIN", "EXTERNAL"}},
	{name: "php-amqplib", program: []string{"php", "clients/verdicts-php-amqplib.php"}, mechanisms: []string{"PLAIN", "AMQPLAIN", "EXTERNAL"}},
	{name: "pika", program: []string{"/usr/bin/python3", "clients/verdicts.py"}, mechanisms: []string{"PLAIN", "EXTERNAL"}},
	{name: "amqplib", program: []string{"node", "clients/verdicts.js"}, mechanisms: []string{"PLAIN", "AMQPLAIN", "EXTERNAL"}},
	{name: "amqp091-go", mechanisms: []string{"PLAIN", "AMQPLAIN", "EXTERNAL"}, inside: func(a attempt, cfg *tls.Config, addr string) error {
		auth := map[string]amqp.Authentication{"PLAIN": &amqp.PlainAuth{Username: a.User, Password: a.Password},
			"AMQPLAIN": &amqp.AMQPlainAuth{Username: a.User, Password: a.Password}, "EXTERNAL": &amqp.ExternalAuth{}}
		conn, err := amqp.DialConfig("amqps://"+addr+"/", amqp.Config{SASL: []amqp.Authentication{auth[a.Mechanism]}, TLSClientConfig: cfg})
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Channel()
		return err
	}},
	{name: "frames", mechanisms: []string{"PLAIN", "AMQPLAIN", "EXTERNAL"}, inside: func(a attempt, cfg *tls.Config, addr string) error {
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, TLS: cfg, Mechanism: a.Mechanism, User: a.User, Password: a.Password, Timeout: patience})
		if err != nil {
			return err
		}
		defer c.Hangup()
		return c.OpenChannel(1)
	}},
}

// Who may come in, beside a RabbitMQ with its plugins for certificates and tokens.
func TestAccess(t *testing.T) {
	if straight {
		t.Skip("STRAIGHT=1")
	}
	t.Parallel() // most of it is the brokers' start
	ca, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	signer := newSigner(t)
	for _, v := range versions(t) {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			if err := rabbit.Available(v); err != nil {
				rabbit.Skip(t, err)
			}
			b, err := rabbit.Start(v, rabbit.WithPlugins("rabbitmq_auth_mechanism_ssl", "rabbitmq_auth_backend_oauth2"),
				rabbit.WithFile("clients.pem", string(ca.CAPEM)), rabbit.WithFile("jwt.pem", signer.public(t)),
				rabbit.WithSettings(`ssl_options.cacertfile = DIR/clients.pem
ssl_options.verify = verify_peer
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
ssl_cert_login_from = common_name
auth_backends.1 = internal
auth_backends.2 = rabbit_auth_backend_oauth2
auth_oauth2.resource_server_id = rabbitmq
auth_oauth2.default_key = id1
auth_oauth2.signing_keys.id1 = DIR/jwt.pem
log.connection.level = info
`))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(b.Close)
			t.Run("verdicts over TLS", func(t *testing.T) {
				if !full {
					t.Skip("five libraries, a minute on a busy machine: with FULL=1 only")
				}
				verdictsOverTLS(t, b, ca)
			})
			t.Run("tokens", func(t *testing.T) { tokensRenewed(t, b, signer) })
		})
	}
}

func verdictsOverTLS(t *testing.T, b *rabbit.Broker, ca *proxytest.Certs) {
	for _, args := range [][]string{{"add_user", "shop-web", "x"}, {"set_permissions", "-p", "/", "shop-web", ".*", ".*", ".*"}} {
		if said, err := b.Ctl(args...); err != nil {
			t.Fatal(err, said)
		}
	}
	dir := t.TempDir()
	for name, data := range map[string]string{"clients.pem": string(ca.CAPEM), "secret": "x\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := startProxy(t, true, b.URL(), tlsListener(b)+fmt.Sprintf("client_cert = \"optional\"\nclient_ca_file = %q\nexternal_user = \"cn\"\n"+
		"[[user]]\nname = \"shop\"\ncertificate = \"shop-web\"\nbroker_user = \"shop-web\"\nbroker_password_file = %q\n", dir+"/clients.pem", dir+"/secret"))
	for _, l := range verdictLibraries {
		t.Run(l.name, func(t *testing.T) {
			if i := slices.IndexFunc(clients, func(c client) bool { return c.name == l.name }); l.program != nil {
				if _, err := os.Stat(clients[i].needs); err != nil {
					rabbit.Skip(t, fmt.Errorf("%s is not installed (`make deps` installs it): %w", l.name, err))
				}
			}
			all, names := attempts(t, ca, dir, l.name, l.mechanisms)
			heard := map[string][]string{}
			var wg sync.WaitGroup
			for via, addr := range map[string]string{"straight": b.TLSAddr(), "proxy": p.addr} {
				if l.program != nil {
					heard[via] = verdictsOf(t, l.program, addr, b.CAFile, filepath.Join(dir, l.name+".json"), all)
					continue
				}
				words := make([]string, len(all))
				heard[via] = words
				for i, a := range all { // at once: some of these wait for seconds before they close
					cfg := a.config(t)
					wg.Go(func() { words[i] = sockets.ReplaceAllString(fmt.Sprint(l.inside(a, cfg, addr)), "") })
				}
			}
			wg.Wait()
			for i, name := range names {
				s, p := heard["straight"][i], heard["proxy"][i]
				if all[i].Mechanism == "EXTERNAL" && all[i].Cert == "" && l.name != "frames" {
					// RabbitMQ offers EXTERNAL to all, the proxy to those with a certificate: these libraries look first.
					if p == "<nil>" || !strings.Contains(p, "EXTERNAL") && !strings.Contains(strings.ToLower(p), "sasl") {
						t.Errorf("%s: through the proxy %q", name, p)
					}
				} else if s != p {
					t.Errorf("%s: straight %q, through the proxy %q", name, s, p)
				}
				served := all[i].User == "guest" || all[i].Mechanism == "EXTERNAL" && filepath.Base(all[i].Cert) == l.name+"shop-web.pem"
				if (s == "<nil>") != served {
					t.Errorf("%s: straight %q", name, s)
				}
				t.Logf("%s: %s", name, s)
			}
		})
	}
}

// verdictsOf has a client program try all the attempts: what it hears of each, "<nil>" where it is served.
func verdictsOf(t *testing.T, program []string, addr, ca, file string, all []attempt) (heard []string) {
	t.Helper()
	data, err := json.Marshal(all)
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program[0], append(slices.Clone(program[1:]), portOf(addr), ca, file)...)
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(rabbit.CacheDir(), "node/node_modules"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &heard)
	}
	if err != nil || len(heard) != len(all) {
		t.Fatalf("%v: %v\n%s", program, err, out)
	}
	for i := range heard {
		heard[i] = sockets.ReplaceAllString(heard[i], "")
	}
	return heard
}
