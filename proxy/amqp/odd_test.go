package amqp

import (
	"encoding/binary"
	"testing"
)

// A time that no calendar of some brokers holds is found wherever it is, also behind what is nested.
func TestLateTimes(t *testing.T) {
	at := func(seconds uint64) []byte {
		return binary.BigEndian.AppendUint64([]byte{'T'}, seconds)
	}
	field := func(value []byte) []byte { return append([]byte("\x01a"), value...) }
	array := func(items ...[]byte) []byte {
		var inside []byte
		for _, item := range items {
			inside = append(inside, item...)
		}
		return append([]byte{'A'}, AppendLongStr(nil, inside)...)
	}
	const year9999, year10000 = 253402300799, 253402300800
	for _, k := range []struct {
		seconds uint64
		late    bool
	}{{0, false}, {year9999, false}, {year10000, true}, {1 << 63, true}} {
		v := at(k.seconds)
		for name, table := range map[string][]byte{
			"by itself":           field(v),
			"behind a string":     append(AppendStringField(nil, "s", "x"), field(v)...),
			"in a table":          AppendTableField(nil, "t", field(v)),
			"behind a table":      append(AppendTableField(nil, "t", nil), field(v)...),
			"in an array":         field(array([]byte{'V'}, v)),
			"behind an array":     append(field(array([]byte{'V'})), field(v)...),
			"in a table in array": field(array(append([]byte{'F'}, AppendLongStr(nil, field(v))...))),
		} {
			if why := CheckTable(table); why != "" {
				t.Fatalf("%s: %s", name, why)
			}
			if LateTimes(table) != k.late {
				t.Errorf("%d %s: late is %v", k.seconds, name, !k.late)
			}
		}
	}
	if LateTimes(nested(maxTableDepth, true)) || LateTimes(nested(maxTableDepth, false)) {
		t.Error("late where there is no time")
	}
}
