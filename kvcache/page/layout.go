package page

import (
	"fmt"
	"math"

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
	Codec              kernel.Codec // of a coded page; DType is that of the plain ones it was made of
	ValueGroup         int          // with Codec: features of a value that share a scale
}

// Segment is one tensor of a payload.
type Segment struct {
	Offset, Bytes int64
	Size          int64 // bytes of an element
}

// SegmentsOf is the number of segments of one layer.
func (l *Layout) SegmentsOf() int {
	if l.Codec == kernel.NoCodec {
		return 2
	}
	return 6
}

// Segments lists the segments of a payload in order, and its length: the
// positions, and those of each layer. A Layout that no page can have gives a
// *LayoutError.
func (l *Layout) Segments() (list []Segment, payload int64, err error) {
	if err := l.check(); err != nil {
		return nil, 0, err
	}
	add := func(size int64, shape ...int) {
		n := size
		for _, x := range shape {
			n *= int64(x) // check has bounded it
		}
		list = append(list, Segment{Offset: payload, Bytes: n, Size: size})
		payload = (payload + n + Align - 1) / Align * Align
	}
	add(4, l.PageSize)
	for range l.Layers {
		if l.Codec == kernel.NoCodec {
			add(l.DType.Size(), l.KVHeads, l.PageSize, l.HeadDim)
			add(l.DType.Size(), l.KVHeads, l.PageSize, l.ValueDim)
			continue
		}
		add(1, l.KVHeads, l.PageSize, l.Codec.RowBytes(l.HeadDim))
		add(2, l.KVHeads, l.HeadDim)
		add(2, l.KVHeads, l.HeadDim)
		add(1, l.KVHeads, l.PageSize, l.Codec.RowBytes(l.ValueDim))
		add(2, l.KVHeads, l.PageSize, l.ValueDim/l.ValueGroup)
		add(2, l.KVHeads, l.PageSize, l.ValueDim/l.ValueGroup)
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
	case l.Codec > kernel.Int4:
		return layoutError("Codec", l.Codec, "none, int8 or int4")
	case l.Codec == kernel.NoCodec && l.ValueGroup != 0:
		return layoutError("ValueGroup", l.ValueGroup, "0 without a codec")
	case l.Codec != kernel.NoCodec && (l.ValueGroup < 1 || l.ValueDim%l.ValueGroup != 0):
		return layoutError("ValueGroup", l.ValueGroup, "a divisor of ValueDim")
	}
	// no segment has more than 4 bytes for each of these, and padding
	n := float64(l.KVHeads) * float64(l.PageSize) * (float64(l.HeadDim) + float64(l.ValueDim))
	if float64(l.Layers)*(4*n+6*Align+8*float64(l.KVHeads)*float64(l.HeadDim))+4*float64(l.PageSize) > maxPayload {
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
