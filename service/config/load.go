// Loading: defaults, then the settings file, then the environment, then the command line,
// each over the one before. Every problem is found, each with its place; nothing is
// opened but the file itself.

package config

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

// Source says where settings come from.
type Source struct {
	// File is the path of the settings file; "" for none.
	File string
	// Env looks an environment variable up, as os.LookupEnv does; nil: none is looked at.
	// An empty variable counts as not set.
	Env func(string) (string, bool)
	// CommandLine are the values of flags, in their order.
	CommandLine []Override
}

// Override is a value from the command line.
type Override struct {
	Setting *Setting
	Value   string
	Origin  string // what the user wrote it behind: "--port"
}

// Error is a wrong configuration or command line.
type Error struct {
	// Problems are sentences, each with its place; there is at least one.
	Problems []string
	// CommandLine says that the first problem stands on the command line.
	CommandLine bool
}

// Error is one line: the first problem, and how many more there are.
func (e *Error) Error() string {
	if more := len(e.Problems) - 1; more > 0 {
		return fmt.Sprintf("%s (and %d more: see check-config)", e.Problems[0], more)
	}
	return e.Problems[0]
}

// Load reads all sources and checks the whole. An error is an *Error.
func Load(src Source) (s Settings, warnings []string, err error) {
	s = Defaults()
	var wrong Error
	warn := func(place, name, text string) {
		if text != "" {
			warnings = append(warnings, place+": "+name+": "+text)
		}
	}

	// The command line is checked first, on a copy: its errors come before others'.
	scratch := Defaults()
	for _, o := range src.CommandLine {
		if o.Setting.FileOnly() {
			wrong.Problems = append(wrong.Problems, fmt.Sprintf("%s: %s is one of %s, which only the settings file has", o.Origin, o.Setting.Name(), header(o.Setting.Section)))
			wrong.CommandLine = true
		} else if _, err := o.Setting.setText(&scratch, &scratch.Listeners[0], o.Value); err != nil {
			wrong.Problems = append(wrong.Problems, o.Origin+": "+err.Error())
			wrong.CommandLine = true
		}
	}
	var inFile map[string]int
	if src.File != "" {
		fileWarnings, problems, lines := loadFile(src.File, src.Env, &s)
		warnings = append(warnings, fileWarnings...)
		wrong.Problems = append(wrong.Problems, problems...)
		inFile = lines
	}
	if src.Env != nil {
		for i := range Table {
			d := &Table[i]
			if d.Env == "" {
				continue
			}
			value, set := src.Env(d.Env)
			if !set || value == "" {
				continue
			}
			before := d.TOML(&s, &s.Listeners[0])
			warning, err := d.setText(&s, &s.Listeners[0], value)
			if err != nil {
				wrong.Problems = append(wrong.Problems, "environment variable "+d.Env+": "+err.Error())
				continue
			}
			warn("environment variable "+d.Env, d.Name(), warning)
			if line, set := inFile[d.Name()]; set && d.TOML(&s, &s.Listeners[0]) != before {
				warnings = append(warnings, fmt.Sprintf("%s of %s:%d is not used: the environment's %s comes before it", d.Name(), src.File, line, d.Env))
			}
		}
	}
	for _, o := range src.CommandLine {
		if warning, err := o.Setting.setText(&s, &s.Listeners[0], o.Value); err == nil {
			if strings.HasPrefix(warning, "user and password") {
				warning += "; ps shows the command line to everybody on this machine: leave them away"
			}
			warn(o.Origin, o.Setting.Name(), warning)
		}
	}
	if len(wrong.Problems) == 0 {
		wrong.Problems = s.check()
		if src.File != "" {
			for i, p := range wrong.Problems {
				wrong.Problems[i] = src.File + ": " + p
			}
		}
		wrong.CommandLine = src.File == "" && len(src.CommandLine) > 0
	}
	if len(wrong.Problems) > 0 {
		return Defaults(), warnings, &wrong
	}
	if mode, open := readableByAll(src.File); open && len(s.Users) > 0 {
		warnings = append(warnings, fmt.Sprintf("%s: everybody on this machine may read or change the hashes of its [[user]] (mode %04o): chmod 0640", src.File, mode))
	}
	return s, warnings, nil
}

// check looks at settings that bound each other.
func (s *Settings) check() (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	e := &s.Engine
	if e.MessageBuffer < e.MaxMessageSize {
		bad("client.message_buffer is %s, allowed is client.max_message_size (%s) or more", formatSize(e.MessageBuffer), formatSize(e.MaxMessageSize))
	}
	if e.Heartbeat%time.Second != 0 {
		bad("upstream.heartbeat is %s, allowed are whole seconds", formatDuration(e.Heartbeat))
	}
	if (s.TLS.CertFile == "") != (s.TLS.KeyFile == "") {
		bad("tls.cert_file and tls.key_file go together, only one of them is set")
	}
	if at := s.Admin.Socket; at != "" && at != "off" && !socketPath(at) {
		bad("admin.socket is %q, allowed is off, or %s", at, socketPathAllowed)
	}
	problems = append(problems, s.checkUsers()...)
	problems = append(problems, proxy.ValidateLimits(s.engineLimits())...)
	problems = append(problems, s.checkRoutes()...)
	bound := []Listener{{Address: s.HTTP.Address, Port: s.HTTP.Port}}
	for i, l := range s.Listeners {
		for j, other := range bound {
			if l.Port == 0 || l.Port != other.Port || !overlap(l.Address, other.Address) {
				continue
			}
			of := "http.address, http.port"
			if j > 0 {
				of = fmt.Sprintf("listener %d", j)
			}
			bad("listener.address, listener.port: listener %d is %s, which overlaps %s of %s, allowed is an address of its own",
				i+1, l.HostPort(), other.HostPort(), of)
			break
		}
		problems = append(problems, l.checkTLS(i+1)...)
		if l.ProxyProtocol == "required" && len(l.ProxyFrom) == 0 {
			bad("listener %d: listener.proxy_protocol is required, which needs listener.proxy_from: who may tell the addresses of clients", i+1)
		}
		for j, b := range s.allBrokers() {
			if l.Port != 0 && l.Port == b.Port && ownAddress(b.Host, l.Address) {
				setting := "upstream.url"
				if j > len(s.Others) {
					setting = "broker.url"
				}
				bad("%s is %s, where listener %d listens: the proxy would connect to itself", setting, b, i+1)
			}
		}
		bound = append(bound, l)
	}
	return problems
}

// ownAddress reports whether a connect to host leads to a listener on address: as far as it can
// be told without a name server.
func ownAddress(host, address string) bool {
	if strings.EqualFold(host, address) {
		return true
	}
	local := func(text string) bool {
		ip, err := netip.ParseAddr(text)
		return strings.EqualFold(text, "localhost") || err == nil && (ip.IsLoopback() || ip.IsUnspecified())
	}
	if !local(host) {
		return false
	}
	if strings.EqualFold(host, "localhost") || strings.EqualFold(address, "localhost") {
		return local(address)
	}
	return overlap(host, address)
}

// overlap reports whether two hosts cannot both be bound to one port: they are the same, or
// one of them stands for all addresses, the other's among them.
func overlap(a, b string) bool {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX != nil || errY != nil {
		return strings.EqualFold(a, b)
	}
	all := netip.IPv6Unspecified()
	return x == y || x == all || y == all || x.Is4() && y.Is4() && (x.IsUnspecified() || y.IsUnspecified())
}

// readFile is os.ReadFile with errors in the words of this package, and a bound.
func readFile(path string) ([]byte, error) {
	const most = 1 << 20
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		err = errors.New("is a directory")
	}
	var data []byte
	if err == nil {
		data, err = readUpTo(path, most+1) // a device or a pipe tells no size
	}
	if err == nil && len(data) > most {
		err = fmt.Errorf("has more than %s", formatSize(most))
	}
	if err == nil {
		return data, nil
	}
	return nil, fmt.Errorf("%s: cannot be read: %s", path, plainReason(err))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func readUpTo(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	return data, errors.Join(err, f.Close())
}

// plainReason is what went wrong with a file, without its name.
func plainReason(err error) string {
	if errors.Is(err, os.ErrNotExist) {
		return "there is no such file"
	}
	if errors.Is(err, os.ErrPermission) {
		return "permission denied"
	}
	var pathErr *os.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return strings.TrimSpace(err.Error())
}
