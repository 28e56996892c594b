package config

import (
	"slices"
	"strings"
	"testing"
)

// Several brokers are a list in the file, arguments on the command line, parted by commas in the
// environment; they come back as they were.
func TestSeveralBrokers(t *testing.T) {
	want := []Broker{{"a", 5671, true}, {"b.example", 5671, true}, {"::1", 7, true}}
	for name, src := range map[string]Source{
		"file":         {File: write(t, "a.toml", "[upstream]\nurl = [\"amqps://a\", \"amqps://b.example\", \"amqps://[::1]:7\"]\n")},
		"command line": {CommandLine: []Override{{Find("upstream.url"), "amqps://a,amqps://b.example,amqps://[::1]:7", "AMQP_URL"}}},
		"environment": {Env: func(name string) (string, bool) {
			return "amqps://a, amqps://b.example ,amqps://[::1]:7", name == "AMQP_URL"
		}},
	} {
		s, warnings, err := Load(src)
		if err != nil || len(warnings) > 0 || !slices.Equal(s.Brokers(), want) {
			t.Errorf("%s: %v, %v, %v", name, s.Brokers(), warnings, err)
			continue
		}
		if got := Find("upstream.url").TOML(&s, nil); got != `["amqps://a:5671", "amqps://b.example:5671", "amqps://[::1]:7"]` {
			t.Errorf("%s: written as %s", name, got)
		}
		c, err := s.ProxyConfig("1", nil)
		if err != nil || c.Upstream.Address() != "a:5671" || len(c.Others) != 2 || c.Others[0].TLS.ServerName != "b.example" || c.Upstream.TLS.ServerName != "a" {
			t.Errorf("%s: the engine is given %+v, %v", name, c.Others, err)
		}
	}
	// The last that is set counts alone.
	s, _, err := Load(Source{File: write(t, "b.toml", "[upstream]\nurl = [\"amqp://a\", \"amqp://b\"]\n"),
		CommandLine: []Override{{Find("upstream.url"), "amqp://c", "AMQP_URL"}}})
	if err != nil || !slices.Equal(s.Brokers(), []Broker{{"c", 5672, false}}) {
		t.Errorf("%v, %v", s.Brokers(), err)
	}
}

func TestWrongListsOfBrokers(t *testing.T) {
	for text, want := range map[string]string{
		`[]`:                                    "is an empty list",
		`["amqp://a", "amqps://b"]`:             "amqp URLs alone or amqps URLs alone",
		`["amqp://a", "amqp://a:5672"]`:         "has amqp://a:5672 twice",
		`["amqp://a", "b:5672"]`:                "no scheme",
		`["amqp://a", 5]`:                       "a list with something else than texts in it, allowed is amqp://HOST[:PORT]",
		`["amqp://a", "amqp://b"] # ` + "":      "",
		`["amqp://b", "amqp://127.0.0.1:5673"]`: "where listener 1 listens",
	} {
		_, _, err := Load(Source{File: write(t, "a.toml", "[upstream]\nurl = "+text+"\n")})
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", text, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

// A comma may be of a password: no part of it is taken for another broker, or told.
func TestACommaInAPassword(t *testing.T) {
	const secret = "s3,cr3t"
	for _, text := range []string{"amqp://user:" + secret + "@h", "amqp://a, amqp://user:" + secret + "@h", "amqp://user:" + secret + "@", "amqp://user:" + secret + "@h:x"} {
		s, warnings, err := Load(Source{CommandLine: []Override{{Find("upstream.url"), text, "AMQP_URL"}}})
		said := strings.Join(warnings, " ") + s.BrokersText()
		if err != nil {
			said += err.Error()
		}
		if strings.Contains(said, "s3") || strings.Contains(said, "cr3t") {
			t.Errorf("%q: told %q", text, said)
		}
	}
	got, err := CanonicalURLs("amqp://u:" + secret + "@a/v,amqps://b")
	if err != nil || got != "amqp://a:5672,amqps://b:5671" {
		t.Errorf("%q, %v", got, err)
	}
}
