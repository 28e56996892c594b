package service

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// TestInstalledUnitIsThePackagesUnit holds the two equal.
func TestInstalledUnitIsThePackagesUnit(t *testing.T) {
	got, err := renderUnit(unitParams{Executable: "/usr/bin/amqproxysvc", Config: "/etc/amqproxysvc/amqproxysvc.toml", User: "amqproxysvc", Group: "amqproxysvc"})
	if err != nil {
		t.Fatal(err)
	}
	if got != UnitText {
		t.Errorf("install writes another unit than the packages ship:\n%s", got)
	}
	if strings.Contains(UnitText, "{{") {
		t.Error("the unit holds {{, which kardianos/service would expand")
	}
}

// TestTemplateUnitDiffersOnlyInItsInstance holds the template to the unit.
func TestTemplateUnitDiffersOnlyInItsInstance(t *testing.T) {
	body := func(text string) string { return text[strings.Index(text, "[Unit]"):] }
	want := strings.NewReplacer("/etc/amqproxysvc/amqproxysvc.toml", "/etc/amqproxysvc/%i.toml", "pooling proxy\n", "pooling proxy (%i)\n").Replace(body(UnitText))
	if got := body(TemplateUnitText); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestUnitOfAnotherPlace(t *testing.T) {
	got, err := renderUnit(unitParams{Executable: "/opt/my proxy/amqproxysvc", Config: "/srv/50% $HOME.toml", User: "proxy", Group: "mail"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\nExecStart=\"/opt/my proxy/amqproxysvc\" run --service --name %N --config \"/srv/50%% $$HOME.toml\"\n",
		"\nExecReload=\"/opt/my proxy/amqproxysvc\" reload --pid $MAINPID\n",
		"\nUser=proxy\n", "\nGroup=mail\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
	if strings.Contains(got, unitExecutable) || strings.Contains(got, unitConfig) {
		t.Errorf("the packages' paths are left in:\n%s", got)
	}
}

func TestUnitRefusesWhatSystemdWouldMisread(t *testing.T) {
	good := unitParams{Executable: "/a", Config: "/b", User: "u", Group: "g"}
	for name, change := range map[string]func(*unitParams){
		"a relative program":    func(p *unitParams) { p.Executable = "amqproxysvc" },
		"a relative config":     func(p *unitParams) { p.Config = "x.toml" },
		"a line break":          func(p *unitParams) { p.Config = "/x\nExecStartPre=/bin/evil" },
		"a user with a newline": func(p *unitParams) { p.User = "u\nUser=root" },
		"an empty group":        func(p *unitParams) { p.Group = "" },
	} {
		p := good
		change(&p)
		if text, err := renderUnit(p); err == nil {
			t.Errorf("%s: not refused:\n%s", name, text)
		}
	}
}

// TestUnitPromises are the lines that the rest of the service relies on.
func TestUnitPromises(t *testing.T) {
	for _, want := range []string{
		"Type=notify", "NotifyAccess=main", "RestartPreventExitStatus=64 78", "WatchdogSec=30", "Restart=on-failure", "RestartSec=2",
		"KillMode=mixed", "LimitNOFILE=1048576", "RuntimeDirectory=%N", "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
	} {
		if !strings.Contains(UnitText, "\n"+want+"\n") {
			t.Errorf("the unit lacks %s", want)
		}
	}
	section := regexp.MustCompile(`(?s)\[Unit\].*StartLimitIntervalSec=.*\[Service\]`)
	if !section.MatchString(UnitText) {
		t.Error("StartLimitIntervalSec is not in [Unit], where systemd looks for it")
	}
	if !strings.HasPrefix(SysusersText, "u "+unitUser+" ") {
		t.Errorf("sysusers makes another user than the unit's: %s", SysusersText)
	}
}

// TestSecurityScore needs only systemd's tool, no running systemd.
func TestSecurityScore(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") == "true" && runtime.GOOS == "linux" {
			t.Fatal("systemd-analyze is not installed")
		}
		t.Skip("SKIPPED LOUDLY: systemd-analyze is not installed")
	}
	path := filepath.Join(t.TempDir(), "amqproxysvc.service")
	if err := os.WriteFile(path, []byte(UnitText), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "security", "--offline=yes", "--threshold=15", path).CombinedOutput() // 15: 1.5
	if strings.Contains(string(out), "unrecognized option") {
		t.Skip("SKIPPED LOUDLY: this systemd-analyze is older than 250")
	}
	if err != nil {
		t.Errorf("the unit is more exposed than 1.5: %v\n%s", err, out)
	}
}
