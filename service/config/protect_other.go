//go:build !windows

package config

import "errors"

// CanProtect says what there is instead.
func CanProtect() error {
	return errors.New("protect is for Windows, whose DPAPI it uses; here systemd keeps secrets encrypted: " +
		"systemd-creds encrypt --name=NAME - FILE, and LoadCredentialEncrypted=NAME:FILE in a drop-in of the service")
}

func protect([]byte) ([]byte, error) { return nil, CanProtect() }

func unprotect([]byte) ([]byte, error) {
	return nil, errors.New("is protected by Windows' DPAPI, which a Windows machine alone can read; allowed here is the secret itself, or a credential of systemd")
}
