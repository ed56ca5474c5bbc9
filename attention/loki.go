// Prajwal Singhania et al., "Loki: Low-Rank Keys for Efficient Sparse Attention", 2024, https://arxiv.org/abs/2406.02542

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Loki scores keys by their first principal components. Keys are turned into a
// basis found before (PCA of keys of some text, a basis a KV head), of which the
// first r features are kept as a reduced copy; a query turned likewise has with
// them
//
//	score(j) = Scale · Σ_{c<r} (Basis·q)_c · (Basis·k_j)_c
//
// and a query head sees its Keys keys of the largest score. Sinks first and Recent
// last keys are seen whatever their score and count in Keys; the published code
// has none of these. With several query heads to a KV head, a KV head reads the
// keys that any of them chose. With all HeadDim features scores are those of
// attention, up to rounding.
//
// Claim: with a quarter of the features and a quarter of the keys, close to dense.
//
// Cost: 2·r FLOPs a key and query head, r/HeadDim of the keys' bytes, TopK over
// all keys, then attention over what was chosen; 2·r·HeadDim FLOPs for each new
// key.
//
// Limits: for decode; a basis has to be found, and fits keys rotated or not,
// whichever it was found for. The reduced copy is memory beside the cache. The
// smaller r, the more keys have to be read. On the CPU scores and TopK cost more
// than they save at 32k keys and a budget of 4096, not at 128k (`go run ./bench
// select`).
type Loki struct {
	Keys   int // keys a query head sees, at least 1
	Sinks  int // of these, first keys, at least 0
	Recent int // of these, last keys, the query's own included, at least 1
}

// Info describes the selector.
func (Loki) Info() SelectorInfo {
	return SelectorInfo{"loki", "arXiv:2406.02542", "decode", "a PCA basis; the first components of each key"}
}

// Project turns rows [tokens, heads, HeadDim] into the first r features of a basis
// [1, r, KVHeads, HeadDim]: out is [tokens, heads, r] F32. It takes queries, and
// keys on their way into the reduced copy, for example a page of each.
func (Loki) Project(ops kernel.Ops, rows, basis, out tensor.View) error {
	if err := project(ops, rows, basis, out); err != nil {
		return fmt.Errorf("attention: loki: %w", err)
	}
	return nil
}

// project has out[t,h,c] = Σ_d rows[t,h,d]·basis[0,c,g,d].
func project(ops kernel.Ops, rows, basis, out tensor.View) error {
	return ops.RowScores(&kernel.RowScoresArgs{
		Query: rows, Key: basis, Scale: 1, Out: out, KeyTable: kernel.KeyTable{
			QueryStart: []int32{0, int32(rows.Shape[0])}, SeqLens: []int32{int32(basis.Shape[1])}, Pages: kernel.BlockTable{Indptr: []int32{0, 1}, Indices: []int32{0}},
		},
	})
}

// Select lists the keys of each query token and KV head. in.Query is projected,
// [tokens, Heads, r]; reduced is [pages, PageSize, KVHeads, r].
func (l Loki) Select(ops kernel.Ops, in *Selection, reduced tensor.View) (*Keys, error) {
	if err := checkKeys("loki", l.Keys, l.Sinks, l.Recent); err != nil {
		return nil, err
	}
	return in.chooseByRows(ops, "loki", reduced, budget{l.Sinks, l.Recent, l.Keys - l.Sinks - l.Recent})
}

// chooseByRows chooses keys by what is kept of them.
func (in *Selection) chooseByRows(ops kernel.Ops, name string, rows tensor.View, b budget) (*Keys, error) {
	if err := in.score(ops, name, rows); err != nil {
		return nil, err
	}
	return in.chooseKeys(ops, in.Scores, b)
}

// score scores keys with the queries, by rows of as many features.
func (in *Selection) score(ops kernel.Ops, name string, rows tensor.View) error {
	if err := in.check(); err != nil {
		return err
	}
	if err := ops.RowScores(&kernel.RowScoresArgs{
		Query: in.Query, Key: rows, KeyTable: in.keyTable(), Scale: in.Scale, Policy: in.Policy, Out: in.Scores,
	}); err != nil {
		return fmt.Errorf("attention: %s: %w", name, err)
	}
	return nil
}
