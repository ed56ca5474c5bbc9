// Package text is the bytes that models are trained on and judged by: the
// source of Go's standard library, which every machine with Go has, and which
// may be passed on (BSD-3).
package text

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// HeldOut are the folders of GOROOT/src that no model is trained on.
var HeldOut = []string{"net/http/", "go/types/", "encoding/json/", "database/sql/", "text/template/"}

// maxFile leaves out tables and other generated files.
const maxFile = 400_000

// Source is a file of the standard library.
type Source struct {
	Name string // below GOROOT/src, with slashes
	Data []byte
}

// Goroot asks the go command.
func Goroot() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("text: go env GOROOT: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Sources reads the Go files below root/src, sorted by name: those of HeldOut,
// or all others. Test data, vendored and generated files are left out.
func Sources(root string, heldOut bool) ([]Source, error) {
	src := filepath.Join(root, "src")
	var out []Source
	err := filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		if d.IsDir() || !d.Type().IsRegular() || !wanted(name, heldOut) {
			return nil
		}
		info, err := d.Info()
		if err != nil || info.Size() > maxFile {
			return err
		}
		data, err := os.ReadFile(path)
		out = append(out, Source{name, data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("text: no Go files below %s", src)
	}
	slices.SortFunc(out, func(a, b Source) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func wanted(name string, heldOut bool) bool {
	has := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
	switch {
	case !strings.HasSuffix(name, ".go"), strings.Contains(name, "/testdata/"), strings.Contains(name, "vendor/"),
		strings.HasSuffix(name, "tables.go"), strings.Contains(name, "/ssa/rewrite"),
		strings.Contains(name, "zsys"), strings.Contains(name, "zerrors"):
		return false
	}
	return slices.ContainsFunc(HeldOut, has) == heldOut
}

// Join is the text of all files, with a line break between.
func Join(files []Source) []byte {
	parts := make([][]byte, len(files))
	for i, f := range files {
		parts[i] = f.Data
	}
	return bytes.Join(parts, []byte("\n"))
}

// Choose makes the text that models are judged by: of each held-out folder the
// files in order, up to perFolder bytes. It leaves out tests, and files of which
// more than maxShared of the longer lines occur in the training files too:
// go/types is in large part a copy of cmd/compile/internal/types2.
func Choose(heldOut, training []Source, perFolder int, maxShared float64) []Source {
	seed := maphash.MakeSeed()
	seen := map[uint64]bool{}
	for _, f := range training {
		for line := range longLines(f.Data) {
			seen[maphash.Bytes(seed, line)] = true
		}
	}
	var out []Source
	size := map[string]int{}
	for _, f := range heldOut {
		folder := HeldOut[slices.IndexFunc(HeldOut, func(p string) bool { return strings.HasPrefix(f.Name, p) })]
		shared, lines := 0, 0
		for line := range longLines(f.Data) {
			lines++
			if seen[maphash.Bytes(seed, line)] {
				shared++
			}
		}
		if strings.HasSuffix(f.Name, "_test.go") || float64(shared) > maxShared*float64(lines) || size[folder]+len(f.Data) > perFolder {
			continue
		}
		size[folder] += len(f.Data)
		out = append(out, f)
	}
	return out
}

// longLines yields the lines long enough to tell files apart, but not those of
// the licence.
func longLines(data []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for line := range bytes.Lines(data) {
			line = bytes.TrimSpace(line)
			if len(line) >= 30 && !bytes.Contains(line, []byte("BSD-style")) && !bytes.Contains(line, []byte("Copyright")) && !yield(line) {
				return
			}
		}
	}
}

// Compress is gzip without a date, so that equal texts give equal files.
func Compress(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	return b.Bytes(), nil
}

// Expand undoes Compress.
func Expand(data []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	return out, nil
}

// Read reads a file of at least need bytes.
func Read(path string, need int) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	if len(data) < need {
		return nil, fmt.Errorf("text: %s has %d bytes, want at least %d for the lengths and numbers asked for", path, len(data), need)
	}
	return data, nil
}
