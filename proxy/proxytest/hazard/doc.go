// Package hazard holds one case for each way in which a client can harm those it shares
// an upstream with. It is all tests: each case is raw frames, run straight against real
// brokers and through the proxy, and ends with another client that must notice nothing.
package hazard
