package cpu

import (
	"math"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// AppendKV stores rows in slots of a paged cache.
func (*Backend) AppendKV(a *kernel.AppendArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Key, &a.Value, &a.KeyCache, &a.ValueCache, &a.KeyScale, &a.ValueScale); err != nil {
		return err
	}
	appendRows(&a.Key, &a.KeyCache, &a.KeyScale, a.Slots)
	appendRows(&a.Value, &a.ValueCache, &a.ValueScale, a.Slots)
	return nil
}

func appendRows(rows, cache, scale *tensor.View, slots []int32) {
	src, dst := read(rows), read(cache)
	size, heads := cache.Shape[1], int(cache.Shape[2])
	for t, s := range slots {
		if s < 0 {
			continue
		}
		at := dst.offset + int64(s)/size*dst.row + int64(s)%size*dst.slot
		for h := range heads {
			to, from := at+int64(h)*dst.head, src.offset+int64(t)*src.row+int64(h)*src.head
			if dst.b8 != nil && src.dtype != dst.dtype {
				quantize(&dst, to, &src, from, inverse(scale, h))
			} else {
				move(&dst, to, &src, from)
			}
		}
	}
}

// move copies the features of one row: bit for bit where the types agree,
// converted where they differ.
func move(dst *reader, to int64, src *reader, from int64) {
	switch {
	case dst.dtype != src.dtype:
		for range src.n {
			if src.f32 != nil {
				dst.bits[to] = dst.dtype.FromF32(src.f32[from])
			} else if x := src.dtype.ToF32(src.bits[from]); dst.f32 != nil {
				dst.f32[to] = x
			} else {
				dst.bits[to] = dst.dtype.FromF32(x)
			}
			to, from = to+dst.dim, from+src.dim
		}
	case src.f32 != nil:
		copyStrided(dst.f32[to:], src.f32[from:], dst.dim, src.dim, src.n)
	case src.b8 != nil:
		copyStrided(dst.b8[to:], src.b8[from:], dst.dim, src.dim, src.n)
	default:
		copyStrided(dst.bits[to:], src.bits[from:], dst.dim, src.dim, src.n)
	}
}

func copyStrided[T float32 | uint16 | uint8](dst, src []T, dstStride, srcStride int64, n int) {
	if dstStride == 1 && srcStride == 1 {
		copy(dst[:n], src[:n])
		return
	}
	for i := range int64(n) {
		dst[i*dstStride] = src[i*srcStride]
	}
}

// CopyPages copies pages bit for bit.
func (*Backend) CopyPages(a *kernel.CopyArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Cache); err != nil {
		return err
	}
	c := read(&a.Cache)
	for i := range a.Src {
		src, dst := c.offset+int64(a.Src[i])*c.row, c.offset+int64(a.Dst[i])*c.row
		for slot := range a.Cache.Shape[1] {
			for h := range a.Cache.Shape[2] {
				at := slot*c.slot + h*c.head
				move(&c, dst+at, &c, src+at)
			}
		}
	}
	return nil
}

// Rotate turns rows of a tensor in place.
func (*Backend) Rotate(a *kernel.RotateArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.X); err != nil {
		return err
	}
	x := read(&a.X)
	x.n = a.Dim // the features past the rotation are not touched
	buf := make([]float32, a.Dim)
	half := a.Dim / 2
	for t, row := range a.Rows {
		if row < 0 {
			continue
		}
		cos, sin := a.Table.Cos[int(row)*half:][:half], a.Table.Sin[int(row)*half:][:half]
		for h := range int(a.X.Shape[1]) {
			x.loadRow(buf, int64(t), h)
			vec.Rotate(buf, cos, sin, a.Layout, a.Inverse, a.Policy)
			x.storeRow(buf, int64(t), h)
		}
	}
	return nil
}

// Merge joins the states of two sets of keys.
func (*Backend) Merge(a *kernel.MergeArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.OutA, &a.LSEA, &a.OutB, &a.LSEB, &a.Out, &a.LSE); err != nil {
		return err
	}
	outA, outB, out := read(&a.OutA), read(&a.OutB), read(&a.Out)
	lseA, lseB, lse := readScalars(&a.LSEA), readScalars(&a.LSEB), readScalars(&a.LSE)
	oa, ob := make([]float32, outA.n), make([]float32, outB.n)
	none := float32(math.Inf(-1))
	for t := range a.Out.Shape[0] {
		for h := range a.Out.Shape[1] {
			outA.loadRow(oa, t, int(h))
			outB.loadRow(ob, t, int(h))
			x, y := *lseA.at(t, h), *lseB.at(t, h)
			switch {
			case y == none:
			case x == none:
				copy(oa, ob)
				x = y
			default:
				x = mergeRow(oa, ob, x, y, a.Policy)
			}
			out.storeRow(oa, t, int(h))
			*lse.at(t, h) = x
		}
	}
	return nil
}

// mergeRow adds the state (ob, y) to (oa, x) and returns the LSE of both.
func mergeRow(oa, ob []float32, x, y float32, policy kernel.Policy) float32 {
	m := max(x, y) // NaN if either is
	fast := policy == kernel.Fast
	wa, wb := exp2(fast, float32((x-m)*kernel.Log2E)), exp2(fast, float32((y-m)*kernel.Log2E))
	l := wa + wb
	inv := 1 / l
	for d, v := range ob {
		oa[d] = float32(fma(policy, v, wb, float32(oa[d]*wa))*inv) + 0
	}
	if l != l {
		return l
	}
	return m + float32(kernel.Log2(l)*kernel.Ln2)
}
