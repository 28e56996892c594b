// Where suites come from: the Go module proxy, Debian's source packages, or a folder
// that somebody brought. What was fetched is kept in the tests' cache.

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// source is the folder with a suite's files as they came; it is not written to.
func (b *bench) source(s *suite) (string, error) {
	if b.sources != "" {
		if dir := filepath.Join(b.sources, s.name); isDir(dir) {
			return dir, nil
		}
	}
	switch {
	case s.origin.module != "":
		return goSource(b.ctx, s.origin.module, b.work)
	case s.origin.debian != "":
		return debianSource(b.ctx, s.origin.debian)
	}
	return "", fmt.Errorf("its package has no tests; with the sources of %s in DIR/%[1]s, run compat -sources DIR", s.name)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func goSource(ctx context.Context, module, work string) (string, error) {
	out, err := command(ctx, work, []string{"GOWORK=off", "GOFLAGS=-mod=mod"}, "go", "mod", "download", "-json", module)
	if err != nil {
		return "", err
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(out, &m); err != nil {
		return "", fmt.Errorf("go mod download %s: %w", module, err)
	}
	return m.Dir, nil
}

// debianSource downloads and unpacks a source package of the release that is installed,
// by lists of its own: the machine's sources stay as they are.
func debianSource(ctx context.Context, name string) (string, error) {
	cache := filepath.Join(rabbit.CacheDir(), "compat")
	home := filepath.Join(cache, name)
	if dir, err := unpacked(home); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	half, err := os.MkdirTemp(cache, ".half-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(half)
	if err := os.MkdirAll(filepath.Join(half, "lists/partial"), 0o755); err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(half, "src"), 0o755); err != nil {
		return "", err
	}
	indexes, err := command(ctx, "", nil, "apt-get", "indextargets", "--format",
		"$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Identifier: Packages")
	if err != nil {
		return "", err
	}
	var list strings.Builder
	for line := range strings.Lines(string(indexes)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) == 4 && f[0] == "Debian" {
			fmt.Fprintf(&list, "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s %s\n", f[1], f[2], f[3])
		}
	}
	if list.Len() == 0 {
		return "", fmt.Errorf("no Debian repository is set up here, for the source package %s", name)
	}
	if err := os.WriteFile(filepath.Join(half, "sources.list"), []byte(list.String()), 0o644); err != nil {
		return "", err
	}
	apt := []string{"-qq", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::SourceList=" + half + "/sources.list",
		"-o", "Dir::Etc::SourceParts=/dev/null", "-o", "Dir::State::lists=" + half + "/lists"}
	if _, err := command(ctx, half, nil, "apt-get", append(apt, "update")...); err != nil {
		return "", err
	}
	if _, err := command(ctx, filepath.Join(half, "src"), nil, "apt-get", append(apt, "source", name)...); err != nil {
		return "", fmt.Errorf("the source package cannot be had here: %w", err)
	}
	if err := os.Rename(filepath.Join(half, "src"), home); err != nil {
		return "", err
	}
	return unpacked(home)
}

// unpacked is the folder with the tests in an unpacked source package.
func unpacked(home string) (string, error) {
	for _, pattern := range []string{"*/tests", "*/*/tests", "*/spec", "*/test"} {
		found, err := filepath.Glob(filepath.Join(home, pattern))
		if err == nil && len(found) > 0 {
			return filepath.Dir(found[0]), nil
		}
	}
	return "", fmt.Errorf("no tests below %s", home)
}

// install installs the Debian packages that are missing, as root; otherwise it names them.
func install(ctx context.Context, packages []string) error {
	var missing []string
	for _, p := range packages {
		out, err := command(ctx, "", nil, "dpkg-query", "-W", "-f=${db:Status-Status}", p)
		if err != nil || string(out) != "installed" {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("missing packages of Debian (root installs them): %s", strings.Join(missing, " "))
	}
	_, err := command(ctx, "", []string{"DEBIAN_FRONTEND=noninteractive"}, "apt-get", append([]string{"-qq",
		"-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Use-Pty=0", "install", "-y", "--no-install-recommends"}, missing...)...)
	return err
}
