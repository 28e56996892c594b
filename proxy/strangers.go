// Strangers: credentials that the broker has not accepted, or not in the vhost that they name, which
// may be any. They wait for one another and for nobody else's harm: a client that fails again and
// again, as the same user from the same address, is asked one at a time and with a pause; a wrong
// password or vhost that was just refused is not asked again; and a login that was accepted once
// is no stranger, however often others fail.

package proxy

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"maps"
	"net"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

const (
	// failuresFree are the failed logins of a user from an address, within failuresFor, that cost nothing.
	failuresFree = 10
	failuresFor  = time.Minute
	// failurePause is how long the next login of such a user from there waits after each failed one.
	failurePause = 500 * time.Millisecond
	// From an address with hostFailuresFree failed logins of whatever users, hostAtATime are asked at a time.
	hostFailuresFree = 50
	hostAtATime      = 4
	// inSomeVHost is behind the name of a user whose failures are of vhosts and not of passwords.
	inSomeVHost = "\x00vhost"
	// roomForUser and roomAtLimit are how many idle connections are closed within failuresFor, at limits of the
	// broker's, for logins in a vhost that are then refused there: of a user, and at one limit.
	roomForUser, roomAtLimit = 3, 10
	// refusedFor is how long the broker is not asked again about what it has just refused.
	refusedFor = time.Second
	// How many of each are remembered at most.
	acceptedMost, refusedMost, sourcesMost = 1 << 15, 1 << 12, 1 << 14
	// longestName, in octets, is what is remembered of a user's name as it is: a stranger's may have thousands.
	longestName = 64
)

// loginID stands for a user, secret and vhost (or none) without holding the secret.
type loginID [sha256.Size]byte

// strangers knows which logins are strangers'.
type strangers struct {
	key [32]byte // of loginID, this process's own

	mu lock.Mutex[lock.Leaf] // a leaf
	// accepted are those that the broker has accepted, in two generations: the older one is
	// dropped when the newer one is full.
	accepted, before map[loginID]struct{}
	refused          map[loginID]refusedLogin
	sources          map[source]*failures
	rooms            map[string]*roomMade // by user and by limit, see takeRoom
	tended           time.Time
}

// roomMade counts the connections that were closed for strangers since a time.
type roomMade struct {
	n     int
	since time.Time
}

type refusedLogin struct {
	err   *amqp.Error
	at    time.Time
	first bool // of a vhost: it may be there, or permitted, the next moment
}

// source is where failed logins come from; user "" with any: all users of the host.
type source struct {
	host string
	user string
	any  bool
}

// failures are those of a source.
type failures struct {
	n      int
	since  time.Time // when the first of them was
	bound  wait.Bound
	inside int  // logins that hold or wait for a place of bound
	host   bool // the source is a host, not one user
}

func newStrangers() *strangers {
	s := &strangers{accepted: make(map[loginID]struct{}), refused: make(map[loginID]refusedLogin), sources: make(map[source]*failures),
		rooms: make(map[string]*roomMade)}
	_, _ = rand.Read(s.key[:]) // never fails
	return s
}

// id is that of a login, or of a login and a vhost.
func (s *strangers) id(who login, vhost ...string) (id loginID) {
	h := hmac.New(sha256.New, s.key[:])
	_, _ = io.WriteString(h, who.user+"\x00")
	who.sends.digest(h)
	for _, v := range vhost {
		_, _ = io.WriteString(h, v+"\x00")
	}
	h.Sum(id[:0])
	return id
}

// known reports whether the broker has accepted this before.
func (s *strangers) known(id loginID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.accepted[id]; ok {
		return true
	}
	_, ok := s.before[id]
	if ok {
		s.acceptLocked(id)
	}
	return ok
}

// accept notes that the broker has accepted this. It reports whether it had before.
func (s *strangers) accept(id loginID) (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, a := s.accepted[id]
	_, b := s.before[id]
	s.acceptLocked(id)
	delete(s.refused, id)
	return a || b
}

func (s *strangers) acceptLocked(id loginID) {
	if len(s.accepted) >= acceptedMost/2 {
		s.before, s.accepted = s.accepted, make(map[loginID]struct{})
	}
	s.accepted[id] = struct{}{}
}

// refuse notes the broker's refusal of user and secret.
func (s *strangers) refuse(id loginID, e *amqp.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuseLocked(id, e, false)
}

// refuseVHost notes the broker's refusal of a vhost. The first one is not remembered: whoever permits a user
// in a vhost, or makes it, because of a refusal, is believed at once.
func (s *strangers) refuseVHost(id loginID, e *amqp.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.refused[id]
	s.refuseLocked(id, e, !ok || time.Since(r.at) > failuresFor)
}

func (s *strangers) refuseLocked(id loginID, e *amqp.Error, first bool) {
	delete(s.accepted, id)
	delete(s.before, id)
	now := time.Now()
	if len(s.refused) >= refusedMost {
		for x, r := range s.refused {
			if now.Sub(r.at) > refusedFor {
				delete(s.refused, x)
			}
		}
		if len(s.refused) >= refusedMost {
			return
		}
	}
	s.refused[id] = refusedLogin{e, now, first}
}

// refusal is what the broker has just said of this, or nil.
func (s *strangers) refusal(id loginID) *amqp.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.refused[id]
	if !ok || r.first || time.Since(r.at) > refusedFor {
		return nil
	}
	return r.err
}

// forget forgets whom the broker accepted: it is another broker now.
func (s *strangers) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted, s.before = make(map[loginID]struct{}), nil
	clear(s.refused)
}

// shortName is what is remembered of a user's name.
func shortName(user string) string {
	if len(user) > longestName {
		sum := sha256.Sum256([]byte(user))
		user = string(sum[:])
	}
	return user
}

// takeRoom counts a connection that is about to be closed at a limit for a login of a user. False: as many were for
// logins that were refused then, and it is to stay.
func (s *strangers) takeRoom(user, limit string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := roomsOf(user, limit)
	for i, most := range [2]int{roomForUser, roomAtLimit} {
		if s.roomLocked(of[i]) >= most {
			return false
		}
	}
	for _, name := range of {
		if s.roomLocked(name) == 0 {
			s.rooms[name] = &roomMade{since: time.Now()}
		}
		s.rooms[name].n++
	}
	return true
}

// giveRoom is for a login that was not refused.
func (s *strangers) giveRoom(user, limit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range roomsOf(user, limit) {
		if s.roomLocked(name) > 0 {
			s.rooms[name].n--
		}
	}
}

// roomSpent reports whether no connection is closed for a user's logins now.
func (s *strangers) roomSpent(user string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roomLocked(roomsOf(user, "")[0]) >= roomForUser
}

func roomsOf(user, limit string) [2]string { return [2]string{"by " + shortName(user), "at " + limit} }

// roomLocked is how much is counted.
func (s *strangers) roomLocked(of string) int {
	if r := s.rooms[of]; r != nil && time.Since(r.since) <= failuresFor {
		return r.n
	}
	return 0
}

// turn is a stranger's permission to ask the broker.
type turn struct {
	s     *strangers
	held  []*failures
	where [2]source
}

// hostOf is what of a client's address counts as one source: an IPv6 host has a /64.
func hostOf(addr net.Addr) string {
	p, ok := networkOf(addr)
	switch {
	case !ok:
		return addr.String()
	case p.Addr().Is4():
		return p.Addr().String()
	}
	return p.String()
}

// enter waits for a stranger's turn, at most until ctx ends or gone is closed.
func (s *strangers) enter(ctx context.Context, gone <-chan struct{}, host, user string) (*turn, error) {
	user = shortName(user)
	t := &turn{s: s, where: [2]source{{host: host, user: user}, {host: host, any: true}}}
	for _, src := range t.where {
		s.mu.Lock()
		f := s.sources[src]
		free := failuresFree
		if src.any {
			free = hostFailuresFree
		}
		if f == nil || f.n < free || f.inside == 0 && time.Since(f.since) > failuresFor {
			s.mu.Unlock()
			continue
		}
		f.inside++
		s.mu.Unlock()
		if err := f.bound.Acquire(ctx, gone); err != nil {
			s.mu.Lock()
			f.inside--
			s.mu.Unlock()
			t.leave(false)
			return nil, err
		}
		t.held = append(t.held, f)
	}
	return t, nil
}

// leave ends a turn. failed: the broker refused, or nobody waited for what it says.
func (t *turn) leave(failed bool) {
	s := t.s
	if failed {
		s.mu.Lock()
		for _, src := range t.where {
			s.failedLocked(src)
		}
		s.mu.Unlock()
	}
	for _, f := range t.held {
		if failed && !f.host {
			time.AfterFunc(failurePause, func() { s.release(f) })
		} else {
			s.release(f)
		}
	}
	t.held = nil
}

func (s *strangers) release(f *failures) {
	s.mu.Lock()
	f.inside--
	s.mu.Unlock()
	f.bound.Release()
}

// failedLocked counts a failed login of the source.
func (s *strangers) failedLocked(src source) {
	f := s.sources[src]
	if f != nil && time.Since(f.since) > failuresFor {
		f.n, f.since = 0, time.Now()
	}
	if f == nil {
		if len(s.sources) >= sourcesMost {
			s.tidyLocked()
		}
		f = &failures{since: time.Now(), host: src.any}
		f.bound.Resize(1)
		if src.any {
			f.bound.Resize(hostAtATime)
		}
		s.sources[src] = f
	}
	f.n++
}

// tidyLocked forgets sources: those whose time is over, and if these are too few those that
// wait for nothing, who has failed often last. A client that tries many user names makes many.
func (s *strangers) tidyLocked() {
	for src, f := range s.sources {
		if f.inside == 0 && time.Since(f.since) > failuresFor {
			delete(s.sources, src)
		}
	}
	for _, often := range []bool{false, true} {
		for src, f := range s.sources {
			if len(s.sources) < sourcesMost/2 {
				return
			}
			if f.inside == 0 && (often || f.n < failuresFree) {
				delete(s.sources, src)
			}
		}
	}
}

// tend forgets sources, and room made, whose time is over.
func (s *strangers) tend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sources)+len(s.rooms) > 0 && time.Since(s.tended) > failuresFor {
		s.tended = time.Now()
		s.tidyLocked()
		maps.DeleteFunc(s.rooms, func(_ string, r *roomMade) bool { return time.Since(r.since) > failuresFor })
	}
}
