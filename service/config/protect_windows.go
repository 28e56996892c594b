package config

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

// What an administrator encrypts is for the service's account, so that it is the machine's key and not a user's.
const ofTheMachine = windows.CRYPTPROTECT_LOCAL_MACHINE | windows.CRYPTPROTECT_UI_FORBIDDEN

// CanProtect is nil: it can.
func CanProtect() error { return nil }

func protect(secret []byte) ([]byte, error) {
	var out windows.DataBlob
	in := windows.DataBlob{Size: uint32(len(secret)), Data: unsafe.SliceData(secret)}
	if err := windows.CryptProtectData(&in, nil, nil, 0, nil, ofTheMachine, &out); err != nil {
		return nil, fmt.Errorf("the secret cannot be encrypted (DPAPI): %w", err)
	}
	return taken(out), nil
}

func unprotect(sealed []byte) ([]byte, error) {
	if len(sealed) == 0 {
		return nil, errDamaged
	}
	var out windows.DataBlob
	in := windows.DataBlob{Size: uint32(len(sealed)), Data: unsafe.SliceData(sealed)}
	if err := windows.CryptUnprotectData(&in, nil, nil, 0, nil, windows.CRYPTPROTECT_UI_FORBIDDEN, &out); err != nil {
		return nil, fmt.Errorf("%w (DPAPI: %w)", errDamaged, err)
	}
	return taken(out), nil
}

// taken copies what Windows has allocated, and frees it.
func taken(out windows.DataBlob) []byte {
	theirs := unsafe.Slice(out.Data, out.Size)
	b := append([]byte(nil), theirs...)
	clear(theirs)
	_, _ = windows.LocalFree(windows.Handle(unsafe.Pointer(out.Data)))
	return b
}
