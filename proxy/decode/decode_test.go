package decode

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// each yields every method of the table.
func each(yield func(amqp.Method, *amqp.Spec)) {
	for class := range uint32(91) {
		for id := range uint32(121) {
			m := amqp.Method(class<<16 | id)
			if m.Index() != 0 {
				yield(m, m.Spec())
			}
		}
	}
}

// Each argument of each method has a name, and no name is without its argument.
func TestEveryArgumentHasAName(t *testing.T) {
	n := 0
	each(func(m amqp.Method, s *amqp.Spec) {
		n++
		if names := strings.Fields(arguments[m]); len(names) != len(s.Args) {
			t.Errorf("%s has %d arguments and %d names: %q", s.Name, len(s.Args), len(names), names)
		}
	})
	if n != amqp.NumMethods-1 {
		t.Errorf("%d methods were looked at, there are %d", n, amqp.NumMethods-1)
	}
}

func method(m amqp.Method, args ...byte) []byte {
	return amqp.Frame(amqp.AppendMethod(nil, 1, m, args...)).Payload()
}

func TestMethod(t *testing.T) {
	short := func(s string) []byte { return amqp.AppendShortStr(nil, s) }
	join := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	inside := join(
		amqp.AppendStringField(nil, "x-queue-type", "quorum"), short("n"), []byte("I\xff\xff\xff\xfe"), short("d"), []byte("D\x02\x00\x00\x00\x05"),
		short("at"), []byte("T\x00\x00\x00\x00\x00\x00\x00\x01"), short("v"), []byte("V"), short("a"), []byte("A\x00\x00\x00\x04t\x01b\xff"),
		amqp.AppendTableField(nil, "odd name", amqp.AppendBoolField(nil, "in", true)))
	table := amqp.AppendLongStr(nil, inside)
	for _, c := range []struct {
		payload    []byte
		name, text string
		json       string
	}{
		{method(amqp.QueueDeclare, join([]byte{0, 0}, short("q\x1b["), []byte{1<<1 | 1<<4}, table)...), "queue.declare",
			`queue="q\x1b[" passive=false durable=true exclusive=false auto-delete=false no-wait=true ` +
				`arguments={x-queue-type="quorum" n=-2 d="0.05" at="1970-01-01T00:00:01Z" v=void a=[true -1] "odd name"={in=true}}`,
			`{"queue":"q\u001b[","passive":false,"durable":true,"exclusive":false,"auto-delete":false,"no-wait":true,` +
				`"arguments":{"x-queue-type":"quorum","n":-2,"d":"0.05","at":"1970-01-01T00:00:01Z","v":null,"a":[true,-1],"odd name":{"in":true}}}`},
		{method(amqp.BasicPublish, join([]byte{0, 0}, short(""), short("\xff\xfe"), []byte{1})...), "basic.publish",
			`exchange="" routing-key="0xfffe" mandatory=true immediate=false`, `{"exchange":"","routing-key":"0xfffe","mandatory":true,"immediate":false}`},
		{method(amqp.ConnectionStartOk, join(amqp.AppendLongStr(nil, ""), short("PLAIN"), amqp.AppendLongStr(nil, "\x00app\x00secret"), short("en_US"))...), "connection.start-ok",
			`client-properties={} mechanism="PLAIN" response=[11 octets] locale="en_US"`,
			`{"client-properties":{},"mechanism":"PLAIN","response":"[11 octets]","locale":"en_US"}`},
		{method(amqp.ConnectionSecureOk, amqp.AppendLongStr(nil, "secret")...), "connection.secure-ok", "response=[6 octets]", `{"response":"[6 octets]"}`},
		{method(amqp.ConnectionUpdateSecret, join(amqp.AppendLongStr(nil, "secret"), short("why"))...), "connection.update-secret",
			`new-secret=[6 octets] reason="why"`, `{"new-secret":"[6 octets]","reason":"why"}`},
		{method(amqp.ChannelCloseOk), "channel.close-ok", "", `{}`},
	} {
		name, args, ok := Method(c.payload)
		if !ok || name != c.name || args.String() != c.text {
			t.Errorf("got %s %s, %v\nwant %s %s", name, args, ok, c.name, c.text)
		}
		if got, err := json.Marshal(args); err != nil || string(got) != c.json {
			t.Errorf("%s as JSON, %v: got %s\nwant %s", c.name, err, got, c.json)
		}
	}
	for _, bad := range [][]byte{nil, {0, 60}, method(amqp.QueueDeclare, 1), method(amqp.Method(60<<16 | 99)), method(amqp.ChannelCloseOk, 0)} {
		if name, args, ok := Method(bad); ok {
			t.Errorf("%x is %s %s", bad, name, args)
		}
	}
}

func TestHeader(t *testing.T) {
	p := []byte{0, amqp.ClassBasic, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}
	p[12], p[13] = 1<<7|1<<5|1<<4, 1<<6 // content-type, headers, delivery-mode; timestamp
	p = amqp.AppendShortStr(p, "text/plain")
	p = amqp.AppendLongStr(p, amqp.AppendStringField(nil, "k", "v"))
	p = append(p, 2, 0, 0, 0, 0, 0, 0, 0, 60)
	size, props, ok := Header(p)
	const want = `content-type="text/plain" headers={k="v"} delivery-mode=2 timestamp="1970-01-01T00:01:00Z"`
	if !ok || size != 256 || props.String() != want {
		t.Errorf("got %d %s, %v\nwant 256 %s", size, props, ok, want)
	}
	if _, _, ok := Header(p[:15]); ok {
		t.Error("a header that is cut decodes")
	}
}

// FuzzDecode: whatever comes, nothing panics, and what decodes is JSON.
func FuzzDecode(f *testing.F) {
	f.Add(method(amqp.QueueDeclare, 0, 0, 0, 0, 0, 0, 0, 0), true)
	f.Add([]byte{0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, false)
	f.Fuzz(func(t *testing.T, p []byte, isMethod bool) {
		var fields Fields
		if isMethod {
			_, fields, _ = Method(p)
		} else {
			_, fields, _ = Header(p)
		}
		if b, err := json.Marshal(fields); err != nil || !json.Valid(b) {
			t.Errorf("%x: %s, %v", p, b, err)
		}
		_ = fields.String()
	})
}
