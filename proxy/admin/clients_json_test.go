package admin

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"testing"
)

// What is written by hand is what encoding/json writes, whatever a client calls itself.
func TestClientsJSON(t *testing.T) {
	texts := []string{"", "guest", "/", "127.0.0.1:5672", `a"b\c`, "<&>", "\x00\t\n\x7f", "größer", "\xff\xfe", "\u2028\U0001f407"}
	numbers := []float64{0, 0.001, 1.5, 12.345, 86400.007, 1e-7, 1e21, -3}
	text := func() string { return texts[rand.IntN(len(texts))] }
	number := func() float64 { return numbers[rand.IntN(len(numbers))] }
	for _, n := range []int{0, 1, 2, 3000} {
		a := Clients{Schema: Schema, Total: n, Clients: []Client{}}
		for range n {
			c := Client{ID: rand.Uint64(), User: text(), VHost: text(), Address: text(), Name: text(), State: text(), Mode: text(), Channels: rand.Int(), Bound: rand.Int(),
				Upstreams: []uint64{}, In: rand.Uint64(), Out: rand.Uint64(), Queue: -rand.Int(), Age: number(), Idle: number(), Waiting: number()}
			for range rand.IntN(4) {
				c.Upstreams = append(c.Upstreams, rand.Uint64())
			}
			a.Clients = append(a.Clients, c)
		}
		want, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := a.writeJSON(&got); err != nil || got.String() != string(want)+"\n" {
			t.Fatalf("%d clients, %v: got\n%.2000s\nwant\n%.2000s", n, err, got.String(), want)
		}
	}
	// A field that is new has to be written, too.
	if a, b := reflect.TypeFor[Client]().NumField(), reflect.TypeFor[Clients]().NumField(); a != 16 || b != 3 {
		t.Errorf("a client has %d fields, their list %d: see writeJSON", a, b)
	}
}

func BenchmarkClientsJSON(b *testing.B) {
	a := Clients{Schema: Schema, Total: 10_000}
	for i := range uint64(a.Total) {
		a.Clients = append(a.Clients, Client{ID: i, User: "guest", VHost: "/", Address: "127.0.0.1:50000", Name: "crowd", State: "running", Mode: "shared",
			Channels: 1, Bound: 1, Upstreams: []uint64{i / 100}, In: 500, Out: 600, Age: 12.345, Idle: 3.111})
	}
	var to bytes.Buffer
	for b.Loop() {
		to.Reset()
		if err := a.writeJSON(&to); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(to.Len()))
}
