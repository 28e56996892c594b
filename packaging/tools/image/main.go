// Makes the container image: image VERSION SECONDS DIR GOARCH=ROOT... One layer holding what
// is below ROOT, on top of nothing, for each processor; an OCI layout in DIR with an index of
// them. SECONDS since 1970 stand for every time, so the same input gives the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// user is nobody in particular, as in most images without a shell.
const user = "65532:65532"

func main() {
	if len(os.Args) < 5 {
		fmt.Fprintln(os.Stderr, "usage: image VERSION SECONDS DIR GOARCH=ROOT...")
		os.Exit(64)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(version, seconds, dir string, roots []string) error {
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return err
	}
	at := time.Unix(n, 0).UTC()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, pair := range roots {
		arch, root, ok := strings.Cut(pair, "=")
		if !ok {
			return fmt.Errorf("%q is not GOARCH=ROOT", pair)
		}
		img, err := image(version, arch, root, at)
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			MediaType: types.OCIManifestSchema1, Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	// One entry, the index of the platforms, named after the version, as registries have it.
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag(version)})); err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	fmt.Println(digest)
	return nil
}

// tag is the version as a tag may be written.
func tag(version string) string { return strings.NewReplacer("+", "-", "~", "-").Replace(version) }

func image(version, arch, root string, at time.Time) (v1.Image, error) {
	data, err := layer(root, at)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: at}, CreatedBy: "packaging/image"}})
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(img, with(img, version, arch, at))
}

// with is the image's configuration. A container has a network of its own, so it listens on
// all addresses; whoever runs it says which ports lead there.
func with(img v1.Image, version, arch string, at time.Time) *v1.ConfigFile {
	c, err := img.ConfigFile()
	if err != nil {
		panic(err) // made a line above, in memory
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Created = "linux", arch, v1.Time{Time: at}
	c.Config = v1.Config{
		User:         user,
		Entrypoint:   []string{"/amqproxysvc"},
		Env:          []string{"LISTEN_ADDRESS=0.0.0.0", "HTTP_ADDRESS=0.0.0.0"},
		WorkingDir:   "/",
		ExposedPorts: map[string]struct{}{"5673/tcp": {}, "15673/tcp": {}},
		StopSignal:   "SIGTERM",
		Healthcheck:  &v1.HealthConfig{Test: []string{"CMD", "/amqproxysvc", "healthcheck"}, Interval: 10 * time.Second, Timeout: 3 * time.Second},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "amqproxysvc",
			"org.opencontainers.image.description": "AMQP 0-9-1 connection and channel pooling proxy",
			"org.opencontainers.image.version":     version,
			"org.opencontainers.image.licenses":    "MIT",
			"org.opencontainers.image.source":      "https://github.com/amqproxysvc/amqproxysvc",
		},
	}
	return c
}

// layer is what is below root as a tar, owned by root, in the order of names.
func layer(root string, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: name, ModTime: at, Format: tar.FormatUSTAR}
		if d.IsDir() {
			h.Typeflag, h.Name, h.Mode = tar.TypeDir, name+"/", 0o755
			return w.WriteHeader(h)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h.Typeflag, h.Mode, h.Size = tar.TypeReg, int64(info.Mode().Perm()), int64(len(data))
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil { // writes the end
		return nil, err
	}
	return b.Bytes(), nil
}
