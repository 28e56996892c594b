// Package lock is the engine's mutexes and the one order in which they are taken. Built with the tag
// lockrank, each knows its rank and a goroutine that takes one out of order panics: the unit tests
// are run so (make test-locks). Otherwise they are sync.Mutex, and nothing else.
package lock

// The order, outermost first: who holds a mutex of one rank takes those of later ranks only, and none
// of its own. See "Locks" in DESIGN.md for what each guards.
type (
	Logins   struct{}
	Gate     struct{}
	Pool     struct{}
	Upstream struct{}
	Server   struct{}
	Closes   struct{} // the quiet closes under way of one identity
	Shard    struct{} // of the set of clients
	Leaf     struct{} // nothing else is taken under it
)

// Rank is one of those above.
type Rank interface {
	Logins | Gate | Pool | Upstream | Server | Closes | Shard | Leaf
}
