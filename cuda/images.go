//go:build cuda && cgo

package cuda

import (
	"embed"
	"fmt"
	"io/fs"

	"github.com/longctx/longctx/cuda/internal/fatbin"
)

// images are the compiled kernels and what is known of them. The driver loads
// them from memory: a program needs no files beside itself.
//
//go:embed kernels/bin/*.fatbin kernels/bin/*.json
var images embed.FS

// manifests are those of all images.
func manifests() ([]*fatbin.Manifest, error) {
	names, err := fs.Glob(images, "kernels/bin/*.json")
	if err != nil {
		return nil, err
	}
	var out []*fatbin.Manifest
	for _, name := range names {
		text, err := images.ReadFile(name)
		if err != nil {
			return nil, err
		}
		m, err := fatbin.Read(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// image is the compiled source of a manifest.
func image(m *fatbin.Manifest) ([]byte, error) {
	name, _ := fatbin.Names(m.Source)
	return images.ReadFile("kernels/" + name)
}
