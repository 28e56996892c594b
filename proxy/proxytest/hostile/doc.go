// Package hostile attacks the proxy as a stranger, as a tenant and as a broker, while
// canaries of another user and of the attacker's own publish, confirm and get. What they
// may notice is a ratio to a quiet run and to the same canary straight at the broker in
// the same time; afterwards the process must hold what it held before. `make hostile` runs
// it, FULL=1 with the long counts, and `make abuse` everything at once with faults of the broker.
package hostile
