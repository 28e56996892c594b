// The differences that are known and meant, each with its reason.

//go:build linux

package main

// knownDifference says which tests of a suite may fail through the proxy. tests is a
// regular expression on the test's name; an empty broker or mode means every one.
type knownDifference struct{ suite, broker, mode, tests, reason string }

var known = []knownDifference{}
