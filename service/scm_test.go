package service

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSCMSettings(t *testing.T) {
	s := scmSettingsFor("amqproxysvc-eu", `C:\Program Files\amqproxysvc\amqproxysvc.exe`, `C:\ProgramData\amqproxysvc\amqproxysvc-eu.toml`,
		virtualAccount("amqproxysvc-eu"), 20*time.Second)
	if want := `"C:\Program Files\amqproxysvc\amqproxysvc.exe" run --service --name amqproxysvc-eu --config C:\ProgramData\amqproxysvc\amqproxysvc-eu.toml`; s.ImagePath != want {
		t.Errorf("ImagePath: got %s, want %s", s.ImagePath, want)
	}
	if want := []time.Duration{5 * time.Second, 15 * time.Second, time.Minute}; !slices.Equal(s.Recovery, want) {
		t.Errorf("recovery: got %v, want %v", s.Recovery, want)
	}
	if !s.RecoverOnError {
		t.Error("the failure flag is not set: a service that ends with an error code would stay down")
	}
	if s.RecoveryReset != 24*time.Hour {
		t.Errorf("recovery is reset after %v, want 24h", s.RecoveryReset)
	}
	if !s.DelayedAutoStart || !s.UnrestrictedSID {
		t.Errorf("delayed start %v, own SID %v, want both", s.DelayedAutoStart, s.UnrestrictedSID)
	}
	if s.Account != `NT SERVICE\amqproxysvc-eu` {
		t.Errorf("account: got %s", s.Account)
	}
	if s.PreShutdown <= 20*time.Second+drainGrace {
		t.Errorf("the machine waits %v at shutdown, which is not more than a drain takes", s.PreShutdown)
	}
	if s.DisplayName != "amqproxysvc AMQP proxy (amqproxysvc-eu)" {
		t.Errorf("display name: got %q", s.DisplayName)
	}
	if d := scmSettingsFor(DefaultName, "x", "y", "z", 0).DisplayName; d != "amqproxysvc AMQP proxy" {
		t.Errorf("display name of the first instance: got %q", d)
	}
}

func TestCommandLineIsReadBackByWindows(t *testing.T) {
	for arg, want := range map[string]string{
		`plain`:             `plain`,
		``:                  `""`,
		`C:\a b\x.toml`:     `"C:\a b\x.toml"`,
		`C:\a b\`:           `"C:\a b\\"`,
		`say "hi"`:          `"say \"hi\""`,
		`back\"slash quote`: `"back\\\"slash quote"`,
		`C:\no\spaces.toml`: `C:\no\spaces.toml`,
	} {
		if got := commandLine(`C:\p.exe`, []string{arg}); got != `"C:\p.exe" `+want {
			t.Errorf("%q: got %s, want \"C:\\p.exe\" %s", arg, got, want)
		}
	}
}

// TestServiceSID uses SIDs that Microsoft documents.
func TestServiceSID(t *testing.T) {
	for name, want := range map[string]string{
		"TrustedInstaller": "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464",
		"trustedinstaller": "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464",
		"WdiServiceHost":   "S-1-5-80-3139157870-2983391045-3678747466-658725712-1809340420",
	} {
		if got := serviceSID(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestAccessLists(t *testing.T) {
	eu, us := serviceSID("amqproxysvc-eu"), serviceSID("amqproxysvc-us")
	first := sddlConfigDir("O:SYD:(A;OICI;FA;;;WD)", eu)
	if want := "O:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;;0x1200a9;;;BU)(A;OICI;0x1200a9;;;" + eu + ")"; first != want {
		t.Errorf("of the first instance: got %s, want %s", first, want)
	}
	both := sddlConfigDir(first, us)
	for _, sid := range []string{eu, us} {
		if strings.Count(both, "(A;OICI;0x1200a9;;;"+sid+")") != 1 {
			t.Errorf("%s is not once in %s", sid, both)
		}
	}
	if again := sddlConfigDir(both, us); again != both {
		t.Errorf("installing anew changed the list: got %s, want %s", again, both)
	}
	if left := sddlWithout(both, us); left != first {
		t.Errorf("after one has gone: got %s, want %s", left, first)
	}
	for name, list := range map[string]string{"config": both, "logs": sddlWritable(eu), "state": sddlStateDir(eu)} {
		if !strings.HasPrefix(list, "O:BAD:P") {
			t.Errorf("%s: %s is not owned by Administrators and closed to inheritance", name, list)
		}
		if strings.Contains(list, ";WD)") || strings.Contains(list, ";AU)") {
			t.Errorf("%s: %s lets everyone in", name, list)
		}
	}
	if list := sddlWritable(eu); !strings.Contains(list, "(A;OICI;0x1301bf;;;"+eu+")") || strings.Contains(list, us) {
		t.Errorf("logs: %s does not let this service alone write", list)
	}
	if strings.Contains(both, "0x1301bf") {
		t.Errorf("config: %s lets a service write", both)
	}
}
