package cpu

import (
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// reader widens rows of a tensor to float32.
type reader struct {
	f32    []float32
	bits   []uint16
	b8     []uint8
	dtype  tensor.DType
	offset int64
	row    int64 // elements from one row (token, or page) to the next
	slot   int64 // paged: elements from one slot of a page to the next
	head   int64
	dim    int64 // stride of features
	n      int   // features

	scale scalars    // of keys and values: of each KV head; absent: 1
	coded codedPages // of keys and values: the pages that are not in this tensor
}

// read prepares a [rows, heads, dim] tensor, or [pages, slots, heads, dim].
func read(v *tensor.View) reader {
	r := reader{f32: v.F32s(), bits: v.Bits(), b8: v.Bits8(), dtype: v.DType, offset: v.Offset, row: v.Stride[0]}
	k := 1
	if v.Rank == 4 {
		r.slot, k = v.Stride[1], 2
	}
	r.head, r.dim, r.n = v.Stride[k], v.Stride[k+1], int(v.Shape[k+1])
	return r
}

// load widens the features of one row from element at.
func (r *reader) load(dst []float32, at int64) {
	dst = dst[:r.n]
	switch {
	case r.f32 != nil && r.dim == 1:
		copy(dst, r.f32[at:])
	case r.f32 != nil:
		for d := range dst {
			dst[d] = r.f32[at+int64(d)*r.dim]
		}
	case r.b8 != nil && r.dim == 1:
		r.dtype.Widen8(dst, r.b8[at:at+int64(r.n)])
	case r.b8 != nil:
		for d := range dst {
			dst[d] = r.dtype.ToF32(uint16(r.b8[at+int64(d)*r.dim]))
		}
	case r.dim == 1:
		r.dtype.ToF32s(dst, r.bits[at:at+int64(r.n)])
	default:
		for d := range dst {
			dst[d] = r.dtype.ToF32(r.bits[at+int64(d)*r.dim])
		}
	}
}

// loadRow widens row t of a head.
func (r *reader) loadRow(dst []float32, t int64, head int) {
	r.load(dst, r.offset+t*r.row+int64(head)*r.head)
}

// store rounds src to element at and on.
func (r *reader) store(src []float32, at int64) {
	src = src[:r.n]
	switch {
	case r.f32 != nil:
		for d, x := range src {
			r.f32[at+int64(d)*r.dim] = x
		}
	default:
		for d, x := range src {
			r.bits[at+int64(d)*r.dim] = r.dtype.FromF32(x)
		}
	}
}

func (r *reader) storeRow(src []float32, t int64, head int) {
	r.store(src, r.offset+t*r.row+int64(head)*r.head)
}

// loadKey is load for a row of keys or values of a head: scaled, if they are.
func (r *reader) loadKey(dst []float32, at int64, head int) {
	r.load(dst, at)
	if r.scale.x != nil {
		scale := *r.scale.at(int64(head), 0)
		for d := range dst[:r.n] {
			dst[d] *= scale
		}
	}
}

// loadKeys widens keys j0 … j0+n−1 of a sequence to rows of dst.
func (r *reader) loadKeys(dst []float32, b *kernel.Batch, s int, pageSize int, j0 int64, n int, head int) {
	at := r.offset + int64(head)*r.head
	if pageSize == 0 {
		at += (int64(b.KeyStart[s]) + j0) * r.row
		for j := range n {
			r.loadKey(dst[j*r.n:], at+int64(j)*r.row, head)
		}
		return
	}
	size := int64(pageSize)
	i, slot := int(b.Pages.Indptr[s])+int(j0/size), j0%size
	for n > 0 {
		run := int(min(size-slot, int64(n))) // rows of this page
		page := int64(b.Pages.Indices[i])
		if b.Pages.IsCoded(i) {
			r.coded.load(dst, page, slot, run, head)
		} else {
			for k := range run {
				r.loadKey(dst[k*r.n:], at+page*r.row+(slot+int64(k))*r.slot, head)
			}
		}
		if n -= run; n > 0 {
			dst = dst[run*r.n:]
		}
		i, slot = i+1, 0
	}
}

// scalars reads a rank-1 or rank-2 F32 tensor.
type scalars struct {
	x          []float32
	offset     int64
	row, col   int64
	rows, cols int64
}

func readScalars(v *tensor.View) scalars {
	return scalars{v.F32s(), v.Offset, v.Stride[0], v.Stride[1], v.Shape[0], v.Shape[1]}
}

func (s *scalars) at(i, k int64) *float32 { return &s.x[s.offset+i*s.row+k*s.col] }
