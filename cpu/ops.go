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
	if err := onHost(&a.Key, &a.Value, &a.KeyCache, &a.ValueCache); err != nil {
		return err
	}
	appendRows(&a.Key, &a.KeyCache, a.Slots)
	appendRows(&a.Value, &a.ValueCache, a.Slots)
	return nil
}

func appendRows(rows, cache *tensor.View, slots []int32) {
	src, dst := read(rows), read(cache)
	buf := make([]float32, src.n)
	size := cache.Shape[1]
	for t, s := range slots {
		if s < 0 {
			continue
		}
		for h := range int(cache.Shape[2]) {
			src.loadRow(buf, int64(t), h)
			dst.store(buf, dst.offset+int64(s)/size*dst.row+int64(s)%size*dst.slot+int64(h)*dst.head)
		}
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
	c := &a.Cache
	for i := range a.Src {
		src, dst := c.Offset+int64(a.Src[i])*c.Stride[0], c.Offset+int64(a.Dst[i])*c.Stride[0]
		for slot := range c.Shape[1] {
			for h := range c.Shape[2] {
				for d := range c.Shape[3] {
					at := slot*c.Stride[1] + h*c.Stride[2] + d*c.Stride[3]
					if x := c.F32s(); x != nil {
						x[dst+at] = x[src+at]
					} else {
						c.Bits()[dst+at] = c.Bits()[src+at]
					}
				}
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
