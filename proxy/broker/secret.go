// Secrets, which no printing shows.

package broker

import (
	"fmt"
	"log/slog"
	"unique"
)

// Secret is a password or token. However it is printed, it is [redacted]; as a field that a
// printing cannot ask, it is a bare address, since what it holds is not in it. Equal secrets are ==,
// and there is one copy of each.
type Secret struct {
	held unique.Handle[string] // none: the empty secret
}

// NewSecret keeps a secret.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{unique.Make(text)}
}

// Reveal is the secret itself, for whom it is to be sent to or compared with.
func (s Secret) Reveal() string {
	if s == (Secret{}) {
		return ""
	}
	return s.held.Value()
}

const redacted = "[redacted]"

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Format covers the verbs that would not ask String.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// Credential is what the broker is sent at a login.
type Credential struct {
	User   string
	Secret Secret
	// External: the certificate of the target's TLS proves the user, by SASL EXTERNAL.
	External bool
}
