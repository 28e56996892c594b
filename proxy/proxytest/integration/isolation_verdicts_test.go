// What an operator changes under clients that work: passwords, users, permissions, virtual
// hosts, limits. Each client hears what the broker says, where it says it, and nobody else does.

//go:build linux

package integration

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// shortTTL has a login verified anew soon.
const shortTTL = "[pool]\nauth_ttl = \"1s\"\n"

// realm is a user and a vhost of its own for one script; the names are the same every
// time, so that the broker's texts are.
type realm struct {
	t   *testing.T
	tg  *target
	cfg proxytest.ClientConfig
	log []string
}

func newRealm(t *testing.T, tg *target) *realm {
	t.Helper()
	r := &realm{t: t, tg: tg, cfg: proxytest.ClientConfig{Addr: tg.addr, User: "tenant", Password: "first", VHost: "realm", Timeout: patience}}
	r.remove()
	for _, expr := range []string{
		`rabbit_vhost:add(<<"realm">>, <<"test">>).`,
		`rabbit_vhost:add(<<"beside">>, <<"test">>).`,
		`rabbit_auth_backend_internal:add_user(<<"tenant">>, <<"first">>, <<"test">>).`,
		`rabbit_auth_backend_internal:set_permissions(<<"tenant">>, <<"realm">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>).`,
		`rabbit_auth_backend_internal:set_permissions(<<"tenant">>, <<"beside">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>).`,
	} {
		if out, err := tg.broker.Eval(expr); err != nil || out != "ok" {
			t.Fatalf("%s %s, %v", expr, out, err)
		}
	}
	t.Cleanup(r.remove)
	return r
}

func (r *realm) remove() {
	for _, expr := range []string{
		`catch rabbit_auth_backend_internal:delete_user(<<"tenant">>, <<"test">>).`,
		`catch rabbit_vhost:delete(<<"realm">>, <<"test">>).`,
		`catch rabbit_vhost:delete(<<"beside">>, <<"test">>).`,
	} {
		if _, err := r.tg.broker.Eval(expr); err != nil {
			r.t.Error(err)
		}
	}
}

func (r *realm) ctl(args ...string) {
	r.t.Helper()
	if _, err := r.tg.broker.Ctl(args...); err != nil {
		r.t.Fatal(err)
	}
}

// generated are names that differ each time.
var generated = regexp.MustCompile(`amq\.gen-[\w-]+`)

func (r *realm) note(what string, err error) {
	said := generated.ReplaceAllString(verdict(err), "amq.gen-*")
	// RabbitMQ 4.0 says one or the other, as its processes come.
	said = strings.Replace(said, "vhost 'realm' is down", "vhost 'realm' is deleted", 1)
	r.log = append(r.log, what+": "+said)
}

// login is a login's outcome.
func (r *realm) login(change func(*proxytest.ClientConfig)) error {
	cfg := r.cfg
	if change != nil {
		change(&cfg)
	}
	c, err := rawErr(cfg)
	if err != nil {
		return err
	}
	return c.Close()
}

// refused logs in until it is refused: the proxy asks the broker again at the first login
// after auth_ttl, and refuses the one after that. All that were served before had been
// verified not long ago.
func (r *realm) refused(what string, change func(*proxytest.ClientConfig)) {
	r.t.Helper()
	began, served := time.Now(), 0
	var err error
	eventually(r.t, what+" is refused", func() error {
		if err = r.login(change); err == nil {
			served++
			return errors.New("it is served")
		}
		return nil
	})
	took := time.Since(began)
	if limit := time.Second + raceSlack; took > limit {
		r.t.Errorf("%s: refused only after %v", what, took)
	}
	if r.tg.proxy == nil && served > 0 {
		r.t.Errorf("%s: the broker itself served it %d times", what, served)
	}
	r.note(what, err)
	r.note(what+", again", r.login(change))
}

// works tells whether a client that was there before can work on a new channel.
func works(c *proxytest.Client, ch uint16) error {
	if err := c.OpenChannel(ch); err != nil {
		return err
	}
	if err := c.Confirm(ch); err != nil {
		return err
	}
	q, err := c.DeclareQueue(ch, "", proxytest.AutoDelete)
	if err != nil {
		return err
	}
	if err := c.Publish(ch, "", q, []byte("works")); err != nil {
		return err
	}
	if err := c.WaitConfirms(ch); err != nil {
		return err
	}
	_, err = c.Get(ch, q, true)
	return err
}

// undisturbed tells whether a client has heard anything by itself.
func undisturbed(c *proxytest.Client) error {
	f, err := c.NextWithin(10 * time.Millisecond)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.New("heard " + proxytest.Describe(f))
}

// toldEnd waits for the end of a connection by the broker and returns what it said.
func toldEnd(c *proxytest.Client) error {
	e, err := c.Closed(0)
	if e != nil {
		return e
	}
	return err
}

func tenant(name string) func(*proxytest.ClientConfig) {
	return func(c *proxytest.ClientConfig) { c.Password = name }
}

func vhost(name string) func(*proxytest.ClientConfig) {
	return func(c *proxytest.ClientConfig) { c.VHost = name }
}

func (r *realm) client(change func(*proxytest.ClientConfig)) *proxytest.Client {
	r.t.Helper()
	cfg := r.cfg
	if change != nil {
		change(&cfg)
	}
	return raw(r.t, cfg)
}

// consumes tells whether a consumer gets what another channel of its client publishes.
func consumes(c *proxytest.Client, ch uint16) error {
	for _, x := range []uint16{ch, ch + 1} {
		if err := c.OpenChannel(x); err != nil {
			return err
		}
	}
	q, err := c.DeclareQueue(ch, "", proxytest.AutoDelete)
	if err != nil {
		return err
	}
	if err := c.Qos(ch, 10); err != nil {
		return err
	}
	if _, err := c.Consume(ch, q, "", false); err != nil {
		return err
	}
	if err := c.Publish(ch+1, "", q, []byte("consumed")); err != nil {
		return err
	}
	d, err := c.Delivery(ch)
	if err != nil {
		return err
	}
	return c.Ack(ch, d.Tag, false)
}

func TestPasswordChanged(t *testing.T) {
	compare(t, shortTTL, func(t *testing.T, tg *target) []string {
		r := newRealm(t, tg)
		old := r.client(nil)
		r.note("an old client before", works(old, 2))
		r.ctl("change_password", "tenant", "second")
		r.refused("the old password", nil)
		r.note("the new password", r.login(tenant("second")))
		r.note("the old password beside it", r.login(nil))
		r.note("a wrong password", r.login(tenant("third")))
		r.note("an old client", undisturbed(old))
		r.note("an old client's new channel", works(old, 3))
		r.note("its close", old.Close())
		return r.log
	})
}

func TestUserDeleted(t *testing.T) {
	compare(t, shortTTL, func(t *testing.T, tg *target) []string {
		r := newRealm(t, tg)
		old, beside := r.client(nil), r.client(vhost("beside"))
		r.note("an old client before", works(old, 2))
		r.note("in another vhost before", works(beside, 2))
		r.ctl("delete_user", "tenant")
		r.note("an old client", toldEnd(old))
		r.note("in another vhost", toldEnd(beside))
		r.refused("the deleted user", nil)
		r.refused("the deleted user in another vhost", vhost("beside"))
		return r.log
	})
}

func TestPermissionRevoked(t *testing.T) {
	compare(t, shortTTL, func(t *testing.T, tg *target) []string {
		r := newRealm(t, tg)
		old, beside := r.client(nil), r.client(vhost("beside"))
		r.note("an old client before", works(old, 2))
		r.note("in another vhost before", works(beside, 2))
		r.ctl("clear_permissions", "-p", "realm", "tenant")
		r.refused("a login", nil)
		r.note("in another vhost a login", r.login(vhost("beside")))
		r.note("an old client", undisturbed(old))
		r.note("an old client's new channel", works(old, 3))
		r.note("its next one", works(old, 4))
		r.note("its close", old.Close())
		r.note("in another vhost", works(beside, 3))
		return r.log
	})
}

// A right that is taken away shows where it is used: on the channel, at the method.
func TestRightsReduced(t *testing.T) {
	compare(t, shortTTL, func(t *testing.T, tg *target) []string {
		r := newRealm(t, tg)
		old := r.client(nil)
		if _, err := old.DeclareQueue(1, "kept", 0); err != nil {
			t.Fatal(err)
		}
		r.note("an old client before", works(old, 2))
		r.ctl("set_permissions", "-p", "realm", "tenant", "", "", "")
		for i, use := range []struct {
			what string
			do   func(c *proxytest.Client, ch uint16) error
		}{
			{"declare", func(c *proxytest.Client, ch uint16) error { _, err := c.DeclareQueue(ch, "new", 0); return err }},
			{"delete", func(c *proxytest.Client, ch uint16) error { return c.DeleteQueue(ch, "kept") }},
			{"get", func(c *proxytest.Client, ch uint16) error { _, err := c.Get(ch, "kept", true); return err }},
			{"consume", func(c *proxytest.Client, ch uint16) error { _, err := c.Consume(ch, "kept", "t", true); return err }},
			{"publish", func(c *proxytest.Client, ch uint16) error {
				if err := c.Confirm(ch); err != nil {
					return err
				}
				if err := c.Publish(ch, "", "kept", []byte("x")); err != nil {
					return err
				}
				return c.WaitConfirms(ch)
			}},
			{"publish, then close", func(c *proxytest.Client, ch uint16) error {
				if err := c.Confirm(ch); err != nil {
					return err
				}
				if err := c.Publish(ch, "amq.direct", "kept", []byte("x")); err != nil {
					return err
				}
				if _, err := c.QueueLength(ch, "kept"); err != nil {
					return err
				}
				return c.CloseChannel(ch)
			}},
		} {
			fresh := r.client(nil)
			for _, by := range []struct {
				who string
				c   *proxytest.Client
			}{{"an old client's ", old}, {"a new client's ", fresh}} {
				ch := uint16(10 + i)
				err := by.c.OpenChannel(ch)
				if err == nil {
					err = use.do(by.c, ch)
				}
				r.note(by.who+use.what, err)
			}
			r.note("the new client's close", fresh.Close())
		}
		r.note("an old client's close", old.Close())
		return r.log
	})
}

func TestVHostDeleted(t *testing.T) {
	compare(t, shortTTL, func(t *testing.T, tg *target) []string {
		r := newRealm(t, tg)
		old, beside := r.client(nil), r.client(vhost("beside"))
		r.note("an old client before", works(old, 2))
		r.note("in another vhost before", works(beside, 2))
		r.ctl("delete_vhost", "realm")
		r.note("an old client", toldEnd(old))
		r.refused("a login", nil)
		r.note("in another vhost a login", r.login(vhost("beside")))
		r.note("in another vhost", undisturbed(beside))
		r.note("in another vhost a new channel", works(beside, 3))
		return r.log
	})
}

// A user who may have no connection at all hears it as from the broker.
func TestConnectionLimit(t *testing.T) {
	compare(t, shortTTL, func(t *testing.T, tg *target) []string {
		r := newRealm(t, tg)
		r.ctl("set_user_limits", "tenant", `{"max-connections": 0}`)
		r.note("a login with a limit of 0", r.login(nil))
		r.note("again", r.login(nil))
		r.ctl("set_user_limits", "tenant", `{"max-connections": 1}`)
		c := r.client(nil)
		r.note("the one connection", works(c, 2))
		if tg.proxy == nil {
			r.note("the second", r.login(nil))
		} else {
			// They share the one connection; who needs another hears what the broker says.
			if err := r.login(nil); err != nil {
				t.Errorf("a second client, who needs no second connection: %s", verdict(err))
			}
			own := r.client(nil)
			_, err := own.DeclareQueue(1, "", proxytest.Exclusive)
			r.note("the second", err)
		}
		r.note("the first meanwhile", works(c, 3))
		r.note("its channel that consumes", consumes(c, 5))
		r.ctl("clear_user_limits", "tenant", "max-connections")
		r.note("without a limit", r.login(nil))
		r.note("the first after it", works(c, 4))
		return r.log
	})
}

// At the limit of a vhost the broker looks at the password first, then at the limit, then at the permission: so who has no access
// hears of the limit, and of his want of permission where the connection that the proxy keeps there is all that stands.
func TestVHostLimit(t *testing.T) {
	compare(t, shortTTL, func(t *testing.T, tg *target) []string {
		r := newRealm(t, tg)
		const add = `rabbit_auth_backend_internal:add_user(<<"passer-by">>, <<"first">>, <<"test">>).`
		const remove = `catch rabbit_auth_backend_internal:delete_user(<<"passer-by">>, <<"test">>).`
		for _, expr := range []string{remove, add} {
			if _, err := tg.broker.Eval(expr); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { _, _ = tg.broker.Eval(remove) })
		passerBy := func(c *proxytest.ClientConfig) { c.User = "passer-by" }
		r.ctl("set_vhost_limits", "-p", "realm", `{"max-connections": 1}`)
		c := r.client(nil)
		r.note("the one connection", works(c, 2))
		err := r.login(passerBy)
		if err == nil || !strings.HasSuffix(err.Error(), "connection limit (1) is reached") {
			t.Errorf("who has no access is told %v, want the limit", err) // see dialInRoom: another order would need no guess
		}
		r.note("who has no access", err)
		r.note("who has a wrong password", r.login(func(c *proxytest.ClientConfig) { passerBy(c); c.Password = "wrong" }))
		r.note("the one connection meanwhile", works(c, 3))
		r.note("its close", c.Close())
		eventually(t, "the broker has let it go", func() error { return r.login(nil) })
		eventually(t, "nor is there access without it", func() error {
			err := r.login(passerBy)
			if err == nil || strings.Contains(err.Error(), "is reached") {
				return fmt.Errorf("told %v", err)
			}
			r.note("who has no access, again", err)
			return nil
		})
		eventually(t, "who has access is let in", func() error { return r.login(nil) })
		return r.log
	})
}

// A user's channels are counted over all of their connections. The client that opens one
// too many loses its connection, with the broker's words; others go on.
func TestChannelLimit(t *testing.T) {
	compare(t, shortTTL, func(t *testing.T, tg *target) []string {
		r := newRealm(t, tg)
		r.ctl("set_user_limits", "tenant", `{"max-channels": 3}`)
		for range 2 {
			c := r.client(nil)
			for ch := uint16(1); ch <= 4; ch++ {
				r.note(fmt.Sprintf("channel %d", ch), r.uses(c, ch))
			}
		}
		first, second := r.client(nil), r.client(nil)
		r.note("the first's channel", r.uses(first, 1))
		r.note("the second's channel", r.uses(second, 1))
		r.note("the second's channel 2", r.uses(second, 2))
		r.note("the second's channel 3", r.uses(second, 3))
		r.note("the first", undisturbed(first))
		r.note("the first's channel 2", r.uses(first, 2))
		r.note("the first's close", first.Close())

		// Who declares first and then reads may change connections in the proxy, but counts once.
		held, reads := r.client(nil), r.client(nil)
		r.note("one's channel", r.uses(held, 1))
		r.note("one's channel 2", r.uses(held, 2))
		q, err := reads.DeclareQueue(1, "", proxytest.AutoDelete)
		r.note("the reader declares", err)
		_, err = reads.Get(1, q, true)
		r.note("the reader gets", err)
		r.note("one meanwhile", undisturbed(held))
		r.note("the reader's close", reads.Close())
		r.note("one's close", held.Close())
		return r.log
	})
}

// uses works on a channel that stays in use, once those that were closed are gone at the broker.
func (r *realm) uses(c *proxytest.Client, ch uint16) error {
	if ch > 1 {
		if err := c.OpenChannel(ch); err != nil {
			return err
		}
	} else {
		eventually(r.t, "no channel is left", func() error {
			out, err := r.tg.broker.Eval(`length([C || C <- rabbit_channel:list(), proplists:get_value(user, rabbit_channel:info(C, [user])) =:= <<"tenant">>]).`)
			if err != nil || out != "0" && out != "1" && out != "2" {
				return fmt.Errorf("%s channels, %v", out, err)
			}
			return nil
		})
	}
	if err := c.Confirm(ch); err != nil {
		return err
	}
	if err := c.Publish(ch, "amq.fanout", "", []byte("used")); err != nil {
		return err
	}
	return c.WaitConfirms(ch)
}
