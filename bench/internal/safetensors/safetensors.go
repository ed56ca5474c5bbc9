// Package safetensors reads and writes files of named tensors in the format of
// https://github.com/huggingface/safetensors: eight bytes with the length of a
// JSON header (little-endian), the header, then the elements, little-endian and
// row-major. A file is checked whole before anything of it is used.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"

	"github.com/longctx/longctx/tensor"
)

// MaxHeader is the largest header in bytes, as in the reference implementation.
const MaxHeader = 100_000_000

// Tensor is a tensor of a File. Bytes are its elements as they lie in the file.
type Tensor struct {
	DType tensor.DType
	Shape []int
	Bytes []byte
}

// File is the contents of a safetensors file.
type File struct {
	Metadata map[string]string
	Tensors  map[string]Tensor
}

// FormatError reports a file that is not what it should be.
type FormatError struct{ Reason string }

func (e *FormatError) Error() string { return "safetensors: " + e.Reason }

func bad(format string, args ...any) error { return &FormatError{fmt.Sprintf(format, args...)} }

var dtypes = map[string]tensor.DType{"F32": tensor.F32, "F16": tensor.F16, "BF16": tensor.BF16}

func dtypeName(d tensor.DType) string {
	for name, have := range dtypes {
		if have == d {
			return name
		}
	}
	return d.String()
}

// entry is a tensor in the JSON header.
type entry struct {
	DType   string   `json:"dtype"`
	Shape   []int64  `json:"shape"`
	Offsets []uint64 `json:"data_offsets"`
}

// Decode reads a file held in memory. Tensors share data with it. A fault of
// the file is a *FormatError.
func Decode(data []byte) (*File, error) {
	if len(data) < 8 {
		return nil, bad("%d bytes, want at least 8 for the length of the header: truncated, or another format", len(data))
	}
	n := binary.LittleEndian.Uint64(data)
	if n > MaxHeader {
		return nil, bad("header of %d bytes, want at most %d: another format?", n, MaxHeader)
	}
	if n > uint64(len(data)-8) {
		return nil, bad("header of %d bytes in a file of %d: truncated", n, len(data))
	}
	header, body := data[8:8+n], data[8+n:]
	raw, err := objectOf(header)
	if err != nil {
		return nil, bad("header: %v", err)
	}
	f := &File{Tensors: map[string]Tensor{}}
	if m, ok := raw["__metadata__"]; ok {
		if err := json.Unmarshal(m, &f.Metadata); err != nil {
			return nil, bad("header: __metadata__: %v", err)
		}
		delete(raw, "__metadata__")
	}
	var spans []extent
	for name, value := range raw {
		t, at, err := decodeEntry(value, body)
		if err != nil {
			return nil, bad("tensor %q: %v", name, err)
		}
		f.Tensors[name] = t
		spans = append(spans, extent{name, at[0], at[1]})
	}
	return f, checkSpans(spans, uint64(len(body)))
}

// objectOf is json.Unmarshal into a map, but refuses a name that comes twice.
func objectOf(header []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(header))
	if t, err := d.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, fmt.Errorf("starts with %v, want a JSON object", t)
	}
	out := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string)
		if _, ok := out[name]; ok {
			return nil, fmt.Errorf("%q comes twice", name)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		out[name] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if t, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%v after the end of the JSON object", t)
	}
	return out, nil
}

func decodeEntry(value json.RawMessage, body []byte) (t Tensor, at [2]uint64, err error) {
	var e entry
	if err := json.Unmarshal(value, &e); err != nil {
		return t, at, err
	}
	var ok bool
	if t.DType, ok = dtypes[e.DType]; !ok {
		return t, at, fmt.Errorf("dtype %q, want F32, F16 or BF16", e.DType)
	}
	if e.Shape == nil {
		return t, at, errors.New("no shape")
	}
	if len(e.Offsets) != 2 || e.Offsets[0] > e.Offsets[1] || e.Offsets[1] > uint64(len(body)) {
		return t, at, fmt.Errorf("data_offsets %v, want two that ascend in 0 to %d: truncated?", e.Offsets, len(body))
	}
	size := uint64(t.DType.Size())
	for _, n := range e.Shape {
		if n < 0 || n > math.MaxInt {
			return t, at, fmt.Errorf("shape %v", e.Shape)
		}
		hi, lo := bits.Mul64(size, uint64(n))
		if hi != 0 {
			return t, at, fmt.Errorf("shape %v overflows", e.Shape)
		}
		size = lo
		t.Shape = append(t.Shape, int(n))
	}
	at = [2]uint64(e.Offsets)
	if have := at[1] - at[0]; size != have {
		return t, at, fmt.Errorf("shape %v of %s takes %d bytes, data_offsets %v have %d", e.Shape, e.DType, size, e.Offsets, have)
	}
	t.Bytes = body[at[0]:at[1]:at[1]]
	return t, at, nil
}

type extent struct {
	name   string
	lo, hi uint64
}

// checkSpans reports tensors that overlap, and bytes that belong to none.
func checkSpans(spans []extent, total uint64) error {
	slices.SortFunc(spans, func(a, b extent) int {
		return cmp.Or(cmp.Compare(a.lo, b.lo), cmp.Compare(a.hi, b.hi), cmp.Compare(a.name, b.name))
	})
	end, last := uint64(0), ""
	for _, s := range spans {
		switch {
		case s.lo < end:
			return bad("tensors %q and %q overlap at byte %d", last, s.name, s.lo)
		case s.lo > end:
			return bad("bytes %d to %d belong to no tensor", end, s.lo)
		}
		end, last = s.hi, s.name
	}
	if end != total {
		return bad("bytes %d to %d belong to no tensor", end, total)
	}
	return nil
}

// F32 returns the elements of the named tensor, widened, which must have the
// given shape.
func (f *File) F32(name string, shape ...int) ([]float32, error) {
	t, ok := f.Tensors[name]
	if !ok {
		return nil, bad("no tensor %q", name)
	}
	if !slices.Equal(t.Shape, shape) {
		return nil, bad("tensor %q has shape %v, want %v", name, t.Shape, shape)
	}
	out := make([]float32, len(t.Bytes)/int(t.DType.Size()))
	for i := range out {
		if t.DType == tensor.F32 {
			out[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.Bytes[4*i:]))
		} else {
			out[i] = t.DType.ToF32(binary.LittleEndian.Uint16(t.Bytes[2*i:]))
		}
	}
	return out, nil
}

// FromF32 makes a tensor of data, rounded to dtype.
func FromF32(dtype tensor.DType, data []float32, shape ...int) Tensor {
	b := make([]byte, 0, len(data)*int(dtype.Size()))
	for _, x := range data {
		if dtype == tensor.F32 {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
		} else {
			b = binary.LittleEndian.AppendUint16(b, dtype.FromF32(x))
		}
	}
	return Tensor{dtype, shape, b}
}
