package main

// Mozilla's certificate authorities, for a system that has none of its own, as an image made
// of nothing but this program. Where the system has some, they alone count.
import _ "golang.org/x/crypto/x509roots/fallback"
