// Package hash holds passwords against what is kept of them: argon2id in the form that it is usually
// written in ($argon2id$v=19$m=19456,t=2,p=1$SALT$KEY), and RabbitMQ's own hashes, as its definitions
// have them (base64 of four octets of salt and a SHA-256 or SHA-512).
package hash

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/crypto/argon2"
)

// What New makes: OWASP's first choice. It takes 19 MiB and some tens of milliseconds.
const (
	memory, passes, lanes = 19 << 10, 2, 1
	saltSize, keySize     = 16, 32
)

// What others may ask for: a login must not take the proxy's memory or its seconds.
const (
	memoryMost = 256 << 10 // KiB
	workMost   = 1 << 20   // KiB times passes
	lanesMost  = 16
)

// rabbitSalt is the salt in front of RabbitMQ's hashes.
const rabbitSalt = 4

// Hash is what is kept of a password. The zero Hash lets nobody in. However it is printed, it is [redacted].
type Hash struct{ held *held }

type held struct {
	text      string
	salt, key []byte
	argon     *argon // nil: RabbitMQ's
}

type argon struct {
	memory, passes uint32
	lanes          uint8
}

// Allowed says in words what Parse takes.
const Allowed = "what hash-password prints ($argon2id$v=19$...), or RabbitMQ's password_hash (base64; rabbit_password_hashing_sha256 or _sha512)"

var errNone = errors.New("is no hash of a password, allowed is " + Allowed)

// Parse reads a hash. No error has anything of the text, which may be a password by mistake.
func Parse(text string) (Hash, error) {
	if strings.ContainsAny(text, "\r\n") { // which base64 would pass over
		return Hash{}, errNone
	}
	if strings.HasPrefix(text, "$") {
		return parseArgon(text)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	switch {
	case err != nil:
		return Hash{}, errNone
	case len(raw) == rabbitSalt+sha256.Size, len(raw) == rabbitSalt+sha512.Size:
		return Hash{&held{text: text, salt: raw[:rabbitSalt], key: raw[rabbitSalt:]}}, nil
	case len(raw) == rabbitSalt+16:
		return Hash{}, errors.New("is RabbitMQ's of the kind rabbit_password_hashing_md5, which is not taken: set the user's password anew there")
	}
	return Hash{}, errNone
}

func parseArgon(text string) (Hash, error) {
	parts := strings.Split(text, "$") // "", argon2id, v=19, m=..,t=..,p=.., salt, key
	if len(parts) != 6 || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return Hash{}, errNone
	}
	var a argon
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &a.memory, &a.passes, &a.lanes); err != nil ||
		parts[3] != fmt.Sprintf("m=%d,t=%d,p=%d", a.memory, a.passes, a.lanes) {
		return Hash{}, errNone
	}
	salt, err1 := base64.RawStdEncoding.Strict().DecodeString(parts[4])
	key, err2 := base64.RawStdEncoding.Strict().DecodeString(parts[5])
	switch {
	case err1 != nil, err2 != nil, len(salt) < 8, len(salt) > 64, len(key) < 16, len(key) > 64, a.passes < 1, a.lanes < 1, a.memory < 8*uint32(a.lanes):
		return Hash{}, errNone
	case a.memory > memoryMost, uint64(a.memory)*uint64(a.passes) > workMost, a.lanes > lanesMost:
		return Hash{}, fmt.Errorf("asks for too much work at each login (%s), allowed is m up to %d, m times t up to %d, p up to %d",
			parts[3], memoryMost, workMost, lanesMost)
	}
	return Hash{&held{text, salt, key, &a}}, nil
}

// New makes the hash of a password, with a salt of its own.
func New(password string) string {
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // never fails
	key := argon2.IDKey([]byte(password), salt, passes, memory, lanes, keySize)
	b := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, memory, passes, lanes, b.EncodeToString(salt), b.EncodeToString(key))
}

// Matches reports whether it is the hash of the password, after the same work in either case. An empty
// password matches none.
func (h Hash) Matches(password string) bool {
	if h.held == nil {
		return false
	}
	var key []byte
	switch p := h.held; {
	case p.argon != nil:
		key = argon2.IDKey([]byte(password), p.salt, p.argon.passes, p.argon.memory, p.argon.lanes, uint32(len(p.key)))
	case len(p.key) == sha256.Size:
		sum := sha256.Sum256(append(append([]byte(nil), p.salt...), password...))
		key = sum[:]
	default:
		sum := sha512.Sum512(append(append([]byte(nil), p.salt...), password...))
		key = sum[:]
	}
	return subtle.ConstantTimeCompare(key, h.held.key) == 1 && password != ""
}

// IsZero reports whether it is none.
func (h Hash) IsZero() bool { return h.held == nil }

// Reveal is the hash as it was read, for whom it is to be compared with.
func (h Hash) Reveal() string {
	if h.held == nil {
		return ""
	}
	return h.held.text
}

const redacted = "[redacted]"

func (Hash) String() string               { return redacted }
func (Hash) GoString() string             { return redacted }
func (Hash) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Hash) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Format covers the verbs that would not ask String.
func (Hash) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }
