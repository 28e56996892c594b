package proxy

import (
	"testing"
	"testing/synctest"
	"time"
)

// A crowd rests after a collection, few clients at once; collections take a hundredth of the time at most.
func TestNaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n naps
		time.Sleep(time.Hour)
		if !n.may(restCrowd - 1) {
			t.Error("few clients wait for a collection")
		}
		if n.may(restCrowd) {
			t.Error("a crowd does not wait for one")
		}
		synctest.Wait() // it has ended
		for range 2 {
			if !n.may(restCrowd) {
				t.Error("a crowd may not rest after its collection")
			}
		}
		n.took = time.Second // as if there were much to collect
		time.Sleep(99 * time.Second)
		if !n.may(restCrowd) {
			t.Error("collections take more than a hundredth of the time")
		}
		time.Sleep(time.Second)
		if n.may(restCrowd) {
			t.Error("the next crowd does not wait for a collection of its own")
		}
		synctest.Wait()
	})
}
