// Package tensor describes memory: element types, buffers and strided views of
// them. It does no arithmetic beyond conversion between element types.
package tensor

import (
	"fmt"
	"strconv"
	"unsafe"
)

// DType is an element type.
type DType uint8

// The element types. The zero DType is invalid.
const (
	F32    DType = iota + 1 // IEEE 754 binary32
	F16                     // IEEE 754 binary16
	BF16                    // bfloat16: the upper half of a binary32
	F8E4M3                  // OCP FP8 E4M3 ("fn"): no infinity, NaN is 0x7f and 0xff, largest 448
	F8E5M2                  // OCP FP8 E5M2: the upper half of a binary16, largest 57344
	U8                      // integers 0 to 255: codes
)

// Size is the number of bytes of one element.
func (d DType) Size() int64 {
	switch d {
	case F32:
		return 4
	case F16, BF16:
		return 2
	case F8E4M3, F8E5M2, U8:
		return 1
	}
	return 0
}

// Valid reports whether d is one of the element types above.
func (d DType) Valid() bool { return d >= F32 && d <= U8 }

// Float8 reports whether d is one of the FP8 types.
func (d DType) Float8() bool { return d == F8E4M3 || d == F8E5M2 }

func (d DType) String() string {
	switch d {
	case F32:
		return "f32"
	case F16:
		return "f16"
	case BF16:
		return "bf16"
	case F8E4M3:
		return "f8e4m3"
	case F8E5M2:
		return "f8e5m2"
	case U8:
		return "u8"
	}
	return fmt.Sprintf("DType(%d)", uint8(d))
}

// A Buffer is memory owned by one device.
type Buffer interface {
	Device() string // "cpu", "cuda:0"
	Size() int64    // bytes
}

// Host is a Buffer in the memory of this process.
type Host struct{ b []byte }

// NewHost allocates n zeroed bytes, aligned to 64 bytes.
func NewHost(n int64) *Host {
	const align = 64
	b := make([]byte, n+align)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (align - 1)
	return &Host{b[skip : int64(skip)+n : int64(skip)+n]}
}

// HostBytes wraps b, which must be aligned for the elements it will hold.
func HostBytes(b []byte) *Host { return &Host{b} }

// Device returns "cpu".
func (*Host) Device() string { return "cpu" }

// Size returns the number of bytes.
func (h *Host) Size() int64 { return int64(len(h.b)) }

// Bytes returns the memory itself.
func (h *Host) Bytes() []byte { return h.b }

// MaxRank is the largest number of dimensions of a View.
const MaxRank = 4

// View is a strided window on a Buffer. Offset and Stride count elements, not
// bytes, in int64: a long cache passes 2³¹ elements.
type View struct {
	Buf    Buffer
	DType  DType
	Rank   int
	Offset int64
	Shape  [MaxRank]int64
	Stride [MaxRank]int64
}

// Of is the row-major view of a whole buffer with the given shape. It panics
// if the shape has more than MaxRank dimensions.
func Of(buf Buffer, dtype DType, shape ...int64) View {
	if len(shape) > MaxRank {
		panic("tensor: internal error: rank above MaxRank")
	}
	v := View{Buf: buf, DType: dtype, Rank: len(shape)}
	n := int64(1)
	for i := len(shape) - 1; i >= 0; i-- {
		v.Shape[i], v.Stride[i] = shape[i], n
		n *= shape[i]
	}
	return v
}

// New allocates a zeroed row-major tensor in host memory.
func New(dtype DType, shape ...int64) View {
	return Of(NewHost(count(shape)*dtype.Size()), dtype, shape...)
}

// FromF32 is a row-major view of data, which it shares. With no shape it has
// one dimension. It panics if the shape does not have len(data) elements.
func FromF32(data []float32, shape ...int64) View {
	return from(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(data))), 4*len(data)), F32, len(data), shape)
}

// FromBits is FromF32 for the bits of F16 or BF16 elements.
func FromBits(dtype DType, data []uint16, shape ...int64) View {
	return from(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(data))), 2*len(data)), dtype, len(data), shape)
}

// FromBytes is FromF32 for the bytes of FP8 or U8 elements.
func FromBytes(dtype DType, data []byte, shape ...int64) View {
	return from(data, dtype, len(data), shape)
}

func from(b []byte, dtype DType, n int, shape []int64) View {
	if len(shape) == 0 {
		shape = []int64{int64(n)}
	}
	if count(shape) != int64(n) {
		panic(fmt.Sprintf("tensor: shape %v has %d elements, the data %d", shape, count(shape), n))
	}
	return Of(&Host{b}, dtype, shape...)
}

func count(shape []int64) int64 {
	n := int64(1)
	for _, s := range shape {
		n *= s
	}
	return n
}

// IsZero reports whether v is the zero View: no tensor.
func (v *View) IsZero() bool { return v.Buf == nil }

// Len is the number of elements.
func (v *View) Len() int64 { return count(v.Shape[:v.Rank]) }

// Slice keeps lo <= index < hi of dimension dim. It panics outside the shape.
func (v View) Slice(dim int, lo, hi int64) View {
	if dim < 0 || dim >= v.Rank || lo < 0 || hi < lo || hi > v.Shape[dim] {
		panic(fmt.Sprintf("tensor: slice [%d:%d] of dimension %d of %s", lo, hi, dim, v.String()))
	}
	v.Offset += lo * v.Stride[dim]
	v.Shape[dim] = hi - lo
	return v
}

// Swap exchanges two dimensions.
func (v View) Swap(a, b int) View {
	v.Shape[a], v.Shape[b] = v.Shape[b], v.Shape[a]
	v.Stride[a], v.Stride[b] = v.Stride[b], v.Stride[a]
	return v
}

// Check reports a view that is malformed or reaches outside its buffer.
func (v *View) Check() error {
	switch {
	case v.Buf == nil:
		return fmt.Errorf("tensor: view has no buffer")
	case !v.DType.Valid():
		return fmt.Errorf("tensor: %v is no element type (have f32, f16, bf16, f8e4m3, f8e5m2, u8)", v.DType)
	case v.Rank < 0 || v.Rank > MaxRank:
		return fmt.Errorf("tensor: rank %d, want 0 to %d", v.Rank, MaxRank)
	case v.Offset < 0:
		return fmt.Errorf("tensor: offset %d is negative", v.Offset)
	}
	last := v.Offset
	for i := range v.Rank {
		n, s := v.Shape[i], v.Stride[i]
		if n < 0 || s < 0 {
			return fmt.Errorf("tensor: %s with strides %s has a negative entry", v.String(), v.strides())
		}
		if n == 0 {
			return nil
		}
		if s != 0 && n-1 > (1<<62-last)/s {
			return fmt.Errorf("tensor: %s with strides %s overflows", v.String(), v.strides())
		}
		last += (n - 1) * s
	}
	if have := v.Buf.Size() / v.DType.Size(); last >= have {
		return fmt.Errorf("tensor: %s reaches element %d of a buffer of %d", v.String(), last, have)
	}
	return nil
}

// Bytes returns the memory under a host view, or nil for another device's.
func (v *View) Bytes() []byte {
	if h, ok := v.Buf.(interface{ Bytes() []byte }); ok {
		return h.Bytes()
	}
	return nil
}

// F32s returns the whole buffer of a host view as float32s; index it with
// Offset and Stride. It returns nil for other element types and devices.
func (v *View) F32s() []float32 {
	b := v.Bytes()
	if b == nil || v.DType != F32 {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
}

// Bits returns the whole buffer of a host view of 16-bit elements.
func (v *View) Bits() []uint16 {
	b := v.Bytes()
	if b == nil || v.DType.Size() != 2 {
		return nil
	}
	return unsafe.Slice((*uint16)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/2)
}

// Bits8 returns the whole buffer of a host view of 8-bit elements.
func (v *View) Bits8() []uint8 {
	if v.DType.Size() != 1 {
		return nil
	}
	return v.Bytes()
}

// At reads one element of a host view, widened to float32.
func (v *View) At(index ...int64) float32 {
	i := v.at(index)
	switch v.DType.Size() {
	case 4:
		return v.F32s()[i]
	case 1:
		return v.DType.ToF32(uint16(v.Bits8()[i]))
	}
	return v.DType.ToF32(v.Bits()[i])
}

// Set writes one element of a host view, rounded to its type.
func (v *View) Set(x float32, index ...int64) {
	i := v.at(index)
	switch v.DType.Size() {
	case 4:
		v.F32s()[i] = x
	case 1:
		v.Bits8()[i] = uint8(v.DType.FromF32(x))
	default:
		v.Bits()[i] = v.DType.FromF32(x)
	}
}

func (v *View) at(index []int64) int64 {
	if len(index) != v.Rank {
		panic(fmt.Sprintf("tensor: %d indices into %s", len(index), v.String()))
	}
	at := v.Offset
	for d, i := range index {
		if i < 0 || i >= v.Shape[d] {
			panic(fmt.Sprintf("tensor: index %s outside %s", appendList(nil, index), v.String()))
		}
		at += i * v.Stride[d]
	}
	return at
}

// String is the type and shape: "f32[4,8,64]". It is written out by hand so
// that a View whose checks print it stays off the heap.
func (v *View) String() string {
	if v.Buf == nil {
		return "no tensor"
	}
	out := []byte(v.DType.String())
	if v.Rank < 0 || v.Rank > MaxRank {
		return string(strconv.AppendInt(append(out, " of rank "...), int64(v.Rank), 10))
	}
	return string(appendList(out, v.Shape[:v.Rank]))
}

// strides is the strides of v, as String writes shapes.
func (v *View) strides() string { return string(appendList(nil, v.Stride[:v.Rank])) }

func appendList(out []byte, x []int64) []byte {
	out = append(out, '[')
	for i, e := range x {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendInt(out, e, 10)
	}
	return append(out, ']')
}
