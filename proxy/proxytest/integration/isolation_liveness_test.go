// A broker that stops answering and closes nothing: how long those who are connected wait
// until they are told, and those who come meanwhile until they are served or refused.

//go:build linux

package integration

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	wire "github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/relay"
)

const (
	// newcomers is how long at most a client that comes may wait for its declare.
	newcomers = 15 * time.Second
	// stuckReaders has the broker's processes that read from connections stand still, those that
	// there are now; their heartbeats are sent by others, and go on.
	stuckReaders = `P = spawn(fun() -> [erlang:suspend_process(C) || C <- rabbit_networking:local_connections()],
		receive stop -> ok after 90000 -> ok end end), register(stuck_readers, P), ok.`
	readersGoOn = `stuck_readers ! stop, ok.`
)

// neighbour is a client that is connected when the broker stops answering.
type neighbour struct {
	kind  string
	hears time.Duration // at the latest
	cfg   proxytest.ClientConfig
	step  func(c *proxytest.Client, queue string) error // over and over until it fails
}

// neighbours are at what may be under way; heartbeats says whether the broker's go on.
func neighbours(heartbeats bool) []neighbour {
	told := 16 * time.Second
	published := told
	if heartbeats {
		published = 36 * time.Second // as RabbitMQ does in flow control
	}
	all := []neighbour{
		{"declares", told, proxytest.ClientConfig{}, func(c *proxytest.Client, queue string) error {
			_, err := c.DeclareQueue(1, queue, 0)
			return err
		}},
		{"confirms", published, proxytest.ClientConfig{}, func(c *proxytest.Client, queue string) error {
			if err := c.Publish(1, "", queue, []byte("x")); err != nil {
				return err
			}
			return c.WaitConfirms(1)
		}},
	}
	if !heartbeats {
		all = append(all, neighbour{"publishes, with a heartbeat of 4 s", 9500 * time.Millisecond, proxytest.ClientConfig{Heartbeat: 4},
			func(c *proxytest.Client, queue string) error {
				if err := c.Publish(1, "", queue, []byte("x")); err != nil {
					return err
				}
				f, err := c.NextWithin(200 * time.Millisecond)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					return nil
				}
				if err == nil && f.Type() == wire.FrameMethod && f.Method() == wire.ConnectionClose {
					return wire.ParseClose(f)
				}
				return err
			}})
	}
	return all
}

func TestBrokerThatDoesNotAnswer(t *testing.T) {
	through(t, func(t *testing.T, b *rabbit.Broker) {
		for _, x := range []struct {
			name       string
			heartbeats bool
			stop, goOn func(*relay.Relay) error
		}{
			{"frozen", false, func(*relay.Relay) error { return b.Pause() }, func(*relay.Relay) error { return b.Resume() }},
			{"packets dropped", false, func(r *relay.Relay) error { r.Stall(true); return nil },
				func(r *relay.Relay) error { r.Stall(false); r.Cut(); return nil }},
			{"only heartbeats", true, func(*relay.Relay) error { _, err := b.Eval(stuckReaders); return err },
				func(*relay.Relay) error { _, err := b.Eval(readersGoOn); return err }},
		} {
			t.Run(x.name, func(t *testing.T) {
				path, err := relay.New(b.Addr(), 0)
				if err != nil {
					t.Fatal(err)
				}
				defer path.Close()
				var mu sync.Mutex
				var wg sync.WaitGroup
				begun, at := make(chan struct{}), time.Time{}
				modes := []string{"auto", "shared", "session"}
				oldest, newest := map[string]time.Duration{}, map[string]time.Duration{}
				served := map[string]int{}
				var proxies []*process
				for _, mode := range modes {
					p := startProxy(t, true, "amqp://"+path.Addr(), fmt.Sprintf("[[listener]]\npool_mode = %q\n", mode))
					proxies = append(proxies, p)
					all := neighbours(x.heartbeats)
					var old sync.WaitGroup
					for i, w := range all {
						queue := fmt.Sprintf("liveness-%s-%d", mode, i)
						cfg := w.cfg
						cfg.Addr, cfg.Timeout = p.addr, time.Minute
						c := raw(t, cfg)
						if _, err := c.DeclareQueue(1, queue, 0); err != nil {
							t.Fatal(err)
						}
						if err := c.Confirm(1); err != nil {
							t.Fatal(err)
						}
						old.Add(1)
						wg.Go(func() {
							defer old.Done()
							var err error
							for err == nil {
								err = w.step(c, queue)
							}
							<-begun
							took := time.Since(at)
							mu.Lock()
							defer mu.Unlock()
							oldest[mode] = max(oldest[mode], took)
							var e *wire.Error
							if !errors.As(err, &e) || e.Code != wire.ConnectionForced || took > w.hears+raceSlack {
								t.Errorf("%s, one that %s heard %v after %v, want 320 within %v", mode, w.kind, err, took.Round(tenth), w.hears)
							}
							t.Logf("%s, one that %s: %v after %v", mode, w.kind, err, took.Round(tenth))
						})
					}
					// Those who come: one each half second until all of the others have been told.
					told := make(chan struct{})
					go func() { old.Wait(); close(told) }()
					wg.Go(func() {
						<-begun
						var fresh sync.WaitGroup
						defer fresh.Wait()
						for {
							select {
							case <-told:
								return
							case <-time.After(500 * time.Millisecond):
							}
							fresh.Go(func() {
								began := time.Now()
								c, err := rawErr(proxytest.ClientConfig{Addr: p.addr, Timeout: 40 * time.Second})
								if err == nil {
									_, err = c.DeclareQueue(1, "liveness-new", 0)
									c.Hangup()
								}
								took := time.Since(began)
								mu.Lock()
								defer mu.Unlock()
								newest[mode] = max(newest[mode], took)
								if err == nil {
									served[mode]++
								}
								if took > newcomers+raceSlack {
									t.Errorf("%s: one that came heard %v after %v, want an answer within %v", mode, err, took.Round(tenth), newcomers)
								}
							})
						}
					})
				}
				time.Sleep(time.Second) // at work
				at = time.Now()
				if err := x.stop(path); err != nil {
					t.Fatal(err)
				}
				close(begun)
				wg.Wait()
				if err := x.goOn(path); err != nil {
					t.Fatal(err)
				}
				for i, mode := range modes {
					t.Logf("FIGURE RabbitMQ %s, %s, %s: an old client is told after %v at worst, a new one waits %v at worst (%d served meanwhile)",
						b.Version, x.name, mode, oldest[mode].Round(tenth), newest[mode].Round(tenth), served[mode])
					eventually(t, "the next one is served", func() error {
						c, err := rawErr(proxytest.ClientConfig{Addr: proxies[i].addr, Timeout: 5 * time.Second})
						if err == nil {
							err = c.Close()
						}
						return err
					})
					canary(t, proxies[i].addr)
				}
			})
		}
	})
}

const tenth = 100 * time.Millisecond
