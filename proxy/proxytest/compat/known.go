// The differences that are known and meant, each with its reason.

package main

// known says which tests of a suite may fail through the proxy. tests is a regular
// expression on the test's name; an empty broker or mode means every one.
var known = []struct{ suite, broker, mode, tests, reason string }{}
