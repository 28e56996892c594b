// The answer to `clients` in JSON, as encoding/json writes it and for a quarter of what that costs: there
// may be ten thousands of clients, and while their list is made others wait for the processor.

package admin

import (
	"encoding/json"
	"io"
	"math"
	"strconv"
)

// writeJSON writes it in pieces, so that none is held whole.
func (a Clients) writeJSON(w io.Writer) error {
	const piece = 64 << 10
	b := make([]byte, 0, piece+4<<10)
	b = append(b, `{"schema":`...)
	b = strconv.AppendInt(b, int64(a.Schema), 10)
	b = append(b, `,"total":`...)
	b = strconv.AppendInt(b, int64(a.Total), 10)
	b = append(b, `,"clients":[`...)
	for i := range a.Clients {
		if i > 0 {
			b = append(b, ',')
		}
		b = a.Clients[i].appendJSON(b)
		if len(b) >= piece {
			if _, err := w.Write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	_, err := w.Write(append(b, "]}\n"...))
	return err
}

func (c *Client) appendJSON(b []byte) []byte {
	text := func(name, value string) {
		b = appendString(append(b, name...), value)
	}
	whole := func(name string, value int) {
		b = strconv.AppendInt(append(b, name...), int64(value), 10)
	}
	number := func(name string, value uint64) {
		b = strconv.AppendUint(append(b, name...), value, 10)
	}
	number(`{"id":`, c.ID)
	text(`,"user":`, c.User)
	text(`,"vhost":`, c.VHost)
	text(`,"address":`, c.Address)
	text(`,"name":`, c.Name)
	text(`,"state":`, c.State)
	text(`,"mode":`, c.Mode)
	whole(`,"channels":`, c.Channels)
	whole(`,"bound":`, c.Bound)
	b = append(b, `,"upstreams":[`...)
	for i, n := range c.Upstreams {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, n, 10)
	}
	number(`],"in_bytes":`, c.In)
	number(`,"out_bytes":`, c.Out)
	whole(`,"queue_bytes":`, c.Queue)
	b = appendFloat(append(b, `,"age_seconds":`...), c.Age)
	b = appendFloat(append(b, `,"idle_seconds":`...), c.Idle)
	b = appendFloat(append(b, `,"waiting_seconds":`...), c.Waiting)
	return append(b, '}')
}

// appendString is a text in quotes; what has to be escaped in it is encoding/json's matter.
func appendString(b []byte, text string) []byte {
	for i := range len(text) {
		switch c := text[i]; {
		case c < ' ' || c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
			quoted, _ := json.Marshal(text) // no text is beyond it
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), text...), '"')
}

// appendFloat is a number of seconds, of whole milliseconds.
func appendFloat(b []byte, v float64) []byte {
	if abs := math.Abs(v); abs != 0 && (abs < 1e-6 || abs >= 1e21) { // which have an exponent
		number, _ := json.Marshal(v)
		return append(b, number...)
	}
	return strconv.AppendFloat(b, v, 'f', -1, 64)
}
