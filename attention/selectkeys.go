package attention

import (
	"fmt"
	"math/bits"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Keys are the keys that each query token and KV head is to see, what a selector
// of single keys gives. List t·KVHeads+g is that of token t and KV head g:
// Indices[Indptr[…] : Indptr[…+1]], ascending indices of keys.
type Keys struct {
	Indptr  []int32 // [tokens·KVHeads+1]
	Indices []int32
	seen    []uint64 // memory of add
}

// Of is the list of a query token and KV head, for KVHeads of them.
func (k *Keys) Of(token, kvHead, kvHeads int) []int32 {
	i := token*kvHeads + kvHead
	return k.Indices[k.Indptr[i]:k.Indptr[i+1]]
}

// keyTable says where the keys of a Selection are.
func (in *Selection) keyTable() kernel.KeyTable {
	return kernel.KeyTable{QueryStart: in.QueryStart, SeqLens: in.SeqLens, Pages: in.Pages}
}

// eachKey calls f with the sequence and the own key of each query token.
func (in *Selection) eachKey(f func(s int, own int64)) {
	for s, keys := range in.SeqLens {
		n := int64(in.QueryStart[s+1]) - int64(in.QueryStart[s])
		for i := int64(keys) - n; i < int64(keys); i++ {
			f(s, i)
		}
	}
}

// topKeys are the indices of the b.top largest of scores [tokens, rows, keys] between the
// first b.sinks and the last b.recent keys that a token may see, less b.sinks; −1 is
// none. It returns how many there is room for in a row.
func (in *Selection) topKeys(ops kernel.Ops, scores tensor.View, b budget) (top []int32, k int, err error) {
	tokens, rows, m := scores.Shape[0], scores.Shape[1], scores.Shape[2]
	if b.top < 1 || tokens < 1 || int64(b.sinks) >= m {
		return nil, 0, nil
	}
	k = int(min(int64(b.top), m-int64(b.sinks)))
	counts := make([]int32, 0, tokens)
	in.eachKey(func(_ int, own int64) {
		counts = append(counts, int32(max(own+1-int64(b.recent)-int64(b.sinks), 0)))
	})
	top = make([]int32, int(tokens*rows)*k)
	if err := ops.TopK(&kernel.TopKArgs{Scores: scores.Slice(2, int64(b.sinks), m), Counts: counts, K: k, Out: top}); err != nil {
		return nil, 0, fmt.Errorf("attention: %w", err)
	}
	return top, k, nil
}

// chooseKeys lists for each token and KV head the first and last keys and those of
// the largest scores [tokens, rows, keys] of any of its rows: there is a row a query
// head, or one a KV head.
func (in *Selection) chooseKeys(ops kernel.Ops, scores tensor.View, b budget) (*Keys, error) {
	top, k, err := in.topKeys(ops, scores, b)
	if err != nil {
		return nil, err
	}
	group, t := int(scores.Shape[1])/in.KVHeads, 0
	out := &Keys{Indptr: []int32{0}}
	in.eachKey(func(_ int, own int64) {
		for g := range in.KVHeads {
			row := top[min((t*in.KVHeads+g)*group*k, len(top)):]
			out.add(own, b, row[:min(group*k, len(row))])
		}
		t++
	})
	return out, nil
}

// add appends the list of a token with its own key: the first keys, those of top,
// which count from b.sinks, and the last.
func (k *Keys) add(own int64, b budget, top []int32) {
	for j := int64(0); j <= own && j < int64(b.sinks); j++ {
		k.Indices = append(k.Indices, int32(j))
	}
	k.seen = append(k.seen[:0], make([]uint64, own/64+1)...) // sorts them
	for _, j := range top {
		if j >= 0 {
			j += int32(b.sinks)
			k.seen[j/64] |= 1 << (j % 64)
		}
	}
	for n, word := range k.seen {
		for ; word != 0; word &= word - 1 {
			k.Indices = append(k.Indices, int32(n*64+bits.TrailingZeros64(word)))
		}
	}
	for j := max(own+1-int64(b.recent), int64(b.sinks), 0); j <= own; j++ {
		k.Indices = append(k.Indices, int32(j))
	}
	k.Indptr = append(k.Indptr, int32(len(k.Indices)))
}

// checkKeys refuses budgets of keys that cannot be.
func checkKeys(name string, keys, sinks, recent int) error {
	if sinks < 0 || recent < 1 || keys < 1 || sinks > keys-recent {
		return fmt.Errorf("attention: %s: Keys %d, Sinks %d, Recent %d, want Sinks at least 0, Recent at least 1, and both together at most Keys", name, keys, sinks, recent)
	}
	return nil
}

// hostQuery is Query as float32, [tokens·Heads·dim], for what is computed here.
func (in *Selection) hostQuery(name string) ([]float32, error) {
	q := &in.Query
	if q.Buf == nil || q.Bytes() == nil && q.Len() > 0 {
		return nil, fmt.Errorf("attention: %s: Query is %v, want one in host memory", name, q)
	}
	if err := q.Check(); err != nil {
		return nil, fmt.Errorf("attention: %s: Query: %w", name, err)
	}
	out := make([]float32, 0, q.Len())
	for t := range q.Shape[0] {
		for h := range q.Shape[1] {
			for d := range q.Shape[2] {
				out = append(out, q.At(t, h, d))
			}
		}
	}
	return out, nil
}

// keyScores are scores in the memory of in.Scores, one row for each of so many heads.
func (in *Selection) keyScores(name string, rows int) (tensor.View, error) {
	v := in.Scores
	if v.Rank != 3 || v.Shape[0] != in.Query.Shape[0] || v.Shape[1] < int64(rows) {
		return v, fmt.Errorf("attention: %s: Scores is %v, want [%d, at least %d, keys]", name, &v, in.Query.Shape[0], rows)
	}
	return v.Slice(1, 0, int64(rows)), nil
}
