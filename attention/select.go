package attention

import (
	"fmt"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// SelectorInfo describes a selector: a rule that chooses, for each query token
// and KV head, the blocks of keys that attention then reads, or for each head the
// keys.
type SelectorInfo struct {
	Name  string
	Paper string
	Kind  string // "decode", "prefill" or "decode, prefill"
	Needs string // what has to be kept beside the cache
}

// Selectors lists the selectors of this package.
func Selectors() []SelectorInfo {
	list := []SelectorInfo{
		Quest{}.Info(),
		SparQ{}.Info(),
		Loki{}.Info(),
		DoubleSparse{}.Info(),
		InfLLM{}.Info(),
		LongHeads{}.Info(),
		PQCache{}.Info(),
		ReAttention{}.Info(),
		SqueezedAttention{}.Info(),
		NSA{}.Info(),
		MagicPIG{}.Info(),
		RetrievalAttention{}.Info(),
	}
	return append(list, prefillSelectors()...)
}

// Selection is what a selector chooses from: the queries of one layer of a
// step, and the plain pages of its cache. Scores is memory for the scores of a
// choice; the views are where the backend wants them.
type Selection struct {
	Query      tensor.View       // [tokens, Heads, HeadDim]; turned as the keys are that were summarised
	QueryStart []int32           // [n+1] as in kernel.Batch
	SeqLens    []int32           // [n] keys, the query tokens' own included
	Pages      kernel.BlockTable // pages of each sequence, ⌈SeqLens/PageSize⌉ of them, none coded
	PageSize   int               // keys a page
	KVHeads    int               // divides the heads of Query
	Scale      float32           // of the dot product; any positive one gives the same choice up to rounding
	Policy     kernel.Policy     // of the scores

	Scores tensor.View // [tokens, Heads, m] F32, m at least what is scored of a sequence: its pages, or its keys
}

func (in *Selection) check() error {
	n := len(in.SeqLens)
	switch {
	case in.PageSize < 1:
		return fmt.Errorf("attention: Selection.PageSize is %d, want at least 1", in.PageSize)
	case in.KVHeads < 1 || in.Query.Rank != 3 || in.Query.Shape[1]%int64(in.KVHeads) != 0:
		return fmt.Errorf("attention: Selection.KVHeads is %d with Query %v, want a divisor of the heads of [tokens, heads, dim]", in.KVHeads, &in.Query)
	case len(in.QueryStart) != n+1 || len(in.Pages.Indptr) != n+1:
		return fmt.Errorf("attention: Selection has %d QueryStart and %d Pages.Indptr, want %d for %d sequences", len(in.QueryStart), len(in.Pages.Indptr), n+1, n)
	}
	for s, keys := range in.SeqLens {
		pages := (int64(keys) + int64(in.PageSize) - 1) / int64(in.PageSize)
		if got := int64(in.Pages.Indptr[s+1]) - int64(in.Pages.Indptr[s]); keys < 0 || got != pages {
			return fmt.Errorf("attention: Selection sequence %d of %d keys has %d pages, want %d of %d keys", s, keys, got, pages, in.PageSize)
		}
		if q := int64(in.QueryStart[s+1]) - int64(in.QueryStart[s]); q < 0 || q > int64(keys) {
			return fmt.Errorf("attention: Selection sequence %d has %d query tokens, want 0 to its %d keys", s, q, keys)
		}
	}
	return nil
}

// budget is how many blocks a query sees: the first, the last and those of the
// largest scores between them.
type budget struct{ sinks, recent, top int }

// choose scores the pages between Least and Most by rule 17 and lists for each
// token and KV head the blocks that any query head of the group chose.
func (in *Selection) choose(ops kernel.Ops, least, most tensor.View, b budget) (kernel.BlockSparse, error) {
	none := kernel.BlockSparse{}
	if err := in.check(); err != nil {
		return none, err
	}
	if err := ops.PageScores(&kernel.PageScoresArgs{
		Query: in.Query, Min: least, Max: most, QueryStart: in.QueryStart, Pages: in.Pages,
		Scale: in.Scale, Policy: in.Policy, Out: in.Scores,
	}); err != nil {
		return none, fmt.Errorf("attention: %w", err)
	}
	return in.chooseScored(ops, in.Scores, b)
}

// chooseScored is choose of pages that have their scores, [tokens, Heads, pages].
func (in *Selection) chooseScored(ops kernel.Ops, scores tensor.View, b budget) (kernel.BlockSparse, error) {
	tokens, heads, m := in.Query.Shape[0], int(in.Query.Shape[1]), scores.Shape[2]
	var top []int32
	if b.top > 0 && tokens > 0 && int64(b.sinks) < m {
		b.top = int(min(int64(b.top), m))
		top = make([]int32, int(tokens)*heads*b.top)
		counts := make([]int32, 0, tokens)
		in.each(func(_ int, own int64) {
			counts = append(counts, int32(max(own+1-int64(b.recent)-int64(b.sinks), 0)))
		})
		if err := ops.TopK(&kernel.TopKArgs{Scores: scores.Slice(2, int64(b.sinks), m), Counts: counts, K: b.top, Out: top}); err != nil {
			return kernel.BlockSparse{}, fmt.Errorf("attention: %w", err)
		}
	}
	return in.list(top, b), nil
}

// each calls f with the sequence and the own page of each query token.
func (in *Selection) each(f func(s int, own int64)) {
	for s, keys := range in.SeqLens {
		n := int64(in.QueryStart[s+1]) - int64(in.QueryStart[s])
		for i := int64(keys) - n; i < int64(keys); i++ {
			f(s, i/int64(in.PageSize))
		}
	}
}

// list makes the rows of a BlockSparse: KV heads of a sequence, tokens of each.
func (in *Selection) list(top []int32, b budget) kernel.BlockSparse {
	out := kernel.BlockSparse{QueryBlock: 1, KeyBlock: int32(in.PageSize), PerHead: true, Indptr: []int32{0}}
	heads, group := int(in.Query.Shape[1]), int(in.Query.Shape[1])/in.KVHeads
	var row []int32
	for s, keys := range in.SeqLens {
		out.RowStart = append(out.RowStart, int32(len(out.Indptr)-1))
		t0, t1 := int(in.QueryStart[s]), int(in.QueryStart[s+1])
		for g := range in.KVHeads {
			for t := t0; t < t1; t++ {
				own := (int64(keys) - int64(t1-t)) / int64(in.PageSize)
				row = row[:0]
				for p := int64(0); p <= own && p < int64(b.sinks); p++ {
					row = append(row, int32(p))
				}
				for p := max(own+1-int64(b.recent), 0); p <= own; p++ {
					row = append(row, int32(p))
				}
				if len(top) > 0 {
					for _, p := range top[(t*heads+g*group)*b.top:][:group*b.top] {
						if p >= 0 {
							row = append(row, p+int32(b.sinks))
						}
					}
				}
				slices.Sort(row)
				row = slices.Compact(row)
				out.Indices = append(out.Indices, row...)
				out.Indptr = append(out.Indptr, int32(len(out.Indices)))
			}
		}
	}
	return out
}
