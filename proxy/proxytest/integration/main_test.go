// Real brokers, real clients, the real binary: each case runs straight to RabbitMQ and
// through the proxy, on every version of the testbed. Straight is the check of the case
// itself; STRAIGHT=1 runs nothing else. FULL=1 takes the long counts.

//go:build linux

package integration

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

var (
	full     = os.Getenv("FULL") != ""
	straight = os.Getenv("STRAIGHT") != ""
)

// onNewest are the tests that run on the newest RabbitMQ too. The others take it with
// FULL=1, or when -run names it: a third of everything is more than CI has time for.
var onNewest = []string{
	"TestClients", "TestRefusals", "TestSameAsStraight", "TestPasswordChanged", "TestTLS",
	"TestExclusiveQueueOfAnother", "TestExclusiveQueueOnAllChannels", "TestExclusiveQueueGoneAfterClose",
	"TestBrokerKilledUnderLoad", "TestCloseAllConnections",
}

// versions are the brokers that a test runs on.
func versions(t testing.TB) []rabbit.Version {
	top, _, _ := strings.Cut(t.Name(), "/")
	asked := strings.Contains(strings.ReplaceAll(flag.Lookup("test.run").Value.String(), `\`, ""), "/"+string(rabbit.V43))
	if full || asked || slices.Contains(onNewest, top) {
		return rabbit.Versions
	}
	return rabbit.Versions[:len(rabbit.Versions)-1]
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(crowdEnv); spec != "" {
		crowdMain(spec)
		return
	}
	dir, err := os.MkdirTemp("", "amqproxysvc-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binaries.dir = dir
	code := rabbit.Main(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// count is n in CI and on a desk, long with FULL=1.
func count(n, long int) int {
	if full {
		return long
	}
	return n
}

// binaries are the proxy as users get it, and with the race detector; built once.
var binaries struct {
	dir         string
	plain, race sync.Once
	err         [2]error
}

// binary builds cmd/amqproxysvc and returns the program's path.
func binary(t testing.TB, race bool) string {
	t.Helper()
	name, once, errp := filepath.Join(binaries.dir, "amqproxysvc"), &binaries.plain, &binaries.err[0]
	args := []string{"build", "-o", name}
	if race {
		name, once, errp = filepath.Join(binaries.dir, "amqproxysvc-race"), &binaries.race, &binaries.err[1]
		args = []string{"build", "-race", "-o", name}
	}
	once.Do(func() {
		cmd := exec.Command("go", append(args, "./cmd/amqproxysvc")...)
		cmd.Dir = "../../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			*errp = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if *errp != nil {
		t.Fatalf("the proxy does not build: %v", *errp)
	}
	return name
}
