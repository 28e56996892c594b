// The live page on the HTTP port: three files from the program itself, counts as they change
// over /live (server-sent events), and the lists of the admin channel, to be read only.

package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

//go:embed page
var pageFiles embed.FS

const (
	// liveEvery is how often the page hears.
	liveEvery = 1500 * time.Millisecond
	// maxLive bounds the pages that are looked at.
	maxLive = 8
	// livePools bounds the pools that the page is told of.
	livePools = 100
	// liveAdvice bounds the advice.
	liveAdvice = 20
	// passwordTries bounds wrong passwords from one address in a minute.
	passwordTries = 5
)

// pageHeaders keep the page to itself: nothing from elsewhere, nothing inline, in no frame.
var pageHeaders = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
		"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
	"X-Content-Type-Options":       "nosniff",
	"Referrer-Policy":              "no-referrer",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Cache-Control":                "no-store",
}

// page serves what a person looks at.
type page struct {
	verbs    *verbs
	password string // "": none is asked for
	files    http.Handler
	ending   chan struct{} // closed when the server ends: the streams do, too

	mu    sync.Mutex
	live  int
	event []byte // the newest, for all streams
	made  time.Time
	wrong map[string]int // wrong passwords by address, since
	since time.Time
}

func newPage(l Lister, version, password string) *page {
	sub, err := fs.Sub(pageFiles, "page")
	if err != nil {
		panic(err) // it is built in
	}
	return &page{verbs: &verbs{l, version}, password: password, files: http.FileServerFS(sub), ending: make(chan struct{})}
}

// routes adds the page to a server whose / says in text what else there is.
func (p *page) routes(mux *http.ServeMux, text http.HandlerFunc) {
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, req *http.Request) {
		if !strings.Contains(req.Header.Get("Accept"), "text/html") { // a probe, curl
			text(w, req)
			return
		}
		p.guard(p.files.ServeHTTP)(w, req)
	})
	for _, file := range []string{"page.js", "page.css", "favicon.svg"} {
		mux.HandleFunc("GET /"+file, p.guard(p.files.ServeHTTP))
	}
	mux.HandleFunc("GET /live", p.guard(p.stream))
	for i := range Verbs {
		if verb := &Verbs[i]; verb.Role == Look && verb.Name != "config" && verb.Name != "status" {
			mux.HandleFunc("/api/v1/"+verb.Name, p.guard(func(w http.ResponseWriter, req *http.Request) {
				p.verbs.serve(w, req.WithContext(WithPeer(req.Context(), Peer{Look, "http"})), verb)
			}))
		}
	}
}

// guard sets the headers and asks for the password.
func (p *page) guard(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		for name, value := range pageHeaders {
			w.Header().Set(name, value)
		}
		if p.password != "" && !p.allowed(w, req) {
			return
		}
		next(w, req)
	}
}

// allowed checks the password (RFC 7617; the user's name is not looked at), in constant time,
// and no more wrong ones from one address (IPv6: /64) than passwordTries a minute.
func (p *page) allowed(w http.ResponseWriter, req *http.Request) bool {
	from := sourceOf(req.RemoteAddr)
	_, said, given := req.BasicAuth()
	a, b := sha256.Sum256([]byte(said)), sha256.Sum256([]byte(p.password))
	right := given && subtle.ConstantTimeCompare(a[:], b[:]) == 1
	p.mu.Lock()
	if p.wrong == nil || time.Since(p.since) > time.Minute || len(p.wrong) > 10_000 {
		p.wrong, p.since = map[string]int{}, time.Now()
	}
	tries := p.wrong[from]
	if given && !right && tries < passwordTries { // looked at and counted in one: others are tried meanwhile
		p.wrong[from]++
	}
	p.mu.Unlock()
	switch {
	case tries >= passwordTries:
		answer(w, http.StatusTooManyRequests, "too many wrong passwords from this address, wait a minute")
		return false
	case right:
		return true
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="amqproxysvc", charset="UTF-8"`)
	answer(w, http.StatusUnauthorized, "a password is asked for: that of http.password_file")
	return false
}

// sourceOf is what of a client's address counts as one: whoever has an IPv6 address has a /64 of them.
func sourceOf(remote string) string {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	ip := at.Addr().Unmap()
	if ip.Is4() {
		return ip.String()
	}
	network, _ := ip.Prefix(64) // it has as many bits
	return network.String()
}

// stream tells one page until it goes.
func (p *page) stream(w http.ResponseWriter, req *http.Request) {
	p.mu.Lock()
	if p.live >= maxLive {
		p.mu.Unlock()
		w.Header().Set("Connection", "close") // and holds no place among the connections
		answer(w, http.StatusServiceUnavailable, fmt.Sprintf("%d pages are looked at already", maxLive))
		return
	}
	p.live++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.live--
		p.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	// The server's bounds on reading and writing are for whole answers; this one has no end, and
	// at a read's deadline the request would be taken for given up.
	if control.SetReadDeadline(time.Time{}) != nil {
		return
	}
	tick := time.NewTicker(liveEvery)
	defer tick.Stop()
	for {
		if control.SetWriteDeadline(time.Now().Add(10*time.Second)) != nil {
			return
		}
		if _, err := w.Write(p.newest()); err != nil || control.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-req.Context().Done():
			return
		case <-p.ending:
			return
		}
	}
}

// newest is an event with the counts of this moment, made once for all who look.
func (p *page) newest() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.event != nil && time.Since(p.made) < liveEvery/2 {
		return p.event
	}
	stats := p.verbs.engine.Stats()
	var waiting []proxy.ClientInfo
	if stats.Waiting > 0 {
		waiting = p.verbs.engine.ListClients()
	}
	pools := poolsOf(stats.Pools, waiting)
	p.made = time.Now()
	data, err := json.Marshal(struct {
		Time  float64 `json:"time"`
		Stats Stats   `json:"stats"`
		Pools []Pool  `json:"pools"`
		// Advice is what the page has room for.
		Advice []Advice `json:"advice"`
		Paths  []path   `json:"paths"`
	}{float64(p.made.UnixMilli()) / 1000, statsOf(stats, p.verbs.version), pools[:min(len(pools), livePools)],
		adviceOf(stats.Advice[:min(len(stats.Advice), liveAdvice)]), pathsOf(&stats)})
	if err != nil {
		return nil // there is nothing in it that cannot be written
	}
	p.event = append(append([]byte("data: "), data...), "\n\n"...)
	return p.event
}

// path is what the page says of an address of a broker's, or of a route, and the class in which it is shown.
type path [2]string

// livePaths bounds them.
const livePaths = 50

// pathsOf are those of several brokers; of the only one its tile tells.
func pathsOf(s *proxy.Stats) []path {
	all := []path{}
	if len(s.Targets) < 2 && len(s.Routes) == 0 {
		return all
	}
	for _, t := range s.Targets {
		text, class := fmt.Sprintf("%s: connections: %d", t.Address, t.Links), ""
		if !t.Up {
			text, class = fmt.Sprintf("%s: out for %v: %s", t.Address, time.Since(t.Since).Round(time.Second), t.Reason), "bad"
		}
		all = append(all, path{strings.TrimSpace(t.Broker + " " + text), class})
	}
	for _, r := range RoutesOf(s.Routes) {
		all = append(all, path{r.String(), ""})
	}
	return all[:min(len(all), livePaths)]
}
