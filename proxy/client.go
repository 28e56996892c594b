// A client: one connection from an application. Its reader routes what the application
// sends; what is for the application goes through its queue, whoever it comes from.

package proxy

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/outbox"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

const (
	// clientBuffer holds what an idle client sends in one go; busy ones borrow more.
	clientBuffer = 512
	// sessionHigh is how much may wait for the owner of a session before the broker's
	// socket is left alone; it is read again at a quarter of that.
	sessionHigh = 256 << 10
	// closeGrace is how long a client has to answer connection.close, and how long the
	// socket is drained after close-ok.
	closeGrace = time.Second
	// restAfter is how long a client is idle before its reader gets a fresh stack.
	restAfter = 2 * time.Second
)

// clientPhase is how far a client has come.
type clientPhase = uint32

const (
	phaseHandshake clientPhase = iota
	phaseRunning
	phaseClosing // connection.close was sent or answered; what else comes is discarded
)

// capabilities are what the client announced in its client-properties.
type capabilities struct {
	authFailureClose, cancelNotify, blocked bool
}

type client struct {
	// What the janitor looks at ten times a second for each of a crowd (due): one line of the processor's cache, out's two
	// clocks included, where a client's other lines cost most of a crowd's CPU at rest.
	heartbeat time.Duration // immutable after the handshake
	lastRead  atomic.Int64  // coarse clock
	phase     atomic.Uint32 // clientPhase
	reading   atomic.Bool   // in Read: silence is the client's own
	rested    atomic.Bool   // the reader has a fresh stack since the last bytes came
	crowding  atomic.Bool   // much waits for it; written under mu
	counting  atomic.Bool   // counted is not 0; written under mu
	out       outbox.Box    // guarded by mu

	// Immutable after the handshake.
	s        *Server
	env      *env
	n        uint64
	peer     // but for the address that a balancer tells
	account  *account
	pool     *pool
	app      *app
	user     string
	props    []byte // client-properties as sent
	caps     capabilities
	frameMax uint32
	chanMax  uint16
	started  int64

	at         int32         // in the client set's shard, guarded by its lock
	closeAt    atomic.Int64  // when the socket is closed for good, 0: not closing
	pubs       atomic.Bool   // has published
	hasSession atomic.Bool   // session is not nil
	gone       chan struct{} // closed when the socket is

	// For lists; nothing in here decides by them.
	named     atomic.Bool           // the handshake is over: user, pool and props are final
	chansN    atomic.Int32          // channels that are open as the client sees them
	received  atomic.Uint64         // bytes; written by the reader
	waitsFrom atomic.Int64          // since when it waits for a place or a broker that is away, coarse clock; 0: it does not
	busyAt    atomic.Int64          // when it last did something of its own, coarse clock
	consumes  atomic.Bool           // has consumed
	unbounded atomic.Bool           // has consumed without bound
	paused    atomic.Bool           // waits for the end of a pause, or within hold, amid its handshake
	granted   atomic.Int64          // how long it did, nanoseconds
	traced    atomic.Pointer[Trace] // who looks at its frames, nil: nobody; written under mu

	quotas     atomic.Pointer[clientQuotas] // that it is counted in, nil: none; guarded by quotas.mu
	quotasLeft atomic.Bool                  // nor will be any more
	paces      atomic.Pointer[dataPaces]    // that its reader keeps to, nil: none

	mu          lock.Mutex[lock.Leaf] // guards the outbox, the channels' states and all below
	counted     int                   // what of its queue client_queues knows of
	uncounted   bool                  // it has ended: nothing of it counts any more
	fedBy       *upstream             // the upstream that added to the queue last
	crowdedAt   []*upstream           // in whose crowded the client counts; not empty: crowding
	blockedBy   *upstream             // whose alarm the client is told of
	blockedSaid bool                  // connection.blocked was sent
	goneOnce    bool
	leaving     bool        // connection.close has come: channels get no close-ok of their own
	answers     wait.Signal // wakes the reader that waits for close-ok of channels

	// The reader only.
	*desk
	shaking   bool                  // counts among the handshakes
	placed    bool                  // among those of its address too
	held      bool                  // counts against max_clients
	isSession bool                  // a session from the start
	reused    bool                  // its login was served by a connection that was there
	repeating bool                  // see again
	glut      bool                  // the answers that wait for the client fill its queue
	exclusive bool                  // set by exclusive queues: its session's upstream ends with it
	tryRead   func(fd uintptr) bool // see receive
	chans     channelSet
	few       [1]*channel // where that begins: most have no more
	last      *channel    // the channel of the last frame
	runSeq    uint64      // from 1: a binding's is 0 before its first run
	begun     *channel    // whose publish begins with the frame that is being routed
	gathered  int         // publishes that begin in the run and are not whole
	spilling  int         // publishes that are gathered outside of it
	hoard     *hoard      // what they hold of message_buffer; nil before the first
	publish   *upstream   // where this client's publishers go
	readers   *upstream   // where its readers go
	session   *upstream   // its own upstream
}

// lateChannel is the channel that the client closed last: what another of its threads had
// under way for it still comes.
type lateChannel struct {
	id      uint16
	at      time.Time
	content bool // the content of a publish is on its way
}

// serve runs the client from accept to its end. One goroutine at a time owns it: this
// one, or the one that read hands it to.
func (c *client) serve() {
	if !c.arrive() || !c.handshake() || !c.read() {
		c.end()
	}
}

// arrive is what comes before AMQP: who it is, behind a balancer, and encryption. False: it has ended.
func (c *client) arrive() bool {
	if p := c.lst.proxy.Load(); p != nil && !c.hearProxy(p) {
		return false
	}
	return c.under == nil || c.startTLS()
}

func (c *client) readOn() {
	if !c.read() {
		c.end()
	}
}

// read routes what comes until the client has ended (false) or another goroutine has
// taken over (true). That happens once the client rests: routing needs a larger stack than
// waiting does, and stacks grow but do not shrink that far.
func (c *client) read() bool {
	for {
		c.reading.Store(true)
		n, err := c.receive()
		c.reading.Store(false)
		if n > 0 {
			c.lastRead.Store(c.env.now())
			c.env.n.fromClients.Add(uint64(n))
			c.received.Store(c.received.Load() + uint64(n))
			if c.rested.Load() {
				if c.beats() {
					continue
				}
				c.rested.Store(false)
			}
			if !c.chunk() {
				return false
			}
			if p := c.paces.Load(); p != nil {
				c.keepPace(p, n)
			}
			now := c.env.now()
			c.lastRead.Store(now) // what came while the reader was held up was not silence
			if now != c.toldAt {
				c.toldAt = now
				c.tellApp()
			}
		}
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				c.hungUp(err)
				return false
			}
			_ = c.conn.SetReadDeadline(time.Time{})
			if c.phase.Load() != phaseRunning {
				c.releaseChannels() // what they hold is wanted elsewhere, see hoards
				continue            // closeAt ends it; its last words may not have left yet
			}
			c.sendAgain()
			c.tellApp()
			c.s.rests.Add(1)
			go c.readOn()
			return true
		}
	}
}

// beats takes what came if it is one heartbeat, which is all that most clients at rest say: nothing waits for that, and
// without the router the stack stays what it is, so that the client rests on.
func (c *client) beats() bool {
	b := c.rd.Buffered()
	if !bytes.Equal(b, amqp.Heartbeat) || c.phase.Load() != phaseRunning || c.traced.Load() != nil || c.paces.Load() != nil {
		return false
	}
	c.rd.Skip(len(b))
	c.env.n.framesClients.Add(1)
	return true
}

func (c *client) hungUp(err error) {
	if c.phase.Load() == phaseClosing {
		return
	}
	switch {
	case errors.Is(err, net.ErrClosed): // by the proxy, which has said why
	case errors.Is(err, io.EOF):
		c.log(slog.LevelDebug, "client hung up without connection.close")
	default:
		c.log(slog.LevelDebug, "client's connection broke", "error", err)
	}
}

func (c *client) log(level slog.Level, msg string, args ...any) {
	if !c.env.log.Enabled(bg, level) {
		return
	}
	args = append([]any{"client", c.n, "address", c.address().String()}, args...)
	if c.user != "" {
		args = append(args, "user", c.user)
	}
	if c.pool != nil {
		args = append(args, "vhost", c.pool.id.vhost)
	}
	if name := c.name(); name != "" {
		args = append(args, "name", name)
	}
	c.env.log.Log(bg, level, msg, args...)
}

// end gives back all that the client holds. Channels that are still open are closed at the broker.
func (c *client) end() {
	c.closeSocket()
	c.releaseChannels()
	c.mu.Lock()
	c.out.FailLocked(outbox.ErrClosed)
	c.uncrowdLocked()
	c.uncountLocked()
	blockedBy := c.blockedBy
	c.blockedBy = nil
	c.mu.Unlock()
	if blockedBy != nil {
		blockedBy.forget(c)
	}
	c.endSession()
	if c.app != nil {
		c.tellApp()
		c.app.clients.Add(-1)
	}
	if c.pool != nil {
		c.pool.leave()
	}
	if c.account != nil {
		c.s.leaveAccount(c.account)
	}
	c.leaveQuotas()
	c.leaveDesk()
	c.s.clientGone(c)
}

// releaseChannels closes at the broker what the client left open.
func (c *client) releaseChannels() {
	var said upstreams
	for ch := range c.chans.all() {
		whole := ch.content == noContent
		c.dropSpill(ch)
		c.mu.Lock()
		open := ch.state.Load() == chOpen
		ch.endLocked(ledger.ByCrash, nil)
		c.mu.Unlock()
		if b := ch.cur.Load(); b != nil {
			by := ledger.ByCrash
			if open && whole && b.quiet() {
				by = b.quietEnd(by)
			}
			said.add(b.u.closeBinding(b, by))
		}
	}
	said.flush()
	c.chans, c.last = channelSet{}, nil
	c.gathered, c.begun = 0, nil
}

func (c *client) closeSocket() {
	if c.closes() {
		c.hangUp(c.env.spawn)
	}
}

// cutOff is closeSocket for a client that broke the rules: as with RabbitMQ the connection is reset.
func (c *client) cutOff() {
	c.closes()
	c.reset()
}

// closes has gone closed. True: the socket is still to be.
func (c *client) closes() bool {
	c.mu.Lock()
	first := !c.goneOnce
	c.goneOnce = true
	c.mu.Unlock()
	if first {
		close(c.gone)
	}
	return first
}

// broken ends the client after a failed write.
func (c *client) broken(err error) {
	// Not log: amid the handshake, what the client has told of itself is its reader's.
	c.env.log.Debug("writing to the client failed", "client", c.n, "address", c.address().String(), "error", err)
	c.closeSocket()
}

// shut tells the client that its connection ends: connection.close, then the socket when
// it has answered, at the latest after closeGrace. Only the first call counts. Not for
// the client's own reader, which uses die.
func (c *client) shut(e *amqp.Error, drop bool) {
	c.mu.Lock()
	if drop {
		c.out.DropLocked()
	}
	c.closeLocked(e)
	c.mu.Unlock()
}

// closeLocked appends connection.close once and starts the grace.
func (c *client) closeLocked(e *amqp.Error) {
	switch c.phase.Load() {
	case phaseClosing:
		return
	}
	c.closeAt.Store(c.env.now() + int64(closeGrace)) // first: those that see the phase find it
	c.phase.Store(phaseClosing)
	c.env.n.connectionErrors.add(e.Code)
	c.out.SetBufferLocked(amqp.AppendClose(c.out.BufferLocked(300), 0, e))
	c.out.KickLocked()
	c.answers.FireLocked()
}

// die is shut for the reader itself; false, so that it can be returned.
func (c *client) die(e *amqp.Error) bool {
	if c.phase.Load() == phaseClosing {
		return false
	}
	why := []any{"code", e.Code, "reason", e.Text}
	if e.Method != 0 {
		why = append(why, "method", e.Method.String())
	}
	c.log(slog.LevelInfo, "client closed", why...)
	c.flushRun()
	c.mu.Lock()
	c.closeLocked(e)
	c.mu.Unlock()
	c.releaseChannels()
	return false // the chunk loop sees the phase, and discards until close-ok
}
