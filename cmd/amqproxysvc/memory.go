// What Go's collector is told of the memory there is: without that it lets the heap grow into
// the limit of a container or a unit, whose kernel then ends the process.

package main

import (
	"log/slog"
	"math"
	"os"
	"runtime/debug"

	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// memoryShare is how much of the limit the collector may fill: the kernel counts more than the
// heap, socket buffers among it.
const memoryShare = 0.9

// limitMemory has the collector keep within memoryShare of the limit that the system sets this
// process, if it sets one. GOMEMLIMIT in the environment counts instead.
func limitMemory(mode string, systemLimit func() (bytes int64, from string)) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if mode == config.MemoryAuto {
		if n, from := systemLimit(); n > 0 {
			goal := int64(float64(n) * memoryShare)
			if goal != debug.SetMemoryLimit(goal) {
				slog.Info("memory limit found", "limit", n, "from", from, "collector_keeps_within", goal)
			}
			return
		}
	}
	debug.SetMemoryLimit(math.MaxInt64)
}
