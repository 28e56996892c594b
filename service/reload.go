// Waiting for the outcome of a reload, as the state file tells it.

package service

import (
	"context"
	"errors"
	"time"
)

const reloadPoll = 50 * time.Millisecond

// awaitReload polls until the service has reloaded once more than before, or another process has taken over.
func awaitReload(ctx context.Context, before State, read func() (State, error)) (ReloadState, error) {
	done := 0
	if before.Reload != nil {
		done = before.Reload.Count
	}
	tick := time.NewTicker(reloadPoll)
	defer tick.Stop()
	for {
		if st, err := read(); err == nil && st.PID == before.PID && st.Reload != nil && st.Reload.Count > done && st.Phase != PhaseReloading {
			if st.Reload.Error != "" {
				return *st.Reload, errors.New("reload failed, the settings from before stay in force: " + st.Reload.Error)
			}
			return *st.Reload, nil
		} else if err == nil && st.PID != before.PID && st.Phase == PhaseServing { // it has read the settings at its start
			return ReloadState{TakenOver: st.PID}, nil
		}
		select {
		case <-ctx.Done():
			return ReloadState{}, errStillReloading
		case <-tick.C:
		}
	}
}

// errStillReloading says that the answer did not come in time.
var errStillReloading = errors.New("the reload is not done yet, see the service's log for its outcome")
