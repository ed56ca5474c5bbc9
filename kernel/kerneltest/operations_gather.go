package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

func (t *builder) gathers(exact kernel.Policy) {
	for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2} {
		for i, l := range layouts {
			t.operation("gather", fmt.Sprintf("%v/layout=%d", d, i), func(t *trial) { t.gatherRows(d, 9, l) }, exact)
		}
	}
	for _, dim := range []int64{1, 64, 577, 600} {
		t.operation("gather", fmt.Sprintf("dim=%d", dim), func(t *trial) { t.gatherRows(tensor.F32, dim, Layout{}) }, exact)
	}
	t.operation("gather", "many", (*trial).gatherMany, exact)
}

// gatherRows: rule 19 bit for bit, and no other row changes. A source may come
// in several rows, and a NaN that is not copied does not spread.
func (t *trial) gatherRows(d tensor.DType, dim int64, l Layout) {
	const pages, size, heads = 5, 4, 2
	t.with(func(m *memory) error {
		cache, x, err := m.filled("Cache", d, l, true, 1, pages, size, heads, dim)
		if err != nil {
			return err
		}
		row := int(heads * dim)
		x[19*row] = float32(math.NaN()) // a source that is copied
		x[17*row] = float32(math.NaN()) // no source
		x[18*row] = float32(round(d, 300))
		cache.fill(x)
		a := kernel.GatherArgs{
			Dst:     []int32{0, 7, 3, 9, 5, 1},
			Start:   []int32{0, 1, 4, 5, 8, 9, 11},
			Src:     []int32{19, 12, 10, 12, 18, 11, 15, 13, 14, 18, 18},
			Weights: []float32{1, 0.25, 0.5, -0.3, 1, 1, 1, 1e-3, 0.7, 200, 300},
		}
		if a.Cache, err = m.hand(cache); err != nil {
			return err
		}
		want := cache.words()
		for i, dst := range a.Dst {
			expectGathered(&want, &a, i, dst, row)
		}
		if err := t.backend.GatherRows(&a); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		got := cache.words()
		t.differ(differ("Cache", &got, &want))
		copied := int(a.Dst[0]) * row
		for e := range row { // bit for bit: NaNs too
			if got.bits[copied+e] != want.bits[copied+e] {
				t.wrong("Cache: element %d of a row that is copied is %#x, want %#x", e, got.bits[copied+e], want.bits[copied+e])
				break
			}
		}
		return nil
	})
}

// expectGathered writes to w what row i of a gather is. Its sources are rows that
// no gather writes.
func expectGathered(w *words, a *kernel.GatherArgs, i int, dst int32, row int) {
	first, end := a.Start[i], a.Start[i+1]
	if end == first+1 && a.Weights[first] == 1 {
		copy(w.bits[int(dst)*row:][:row], w.bits[int(a.Src[first])*row:][:row])
		return
	}
	for e := range row {
		sum := float32(0)
		for k := first; k < end; k++ {
			sum = kernel.FMA(float32(w.value(int(a.Src[k])*row+e)), a.Weights[k], sum)
		}
		w.bits[int(dst)*row+e] = encode(w.dtype, round(w.dtype, float64(sum)))
	}
}

// gatherMany: without weights rows are copied, however many.
func (t *trial) gatherMany() {
	const pages, size, heads, dim = 64, 16, 2, 64
	t.with(func(m *memory) error {
		cache, _, err := m.filled("Cache", tensor.BF16, Layout{HeadsFirst: true}, true, 1, pages, size, heads, dim)
		if err != nil {
			return err
		}
		a := kernel.GatherArgs{Start: []int32{0}}
		slots := newRandom(3, 3).permutation(pages * size)
		for i, s := range slots[:len(slots)/2] {
			a.Src, a.Dst, a.Start = append(a.Src, int32(s)), append(a.Dst, int32(slots[len(slots)/2+i])), append(a.Start, int32(i+1))
		}
		if a.Cache, err = m.hand(cache); err != nil {
			return err
		}
		want := cache.words()
		for i, s := range a.Src {
			copy(want.bits[int(a.Dst[i])*heads*dim:][:heads*dim], want.bits[int(s)*heads*dim:][:heads*dim])
		}
		if err := t.backend.GatherRows(&a); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		got := cache.words()
		t.differ(differ("Cache", &got, &want))
		return nil
	})
}

// gatherFaults spoil what is not a view.
var gatherFaults = []operandFault{
	{"target-too-large", func(o *operands) { o.gather.Dst[0] = 8 }},
	{"target-negative", func(o *operands) { o.gather.Dst[0] = -1 }},
	{"target-twice", func(o *operands) { o.gather.Dst[0] = o.gather.Dst[1] }},
	{"target-is-source", func(o *operands) { o.gather.Dst[1] = o.gather.Src[2] }},
	{"source-too-large", func(o *operands) { o.gather.Src[2] = 8 }},
	{"source-negative", func(o *operands) { o.gather.Src[0] = -1 }},
	{"weights-short", func(o *operands) { o.gather.Weights = o.gather.Weights[:2] }},
	{"starts-short", func(o *operands) { o.gather.Start = o.gather.Start[:2] }},
	{"starts-descend", func(o *operands) { o.gather.Start[1] = 4 }},
	{"start-not-0", func(o *operands) { o.gather.Start[0] = 1 }},
	{"row-of-nothing", func(o *operands) { o.gather.Start[1] = 0 }},
	{"sources-long", func(o *operands) { o.gather.Src, o.gather.Weights = append(o.gather.Src, 1), nil }},
	{"u8", func(o *operands) { o.gather.Cache = tensor.New(tensor.U8, 4, 2, 2, 4) }},
	{"zero", func(o *operands) { o.gather = kernel.GatherArgs{} }},
}
