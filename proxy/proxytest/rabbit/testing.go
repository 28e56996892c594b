// The testbed's side toward tests: one broker of each version per test binary.

//go:build linux

package rabbit

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
)

// sharedBroker is a test binary's broker of a version.
type sharedBroker struct {
	start  sync.Once
	broker *Broker
	err    error
}

var shared = func() map[Version]*sharedBroker {
	all := map[Version]*sharedBroker{}
	for _, v := range Versions {
		all[v] = &sharedBroker{}
	}
	return all
}()

// Get is the test binary's broker of a version, started when first asked for and
// shared by all tests; the package's TestMain must be Main. On a failure of the test
// its log's end is shown. A test that ends or breaks the broker must restart it.
func Get(t testing.TB, v Version) *Broker {
	t.Helper()
	if err := Available(v); err != nil {
		Skip(t, err)
	}
	s := shared[v]
	s.start.Do(func() { s.broker, s.err = Start(v) }) // of one version beside another's
	b := s.broker
	if s.err != nil {
		t.Fatalf("RabbitMQ %s: %v", v, s.err)
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("RABBIT_LOG") != "" {
			t.Logf("log of RabbitMQ %s ends:\n%s", v, b.Log(20))
		}
	})
	return b
}

// Main runs the tests of a package that uses Get and ends the brokers afterwards:
//
//	func TestMain(m *testing.M) { os.Exit(rabbit.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	for v, s := range shared {
		if s.broker == nil {
			continue
		}
		if code != 0 {
			fmt.Fprintf(os.Stderr, "--- log of RabbitMQ %s ends:\n%s\n", v, s.broker.Log(20))
		}
		s.broker.Close()
	}
	return code
}

// Skip skips a test because a part of the testbed is missing, in a way that is seen.
// With CI=true it fails the test, for there nothing may be missing that root could install.
func Skip(t testing.TB, why error) {
	t.Helper()
	if !errors.Is(why, ErrGone) && os.Getenv("CI") == "true" && os.Getuid() == 0 {
		t.Fatalf("missing in CI: %v", why)
	}
	t.Skipf("SKIPPED LOUDLY: %v", why)
}
