//go:build linux

package main

func wineBed(b *bed) {}
