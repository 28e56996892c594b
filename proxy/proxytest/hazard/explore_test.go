// The close protocol explored: a model of both sides makes every choice of who sends what
// and when, and watches what the real engine sends to each. Time and scheduling belong to
// a synctest bubble; every failure prints the steps that lead to it.

package hazard

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
)

var (
	exploreDepth = flag.Int("depth", 3, "steps of which every sequence is tried")
	exploreRuns  = flag.Int("walks", 1500, "random sequences tried")
	exploreSeed  = flag.Uint64("seed", 1, "of the random sequences")
)

// explore makes one run; pick chooses among n things.
func explore(t *testing.T, crossed, cuts, reuse bool, chanMax uint16, length int, pick func(n int) int) (w *world) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w = &world{t: t, crossed: crossed, cuts: cuts, reuse: reuse, chanMax: chanMax, reused: map[string]int{}, refused: map[string]bool{}, acked: map[string]uint64{}}
		w.start()
		for range length {
			if w.broken != "" {
				break
			}
			all := w.steps()
			if len(all) == 0 {
				break
			}
			n := pick(2 * len(all))
			s := all[n/2]
			w.note("%s", s.name)
			s.do()
			if n%2 == 0 {
				w.settle()
			} else {
				w.note("    (at once:)")
			}
		}
		if w.broken == "" {
			w.finish()
		}
		w.srv.Close()
		w.front.Close()
		w.back.Close()
		for _, c := range w.brokers {
			c.conn.Close()
		}
		w.canary.conn.Close()
		if w.app != nil {
			w.app.conn.Close()
		}
		synctest.Wait()
	})
	return w
}

// findings are the distinct violations of many runs, each with the first run that showed it.
type findings struct {
	count map[string]int
	first map[string]string
}

func (fs *findings) add(w *world, picks []int) {
	if w.broken == "" {
		return
	}
	if fs.count == nil {
		fs.count, fs.first = map[string]int{}, map[string]string{}
	}
	if fs.count[w.broken]++; fs.count[w.broken] == 1 {
		fs.first[w.broken] = fmt.Sprintf("choices %v, crossing closes answered: %v, channel_max %d\n%s", picks, w.crossed, w.chanMax, strings.Join(w.trace, "\n"))
	}
}

func (fs *findings) report(t *testing.T) {
	t.Helper()
	for what, n := range fs.count {
		t.Errorf("%d runs: %s\n%s", n, what, fs.first[what])
	}
}

// Every sequence of a few steps.
func TestCloseProtocolExhaustively(t *testing.T) {
	for _, crossed := range []bool{true, false} {
		var picks, width []int
		runs := 0
		var found findings
		for {
			at := 0
			w := explore(t, crossed, true, false, 3, *exploreDepth, func(n int) int {
				if at == len(picks) {
					picks, width = append(picks, 0), append(width, n)
				}
				width[at] = n
				at++
				return picks[at-1] % n
			})
			runs++
			found.add(w, picks)
			picks, width = picks[:at], width[:at]
			for len(picks) > 0 && picks[len(picks)-1]+1 >= width[len(picks)-1] {
				picks, width = picks[:len(picks)-1], width[:len(picks)-1]
			}
			if len(picks) == 0 {
				break
			}
			picks[len(picks)-1]++
		}
		found.report(t)
		t.Logf("crossing closes answered: %v: %d sequences of %d steps", crossed, runs, *exploreDepth)
	}
}

// Long random sequences, in which channel ids come round, and with channels that are kept.
func TestCloseProtocolAtRandom(t *testing.T) {
	t.Run("closed", func(t *testing.T) { walks(t, false, 1) })
	t.Run("kept", func(t *testing.T) { walks(t, true, 4) }) // a quarter of the ids may be kept
}

func walks(t *testing.T, reuse bool, ids uint16) {
	most, served := 0, uint64(0)
	var found findings
	for run := range *exploreRuns {
		rng := rand.New(rand.NewPCG(*exploreSeed, uint64(run)))
		var picks []int
		w := explore(t, run%4 != 0, run%5 == 0, reuse, ids*(2+uint16(run%3)), 4+rng.IntN(40), func(n int) int {
			p := rng.IntN(n)
			picks = append(picks, p)
			return p
		})
		for _, n := range w.reused {
			most = max(most, n)
		}
		served += w.served
		found.add(w, picks)
	}
	found.report(t)
	t.Logf("%d sequences, an upstream's channel id was opened up to %d times, kept channels served %d", *exploreRuns, most, served)
	if *exploreRuns >= 1000 && (!reuse && most < 3 || reuse && served < 100) {
		t.Error("ids were hardly reused: the sequences show nothing about reuse")
	}
}
