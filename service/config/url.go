// The broker's URL. Whatever stands in it besides scheme, host and port is a client's
// business, often secret, and therefore in no message: it is dropped with a warning.

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

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
