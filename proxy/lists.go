// Lists for those that look: the clients, the upstreams and the pools as they are now, and the one
// verb that acts on a client. Made only when asked for; nobody who works waits for longer
// than a shard of the clients, or one upstream's table, takes to be read.

package proxy

import (
	"cmp"
	"crypto/tls"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// ClientInfo is one client, without any secret.
type ClientInfo struct {
	ID      uint64 // counts from the server's start, never used twice
	User    string // what it logged in as; "" before
	VHost   string
	Address string // its own, where a balancer tells it that
	TLS     string // "TLS 1.3", say; "": plain, or it has not logged in
	Name    string // connection_name of its client-properties
	State   ClientState
	// Session: it has a connection to the broker of its own.
	Session   bool
	Channels  int      // open, as it sees them
	Bound     int      // of these, and of those that are being closed, at the broker
	Upstreams []uint64 // where they are, in rising order
	In, Out   uint64   // bytes read from and written to it
	Queue     int      // bytes that wait to be sent to it
	Age       time.Duration
	Idle      time.Duration // since something last came from it
	Waiting   time.Duration // for a place or a login, 0: does not wait
}

// ClientState is what a client is doing.
type ClientState string

const (
	ClientConnecting ClientState = "connecting" // its handshake is not over
	ClientWaiting    ClientState = "waiting"    // for a place on a connection to the broker
	ClientBlocked    ClientState = "blocked"    // by an alarm of the broker
	ClientRunning    ClientState = "running"
	ClientClosing    ClientState = "closing"
)

// UpstreamInfo is one connection to the broker, without any secret.
type UpstreamInfo struct {
	ID       uint64
	Broker   string // HOST:PORT of the socket's other end
	Name     string // of the [[broker]] there, "": the first one
	ToVHost  string // what VHost is called there
	User     string
	VHost    string // "" before connection.open
	State    UpstreamState
	Lane     string // publish, read or "": nobody yet
	Client   uint64 // whose session it is, 0: nobody's
	Channels int    // of clients
	Kept     int    // channels that belong to nobody and wait for a client
	In, Out  uint64 // bytes read from and written to the broker
	Queue    int    // bytes that wait to be sent
	Age      time.Duration
	Idle     time.Duration // since something last came from the broker
	Blocked  string        // the broker's reason while it takes no messages
}

// UpstreamState is what an upstream is there for.
type UpstreamState string

const (
	UpstreamShared  UpstreamState = "shared"  // carries channels, takes more
	UpstreamSession UpstreamState = "session" // belongs to one client
	UpstreamIdle    UpstreamState = "idle"    // carries none, takes some
	UpstreamRetired UpstreamState = "retired" // takes no more, ends with its last channel
	UpstreamSuspect UpstreamState = "suspect" // owes an answer for too long
	UpstreamBlocked UpstreamState = "blocked" // the broker takes no messages on it
)

// ListClients is every client that is connected, by ID.
func (s *Server) ListClients() []ClientInfo {
	// Who is where, by client and then by upstream: a sorted list, a map of ten thousands costs several times as much.
	type seat struct{ client, upstream uint64 }
	var seats []seat
	for _, u := range s.allUpstreams() {
		u.mu.Lock()
		if t := u.table.Load(); t != nil {
			for i := range *t {
				if b := (*t)[i].Load(); b != nil && b.ch != nil {
					seats = append(seats, seat{b.ch.c.n, u.n})
				}
			}
		}
		u.mu.Unlock()
	}
	slices.SortFunc(seats, func(a, b seat) int {
		return cmp.Or(cmp.Compare(a.client, b.client), cmp.Compare(a.upstream, b.upstream))
	})
	all := s.clients.appendTo(make([]*client, 0, s.clients.len()), nil)
	slices.SortFunc(all, func(a, b *client) int { return cmp.Compare(a.n, b.n) })
	now := s.now()
	infos := make([]ClientInfo, len(all))
	ons := make([]uint64, 0, len(seats)) // parts of it are their Upstreams
	for i, c := range all {
		info := &infos[i]
		*info = c.info(now)
		for len(seats) > 0 && seats[0].client < c.n { // gone meanwhile
			seats = seats[1:]
		}
		from := len(ons)
		for ; len(seats) > 0 && seats[0].client == c.n; seats = seats[1:] {
			info.Bound++
			if n := len(ons); n == from || ons[n-1] != seats[0].upstream {
				ons = append(ons, seats[0].upstream)
			}
		}
		if n := len(ons); n > from {
			info.Upstreams = ons[from:n:n]
		}
	}
	return infos
}

func (c *client) info(now int64) ClientInfo {
	info := ClientInfo{
		ID: c.n, Address: c.address().String(), State: ClientConnecting,
		Session: c.hasSession.Load(), Channels: int(c.chansN.Load()),
		In: c.received.Load(), Out: uint64(c.out.Written.Load()),
		Age: time.Duration(now - c.started), Idle: time.Duration(now - c.lastRead.Load()),
	}
	if from := c.waitsFrom.Load(); from != 0 {
		info.Waiting = time.Duration(max(1, now-from))
	}
	if c.named.Load() { // else its reader may be writing these
		info.User, info.VHost, info.Name = c.user, c.pool.id.vhost, c.name()
		info.State = ClientRunning
		if t, ok := c.conn.(*tls.Conn); ok { // not before: it would wait for the handshake's end
			info.TLS = tls.VersionName(t.ConnectionState().Version)
		}
	}
	c.mu.Lock()
	info.Queue = c.out.LenLocked()
	blocked := c.blockedBy != nil
	c.mu.Unlock()
	switch {
	case c.phase.Load() == phaseClosing:
		info.State = ClientClosing
	case info.Waiting > 0:
		info.State = ClientWaiting
	case blocked:
		info.State = ClientBlocked
	}
	return info
}

// ListUpstreams is every connection to the broker that serves or waits to serve, by ID.
func (s *Server) ListUpstreams() []UpstreamInfo {
	all := s.allUpstreams()
	now, clock := s.now(), s.clock()
	infos := make([]UpstreamInfo, 0, len(all))
	for _, u := range all {
		infos = append(infos, u.info(now, clock))
	}
	return infos
}

func (u *upstream) info(now int64, clock time.Time) UpstreamInfo {
	info := UpstreamInfo{
		ID: u.n, Broker: u.conn.RemoteAddr().String(), Name: u.to.way.name, ToVHost: u.to.vhost, User: u.account.login.user, VHost: u.vhost(),
		State: UpstreamShared, Kept: int(u.keptN.Load()), In: u.received.Load(), Out: uint64(u.out.Written.Load()),
		Age: max(0, clock.Sub(u.opened)), Idle: max(0, time.Duration(now-u.lastRead.Load())),
	}
	owner := u.owner.Load()
	if owner != nil {
		info.Client, info.State = owner.n, UpstreamSession
	}
	u.mu.Lock()
	info.Queue = u.out.LenLocked()
	info.Blocked = u.blockedReason
	u.mu.Unlock()
	if p := u.pool; p != nil {
		p.mu.Lock()
		info.Channels = u.load
		info.Lane = u.lane.String()
		if u.load == 0 && owner == nil {
			info.State = UpstreamIdle
		}
		if u.retired {
			info.State = UpstreamRetired
		}
		p.mu.Unlock()
	}
	switch {
	case u.suspect.Load():
		info.State = UpstreamSuspect
	case u.blocked.Load():
		info.State = UpstreamBlocked
	default:
		info.Blocked = ""
	}
	return info
}

// allUpstreams are those that are open, by number.
func (s *Server) allUpstreams() []*upstream {
	s.mu.Lock()
	all := make([]*upstream, 0, len(s.upstreams))
	for u := range s.upstreams {
		all = append(all, u)
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *upstream) int { return cmp.Compare(a.n, b.n) })
	return all
}

func (l lane) String() string {
	switch l {
	case lanePublish:
		return "publish"
	case laneRead:
		return "read"
	}
	return ""
}

// Kick closes clients with 320, as an administrator's act: the one of that ID, or where id is
// 0 all of that user (which a handshake that is not over has not). It returns how many heard it.
func (s *Server) Kick(id uint64, user string) int {
	if id == 0 && user == "" {
		return 0
	}
	which := s.clients.appendTo(nil, func(c *client) bool {
		if id != 0 {
			return c.n == id
		}
		return c.named.Load() && c.user == user
	})
	n := 0
	for _, c := range which {
		if c.phase.Load() != phaseClosing {
			c.shut(errKicked, false)
			n++
		}
	}
	return n
}

var errKicked = amqp.Errorf(amqp.ConnectionForced, 0, "closed by the administrator")

// Balance has the surplus of connections at brokers that have more than their share, or where brokers are asked in an
// order those elsewhere than at the first, end with their last channel. It returns how many.
func (s *Server) Balance() (n int) {
	for _, w := range s.ways.Load().all {
		n += s.rebalance(w, true)
	}
	return n
}

// Reconnect retires connections to the broker: they take no new channels and end with their
// last one, while what comes opens new ones, sessions too. The one of that ID, those of a user, or where
// neither is given all. It returns how many it retired.
func (s *Server) Reconnect(id uint64, user string) int {
	return s.retire(func(p *pool) bool { return user == "" || p.id.user == user }, id)
}

// retire is Reconnect for the pools that are meant.
func (s *Server) retire(which func(*pool) bool, id uint64) int {
	n := 0
	for _, p := range s.allPools() {
		if !which(p) {
			continue
		}
		var ends []*upstream
		p.mu.Lock()
		for _, u := range p.ups {
			if u.retired || id != 0 && u.n != id {
				continue
			}
			u.retired = true
			n++
			if u.unusedLocked() {
				ends = append(ends, u)
			}
		}
		p.mu.Unlock()
		for _, u := range ends {
			u.closeUnused("retired")
		}
	}
	return n
}
