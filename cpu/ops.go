package cpu

import (
	"math"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// An operation is a task whose items are runs of opRows tokens or pages. A
// small one runs where it is called and allocates nothing.
const (
	opRows  = 32
	opShare = 128 << 10 // elements worth waking the workers for
)

// runs is the number of items for n tokens, and whether to share them out.
func (b *Backend) runs(n int, elements int64) (items int64, share bool) {
	return int64(n+opRows-1) / opRows, b.pool.workers > 1 && n > opRows && int64(n)*elements >= opShare
}

// run is the tokens lo … hi−1 of item i.
func run(i int64, n int) (lo, hi int) { return int(i) * opRows, min(int(i+1)*opRows, n) }

// AppendKV stores rows in slots of a paged cache.
func (b *Backend) AppendKV(a *kernel.AppendArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Key, &a.Value, &a.KeyCache, &a.ValueCache, &a.KeyScale, &a.ValueScale); err != nil {
		return err
	}
	b.appendRows(&a.Key, &a.KeyCache, &a.KeyScale, a.Slots)
	b.appendRows(&a.Value, &a.ValueCache, &a.ValueScale, a.Slots)
	return nil
}

// appending moves rows to slots.
type appending struct {
	src, dst    reader
	size, heads int64
	slots       []int32
}

func (b *Backend) appendRows(rows, cache, scale *tensor.View, slots []int32) {
	t := appending{read(rows), read(cache), cache.Shape[1], cache.Shape[2], slots}
	if !scale.IsZero() {
		t.dst.scale = readScalars(scale)
	}
	items, share := b.runs(len(slots), rows.Shape[1]*rows.Shape[2])
	if share {
		b.pool.do(&job{}, &appending{t.src, t.dst, t.size, t.heads, slots}, items)
		return
	}
	for i := range items {
		t.item(0, i)
	}
}

func (t *appending) item(_ int, i int64) {
	for k, hi := run(i, len(t.slots)); k < hi; k++ {
		s := int64(t.slots[k])
		if s < 0 {
			continue
		}
		to, from := t.dst.offset+s/t.size*t.dst.row+s%t.size*t.dst.slot, t.src.offset+int64(k)*t.src.row
		for h := range t.heads {
			if t.dst.b8 != nil && t.src.dtype != t.dst.dtype {
				quantize(&t.dst, to, &t.src, from, h)
			} else {
				move(&t.dst, to, &t.src, from)
			}
			to, from = to+t.dst.head, from+t.src.head
		}
	}
}

// move copies the features of one row: bit for bit where the types agree,
// converted where they differ.
func move(dst *reader, to int64, src *reader, from int64) {
	switch {
	case dst.dtype == src.dtype && src.f32 != nil:
		copyStrided(dst.f32[to:], src.f32[from:], dst.dim, src.dim, src.n)
	case dst.dtype == src.dtype && src.b8 != nil:
		copyStrided(dst.b8[to:], src.b8[from:], dst.dim, src.dim, src.n)
	case dst.dtype == src.dtype:
		copyStrided(dst.bits[to:], src.bits[from:], dst.dim, src.dim, src.n)
	case dst.dim == 1 && src.dim == 1 && dst.f32 != nil:
		vec.Rows16(dst.f32[to:], 0, src.bits[from:], src.dtype, 0, 1, src.n, 0)
	case dst.dim == 1 && src.dim == 1 && src.f32 != nil:
		vec.Narrow16(dst.bits[to:][:src.n], src.f32[from:][:src.n], dst.dtype)
	default:
		for range src.n {
			if x := src.at(from); dst.f32 != nil {
				dst.f32[to] = x
			} else {
				dst.bits[to] = dst.dtype.FromF32(x)
			}
			to, from = to+dst.dim, from+src.dim
		}
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

// features is room for n of them: in memory, unless there are very many.
func features(memory []float32, n int) []float32 {
	if n > len(memory) {
		return make([]float32, n)
	}
	return memory[:n]
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
func (b *Backend) Rotate(a *kernel.RotateArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.X); err != nil {
		return err
	}
	t := rotating{x: read(&a.X), args: *a}
	t.x.n = a.Dim // the features past the rotation are not touched
	items, share := b.runs(len(a.Rows), a.X.Shape[1]*int64(a.Dim))
	if share {
		b.pool.do(&job{}, &rotating{t.x, t.args}, items)
		return nil
	}
	for i := range items {
		t.item(0, i)
	}
	return nil
}

// rotating turns rows.
type rotating struct {
	x    reader
	args kernel.RotateArgs
}

func (t *rotating) item(_ int, i int64) {
	var memory [kernel.MaxHeadDim]float32
	a, half := &t.args, t.args.Dim/2
	for k, hi := run(i, len(a.Rows)); k < hi; k++ {
		row := int(a.Rows[k])
		if row < 0 {
			continue
		}
		cos, sin := a.Table.Cos[row*half:][:half], a.Table.Sin[row*half:][:half]
		for h := range int(a.X.Shape[1]) {
			if at := t.x.offset + int64(k)*t.x.row + int64(h)*t.x.head; t.x.f32 != nil && t.x.dim == 1 {
				vec.Rotate(t.x.f32[at:], cos, sin, a.Layout, a.Inverse, a.Policy)
				continue
			}
			buf := features(memory[:], a.Dim)
			t.x.loadRow(buf, int64(k), h)
			vec.Rotate(buf, cos, sin, a.Layout, a.Inverse, a.Policy)
			t.x.storeRow(buf, int64(k), h)
		}
	}
}

// Merge joins the states of two sets of keys.
func (b *Backend) Merge(a *kernel.MergeArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.OutA, &a.LSEA, &a.OutB, &a.LSEB, &a.Out, &a.LSE); err != nil {
		return err
	}
	t := merging{
		[3]reader{read(&a.OutA), read(&a.OutB), read(&a.Out)},
		[3]scalars{readScalars(&a.LSEA), readScalars(&a.LSEB), readScalars(&a.LSE)},
		int(a.Out.Shape[0]), a.Out.Shape[1], a.Policy,
	}
	items, share := b.runs(t.tokens, a.Out.Shape[1]*a.Out.Shape[2])
	if share {
		b.pool.do(&job{}, &merging{t.out, t.lse, t.tokens, t.heads, t.policy}, items)
		return nil
	}
	for i := range items {
		t.item(0, i)
	}
	return nil
}

// merging joins states: of A and of B, into the third.
type merging struct {
	out    [3]reader
	lse    [3]scalars
	tokens int
	heads  int64
	policy kernel.Policy
}

func (t *merging) item(_ int, i int64) {
	var memory [2][kernel.MaxHeadDim]float32
	oa, ob := features(memory[0][:], t.out[0].n), features(memory[1][:], t.out[1].n)
	none := float32(math.Inf(-1))
	lo, hi := run(i, t.tokens)
	for k := int64(lo); k < int64(hi); k++ {
		for h := range t.heads {
			t.out[0].loadRow(oa, k, int(h))
			t.out[1].loadRow(ob, k, int(h))
			x, y := *t.lse[0].at(k, h), *t.lse[1].at(k, h)
			switch {
			case y == none:
			case x == none:
				copy(oa, ob)
				x = y
			default:
				x = mergeRow(oa, ob, x, y, t.policy)
			}
			t.out[2].storeRow(oa, k, int(h))
			*t.lse[2].at(k, h) = x
		}
	}
}

// mergeRow adds the state (ob, y) to (oa, x) and returns the LSE of both.
func mergeRow(oa, ob []float32, x, y float32, policy kernel.Policy) float32 {
	m := max(x, y) // NaN if either is
	wa, wb := vec.Exp2(policy, float32((x-m)*kernel.Log2E)), vec.Exp2(policy, float32((y-m)*kernel.Log2E))
	l := wa + wb
	vec.Blend(policy, oa, ob, wa, wb)
	vec.FinishRow(oa, l)
	if l != l {
		return l
	}
	return m + float32(kernel.Log2(l)*kernel.Ln2)
}
