// Which names the HTTP server answers to. A web page of a stranger can have a name of its own
// lead to this address (DNS rebinding) and read what is answered; the Host header tells.

package admin

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
)

// hostCheck passes on requests for an address, for localhost, for this machine's name and
// for the names given, which blanks or commas part.
func hostCheck(names string, next http.Handler) http.Handler {
	allowed := strings.FieldsFunc(strings.ToLower(names), func(r rune) bool { return r == ' ' || r == ',' || r == '\t' })
	if own, err := os.Hostname(); err == nil {
		allowed = append(allowed, strings.ToLower(own))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !ownHost(req.Host, allowed) {
			answer(w, http.StatusMisdirectedRequest, fmt.Sprintf("%.100q is none of this server's names: ask for its address, or add the name to http.hosts in the settings", req.Host))
			return
		}
		next.ServeHTTP(w, req)
	})
}

func ownHost(host string, allowed []string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), "."))
	if host == "" || host == "localhost" { // HTTP/1.0 names none, and no browser speaks that
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	for _, name := range allowed {
		if host == name {
			return true
		}
	}
	return false
}
