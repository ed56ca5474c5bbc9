package prefix

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// FirstTokens are the ordinals of the first n tokens of each passage but the
// first, of which lens are the lengths: what EPIC computes anew, since it is
// there that a passage computed alone has its attention sink.
func FirstTokens(lens []int, n int) (tokens []int32) {
	start := 0
	for i, length := range lens {
		for j := 0; i > 0 && j < min(n, length); j++ {
			tokens = append(tokens, int32(start+j))
		}
		start += length
	}
	return tokens
}

// Deviation adds to dst[t] the squared distance of row t of two tensors [tokens,
// heads, dim] in host memory, in float64: of keys or values that were found and
// those computed anew, by which CacheBlend chooses. It returns a *ValueError for
// shapes that differ.
func Deviation(dst []float64, found, fresh tensor.View) error {
	for _, v := range []*tensor.View{&found, &fresh} {
		if err := v.Check(); err != nil {
			return fmt.Errorf("prefix: Deviation: %w", err)
		}
		if v.Rank != 3 || v.Shape != found.Shape || v.Shape[0] != int64(len(dst)) || v.Bytes() == nil {
			return valueError("Deviation: tensor", v, "[%d, heads, dim] in host memory, both alike", len(dst))
		}
	}
	for t := range dst {
		for h := range found.Shape[1] {
			for d := range found.Shape[2] {
				x := float64(found.At(int64(t), h, d)) - float64(fresh.At(int64(t), h, d))
				dst[t] += x * x
			}
		}
	}
	return nil
}

// Highest are the ordinals of the n highest deviations, ascending; of equal ones
// the first, and a NaN before any number. CacheBlend takes some 15 % after the
// first layer, and fewer of these from layer to layer.
func Highest(deviation []float64, n int) []int32 {
	order := make([]int32, len(deviation))
	for i := range order {
		order[i] = int32(i)
	}
	key := func(i int32) float64 {
		if x := deviation[i]; !math.IsNaN(x) {
			return x
		}
		return math.Inf(1)
	}
	slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(key(b), key(a)) })
	order = order[:min(max(n, 0), len(order))]
	slices.Sort(order)
	return order
}

// Recompute is a sequence as some of its tokens see it, which are computed anew:
// each run of tokens that follow one another is a sequence of a batch, of the
// keys up to the run's last. With it attention is causal, windows included, for
// queries that are anywhere. Rows of the tokens must be stored, in the slots of
// Cache.Rewrite, before a layer attends.
//
// A table is as long as what a run sees: a thousand tokens far apart cost a
// thousand tables and, unless all positions are the ordinals, as many lists of
// positions.
type Recompute struct {
	storage   kernel.KeyStorage
	size      int
	pages     kernel.BlockTable // of the sequence
	positions []int32           // nil: the ordinals
	ends      []int32           // of the runs
	lens      []int
}

// NewRecompute looks at the table of a sequence, for tokens given by ordinals,
// ascending: after Rewrite. Like what LowerKV writes, it holds good until the
// next change of the sequence.
func NewRecompute(c *kvcache.Cache, id kvcache.ID, tokens []int32) (*Recompute, error) {
	view, batch := c.Sequences(id), kernel.Batch{}
	if err := view.LowerKV(&batch); err != nil {
		return nil, fmt.Errorf("prefix: %w", err)
	}
	r := &Recompute{storage: view.KeyStorage(), size: view.PageSize(), pages: batch.Pages, positions: view.KeyPositions(nil)}
	for i, j := range tokens {
		if j < 0 || j >= batch.SeqLens[0] || i > 0 && j <= tokens[i-1] {
			return nil, valueError(fmt.Sprintf("NewRecompute: tokens[%d]", i), j, "ascending, 0 to %d", batch.SeqLens[0]-1)
		}
		if i > 0 && j == tokens[i-1]+1 {
			r.ends[len(r.ends)-1]++
			r.lens[len(r.lens)-1]++
		} else {
			r.ends, r.lens = append(r.ends, j+1), append(r.lens, 1)
		}
	}
	total := int64(0)
	for _, end := range r.ends {
		total += int64(end)
	}
	if r.positions != nil && total > math.MaxInt32 || total/int64(r.size) > math.MaxInt32 {
		return nil, valueError("NewRecompute: keys that all runs see", total, "at most 2³¹−1")
	}
	return r, nil
}

// QueryLens are the lengths of the runs: Step.QueryLens of attention.
func (r *Recompute) QueryLens() []int { return r.lens }

// KeyStorage is Config.KeyStorage of the cache.
func (r *Recompute) KeyStorage() kernel.KeyStorage { return r.storage }

// PageSize is Config.PageSize of the cache.
func (r *Recompute) PageSize() int { return r.size }

// LowerKV writes SeqLens and Pages of dst: a sequence for each run.
func (r *Recompute) LowerKV(dst *kernel.Batch) error {
	if dst == nil {
		return valueError("LowerKV: dst", "nil", "a Batch")
	}
	t := &dst.Pages
	dst.KeyStart, dst.SeqLens = dst.KeyStart[:0], append(dst.SeqLens[:0], r.ends...)
	t.Indptr, t.Indices, t.Coded = append(t.Indptr[:0], 0), t.Indices[:0], t.Coded[:0]
	for _, end := range r.ends {
		n := (int(end) + r.size - 1) / r.size
		t.Indices = append(t.Indices, r.pages.Indices[:n]...)
		if len(r.pages.Coded) > 0 {
			t.Coded = append(t.Coded, r.pages.Coded[:n]...)
		}
		t.Indptr = append(t.Indptr, int32(len(t.Indices)))
	}
	return nil
}

// KeyPositions appends the positions of the keys of all runs to dst, or returns
// nil if each is its ordinal.
func (r *Recompute) KeyPositions(dst []int32) []int32 {
	if r.positions == nil {
		return nil
	}
	for _, end := range r.ends {
		dst = append(dst, r.positions[:end]...)
	}
	return dst
}
