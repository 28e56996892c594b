package config

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

func TestLimits(t *testing.T) {
	file := write(t, "a.toml", `
[client]
deny = "192.0.2.1"
[[listener]]
allow = ["10.0.0.0/8", "2001:db8::/32"]
deny = "10.9.0.0/16"
[[limit]]
max_clients = 500
max_upstreams = 20
connect_rate = "200/s"
data_rate = "20MiB/s"
[[limit]]
by = "address"
match = "10.0.0.0/8"
connect_rate = "30/m"
data_rate = 0
action = "alarm"
`)
	s, warnings, err := Load(Source{File: file})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	c, err := s.ProxyConfig("dev", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []proxy.Limit{
		{By: proxy.ByUser, Match: "*", MaxClients: 500, MaxUpstreams: 20, ConnectRate: proxy.Rate{N: 200, Per: time.Second}, DataRate: 20 << 20},
		{By: proxy.ByAddress, Match: "10.0.0.0/8", ConnectRate: proxy.Rate{N: 30, Per: time.Minute}, Alarm: true},
	}
	if !reflect.DeepEqual(c.Limits, want) {
		t.Errorf("got %+v, want %+v", c.Limits, want)
	}
	network := netip.MustParsePrefix
	if got := c.Listeners[0].Access; !reflect.DeepEqual(got, proxy.Access{Allow: []netip.Prefix{network("10.0.0.0/8"), network("2001:db8::/32")}, Deny: []netip.Prefix{network("10.9.0.0/16")}}) {
		t.Errorf("the listener's access is %v", got)
	}
	if got := c.Access; !reflect.DeepEqual(got, proxy.Access{Deny: []netip.Prefix{network("192.0.2.1/32")}}) {
		t.Errorf("everybody's access is %v", got)
	}
	shown := map[string]Explained{}
	for _, e := range Explain(Source{File: file}, &s) {
		shown[e.Name] = e
	}
	for name, want := range map[string]Explained{
		"limit.connect_rate":    {"limit.connect_rate", `"200/s"`, file + ":10"},
		"limit.data_rate":       {"limit.data_rate", `"20MiB/s"`, file + ":11"},
		"limit.match":           {"limit.match", `"*"`, "default"},
		"limit[2].connect_rate": {"limit[2].connect_rate", `"30/m"`, file},
		"limit[2].data_rate":    {"limit[2].data_rate", "0", "default"},
	} {
		if shown[name] != want {
			t.Errorf("%s is explained as %+v, want %+v", name, shown[name], want)
		}
	}
}

// Each problem of limits is a line that says which one and what is allowed.
func TestLimitsThatAreWrong(t *testing.T) {
	for text, want := range map[string]string{
		"[limit]\nmax_clients = 1":                                   ":1: limit is repeatable, write [[limit]]",
		"[[limit]]\nby = \"color\"":                                  ":2: limit.by is \"color\", allowed is user, vhost, address or listener",
		"[[limit]]\nmax_client = 1":                                  ":2: unknown setting \"max_client\" in [[limit]], did you mean \"max_clients\"?",
		"[[limit]]\nmatch = \"\"":                                    ": limit 1 (user ): limit.match is \"\", allowed is a name",
		"[[limit]]\nby = \"address\"\nmatch = \"2001:db8::/96\"":     ": limit 1 (address 2001:db8::/96): limit.match is \"2001:db8::/96\", allowed is an IPv6 network of /64 or wider",
		"[[limit]]\nby = \"address\"\nmatch = \"shop\"":              ": limit 1 (address shop): limit.match is \"shop\", allowed is a network (10.0.0.0/8), an IP address, or * for each address",
		"[[limit]]\nby = \"address\"\nmax_upstreams = 1":             ": limit 1 (address *): limit.max_upstreams is for limits by user or vhost",
		"[[limit]]\nconnect_rate = \"200\"":                          ":2: limit.connect_rate is \"200\", allowed is 0 (no bound), or 1 to 1000000 in a second, a minute or an hour",
		"[[limit]]\ndata_rate = \"1KiB/s\"":                          ":2: limit.data_rate is \"1KiB/s\", allowed is 0 (no bound), or \"64KiB/s\" to \"1TiB/s\"",
		"[[limit]]\nmax_clients = -1":                                ":2: limit.max_clients is -1, allowed is 0 to 10000000",
		"[[limit]]\nmax_clients = 1\n[[limit]]\nmax_clients = 2":     ": limit 2 (user *): limit.by, limit.match and limit.action are those of limit 1 too, allowed is one",
		"[[listener]]\nallow = \"10.0.0.0/40\"":                      ":2: listener.allow is \"10.0.0.0/40\", allowed is a network (10.0.0.0/8) or an IP address, or a list of such",
		"[client]\ndeny = [\"10.0.0.0/8\", \"everybody\"]":           ":2: client.deny is \"everybody\", allowed is a network (10.0.0.0/8) or an IP address, or a list of such",
		"[[limit]]\nby = \"listener\"\nmatch = \"*\"\naction = true": ":4: limit.action is true, allowed is enforce or alarm",
	} {
		file := write(t, "a.toml", text+"\n")
		_, _, err := Load(Source{File: file})
		if err == nil || !strings.HasPrefix(err.Error(), file+want) || strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%q: %v\nwant %s", text, err, file+want)
		}
	}
	s, _, err := Load(Source{File: write(t, "a.toml", "[[limit]]\nby = \"listener\"\nmatch = \"*:5671\"\nmax_clients = 1\n")})
	if err != nil {
		t.Fatal(err)
	}
	if w := s.Warnings(); len(w) != 1 || w[0] != "limit 1 (listener *:5671): no listener has this port" {
		t.Errorf("warnings are %q", w)
	}
	_, _, err = Load(Source{CommandLine: []Override{{Setting: Find("limit.max_clients"), Value: "1", Origin: "--set limit.max_clients"}}})
	if err == nil || !strings.Contains(err.Error(), "limit.max_clients is one of [[limit]], which only the settings file has") {
		t.Errorf("on the command line: %v", err)
	}
	if d := Find("max_clients"); d == nil || d.Section != "client" {
		t.Errorf("max_clients alone is %v", d)
	}
}
