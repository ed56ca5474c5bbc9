package safetensors

import (
	"encoding/binary"
	"errors"
	"math"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/longctx/longctx/tensor"
)

func sample() *File {
	return &File{
		Metadata: map[string]string{"config": `{"a":1}`},
		Tensors: map[string]Tensor{
			"w":     FromF32(tensor.F32, []float32{1, -2, 3.5, 0, 1e-40, float32(math.Inf(1))}, 2, 3),
			"half":  FromF32(tensor.F16, []float32{1, -2, 0.5}, 3),
			"brain": FromF32(tensor.BF16, []float32{1, -2, 3}, 3, 1),
			"one":   FromF32(tensor.F32, []float32{7}),
			"none":  FromF32(tensor.F32, nil, 0, 4),
		},
	}
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	want := sample()
	if err := Write(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Metadata, want.Metadata) || len(got.Tensors) != len(want.Tensors) {
		t.Fatalf("got %v", got)
	}
	for name, w := range want.Tensors {
		a, err := got.F32(name, w.Shape...)
		b, _ := want.F32(name, w.Shape...)
		if err != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("%s: got %v, %v, want %v", name, a, err, b)
		}
	}
	if _, err := got.F32("w", 3, 2); err == nil || !strings.Contains(err.Error(), "[2 3]") {
		t.Errorf("wrong shape: %v", err)
	}
	if _, err := got.F32("v", 1); err == nil {
		t.Error("a tensor that is not there was read")
	}
}

func TestEveryTruncationIsAnError(t *testing.T) {
	data, err := Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		var f *FormatError
		if _, err := Decode(data[:n]); !errors.As(err, &f) {
			t.Fatalf("%d of %d bytes: %v", n, len(data), err)
		}
	}
	if _, err := Decode(append(data, 0)); err == nil {
		t.Error("a byte too many was accepted")
	}
}

func TestGarbledHeadersAreErrors(t *testing.T) {
	body := make([]byte, 16)
	for _, c := range []struct{ header, want string }{
		{``, "EOF"},
		{`[]`, "JSON object"},
		{`{`, "EOF"},
		{`{}`, "belong to no tensor"},
		{`{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}x`, "after the end"},
		{`{"__metadata__":{"a":1}}`, "__metadata__"},
		{`{"a":{"dtype":"I8","shape":[16],"data_offsets":[0,16]}}`, "dtype"},
		{`{"a":{"dtype":"F32","data_offsets":[0,16]}}`, "no shape"},
		{`{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}`, "shape"},
		{`{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}}`, "takes 12 bytes"},
		{`{"a":{"dtype":"F32","shape":[4611686018427387904,4,4],"data_offsets":[0,16]}}`, "overflows"},
		{`{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}`, "ascend"},
		{`{"a":{"dtype":"F32","shape":[4],"data_offsets":[0]}}`, "data_offsets"},
		{`{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,20]}}`, "truncated"},
		{`{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}`, "twice"},
		{`{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}`, "overlap"},
		{`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}`, "no tensor"},
	} {
		data := binary.LittleEndian.AppendUint64(nil, uint64(len(c.header)))
		data = append(append(data, c.header...), body...)
		if _, err := Decode(data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.header, err, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	data, _ := Encode(sample())
	f.Add(data)
	f.Add(data[:20])
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Encode(file)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(again)
		if err != nil || len(back.Tensors) != len(file.Tensors) {
			t.Fatalf("%v: %d tensors, want %d", err, len(back.Tensors), len(file.Tensors))
		}
		for name, a := range file.Tensors {
			if b := back.Tensors[name]; a.DType != b.DType || string(a.Bytes) != string(b.Bytes) {
				t.Fatalf("%s changed", name)
			}
		}
	})
}
