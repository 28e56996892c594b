package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// drawable has the console understand escape sequences, until undo.
func drawable(f *os.File) (undo func()) {
	h := windows.Handle(f.Fd())
	var mode uint32
	if windows.GetConsoleMode(h, &mode) != nil || windows.SetConsoleMode(h, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) != nil {
		return func() {}
	}
	return func() { _ = windows.SetConsoleMode(h, mode) }
}
