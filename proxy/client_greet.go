// Greeting the client when the broker has greeted: while the broker is away a client finds what
// it would at a balancer without a backend, its socket closed before connection.start. Libraries
// take a connection.close after start-ok for a failed login, and stop recovering.

package proxy

import "log/slog"

// awaitGreeting waits, where nothing is known to be up, until the broker has greeted, on the
// connection that the login then takes. False: the client has ended.
func (c *client) awaitGreeting() bool {
	w := c.s.door()
	g := w.Greet()
	own := (g != nil || c.s.checking.Load() > 0) && c.s.isOwn(c.sock.RemoteAddr())
	if own { // the watchdog asks whether the proxy answers, not whether a broker does: it has them looked for
		for _, w := range c.s.ways.Load().used {
			w.Greet()
		}
	}
	if g == nil || own {
		return true
	}
	gone, stop := c.watch()
	over := c.awaits()
	err := w.Await(g, gone)
	over()
	stop()
	if err == nil {
		return true
	}
	select {
	case <-gone:
		return false
	default:
	}
	if c.s.ctx.Err() == nil {
		c.env.n.loginsFailed.Add(1)
		c.log(slog.LevelInfo, "client refused: the broker cannot be reached", "reason", c.s.forClients(err).Text)
	}
	return false
}

// awaits notes that the client waits, amid its handshake, for a broker that may be away: where hold
// lets it, handshake_timeout does not count that.
func (c *client) awaits() (over func()) {
	if c.env.cfg().Hold == 0 {
		return func() {}
	}
	from := c.env.now()
	c.paused.Store(true)
	c.waitsFrom.Store(from)
	return func() {
		c.granted.Add(c.env.now() - from)
		c.waitsFrom.Store(0)
		c.paused.Store(false)
	}
}
