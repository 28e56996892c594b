//go:build !linux

package main

// systemMemoryLimit: only Linux has one that a process reads.
func systemMemoryLimit() (bytes int64, from string) { return 0, "" }
