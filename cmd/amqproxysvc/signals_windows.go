package main

// runSignals is how a running proxy is asked for something on this system.
const runSignals = "Run the proxy until Ctrl-C, which drains it; a second one, a second later, ends it at once."
