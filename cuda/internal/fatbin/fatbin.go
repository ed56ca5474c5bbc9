// Package fatbin knows the compiled kernels in cuda/kernels/bin: for each .cu
// there a .fatbin, which the driver loads, and a .json, its Manifest. They are
// committed, so that nobody who uses the library needs a CUDA compiler; package
// build writes them.
package fatbin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Manifest says what an image was made of and what its kernels take.
type Manifest struct {
	Source   string   // of the folder of kernels
	Hash     string   // of the source and of all that it includes: Hash
	Compiler string   // as nvcc names itself
	Flags    string   // that it was given
	PTX      string   // version of the PTX, the lowest that has what the kernels use
	Image    string   // SHA-256 of the image
	Kernels  []Kernel // by name, then by architecture
}

// Kernel is one kernel compiled for one architecture.
type Kernel struct {
	Name      string
	Arch      string // sm_80
	Registers int    // of a thread
	Stack     int    // bytes of a thread
	Spill     int    // bytes stored and loaded
	Shared    int    // static, bytes of a block
	Params    int    // bytes
}

var include = regexp.MustCompile(`(?m)^\s*#\s*include\s+"([^"]+)"`)

// Sources are a source and the files of its folder that it includes, directly or
// not, sorted. Files of other folders belong to the simulator.
func Sources(kernels fs.FS, source string) ([]string, error) {
	found := []string{source}
	for i := 0; i < len(found); i++ {
		text, err := fs.ReadFile(kernels, found[i])
		if err != nil {
			return nil, err
		}
		for _, m := range include.FindAllStringSubmatch(string(text), -1) {
			name := path.Join(path.Dir(found[i]), m[1])
			if !strings.HasPrefix(name, "../") && !slices.Contains(found, name) {
				found = append(found, name)
			}
		}
	}
	slices.Sort(found)
	return found, nil
}

// Hash is the SHA-256 of the names, lengths and texts of a source and of all
// that it includes, in hexadecimal.
func Hash(kernels fs.FS, source string) (string, error) {
	names, err := Sources(kernels, source)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, name := range names {
		text, err := fs.ReadFile(kernels, name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n%s", name, len(text), text)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Names are the paths, in the folder of kernels, of the image and the manifest of
// a source.
func Names(source string) (image, manifest string) {
	base := "bin/" + strings.TrimSuffix(source, ".cu")
	return base + ".fatbin", base + ".json"
}

// Read reads a manifest. A field that it does not know is an error.
func Read(text []byte) (*Manifest, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	m := &Manifest{}
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("fatbin: manifest: %w", err)
	}
	return m, nil
}

// Stale says why the image of a source is not what the source would give, or
// nothing.
func Stale(kernels fs.FS, source string) (string, error) {
	want, err := Hash(kernels, source)
	if err != nil {
		return "", err
	}
	imageName, manifestName := Names(source)
	text, err := fs.ReadFile(kernels, manifestName)
	if err != nil {
		return manifestName + " is not there", nil
	}
	m, err := Read(text)
	if err != nil {
		return "", err
	}
	image, err := fs.ReadFile(kernels, imageName)
	if err != nil {
		return imageName + " is not there", nil
	}
	sum := sha256.Sum256(image)
	switch {
	case m.Source != source:
		return fmt.Sprintf("%s is of %s", manifestName, m.Source), nil
	case m.Image != hex.EncodeToString(sum[:]):
		return imageName + " is not the one that its manifest is of", nil
	case m.Hash != want:
		return source + " or what it includes has changed since it was compiled", nil
	}
	return "", nil
}
