// A run: what one client sends to one upstream in one go.

package proxy

import "github.com/amqproxysvc/amqproxysvc/proxy/ledger"

// run is what one client sends to one upstream in one go: whole frames with the upstream's
// channel ids, in which every publish is whole.
type run struct {
	u      *upstream
	prefix []byte     // preludes, before body
	body   []byte     // in the client's read buffer
	bs     []*binding // whose frames it holds
	closes []closing  // of these, the ones whose channel.close it holds
}

// closing is a channel.close in a run.
type closing struct {
	b  *binding
	by ledger.Cause // ByClientQuiet: the client has its answer already; ByKeep: no channel.close is there
}

// runRoom is where the slices of a run begin: most clients need no more.
type runRoom struct {
	prefix [48]byte // open, qos and confirm.select
	bs     [1]*binding
	closes [1]closing
}

func (r *run) init(room *runRoom) {
	r.prefix, r.bs, r.closes = room.prefix[:0], room.bs[:0], room.closes[:0]
}

func (r *run) reset() {
	clear(r.bs)
	clear(r.closes)
	r.u, r.prefix, r.body, r.bs, r.closes = nil, r.prefix[:0], nil, r.bs[:0], r.closes[:0]
}
