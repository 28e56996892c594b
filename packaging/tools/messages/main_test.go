package main

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"os"
	"strings"
	"testing"
	"unicode/utf16"
)

// The object in the tree is that of the events, and Windows finds a message in it for each.
func TestObject(t *testing.T) {
	made, err := objectOf("../" + events)
	if err != nil {
		t.Fatal(err)
	}
	is, err := os.ReadFile("../" + object)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(is, made) {
		t.Fatalf("%s is not that of %s: go -C packaging/tools run ./messages", object, events)
	}
	ids, err := numbers("../" + events)
	if err != nil {
		t.Fatal(err)
	}
	found := messages(t, is)
	for _, id := range ids {
		if found[id] != text {
			t.Errorf("the message of event %d is %q", id, found[id])
		}
		delete(found, id)
	}
	if len(found) != 0 {
		t.Errorf("there are messages for no event: %v", found)
	}
}

// The layout itself, written out by hand.
func TestTable(t *testing.T) {
	entry := "1000" + "0100" + "250031000d000a000000" + "0000"
	want := "02000000" +
		"07000000" + "08000000" + "1c000000" +
		"0a000000" + "0a000000" + "3c000000" +
		strings.Repeat(entry, 3)
	if got := hex.EncodeToString(table([]uint32{7, 8, 10})); got != want {
		t.Errorf("the table is\n%s, want\n%s", got, want)
	}
}

// messages reads an object, or a program, as Windows does: the resource 11, 1, in whatever language.
func messages(t *testing.T, file []byte) map[uint32]string {
	t.Helper()
	f, err := pe.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	section := f.Section(".rsrc")
	data, err := section.Data()
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	at := uint32(0)
	for _, want := range []uint32{11, 1, 0x409} { // directories: of types, of names, of languages
		named, numbered := uint32(le.Uint16(data[at+12:])), uint32(le.Uint16(data[at+14:]))
		next := uint32(0)
		for i := range numbered {
			if e := at + 16 + 8*(named+i); le.Uint32(data[e:]) == want {
				next = le.Uint32(data[e+4:]) &^ (1 << 31)
			}
		}
		if next == 0 {
			t.Fatalf("there is no resource 11, 1, 0x409: %d is missing", want)
		}
		at = next
	}
	start, size := le.Uint32(data[at:])-section.VirtualAddress, le.Uint32(data[at+4:])
	table, found := data[start:start+size], map[uint32]string{}
	for i := range le.Uint32(table) {
		block := table[4+12*i:]
		entry := le.Uint32(block[8:])
		for id := le.Uint32(block); id <= le.Uint32(block[4:]); id++ {
			length, flags := le.Uint16(table[entry:]), le.Uint16(table[entry+2:])
			if flags != 1 || length%4 != 0 {
				t.Fatalf("the entry of %d is %d octets, flags %d", id, length, flags)
			}
			var units []uint16
			for o := entry + 4; o < entry+uint32(length) && le.Uint16(table[o:]) != 0; o += 2 {
				units = append(units, le.Uint16(table[o:]))
			}
			found[id] = string(utf16.Decode(units))
			entry += uint32(length)
		}
	}
	return found
}

// PROGRAM names a program that was built and given its other resources: it has the messages still.
func TestProgram(t *testing.T) {
	path := os.Getenv("PROGRAM")
	if path == "" {
		t.Skip("PROGRAM is not given")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	object, err := os.ReadFile("../" + object)
	if err != nil {
		t.Fatal(err)
	}
	if is, want := messages(t, program), messages(t, object); !maps.Equal(is, want) {
		t.Errorf("its messages are %v, want %v", is, want)
	}
}
