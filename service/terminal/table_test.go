package terminal

import (
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	columns := []Column{{Head: "ID", Right: true}, {Head: "NAME", Least: 6}, {Head: "ADDRESS", Least: 10}}
	rows := [][]string{{"7", "a rather long name that goes on", "[2001:db8::1234]:50000"}, {"123", "\x1b[2Jb\xff", ""}}
	for width, want := range map[int]string{
		0: " ID  NAME                             ADDRESS\n" +
			"  7  a rather long name that goes on  [2001:db8::1234]:50000\n" +
			"123  ?[2Jb?\n",
		40: " ID  NAME              ADDRESS\n" +
			"  7  a rather long n…  [2001:db8::1234]…\n" +
			"123  ?[2Jb?\n",
		10: " ID NAME   ADDRESS\n" +
			"  7 a rat… [2001:db8…\n" +
			"123 ?[2Jb?\n",
	} {
		var b strings.Builder
		if err := Table(&b, width, columns, rows); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("in %d columns:\n%s\nwant\n%s", width, b.String(), want)
		}
	}
}

func TestBytesAndAge(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1.0k", 9949: "9.9k", 9960: "10k", 999_499: "999k", 999_600: "1.0M", 34_000_000: "34M", 1 << 63: "9.2E"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d octets are %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0s", 59 * time.Second: "59s", time.Hour - 1: "59m", 47 * time.Hour: "47h", 48 * time.Hour: "2d"} {
		if got := Age(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}
