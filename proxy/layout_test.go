//go:build !lockrank

package proxy

import (
	"testing"
	"unsafe"
)

// The janitor's look at a client that rests takes one line of the processor's cache, and a client one size of the allocator.
func TestClientsLayout(t *testing.T) {
	var c client
	if end := unsafe.Offsetof(c.out) + unsafe.Offsetof(c.out.WriteSince) + unsafe.Sizeof(c.out.WriteSince); end > 64 {
		t.Errorf("what due looks at ends at octet %d, want 64 at most", end)
	}
	if n := unsafe.Sizeof(c); n > 768 {
		t.Errorf("a client is %d octets, want 768 at most: the allocator's next size is 896", n)
	}
	if n := unsafe.Sizeof(binding{}); n > 288 {
		t.Errorf("a binding is %d octets, want 288 at most: the allocator's next size is 320", n)
	}
}
