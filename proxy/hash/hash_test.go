package hash

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// Hashes of the password "password" from the tests of argon2's reference implementation, and one of
// RabbitMQ's documentation on passwords (salt 908DC60A, password "test12").
const (
	byArgon2   = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"
	byTwoLanes = "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc"
	byRabbitMQ = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
)

func rabbit512(password string) string {
	salt := []byte{1, 2, 3, 4}
	sum := sha512.Sum512(append(salt[:4:4], password...))
	return base64.StdEncoding.EncodeToString(append(salt, sum[:]...))
}

func TestHashes(t *testing.T) {
	for text, password := range map[string]string{byRabbitMQ: "test12", rabbit512("test12"): "test12", New("pässword"): "pässword", byArgon2: "password", byTwoLanes: "password"} {
		h, err := Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if !h.Matches(password) || h.Reveal() != text || h.IsZero() {
			t.Errorf("%s is not that of %s", text, password)
		}
		for _, other := range []string{"", password + "x", strings.ToUpper(password), password[1:]} {
			if h.Matches(other) {
				t.Errorf("%s matches %q", text, other)
			}
		}
	}
	if one, other := New("a"), New("a"); one == other {
		t.Error("one salt twice")
	}
	if (Hash{}).Matches("") || (Hash{}).Matches("x") {
		t.Error("no hash lets somebody in")
	}
	sum := sha256.Sum256([]byte("salt"))
	empty, err := Parse(base64.StdEncoding.EncodeToString(append([]byte("salt"), sum[:]...)))
	if err != nil || empty.Matches("") {
		t.Errorf("the hash of an empty password lets in: %v", err)
	}
}

func TestWhatIsNoHash(t *testing.T) {
	good := "$argon2id$v=19$m=16384,t=2,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b0dWRWJTmaaJObGEDX3X/6PvF4"
	if _, err := Parse(good); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "hunter2", "$", "$2b$10$abcdefghijklmnopqrstuv", strings.Replace(good, "argon2id", "argon2i", 1), strings.Replace(good, "v=19", "v=16", 1),
		strings.Replace(good, "m=16384", "m=-1", 1), strings.Replace(good, "m=16384", "m=99999999999", 1), strings.Replace(good, "m=16384", "m=1048576", 1),
		strings.Replace(good, "t=2", "t=0", 1), strings.Replace(good, "t=2", "t=4000000", 1), strings.Replace(good, "p=1", "p=0", 1), strings.Replace(good, "p=1", "p=300", 1),
		strings.Replace(good, "p=1", "p=1,x=2", 1), strings.Replace(good, "m=16384", "m=4", 1),
		strings.Replace(good, "c29tZXNhbHQ", "c2", 1), strings.Replace(good, "c29tZXNhbHQ", "!", 1), good + "$", good[:len(good)-30],
		base64.StdEncoding.EncodeToString(make([]byte, 20)), base64.StdEncoding.EncodeToString(make([]byte, 35)), byRabbitMQ + "\n", " " + byRabbitMQ} {
		h, err := Parse(text)
		if err == nil {
			t.Errorf("%q was taken", text)
			continue
		}
		if !h.IsZero() || strings.Contains(err.Error(), "\n") || len(text) > 4 && strings.Contains(err.Error(), text) {
			t.Errorf("%q: error %q", text, err)
		}
	}
}

func TestNoPrintingShowsAHash(t *testing.T) {
	h, err := Parse(byRabbitMQ)
	if err != nil {
		t.Fatal(err)
	}
	in := struct{ H Hash }{h}
	j, _ := json.Marshal(in)
	for _, text := range []string{fmt.Sprint(h), fmt.Sprintf("%+v %#v %s %q %x %v %d", in, in, h, h, h, &in, h), string(j), h.LogValue().String()} {
		if strings.Contains(text, byRabbitMQ[:10]) || strings.Contains(text, "908dc60a") || strings.Contains(text, "144 141") {
			t.Errorf("printed: %s", text)
		}
	}
}
