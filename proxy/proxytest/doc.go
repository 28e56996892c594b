// Package proxytest holds what a proxy for AMQP 0-9-1 is tried against: a stand-in
// broker, a broker whose every step a test scripts, a raw client, in-memory
// connections for tests with a clock of their own, and the canary.
package proxytest
