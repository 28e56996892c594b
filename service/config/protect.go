// Secrets that a file holds encrypted by Windows' DPAPI: protect makes them, every setting that names a
// file with a secret reads them, on the machine that made them and on no other.

package config

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
)

// protectedBy is in front of what is encrypted, in base64.
const protectedBy = "dpapi:"

// MostProtected is how long a secret may be that is protected, in octets.
const MostProtected = 64 << 10

// Protect writes a secret into a file, for this machine alone. A file that is there keeps its permissions.
func Protect(file string, secret []byte) error {
	secret = WithoutMark(secret)
	if why := secretIs(secret); why != "" {
		return errors.New(why)
	}
	sealed, err := protect(secret)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("%s: cannot be written: %s", file, plainReason(err))
	}
	_, err = f.WriteString(protectedBy + base64.StdEncoding.EncodeToString(sealed) + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: cannot be written: %s", file, plainReason(err))
	}
	return nil
}

// secretIs says what is wrong with what a file is to hold, "" for nothing.
func secretIs(secret []byte) string {
	line, _, _ := bytes.Cut(secret, []byte("\n"))
	switch {
	case len(bytes.TrimSuffix(line, []byte("\r"))) == 0:
		return "the first line is empty, it is the secret"
	case len(secret) > MostProtected:
		return "the secret is longer than 64 KiB"
	case bytes.IndexByte(secret, 0) >= 0:
		return "the secret has a NUL, which no password has (is it UTF-16? wanted is UTF-8)"
	case bytes.HasPrefix(secret, []byte(protectedBy)):
		return "the secret is protected already"
	}
	return ""
}

// WithoutMark is a text without the byte order mark that tools of Windows put in front of UTF-8, and that nobody sees.
func WithoutMark(text []byte) []byte { return bytes.TrimPrefix(text, []byte("\ufeff")) }

// readSecretFile is what a file with a secret holds, be it protected or not.
func readSecretFile(file string) ([]byte, error) {
	data, err := readFile(file)
	if err != nil {
		return nil, err
	}
	data = WithoutMark(data)
	text, sealed := bytes.CutPrefix(data, []byte(protectedBy))
	if !sealed {
		return data, nil
	}
	secret, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err == nil {
		secret, err = unprotect(secret)
	} else {
		err = errDamaged
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return secret, nil
}

var errDamaged = errors.New("cannot be decrypted: it was protected on another machine, or is damaged; make it again with amqproxysvc protect")
