package cpu

import (
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// GatherRows makes rows of a paged cache of other rows of it.
func (b *Backend) GatherRows(a *kernel.GatherArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Cache); err != nil {
		return err
	}
	t := gathering{a, read(&a.Cache), a.Cache.Shape[1], a.Cache.Shape[2]}
	items, share := b.runs(len(a.Dst), a.Cache.Shape[2]*a.Cache.Shape[3])
	if share {
		b.pool.do(&job{}, &gathering{t.args, t.cache, t.size, t.heads}, items)
		return nil
	}
	for i := range items {
		t.item(0, i)
	}
	return nil
}

// gathering makes rows.
type gathering struct {
	args        *kernel.GatherArgs
	cache       reader
	size, heads int64
}

// at is the element at which the first head of a slot begins.
func (t *gathering) at(slot int32) int64 {
	s := int64(slot)
	return t.cache.offset + s/t.size*t.cache.row + s%t.size*t.cache.slot
}

func (t *gathering) item(_ int, i int64) {
	a, c := t.args, &t.cache
	for k, hi := run(i, len(a.Dst)); k < hi; k++ {
		first, end := a.Start[k], a.Start[k+1]
		to := t.at(a.Dst[k])
		if end == first+1 && a.Weight(first) == 1 {
			from := t.at(a.Src[first])
			for h := range t.heads {
				move(c, to+h*c.head, c, from+h*c.head)
			}
			continue
		}
		for h := range t.heads {
			t.sum(to+h*c.head, first, end, h)
		}
	}
}

// sum stores the weighted sum of sources first … end−1 of one head at element to.
func (t *gathering) sum(to int64, first, end int32, head int64) {
	var memory [2][kernel.MaxHeadDim]float32
	a, c := t.args, &t.cache
	x, sum := features(memory[0][:], c.n), features(memory[1][:], c.n)
	for k := first; k < end; k++ {
		c.loadRun(x, 0, false, t.at(a.Src[k])+head*c.head, 0, 1, 0)
		w := a.Weight(k)
		for d, v := range x {
			sum[d] = kernel.FMA(v, w, sum[d])
		}
	}
	row := reader{f32: sum, dtype: tensor.F32, dim: 1, n: c.n}
	if c.b8 != nil {
		quantize(c, to, &row, 0, head)
		return
	}
	move(c, to, &row, 0)
}
