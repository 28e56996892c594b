package main

// runSignals is how a running proxy is asked for something on this system.
const runSignals = "Run the proxy until SIGTERM or Ctrl-C, which drain it; a second one, a second later, ends it at once.\n" +
	"SIGHUP reloads the settings, SIGUSR1 reopens the log file."
