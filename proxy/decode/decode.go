// Package decode reads AMQP 0-9-1 frames for people: the names of methods, arguments and properties
// are those of the specification, with RabbitMQ's where that only reserves a place. The engine does
// not need it: what it passes on stays as it is.
package decode

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// Field is an argument, a property or an entry of a table. Its value is a bool, an integer, a
// float, a string, nil, Fields, a []any of these, or Hidden.
type Field struct {
	Name  string
	Value any
}

// Fields are several, in the order in which they were sent.
type Fields []Field

// Hidden stands for a secret of so many octets.
type Hidden int

func (h Hidden) String() string { return fmt.Sprintf("[%d octets]", int(h)) }

// MarshalJSON has it as text.
func (h Hidden) MarshalJSON() ([]byte, error) { return json.Marshal(h.String()) }

// MarshalJSON makes an object of them that keeps their order.
func (f Fields) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, x := range f {
		if i > 0 {
			b = append(b, ',')
		}
		name, err := json.Marshal(x.Name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(x.Value)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, name...), ':'), value...)
	}
	return append(b, '}'), nil
}

// String has them one after another, NAME=VALUE, in characters that a terminal shows.
func (f Fields) String() string {
	var b strings.Builder
	for i, x := range f {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(plainName(x.Name) + "=" + valueText(x.Value))
	}
	return b.String()
}

// plainName is a name as it is, or quoted where it is not a plain word.
func plainName(name string) string {
	for _, r := range name {
		if r <= ' ' || r > '~' || r == '"' || r == '=' {
			return strconv.Quote(name)
		}
	}
	return name
}

func valueText(v any) string {
	switch v := v.(type) {
	case nil:
		return "void"
	case string:
		return strconv.Quote(v)
	case Fields:
		return "{" + v.String() + "}"
	case []any:
		all := make([]string, len(v))
		for i, x := range v {
			all[i] = valueText(x)
		}
		return "[" + strings.Join(all, " ") + "]"
	}
	return fmt.Sprint(v)
}

// arguments name those of each method in the order of amqp.Spec.Args, the bits of one octet with a
// bar between them. What is only reserved has the name -, and is not told.
var arguments = map[amqp.Method]string{
	amqp.ConnectionStart:        "version-major version-minor server-properties mechanisms locales",
	amqp.ConnectionStartOk:      "client-properties mechanism response locale",
	amqp.ConnectionSecure:       "challenge",
	amqp.ConnectionSecureOk:     "response",
	amqp.ConnectionTune:         "channel-max frame-max heartbeat",
	amqp.ConnectionTuneOk:       "channel-max frame-max heartbeat",
	amqp.ConnectionOpen:         "virtual-host - -",
	amqp.ConnectionOpenOk:       "-",
	amqp.ConnectionClose:        "reply-code reply-text class-id method-id",
	amqp.ConnectionBlocked:      "reason",
	amqp.ConnectionUpdateSecret: "new-secret reason",

	amqp.ChannelOpen:   "-",
	amqp.ChannelOpenOk: "-",
	amqp.ChannelFlow:   "active",
	amqp.ChannelFlowOk: "active",
	amqp.ChannelClose:  "reply-code reply-text class-id method-id",

	amqp.AccessRequest:   "realm exclusive|passive|active|write|read",
	amqp.AccessRequestOk: "ticket",

	amqp.ExchangeDeclare: "- exchange type passive|durable|auto-delete|internal|no-wait arguments",
	amqp.ExchangeDelete:  "- exchange if-unused|no-wait",
	amqp.ExchangeBind:    "- destination source routing-key no-wait arguments",
	amqp.ExchangeUnbind:  "- destination source routing-key no-wait arguments",

	amqp.QueueDeclare:   "- queue passive|durable|exclusive|auto-delete|no-wait arguments",
	amqp.QueueDeclareOk: "queue message-count consumer-count",
	amqp.QueueBind:      "- queue exchange routing-key no-wait arguments",
	amqp.QueuePurge:     "- queue no-wait",
	amqp.QueuePurgeOk:   "message-count",
	amqp.QueueDelete:    "- queue if-unused|if-empty|no-wait",
	amqp.QueueDeleteOk:  "message-count",
	amqp.QueueUnbind:    "- queue exchange routing-key arguments",

	amqp.BasicQos:          "prefetch-size prefetch-count global",
	amqp.BasicConsume:      "- queue consumer-tag no-local|no-ack|exclusive|no-wait arguments",
	amqp.BasicConsumeOk:    "consumer-tag",
	amqp.BasicCancel:       "consumer-tag no-wait",
	amqp.BasicCancelOk:     "consumer-tag",
	amqp.BasicPublish:      "- exchange routing-key mandatory|immediate",
	amqp.BasicReturn:       "reply-code reply-text exchange routing-key",
	amqp.BasicDeliver:      "consumer-tag delivery-tag redelivered exchange routing-key",
	amqp.BasicGet:          "- queue no-ack",
	amqp.BasicGetOk:        "delivery-tag redelivered exchange routing-key message-count",
	amqp.BasicGetEmpty:     "-",
	amqp.BasicAck:          "delivery-tag multiple",
	amqp.BasicReject:       "delivery-tag requeue",
	amqp.BasicRecoverAsync: "requeue",
	amqp.BasicRecover:      "requeue",
	amqp.BasicNack:         "delivery-tag multiple|requeue",

	amqp.ConfirmSelect: "nowait",
}

// properties are those of class basic, from flag bit 15 downwards, with their types as in amqp.Spec.Args.
var properties = [14]struct {
	name string
	typ  byte
}{
	{"content-type", 's'}, {"content-encoding", 's'}, {"headers", 'T'}, {"delivery-mode", 'o'}, {"priority", 'o'},
	{"correlation-id", 's'}, {"reply-to", 's'}, {"expiration", 's'}, {"message-id", 's'}, {"timestamp", 't'},
	{"type", 's'}, {"user-id", 's'}, {"app-id", 's'}, {"cluster-id", 's'},
}

// secret reports whether an argument is one that is shown to nobody.
func secret(m amqp.Method, name string) bool {
	switch m {
	case amqp.ConnectionStartOk, amqp.ConnectionSecureOk:
		return name == "response"
	case amqp.ConnectionUpdateSecret:
		return name == "new-secret"
	}
	return false
}

// Name is the method's name in the specification: "basic.get-ok".
func Name(m amqp.Method) string { return strings.ReplaceAll(m.String(), "_", "-") }

// Method reads the payload of a method frame. Not ok: it does not decode as what it names.
func Method(payload []byte) (name string, args Fields, ok bool) {
	if len(payload) < 4 {
		return "", nil, false
	}
	m := amqp.Method(binary.BigEndian.Uint32(payload))
	spec := m.Spec()
	if _, err := spec.CheckArgs(payload[4:]); err != nil || spec.Name == "" {
		return Name(m), nil, false
	}
	names := strings.Fields(arguments[m])
	a := amqp.ArgsOf(payload[4:])
	for i := range len(spec.Args) {
		n := names[i]
		if spec.Args[i] == 'b' {
			octet := a.Octet()
			for bit, one := range strings.Split(n, "|") {
				if one != "-" {
					args = append(args, Field{one, octet&(1<<bit) != 0})
				}
			}
			continue
		}
		v := argument(&a, spec.Args[i])
		switch {
		case n == "-":
			continue
		case secret(m, n):
			v = Hidden(len(v.(string)))
		}
		args = append(args, Field{n, v})
	}
	return Name(m), args, true
}

// argument reads one, of a type that Spec.Args names.
func argument(a *amqp.Args, typ byte) any {
	switch typ {
	case 'h':
		return a.Short()
	case 'l':
		return a.Long()
	case 'q':
		return a.LongLong()
	case 's':
		return text(a.Str())
	case 'S':
		return text(a.LongStr())
	case 'T':
		return table(a.LongStr())
	}
	return a.Octet()
}

// Header reads the payload of a content header of class basic.
func Header(payload []byte) (bodySize uint64, props Fields, ok bool) {
	bodySize, err := amqp.CheckContentHeader(payload)
	if err != nil {
		return 0, nil, false
	}
	a := amqp.ArgsOf(payload[12:])
	for left := a.Short() &^ 3; left != 0; {
		i := bits.LeadingZeros16(left)
		left &^= 0x8000 >> i
		p := properties[i]
		if p.typ == 't' {
			props = append(props, Field{p.name, timestamp(a.LongLong())})
			continue
		}
		props = append(props, Field{p.name, argument(&a, p.typ)})
	}
	return bodySize, props, true
}

// text is a string that is UTF-8, or its octets as 0x and hexadecimal digits.
func text(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return "0x" + hex.EncodeToString(b)
}

// timestamp is seconds since 1970 as a date, where there is one.
func timestamp(sec uint64) any {
	const year10000 = 253402300800
	if sec >= year10000 {
		return sec
	}
	return time.Unix(int64(sec), 0).UTC().Format(time.RFC3339)
}

// table reads the inside of one that was checked: it is not nested without bound.
func table(b []byte) Fields {
	all := Fields{}
	for a := amqp.ArgsOf(b); len(a.Rest()) > 0 && !a.Bad; {
		name := text(a.Str())
		all = append(all, Field{name, value(&a)})
	}
	return all
}

// value reads one of a table, with its type (the letters are RabbitMQ's).
func value(a *amqp.Args) any {
	switch a.Octet() {
	case 't':
		return a.Octet() != 0
	case 'b':
		return int8(a.Octet())
	case 'B':
		return a.Octet()
	case 's':
		return int16(a.Short())
	case 'u':
		return a.Short()
	case 'I':
		return int32(a.Long())
	case 'i':
		return a.Long()
	case 'l', 'L':
		return int64(a.LongLong())
	case 'f':
		return math.Float32frombits(a.Long())
	case 'd':
		return math.Float64frombits(a.LongLong())
	case 'D':
		return decimal(a.Octet(), int32(a.Long()))
	case 'T':
		return timestamp(a.LongLong())
	case 'S':
		return text(a.LongStr())
	case 'x':
		return "0x" + hex.EncodeToString(a.LongStr())
	case 'F':
		return table(a.LongStr())
	case 'A':
		all := []any{}
		for in := amqp.ArgsOf(a.LongStr()); len(in.Rest()) > 0 && !in.Bad; {
			all = append(all, value(&in))
		}
		return all
	}
	return nil
}

// decimal is a number with so many digits behind the point.
func decimal(scale byte, n int32) string {
	digits := strconv.FormatInt(int64(n), 10)
	sign := ""
	if n < 0 {
		sign, digits = "-", digits[1:]
	}
	if scale == 0 {
		return sign + digits
	}
	if short := int(scale) + 1 - len(digits); short > 0 {
		digits = strings.Repeat("0", short) + digits
	}
	at := len(digits) - int(scale)
	return sign + digits[:at] + "." + digits[at:]
}
