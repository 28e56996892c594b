package main

import (
	"errors"

	"golang.org/x/sys/windows"
)

// addressInUse reports whether another socket has the address; Windows gives WSAEACCES for one
// that is bound exclusively.
func addressInUse(err error) bool {
	return errors.Is(err, windows.WSAEADDRINUSE) || errors.Is(err, windows.WSAEACCES)
}
