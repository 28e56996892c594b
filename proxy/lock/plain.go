//go:build !lockrank || !amd64

package lock

import "sync"

// Mutex is a mutex of a rank.
type Mutex[R Rank] = sync.Mutex

// Ranked: order is looked after.
const Ranked = false

// Any is a mutex of whatever rank.
type Any = *sync.Mutex
