// The unit as systemd has it, drop-ins included.

package service

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// FindInstalled asks systemd how it would start the service. ErrNotInstalled: there is none,
// or it is another program's.
func FindInstalled(ctx context.Context, name string) (Installed, error) {
	in := Installed{Name: name}
	if err := checkControlName(name); err != nil {
		return in, err
	}
	if err := needSystemd(); err != nil {
		return in, err
	}
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=LoadState,MainPID,ExecStart,Environment,EnvironmentFiles,User,"+
		"ProtectSystem,ReadWritePaths,LogsDirectory,StateDirectory,RuntimeDirectory", name+".service").Output()
	if err != nil {
		return in, fmt.Errorf("systemctl show %s: %w", name, err)
	}
	if !in.fromSystemd(string(out)) {
		return in, fmt.Errorf("%w: %s", ErrNotInstalled, name)
	}
	if out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=ActiveState,UnitFileState,Listen", name+".socket").Output(); err == nil {
		in.Sockets = socketAddresses(string(out))
	}
	return in, nil
}

// fromSystemd reads the properties and the files that they name; false: it is not our service.
func (i *Installed) fromSystemd(show string) bool {
	env := map[string]string{}
	for line := range strings.Lines(show) { // a property may come twice
		key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
		if key != "EnvironmentFiles" {
			continue
		}
		path, _, _ := strings.Cut(value, " (ignore_errors=")
		i.EnvFiles = append(i.EnvFiles, path)
		if text, err := os.ReadFile(path); err == nil {
			for k, v := range parseEnvironment(string(text)) {
				env[k] = v
			}
		}
	}
	p := parseProperties(show)
	for _, w := range words(p["Environment"]) {
		if k, v, ok := strings.Cut(w, "="); ok {
			if _, set := env[k]; !set { // a file's comes before
				env[k] = v
			}
		}
	}
	i.Env = func(key string) (string, bool) { v, ok := env[key]; return v, ok }
	i.User = p["User"]
	i.Running = p["MainPID"] != "" && p["MainPID"] != "0"
	if p["ProtectSystem"] == "strict" {
		i.Writable = []string{"/dev/shm", "/tmp", "/var/tmp"}
		for _, path := range words(p["ReadWritePaths"]) {
			i.Writable = append(i.Writable, strings.TrimLeft(path, "-+"))
		}
		for base, key := range map[string]string{"/var/log": "LogsDirectory", "/var/lib": "StateDirectory", "/run": "RuntimeDirectory"} {
			for _, dir := range words(p[key]) {
				i.Writable = append(i.Writable, filepath.Join(base, dir))
			}
		}
	}
	_, argv, found := strings.Cut(p["ExecStart"], "argv[]=")
	argv, _, _ = strings.Cut(argv, " ; ignore_errors=")
	i.Args = words(argv)
	if !found || len(i.Args) < 3 || i.Args[1] != "run" || i.Args[2] != "--service" {
		return false
	}
	i.Args = i.Args[1:]
	// systemctl shows no quotes: a path with blanks is what follows our own last flag.
	if before, file, ok := strings.Cut(argv, " --config "); ok && strings.Contains(file, " ") && !strings.Contains(file, " -") {
		i.Args = append(words(before)[1:], "--config", file)
	}
	return p["LoadState"] == "loaded"
}

// socketAddresses are those of a socket unit that listens, or will at the next boot.
func socketAddresses(show string) (addresses []string) {
	p := parseProperties(show)
	if p["ActiveState"] != "active" && p["UnitFileState"] != "enabled" {
		return nil
	}
	for line := range strings.Lines(show) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "Listen="); ok {
			if address, ok := strings.CutSuffix(value, " (Stream)"); ok {
				addresses = append(addresses, address)
			}
		}
	}
	return addresses
}
