// Certificates that are renewed while the proxy runs, and secrets that are changed: their files are
// looked at once a minute, and what has changed is taken if it is whole; else the old ones stay.

package main

import (
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/amqproxysvc/amqproxysvc/service/config"
)

const (
	certificatesEvery = time.Minute
	// certificatesSettle is how long a file has not been written when it is read: a renewal
	// writes several, one after another.
	certificatesSettle = 2 * time.Second
	expiresSoon        = 14 * 24 * time.Hour
)

// certificates are what was last seen of the files.
type certificates struct {
	mu    sync.Mutex // held over a look or a reload, never two at a time
	seen  map[string]os.FileInfo
	timer *time.Timer
	asked time.Time // when their expiry was last looked at
}

// stamps is how the files look now; nil for one that is not there.
func stamps(settings *config.Settings) map[string]os.FileInfo {
	seen := map[string]os.FileInfo{}
	for _, f := range append(settings.TLSFiles(), settings.SecretFiles()...) {
		info, err := os.Stat(f)
		if err != nil {
			info = nil
		}
		seen[f] = info
	}
	return seen
}

// changed are the files that look different.
func changed(before, now map[string]os.FileInfo) (files []string) {
	for f, b := range now {
		a := before[f]
		if (a == nil) != (b == nil) || a != nil && (!os.SameFile(a, b) || a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime())) {
			files = append(files, f)
		}
	}
	slices.Sort(files)
	return files
}

// partedBy parts the files that are among some from the others.
func partedBy(files, some []string) (others, among []string) {
	for _, f := range files {
		if slices.Contains(some, f) {
			among = append(among, f)
		} else {
			others = append(others, f)
		}
	}
	return others, among
}

// watchCertificates has the files looked at until the drain.
func (e *engine) watchCertificates() {
	c := &e.certificates
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timer = time.AfterFunc(certificatesEvery, func() {
		e.lookAtCertificates(time.Now())
		c.mu.Lock()
		defer c.mu.Unlock()
		if !e.draining.Load() {
			c.timer.Reset(certificatesEvery)
		}
	})
}

// lookAtCertificates takes renewed ones.
func (e *engine) lookAtCertificates(now time.Time) {
	c := &e.certificates
	c.mu.Lock()
	defer c.mu.Unlock()
	e.mu.Lock()
	settings := e.settings
	e.mu.Unlock()
	seen := stamps(&settings)
	files := changed(c.seen, seen)
	for _, f := range files {
		if info := seen[f]; info != nil && now.Sub(info.ModTime()) < certificatesSettle && info.ModTime().Before(now) {
			return // its other half may be on the way
		}
	}
	if len(files) > 0 {
		c.seen = seen
		cfg, err := settings.ProxyConfig(programVersion(), e.log.Logger())
		if err == nil {
			_, err = e.server.Reload(cfg)
		}
		certificates, secrets := partedBy(files, settings.SecretFiles())
		switch {
		case err != nil && len(certificates) == 0:
			slog.Warn("changed secrets are not taken, those from before stay", "reason", err, "files", files)
		case err != nil:
			slog.Warn("renewed certificates are not taken, those from before stay", "reason", err, "files", files)
		default:
			if len(certificates) > 0 {
				slog.Info("certificates renewed", "files", certificates)
			}
			if len(secrets) > 0 {
				slog.Info("changed secrets are used for connections to come", "files", secrets)
			}
		}
	}
	if now.Sub(c.asked) >= 24*time.Hour {
		c.asked = now
		for _, l := range e.server.Stats().Listeners {
			for _, cert := range l.Certificates {
				if left := cert.NotAfter.Sub(now); left < expiresSoon {
					slog.Warn("certificate expires soon", "listener", l.Address, "file", cert.File,
						"expires", cert.NotAfter.UTC().Format(time.RFC3339), "days_left", int(left/(24*time.Hour)))
				}
			}
		}
	}
}
