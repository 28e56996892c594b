// Values of settings: read from text (command line, environment) or from a TOML value,
// checked against the table's bounds, written back as TOML. An error says what the value
// is and what is allowed; where it stands is added by the source that read it.

package config

import (
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

// Allowed says in words what the setting may be.
func (d *Setting) Allowed() string {
	switch d.Kind {
	case KindPath:
		return "the path of a file"
	case KindSecret:
		return "the path of a file, or the name of a credential of systemd"
	case KindPaths:
		return "the path of a file, or a list of such"
	case KindNames:
		return "a name, or a list of such"
	case KindNetworks:
		return "a network (10.0.0.0/8) or an IP address, or a list of such"
	case KindHost:
		return "a host name or an IP address"
	case KindURL:
		return "amqp://HOST[:PORT] or amqps://HOST[:PORT], or a list of such"
	case KindBool:
		return "true or false"
	case KindChoice:
		last := len(d.Values) - 1
		return strings.Join(d.Values[:last], ", ") + " or " + d.Values[last]
	case KindInt, KindSize, KindDuration:
		allowed := d.number(d.Min) + " to " + d.number(d.Max)
		if d.Special != nil {
			allowed = d.number(d.Special.Value) + " (" + d.Special.Meaning + ") or " + allowed
		}
		return allowed
	}
	switch d.Kind {
	case KindRate:
		return fmt.Sprintf("0 (no bound), or 1 to %d in a second, a minute or an hour: \"200/s\", \"30/m\", \"10/h\"", proxy.RateMost)
	case KindByteRate:
		return fmt.Sprintf("0 (no bound), or \"%s/s\" to \"%s/s\"", formatSize(d.Min), formatSize(d.Max))
	}
	return "any text"
}

// number writes a number of the setting's kind.
func (d *Setting) number(n int64) string {
	switch d.Kind {
	case KindSize:
		return formatSize(n)
	case KindDuration:
		if n <= 0 {
			return strconv.FormatInt(n, 10)
		}
		return formatDuration(time.Duration(n))
	}
	return strconv.FormatInt(n, 10)
}

// bad is the error for a value that the setting does not take.
func (d *Setting) bad(value string) error {
	if len(value) > 200 {
		value = value[:200] + "..."
	}
	if d.Hidden {
		value = "not readable as such"
	}
	return fmt.Errorf("%s is %s, allowed is %s", d.Name(), Redact(value), d.Allowed())
}

var userInfo = regexp.MustCompile(`://[^\s"]*@`)

// Redact takes the user and the password out of every URL in a text.
func Redact(text string) string {
	if strings.Contains(text, "://") {
		return userInfo.ReplaceAllString(text, "://[redacted]@")
	}
	return text
}

// setText sets the value from text, as on the command line or in the environment.
func (d *Setting) setText(s *Settings, l *Listener, text string) (warning string, err error) {
	quoted := strconv.Quote(text)
	switch d.Kind {
	case KindBool:
		on, err := strconv.ParseBool(strings.ToLower(text))
		if err != nil {
			return "", d.bad(quoted)
		}
		*d.at(s, l).(*bool) = on
		return "", nil
	case KindInt, KindSize, KindDuration:
		n, ok := d.parseNumber(text)
		if !ok {
			return "", d.bad(quoted)
		}
		return "", d.setNumber(s, l, n, quoted)
	case KindURL:
		return d.setURLs(s, l, splitURLs(text))
	case KindRate, KindByteRate:
		return "", d.setRate(s, l, text)
	case KindPaths, KindNames, KindNetworks:
		var list []string
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			}
		}
		return "", d.setList(s, l, list)
	}
	return d.setString(s, l, text)
}

// setRate checks and sets a rate.
func (d *Setting) setRate(s *Settings, l *Listener, text string) error {
	rate, ok := proxy.ParseRate(text)
	bytes, perSecond := strings.CutSuffix(text, "/s")
	n, isSize := parseSize(bytes)
	if text == "0" {
		n, ok, perSecond, isSize = 0, true, true, true
	} else if n < d.Min || n > d.Max {
		isSize = false
	}
	switch p := d.at(s, l).(type) {
	case *proxy.Rate:
		if !ok {
			return d.bad(strconv.Quote(text))
		}
		*p = rate
	case *int64:
		if !perSecond || !isSize {
			return d.bad(strconv.Quote(text))
		}
		*p = n
	}
	return nil
}

// setList checks and sets a list.
func (d *Setting) setList(s *Settings, l *Listener, list []string) error {
	for _, text := range list {
		if text == "" || strings.ContainsRune(text, 0) {
			return d.bad(strconv.Quote(text))
		}
	}
	switch p := d.at(s, l).(type) {
	case *[]string:
		*p = list
	case *[]netip.Prefix:
		var networks []netip.Prefix
		for _, text := range list {
			n, ok := parseNetwork(text)
			if !ok {
				return d.bad(strconv.Quote(text))
			}
			networks = append(networks, n)
		}
		*p = networks
	}
	return nil
}

// parseNumber reads a number of the setting's kind; a duration in nanoseconds.
func (d *Setting) parseNumber(text string) (int64, bool) {
	switch d.Kind {
	case KindSize:
		return parseSize(text)
	case KindDuration:
		v, ok := ParseDuration(text)
		return int64(v), ok
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

// parseNetwork reads a network, or an address as one that has no other.
func parseNetwork(text string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(text); err == nil {
		n, err := a.Unmap().Prefix(a.Unmap().BitLen())
		return n, err == nil && a.Zone() == ""
	}
	n, err := netip.ParsePrefix(text)
	return n.Masked(), err == nil && !n.Addr().Is4In6()
}

// setTOML sets the value from one of the file, as the TOML library gives it.
func (d *Setting) setTOML(s *Settings, l *Listener, value any) (warning string, err error) {
	switch v := value.(type) {
	case bool:
		if d.Kind != KindBool {
			return "", d.bad(strconv.FormatBool(v))
		}
		*d.at(s, l).(*bool) = v
		return "", nil
	case int64:
		shown := strconv.FormatInt(v, 10)
		switch d.Kind {
		case KindInt, KindSize:
			return "", d.setNumber(s, l, v, shown)
		case KindDuration:
			n, ok := seconds(v)
			if !ok {
				return "", d.bad(shown)
			}
			return "", d.setNumber(s, l, int64(n), shown)
		case KindRate, KindByteRate:
			if v == 0 {
				return "", d.setRate(s, l, "0")
			}
		}
		return "", d.bad(shown + ", a number")
	case []any:
		switch d.Kind {
		case KindPaths, KindNames, KindNetworks, KindURL:
		default:
			return "", d.bad(kindOf(value))
		}
		var list []string
		for _, x := range v {
			text, ok := x.(string)
			if !ok {
				return "", d.bad("a list with something else than texts in it")
			}
			list = append(list, text)
		}
		if d.Kind == KindURL {
			return d.setURLs(s, l, list)
		}
		return "", d.setList(s, l, list)
	case string:
		switch d.Kind {
		case KindBool, KindInt:
			return "", d.bad(strconv.Quote(v) + ", a text in quotes")
		case KindPaths, KindNames, KindNetworks:
			if v == "" {
				return "", d.setList(s, l, nil)
			}
			return "", d.setList(s, l, []string{v})
		}
		return d.setText(s, l, v)
	}
	return "", d.bad(kindOf(value))
}

func kindOf(value any) string {
	switch value.(type) {
	case float64:
		return "a number with a fraction"
	case time.Time:
		return "a date"
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "of another kind"
}

// setNumber checks the bounds and sets the value.
func (d *Setting) setNumber(s *Settings, l *Listener, n int64, shown string) error {
	if (n < d.Min || n > d.Max) && (d.Special == nil || n != d.Special.Value) {
		return d.bad(shown)
	}
	switch p := d.at(s, l).(type) {
	case *int:
		*p = int(n)
	case *int64:
		*p = n
	case *time.Duration:
		*p = time.Duration(n)
	}
	return nil
}

// setString checks and sets a value that is not a number.
func (d *Setting) setString(s *Settings, l *Listener, text string) (warning string, err error) {
	switch d.Kind {
	case KindHost:
		host, ok := parseHost(text)
		if !ok {
			err := d.bad(strconv.Quote(text))
			if h, port, splitErr := net.SplitHostPort(text); splitErr == nil && port != "" {
				if _, isHost := parseHost(h); isHost || h == "" {
					sibling := find(d.Section, "port")
					err = fmt.Errorf("%w; the port goes to -%s, %s", err, sibling.Short, sibling.Name())
				}
			}
			return "", err
		}
		text = host
	case KindChoice:
		lower := strings.ToLower(text)
		if d.Name() == "log.level" {
			lower = levelName(lower)
		}
		found := false
		for _, v := range d.Values {
			found = found || v == lower
		}
		if !found {
			return "", d.bad(strconv.Quote(text))
		}
		text = lower
	}
	if strings.ContainsRune(text, 0) {
		return "", d.bad(strconv.Quote(text))
	}
	switch p := d.at(s, l).(type) {
	case *string:
		*p = text
	case *proxy.PoolMode:
		*p = proxy.PoolMode(text)
	case *proxy.ClientCert:
		*p = proxy.ClientCert(text)
	case *slog.Level:
		return "", p.UnmarshalText([]byte(text))
	}
	return "", nil
}

// levelName takes the names of AMQProxy's levels for the nearest of ours.
func levelName(name string) string {
	switch name {
	case "trace":
		return "debug"
	case "notice":
		return "info"
	case "warning":
		return "warn"
	case "fatal", "none":
		return "error"
	}
	return name
}

// shown is TOML, but for what is hidden.
func (d *Setting) shown(s *Settings, l *Listener) string {
	if text, ok := d.at(s, l).(*string); ok && d.Hidden && *text != "" {
		return quoteTOML("[redacted]")
	}
	return d.TOML(s, l)
}

// TOML writes the value in force as it stands in the file.
func (d *Setting) TOML(s *Settings, l *Listener) string {
	switch p := d.at(s, l).(type) {
	case *bool:
		return strconv.FormatBool(*p)
	case *int:
		if d.Kind == KindSize {
			return quoteTOML(formatSize(int64(*p)))
		}
		return strconv.Itoa(*p)
	case *int64:
		switch {
		case d.Kind == KindByteRate && *p == 0:
			return "0"
		case d.Kind == KindByteRate:
			return quoteTOML(formatSize(*p) + "/s")
		}
		return quoteTOML(formatSize(*p))
	case *proxy.Rate:
		if *p == (proxy.Rate{}) {
			return "0"
		}
		return quoteTOML(p.String())
	case *time.Duration:
		if d.Special != nil && int64(*p) == d.Special.Value {
			return strconv.FormatInt(d.Special.Value, 10)
		}
		return quoteTOML(formatDuration(*p))
	case *string:
		return quoteTOML(*p)
	case *[]string:
		return listTOML(*p)
	case *[]netip.Prefix:
		list := make([]string, len(*p))
		for i, n := range *p {
			list[i] = n.String()
		}
		return listTOML(list)
	case *proxy.PoolMode:
		return quoteTOML(string(*p))
	case *proxy.ClientCert:
		return quoteTOML(string(*p))
	case *slog.Level:
		return quoteTOML(strings.ToLower(p.String()))
	case brokers:
		if p.first.Host == "" {
			return quoteTOML("")
		}
		list := []string{p.first.String()}
		for _, b := range *p.others {
			list = append(list, b.String())
		}
		return listTOML(list)
	}
	panic("setting " + d.Name() + " has no type")
}

// listTOML writes a list, of one as such.
func listTOML(list []string) string {
	if len(list) == 1 {
		return quoteTOML(list[0])
	}
	parts := make([]string, len(list))
	for i, text := range list {
		parts[i] = quoteTOML(text)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// quoteTOML writes a string as TOML does: literal where that is easier on the eye (paths
// of Windows), basic otherwise.
func quoteTOML(text string) string {
	if strings.ContainsRune(text, '\\') && !strings.ContainsFunc(text, func(r rune) bool { return r == '\'' || r < ' ' || r == 127 }) {
		return "'" + text + "'"
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 127:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// parseHost takes a host name or an IP address, the latter with or without brackets.
func parseHost(text string) (string, bool) {
	if inner, ok := strings.CutPrefix(text, "["); ok {
		inner, closed := strings.CutSuffix(inner, "]")
		return inner, closed && strings.Contains(inner, ":") && net.ParseIP(withoutZone(inner)) != nil
	}
	if strings.Contains(text, ":") {
		return text, net.ParseIP(withoutZone(text)) != nil
	}
	if text == "" || len(text) > 253 || strings.HasPrefix(text, "-") {
		return "", false
	}
	for _, c := range []byte(text) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c >= 0x80:
		default:
			return "", false
		}
	}
	return text, true
}

func withoutZone(ip string) string {
	ip, _, _ = strings.Cut(ip, "%")
	return ip
}

// seconds is n seconds, if a duration can hold them; -1 stays -1, the mark of "no bound".
func seconds(n int64) (time.Duration, bool) {
	if n == -1 {
		return -1, true
	}
	if n > math.MaxInt64/secondNS || n < math.MinInt64/secondNS {
		return 0, false
	}
	return time.Duration(n) * time.Second, true
}

// ParseDuration takes whole seconds, Go's syntax, and days ("7d").
func ParseDuration(text string) (time.Duration, bool) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return seconds(n)
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 32)
		return time.Duration(n) * day, err == nil && n <= int64(math.MaxInt64/day) && n >= 0
	}
	v, err := time.ParseDuration(text)
	return v, err == nil && v != -1
}

// formatDuration writes a duration shortly: "20s", "5m", "1h30m", "365d".
func formatDuration(v time.Duration) string {
	if v >= 2*day && v%day == 0 {
		return strconv.FormatInt(int64(v/day), 10) + "d"
	}
	text := v.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// parseSize takes bytes, with or without a unit.
func parseSize(text string) (int64, bool) {
	unit := int64(1)
	for _, u := range sizeUnits {
		if len(text) > len(u.name) && strings.EqualFold(text[len(text)-len(u.name):], u.name) {
			text, unit = strings.TrimSpace(text[:len(text)-len(u.name)]), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return 0, false
	}
	return n * unit, true
}

// formatSize writes bytes in the largest binary unit that divides them.
func formatSize(n int64) string {
	for _, u := range sizeUnits[:4] {
		if n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
