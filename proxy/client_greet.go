// Greeting the client when the broker has greeted: while the broker is away a client finds what
// it would at a balancer without a backend, its socket closed before connection.start. Libraries
// take a connection.close after start-ok for a failed login, and stop recovering.

package proxy

import "log/slog"

// awaitGreeting waits, where nothing is known to be up, until the broker has greeted, on the
// connection that the login then takes. False: the client has ended.
func (c *client) awaitGreeting() bool {
	g := c.s.broker.Greet()
	if g == nil {
		return true
	}
	if c.s.isOwn(c.sock.RemoteAddr()) {
		return true // the watchdog asks whether the proxy answers, not whether the broker does
	}
	gone, stop := c.watch()
	err := c.s.broker.Await(g, gone)
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
