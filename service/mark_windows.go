package service

import "os"

// lockMark: nobody is asked by the number of its process here.
func lockMark(string) (*os.File, error) { return nil, nil }
