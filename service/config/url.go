// The broker's URL. Whatever stands in it besides scheme, host and port is a client's
// business, often secret, and therefore in no message: it is dropped with a warning.

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// brokers are where the settings keep what upstream.url names.
type brokers struct {
	first  *Broker
	others *[]Broker
}

// setURLs checks and sets the broker's URLs.
func (d *Setting) setURLs(s *Settings, l *Listener, list []string) (warning string, err error) {
	var all []Broker
	for _, text := range list {
		b, ignored, err := ParseURL(text)
		if err != nil {
			return "", fmt.Errorf("%s %w", d.Name(), err)
		}
		if warning == "" {
			warning = ignored
		}
		if slices.Contains(all, b) {
			return "", fmt.Errorf("%s has %s twice, allowed is each broker once", d.Name(), b)
		}
		if len(all) > 0 && b.TLS != all[0].TLS {
			return "", fmt.Errorf("%s has %s beside %s, allowed are amqp URLs alone or amqps URLs alone", d.Name(), b, all[0])
		}
		all = append(all, b)
	}
	if len(all) == 0 {
		return "", fmt.Errorf("%s is an empty list, %s", d.Name(), allowedURL)
	}
	at := d.at(s, l).(brokers)
	*at.first, *at.others = all[0], all[1:]
	if len(all) == 1 {
		*at.others = nil
	}
	return warning, nil
}

// CanonicalURLs writes the brokers that a text names, without what is ignored in it.
func CanonicalURLs(text string) (string, error) {
	var all []string
	for _, one := range splitURLs(text) {
		b, _, err := ParseURL(one)
		if err != nil {
			return "", err
		}
		all = append(all, b.String())
	}
	return strings.Join(all, ","), nil
}

// splitURLs parts a text at the commas that a URL stands behind: others may be of a password.
func splitURLs(text string) (list []string) {
	for {
		end := -1
		for i := range len(text) {
			if text[i] == ',' && beginsURL(strings.TrimLeft(text[i+1:], " ")) {
				end = i
				break
			}
		}
		if end < 0 {
			return append(list, text)
		}
		list = append(list, strings.TrimRight(text[:end], " "))
		text = strings.TrimLeft(text[end+1:], " ")
	}
}

// beginsURL reports whether a text begins with a scheme.
func beginsURL(text string) bool {
	scheme, _, found := strings.Cut(text, "://")
	return found && scheme != "" && !strings.ContainsFunc(scheme, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

const allowedURL = "allowed is amqp://HOST[:PORT] or amqps://HOST[:PORT]"

// ParseURL takes amqp://HOST[:PORT] and amqps://HOST[:PORT]. The warning names the parts
// that are ignored. The error continues a sentence that begins with the setting's name,
// and never shows a part that may be secret.
func ParseURL(text string) (b Broker, warning string, err error) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found || scheme == "" {
		if strings.ContainsAny(text, "@") { // may hold a password
			return b, "", errors.New("has no scheme, " + allowedURL)
		}
		return b, "", fmt.Errorf("is %q, which has no scheme, %s", text, allowedURL)
	}
	switch strings.ToLower(scheme) {
	case "amqp":
		b.Port = 5672
	case "amqps":
		b.Port, b.TLS = 5671, true
	default:
		return b, "", fmt.Errorf("has the scheme %q, %s", scheme, allowedURL)
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, tail := rest[:end], rest[end:]
	if strings.Contains(tail, "@") {
		return b, "", errors.New(`has an "@" after a "/", "?" or "#"; leave user, password and vhost away, clients bring their own; ` + allowedURL)
	}
	var ignored []string
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		if authority[:i] != "" {
			ignored = append(ignored, "user and password")
		}
		authority = authority[i+1:]
	}
	path, extra := tail, ""
	if i := strings.IndexAny(tail, "?#"); i >= 0 {
		path, extra = tail[:i], tail[i:]
	}
	if strings.Trim(path, "/") != "" {
		ignored = append(ignored, "vhost")
	}
	if len(extra) > 1 {
		ignored = append(ignored, "parameters")
	}
	if len(ignored) > 0 {
		warning = strings.Join(ignored, " and ") + " in the URL ignored: clients bring their own"
	}

	if addr, err := netip.ParseAddr(authority); err == nil && addr.Is6() {
		return b, "", fmt.Errorf("has the host %s: an IPv6 address stands in brackets, %s://[%s]", authority, strings.ToLower(scheme), authority)
	}
	// What is left is HOST[:PORT]; net/url knows brackets, zones and percent signs.
	u, parseErr := url.Parse("amqp://" + authority)
	if parseErr != nil {
		return b, "", fmt.Errorf("has the host %q, which is not HOST[:PORT], %s", authority, allowedURL)
	}
	host, ok := parseHost(u.Hostname())
	if !ok {
		return b, "", fmt.Errorf("has the host %q, which is neither a name nor an IP address, %s", u.Hostname(), allowedURL)
	}
	b.Host = host
	if p := u.Port(); p != "" {
		n, convErr := strconv.Atoi(p)
		if convErr != nil || n < 1 || n > 65535 {
			return b, "", fmt.Errorf("has the port %s, allowed is 1 to 65535", p)
		}
		b.Port = n
	}
	return b, warning, nil
}
