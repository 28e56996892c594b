// Mozilla's certificate authorities, for a system that has none of its own, as an image made
// of nothing but this program. Where the system has some, they alone count.

package config

import (
	"crypto/x509"
	"sync"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// builtinRoots is made at the first use: at each start it would take a third of the time that
// the program needs to start.
var builtinRoots = sync.OnceValues(func() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for root := range bundle.Roots() {
		cert, err := x509.ParseCertificate(root.Certificate)
		switch {
		case err != nil:
			return nil, err
		case root.Constraint != nil:
			pool.AddCertWithConstraint(cert, root.Constraint)
		default:
			pool.AddCert(cert)
		}
	}
	return pool, nil
})
