package service

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A new process that says nothing is waited for in vain for so long, and no longer.
func TestANewProcessIsWaitedForInBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, its := net.Pipe()
		defer its.Close()
		c := &successor{conn: ours}
		began := time.Now()
		err := c.awaitReady(t.Context(), upgradeWait)
		if err == nil || !strings.Contains(err.Error(), "not ready within 1m0s") || time.Since(began) != upgradeWait {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.awaitReady(ctx, upgradeWait); err != errStopping {
			t.Errorf("on a stop: %v", err)
		}
	})
}

// An engine that cannot be handed over is told as that, and serves on.
func TestUpgradeIsRefused(t *testing.T) {
	s, _ := testSupervisor(newFakeEngine())
	result := runService(t, s)
	if _, err := s.Upgrade(t.Context()); err == nil {
		t.Error("no error")
	}
	s.requestStop()
	if err := <-result; err != nil {
		t.Error(err)
	}
	if _, err := s.Upgrade(t.Context()); err != errStopping {
		t.Errorf("after the stop: %v", err)
	}
}
