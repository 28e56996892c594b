package config

import (
	"reflect"
	"strings"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

const twoRoutes = `
[upstream]
url = "amqp://blue"
[[broker]]
name = "green"
url = ["amqps://green-a", "amqps://green-b:7"]
server_name = "green.example"
[[broker]]
name = "red"
url = "amqp://red"
balance = "order"
[[route]]
vhost = "shop*"
to_vhost = "shop-v2"
broker = "green"
durable = true
queue_type = "quorum"
[[route]]
vhost = "*"
broker = "red"
`

func TestRoutesAndBrokers(t *testing.T) {
	src := Source{File: write(t, "a.toml", twoRoutes)}
	s, warnings, err := Load(src)
	if err != nil || len(warnings)+len(s.Warnings()) > 0 {
		t.Fatal(err, warnings, s.Warnings())
	}
	c, err := s.ProxyConfig("1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []proxy.Route{{VHost: "shop*", ToVHost: "shop-v2", Broker: "green", Durable: true, QueueType: "quorum"}, {VHost: "*", Broker: "red"}}; !reflect.DeepEqual(c.Routes, want) {
		t.Errorf("routes are %+v, want %+v", c.Routes, want)
	}
	if len(c.Brokers) != 2 {
		t.Fatalf("brokers are %+v", c.Brokers)
	}
	green, red := c.Brokers[0], c.Brokers[1]
	if green.Name != "green" || green.Upstream.Address() != "green-a:5671" || len(green.Others) != 1 || green.Others[0].Address() != "green-b:7" ||
		green.Others[0].TLS == nil || green.Others[0].TLS.ServerName != "green.example" || green.Balance != proxy.BalanceSpread {
		t.Errorf("green is %+v", green)
	}
	if red.Name != "red" || red.Upstream.Address() != "red:5672" || red.Upstream.TLS != nil || len(red.Others) != 0 || red.Balance != proxy.BalanceOrder {
		t.Errorf("red is %+v", red)
	}
	told := map[string]string{}
	for _, e := range Explain(src, &s) {
		told[e.Name] = e.Value
	}
	for name, want := range map[string]string{"broker.name": `"green"`, "broker[2].url": `"amqp://red:5672"`, "route.to_vhost": `"shop-v2"`, "route[2].vhost": `"*"`, "route[2].to_vhost": `""`, "route.queue_type": `"quorum"`, "route[2].queue_type": `"as_declared"`} {
		if told[name] != want {
			t.Errorf("%s is told as %s, want %s", name, told[name], want)
		}
	}
}

func TestWrongRoutes(t *testing.T) {
	const green = "[[broker]]\nname = \"green\"\nurl = \"amqp://green\"\n"
	for text, want := range map[string]string{
		green + "[[route]]\nvhost = \"a\"\nbroker = \"gren\"\n":                     `route 1 (a): route.broker is "gren", allowed is the name of a [[broker]]: green`,
		"[[route]]\nvhost = \"a\"\nbroker = \"green\"\n":                            "there is none",
		"[[route]]\nto_vhost = \"a\"\n":                                             "route 1: route.vhost is not set",
		"[[route]]\nvhost = \"a\"\nto_vhost = \"" + strings.Repeat("x", 256) + "\"": "route.to_vhost has 256 octets",
		green + green:                                                          "broker 2 (green): broker.name is that of broker 1 too",
		"[[broker]]\nname = \"green\"\n":                                       "broker 1 (green): broker.url is not set",
		"[[broker]]\nurl = \"amqp://green\"\n":                                 "broker 1: broker.name is not set",
		"[[broker]]\nname = \"b\"\nurl = \"amqp://localhost:5672\"\n":          "broker.url is amqp://localhost:5672, which is that of upstream.url too",
		"[[broker]]\nname = \"b\"\nurl = \"amqp://127.0.0.1:5673\"\n":          "broker.url is amqp://127.0.0.1:5673, where listener 1 listens",
		"[[broker]]\nname = \"b\"\nurl = [\"amqp://x\", \"amqps://y\"]\n":      "broker.url has amqps://y:5671 beside amqp://x:5672",
		"[broker]\nname = \"b\"\n":                                             "write [[broker]] with two brackets",
		"[[route]]\nvhst = \"a\"\n":                                            `did you mean "vhost"?`,
		"[[broker]]\nname = \"b\"\nurl = \"amqp://x\"\nbalance = \"random\"\n": "broker.balance is \"random\"",
	} {
		_, _, err := Load(Source{File: write(t, "a.toml", text)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot %v, want %q", text, err, want)
		}
	}
	s, _, err := Load(Source{File: write(t, "a.toml", green+"[[route]]\nvhost = \"*\"\n[[route]]\nvhost = \"b\"\nbroker = \"green\"\n")})
	if err != nil {
		t.Fatal(err)
	}
	if w := strings.Join(s.Warnings(), "\n"); !strings.Contains(w, "route 2 (b): never counts, since route 1 before it is for all vhosts") || !strings.Contains(w, "broker 1 (green): no route leads there") {
		t.Errorf("warned of %s", w)
	}
}

// What the tables of the file are called does not take the short names of settings that can be set anywhere.
func TestShortNames(t *testing.T) {
	for short, want := range map[string]string{"balance": "upstream.balance", "url": "upstream.url", "server_name": "tls.server_name"} {
		if d := Find(short); d == nil || d.Name() != want {
			t.Errorf("%s is %v, want %s", short, d, want)
		}
	}
	for _, full := range []string{"route.to_vhost", "broker.url"} {
		if d := Find(full); d == nil || d.Name() != full {
			t.Errorf("%s is %v", full, d)
		}
	}
}
