// What is shown of a run, and what is not.

package main

import (
	"strings"
	"testing"
)

func TestShow(t *testing.T) {
	in := `{"Action":"run","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"quiet\n"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"FIGURE 3 ms\n"}
{"Action":"pass","Package":"p","Test":"TestGood/part","Elapsed":60}
{"Action":"pass","Package":"p","Test":"TestGood","Elapsed":61.4}
{"Action":"output","Package":"p","Test":"TestBad","Output":"the reason\n"}
{"Action":"fail","Package":"p","Test":"TestBad","Elapsed":70}
{"Action":"output","Package":"p","Test":"TestAway","Output":"SKIPPED LOUDLY: no root\n"}
{"Action":"skip","Package":"p","Test":"TestAway"}
{"Action":"output","Package":"p","Test":"TestQuietly","Output":"short mode\n"}
{"Action":"skip","Package":"p","Test":"TestQuietly"}
not of test2json
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t1.2s\n"}
{"Action":"pass","Package":"p"}
{"Action":"output","Package":"q","Output":"panic: oh\n"}
{"Action":"output","Package":"q","Output":"FAIL\tq\t1.0s\n"}
{"Action":"fail","Package":"q"}
`
	want := "FIGURE 3 ms\nthe reason\np\nSKIPPED LOUDLY: no root\nnot of test2json\nok  \tp\t1.2s\npanic: oh\nFAIL\tq\t1.0s\n"
	var out strings.Builder
	passed, failed, skipped, long := show(strings.NewReader(in), &out)
	if out.String() != want {
		t.Errorf("shown:\n%s\nwant:\n%s", out.String(), want)
	}
	if got, want := longest(long), "longest: TestBad 70 s, TestGood 61 s\n"; got != want {
		t.Errorf("of the longest is told %q, want %q", got, want)
	}
	if passed != 2 || failed != 1 || skipped != 2 {
		t.Errorf("passed %d, failed %d, skipped %d, want 2, 1, 2", passed, failed, skipped)
	}
}
