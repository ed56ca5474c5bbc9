package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/longctx/longctx/bench/internal/atomicfile"
)

// Read reads and checks the named file.
func Read(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	f, err := Decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Encode is the file as bytes: tensors in the order of their names, the header
// filled up with spaces so that the elements start at a multiple of eight.
func Encode(f *File) ([]byte, error) {
	header := map[string]any{}
	if len(f.Metadata) > 0 {
		header["__metadata__"] = f.Metadata
	}
	names, at := slices.Sorted(maps.Keys(f.Tensors)), 0
	for _, name := range names {
		t := f.Tensors[name]
		size := int(t.DType.Size())
		for _, n := range t.Shape {
			size *= n
		}
		if name == "__metadata__" || dtypes[dtypeName(t.DType)] == 0 || size != len(t.Bytes) {
			return nil, bad("tensor %q of %v %v has %d bytes, want %d", name, t.DType, t.Shape, len(t.Bytes), size)
		}
		shape := t.Shape
		if shape == nil {
			shape = []int{}
		}
		header[name] = map[string]any{"dtype": dtypeName(t.DType), "shape": shape, "data_offsets": [2]int{at, at + size}}
		at += size
	}
	j, err := json.Marshal(header) // sorts names
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	j = append(j, bytes.Repeat([]byte{' '}, -len(j)&7)...)
	out := binary.LittleEndian.AppendUint64(make([]byte, 0, 8+len(j)+at), uint64(len(j)))
	out = append(out, j...)
	for _, name := range names {
		out = append(out, f.Tensors[name].Bytes...)
	}
	return out, nil
}

// Write writes the named file, all of it or none.
func Write(path string, f *File) error {
	data, err := Encode(f)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, data)
}
