// Output as other programs read it.

package main

import (
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// jsonFor is JSON for the programs of a system. PowerShell takes what a program writes to be of the console's code page,
// whichever that is: on Windows what is not ASCII is written as JSON's escapes, which are the same in all of them.
func jsonFor(goos string, text []byte) []byte {
	if goos != "windows" {
		return text
	}
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		if r < utf8.RuneSelf {
			out = append(out, byte(r))
		} else {
			for _, unit := range utf16.Encode([]rune{r}) {
				out = fmt.Appendf(out, `\u%04x`, unit)
			}
		}
		text = text[n:]
	}
	return out
}
