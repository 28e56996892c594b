// Makes the messages of the service's events for the Windows event log, as an object that the Go linker puts
// into the program: messages, in this directory, after a change of service/events.go. Each message is the text
// that the event brings along, so that the Event Viewer finds one for every number and has nothing to add.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/tc-hib/winres"
)

const (
	events = "../../service/events.go"
	object = "../../cmd/amqproxysvc/events_windows_amd64.syso"
	text   = "%1\r\n"
)

func main() {
	made, err := objectOf(events)
	if err == nil {
		err = os.WriteFile(object, made, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "messages:", err)
		os.Exit(1)
	}
}

// objectOf is the object with a message for each event of that source.
func objectOf(source string) ([]byte, error) {
	ids, err := numbers(source)
	if err != nil {
		return nil, err
	}
	var set winres.ResourceSet
	if err := set.Set(winres.RT_MESSAGETABLE, winres.ID(1), winres.LCIDDefault, table(ids)); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = set.WriteObject(&b, winres.ArchAMD64)
	return b.Bytes(), err
}

// numbers are those of the constants EventXxx, in their order.
func numbers(source string) (ids []uint32, err error) {
	file, err := parser.ParseFile(token.NewFileSet(), source, nil, 0)
	if err != nil {
		return nil, err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Names) != 1 || len(v.Values) != 1 || !strings.HasPrefix(v.Names[0].Name, "Event") {
			return true
		}
		if value, ok := v.Values[0].(*ast.BasicLit); ok && value.Kind == token.INT {
			id, perr := strconv.ParseUint(value.Value, 10, 16) // what the Event Viewer shows of it
			if perr != nil {
				err = fmt.Errorf("%s: %w", v.Names[0].Name, perr)
			}
			ids = append(ids, uint32(id))
		}
		return true
	})
	slices.Sort(ids)
	switch {
	case err != nil:
		return nil, err
	case len(ids) == 0:
		return nil, fmt.Errorf("%s has no constants EventXxx", source)
	case len(slices.Compact(slices.Clone(ids))) != len(ids):
		return nil, fmt.Errorf("%s has a number twice: %v", source, ids)
	}
	return ids, nil
}

// table is MESSAGE_RESOURCE_DATA: a block (first and last number, where it begins) for each run of numbers,
// then their entries (length, 1 for UTF-16, the text).
func table(ids []uint32) []byte {
	const headSize, blockSize = 4, 12
	entry := make([]byte, 4)
	for _, u := range utf16.Encode([]rune(text + "\x00")) {
		entry = binary.LittleEndian.AppendUint16(entry, u)
	}
	for len(entry)%4 != 0 {
		entry = append(entry, 0)
	}
	binary.LittleEndian.PutUint16(entry, uint16(len(entry)))
	binary.LittleEndian.PutUint16(entry[2:], 1)

	var runs [][2]uint32
	for _, id := range ids {
		if n := len(runs); n > 0 && runs[n-1][1]+1 == id {
			runs[n-1][1] = id
		} else {
			runs = append(runs, [2]uint32{id, id})
		}
	}
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(runs)))
	at := uint32(headSize + blockSize*len(runs))
	for _, r := range runs {
		b = binary.LittleEndian.AppendUint32(b, r[0])
		b = binary.LittleEndian.AppendUint32(b, r[1])
		b = binary.LittleEndian.AppendUint32(b, at)
		at += (r[1] - r[0] + 1) * uint32(len(entry))
	}
	return append(b, bytes.Repeat(entry, len(ids))...)
}
