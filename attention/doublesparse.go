// Shuo Yang et al., "Post-Training Sparse Attention with Double Sparsity", 2024, https://arxiv.org/abs/2408.07092

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// DoubleSparse is sparse in keys and in features: of each KV head the r channels
// that weigh most in q·k, found before on some text, are kept beside the cache as
// labels, and with them
//
//	score(j) = Scale · Σ_{c ∈ Channels[g]} q_c · k_j,c
//
// and a query head sees its Keys keys of the largest score. Sinks first and Recent
// last keys are seen whatever their score and count in Keys; the published code
// has none of these. With several query heads to a KV head, a KV head reads the
// keys that any of them chose.
//
// Claim: close to dense at 1/16 of keys and of channels.
//
// Cost: 2·r FLOPs a key and query head, r/HeadDim of the keys' bytes (in the paper
// a quarter of these, as labels have 4 bits), TopK over all keys, then attention
// over what was chosen.
//
// Limits: for decode; the channels have to be found, for keys as they are stored.
// Labels are memory beside the cache, and here of the types of keys. On the CPU
// scores and TopK cost more than they save at 32k keys and a budget of 4096, not at
// 128k (`go run ./bench select`).
type DoubleSparse struct {
	Keys   int // keys a query head sees, at least 1
	Sinks  int // of these, first keys, at least 0
	Recent int // of these, last keys, the query's own included, at least 1

	Channels [][]int32 // of each KV head, as many of each
}

// Info describes the selector.
func (DoubleSparse) Info() SelectorInfo {
	return SelectorInfo{"doublesparse", "arXiv:2408.07092", "decode", "the heavy channels of each KV head; these features of each key"}
}

func (d DoubleSparse) check(kvHeads int, dim int64) error {
	if err := checkKeys("doublesparse", d.Keys, d.Sinks, d.Recent); err != nil {
		return err
	}
	if len(d.Channels) != kvHeads {
		return fmt.Errorf("attention: doublesparse: Channels of %d KV heads, want %d", len(d.Channels), kvHeads)
	}
	for g, list := range d.Channels {
		if len(list) < 1 || len(list) != len(d.Channels[0]) {
			return fmt.Errorf("attention: doublesparse: %d channels of KV head %d, want at least 1 and as many as the %d of KV head 0", len(list), g, len(d.Channels[0]))
		}
		for _, c := range list {
			if c < 0 || int64(c) >= dim {
				return fmt.Errorf("attention: doublesparse: channel %d of KV head %d, want 0 to %d", c, g, dim-1)
			}
		}
	}
	return nil
}

// Label copies the channels of the first Rows[i] keys of Pages[i] from key
// [pages, PageSize, KVHeads, HeadDim] to labels [pages, PageSize, KVHeads, r], in
// host memory. Pages that have grown are labelled anew.
func (d DoubleSparse) Label(key, labels tensor.View, pages, rows []int32) error {
	if err := d.check(int(key.Shape[2]), key.Shape[3]); err != nil {
		return err
	}
	r := int64(len(d.Channels[0]))
	if key.Rank != 4 || labels.Rank != 4 || labels.Shape != [tensor.MaxRank]int64{key.Shape[0], key.Shape[1], key.Shape[2], r} || len(rows) != len(pages) {
		return fmt.Errorf("attention: doublesparse: labels %v of keys %v for %d pages and %d counts, want %d features a key and a count a page", &labels, &key, len(pages), len(rows), r)
	}
	if err := onHost("doublesparse", &key, &labels); err != nil {
		return err
	}
	for i, p := range pages {
		if p < 0 || int64(p) >= key.Shape[0] || rows[i] < 0 || int64(rows[i]) > key.Shape[1] {
			return fmt.Errorf("attention: doublesparse: page %d with %d keys, want one of %d with at most %d", p, rows[i], key.Shape[0], key.Shape[1])
		}
		for slot := range int64(rows[i]) {
			for g, list := range d.Channels {
				for n, c := range list {
					labels.Set(key.At(int64(p), slot, int64(g), int64(c)), int64(p), slot, int64(g), int64(n))
				}
			}
		}
	}
	return nil
}

// onHost refuses views that cannot be read here.
func onHost(name string, views ...*tensor.View) error {
	for _, v := range views {
		if v.Buf == nil || v.Bytes() == nil && v.Len() > 0 {
			return fmt.Errorf("attention: %s: %v, want a tensor in host memory", name, v)
		}
		if err := v.Check(); err != nil {
			return fmt.Errorf("attention: %s: %w", name, err)
		}
	}
	return nil
}

// Select lists the keys of each query token and KV head. in.Query is that of
// attention, in host memory; labels are [pages, PageSize, KVHeads, r].
func (d DoubleSparse) Select(ops kernel.Ops, in *Selection, labels tensor.View) (*Keys, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	if err := d.check(in.KVHeads, in.Query.Shape[2]); err != nil {
		return nil, err
	}
	q, err := in.hostQuery("doublesparse")
	if err != nil {
		return nil, err
	}
	heads, dim, r := int(in.Query.Shape[1]), int(in.Query.Shape[2]), len(d.Channels[0])
	some := *in
	some.Query = tensor.New(tensor.F32, in.Query.Shape[0], int64(heads), int64(r))
	out := some.Query.F32s()
	for row := range len(q) / max(dim, 1) {
		for n, c := range d.Channels[row%heads/(heads/in.KVHeads)] {
			out[row*r+n] = q[row*dim+int(c)]
		}
	}
	return some.chooseByRows(ops, "doublesparse", labels, budget{d.Sinks, d.Recent, d.Keys - d.Sinks - d.Recent})
}
