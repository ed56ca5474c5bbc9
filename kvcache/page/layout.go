package page

import (
	"fmt"
	"math"
	"strings"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Align is the multiple of bytes at which segments of a payload begin.
const Align = 64

// These bound what a reader allocates on the word of a header.
const (
	maxPayload = 1 << 40
	maxLayers  = 1 << 16
)

// Layout is what a page holds, the same for all pages of one kind of a cache.
type Layout struct {
	FirstLayer, Layers int
	PageSize           int // tokens
	KVHeads            int
	HeadDim, ValueDim  int
	DType              tensor.DType
	KeyStorage         kernel.KeyStorage
	Coding             kernel.Coding // of a coded page; DType is that of the plain ones it was made of
}

// Segment is one tensor of a payload.
type Segment struct {
	Offset, Bytes int64
	Size          int64 // bytes of an element
}

// shapes are those of the tensors of one layer.
func (l *Layout) shapes() (list []kernel.CodedTensor) {
	heads, size := int64(l.KVHeads), int64(l.PageSize)
	if l.Coding.IsZero() {
		for _, dim := range []int{l.HeadDim, l.ValueDim} {
			list = append(list, kernel.CodedTensor{DType: l.DType, Rank: 4, Shape: [4]int64{1, size, heads, int64(dim)}})
		}
		return list
	}
	var none kernel.CodedPages
	key, value := l.Coding.Key.Tensors(&none, 1, size, heads, l.HeadDim), l.Coding.Value.Tensors(&none, 1, size, heads, l.ValueDim)
	for _, t := range append(key[:], value[:]...) {
		if t.Rank > 0 {
			list = append(list, t)
		}
	}
	return list
}

// SegmentsOf is the number of segments of one layer.
func (l *Layout) SegmentsOf() int { return len(l.shapes()) }

// Segments lists the segments of a payload in order, and its length: the
// positions, and those of each layer. A Layout that no page can have gives a
// *LayoutError.
func (l *Layout) Segments() (list []Segment, payload int64, err error) {
	if err := l.check(); err != nil {
		return nil, 0, err
	}
	add := func(size int64, shape ...int64) {
		n := size
		for _, x := range shape {
			n *= x // check has bounded it
		}
		list = append(list, Segment{Offset: payload, Bytes: n, Size: size})
		payload = (payload + n + Align - 1) / Align * Align
	}
	add(4, int64(l.PageSize))
	shapes := l.shapes()
	for range l.Layers {
		for _, t := range shapes {
			add(t.DType.Size(), t.Shape[:t.Rank]...)
		}
	}
	return list, payload, nil
}

func (l *Layout) check() error {
	if l.FirstLayer < 0 || l.FirstLayer > math.MaxInt32 {
		return layoutError("FirstLayer", l.FirstLayer, "0 to 2³¹−1")
	}
	for _, f := range []struct {
		name  string
		value int
	}{{"Layers", l.Layers}, {"PageSize", l.PageSize}, {"KVHeads", l.KVHeads}, {"HeadDim", l.HeadDim}, {"ValueDim", l.ValueDim}} {
		if f.value < 1 || f.value > math.MaxInt32 {
			return layoutError(f.name, f.value, "1 to 2³¹−1")
		}
	}
	switch {
	case l.Layers > maxLayers:
		return layoutError("Layers", l.Layers, "at most 65536")
	case dtypeCode(l.DType) == 0:
		return layoutError("DType", l.DType, "f32, f16, bf16, f8e4m3 or f8e5m2")
	case l.KeyStorage > kernel.PostRoPE:
		return layoutError("KeyStorage", l.KeyStorage, "pre-RoPE or post-RoPE")
	}
	if problems := l.Coding.Problems(l.PageSize, l.HeadDim, l.ValueDim); len(problems) > 0 {
		return layoutError("Coding", l.Coding, "one without this: "+strings.Join(problems, "; "))
	}
	// rows and scales have at most 4 bytes for each of these, and segments padding
	key, value := &l.Coding.Key, &l.Coding.Value
	size, dims := float64(l.PageSize), float64(l.HeadDim)+float64(l.ValueDim)
	head := 4*size*dims + 8*dims + 4*(float64(key.Outliers)+float64(value.Outliers)) + 2*float64(key.Rank+value.Rank)*(size+dims)
	if float64(l.Layers)*(float64(l.KVHeads)*head+12*Align)+4*size > maxPayload {
		return layoutError("payload", "larger", "at most 2⁴⁰ bytes")
	}
	return nil
}

func dtypeCode(d tensor.DType) uint8 {
	switch d {
	case tensor.F32:
		return 1
	case tensor.F16:
		return 2
	case tensor.BF16:
		return 3
	case tensor.F8E4M3:
		return 4
	case tensor.F8E5M2:
		return 5
	}
	return 0
}

func dtypeOf(code uint8) tensor.DType {
	for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2} {
		if dtypeCode(d) == code {
			return d
		}
	}
	return 0
}

// LayoutError reports a field of a Layout or Header that no page can have.
type LayoutError struct{ Field, Got, Want string }

func (e *LayoutError) Error() string {
	return fmt.Sprintf("page: %s is %s, want %s", e.Field, e.Got, e.Want)
}

func layoutError(field string, got any, want string) error {
	return &LayoutError{field, fmt.Sprint(got), want}
}
