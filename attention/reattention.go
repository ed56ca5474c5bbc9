// Xiaoran Liu et al., "ReAttention: Training-Free Infinite Context with Finite Attention Scope", 2024, https://arxiv.org/abs/2407.15176

package attention

import (
	"fmt"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// ReAttention finds keys by unrotated dot products, in which no distance is, and
// attends to them and their neighbours. Between the Global first and the Local last
// keys each query head finds its Top keys j of the largest
//
//	score(j) = Scale · q · k_j      both unrotated
//
// and all heads of the layer see, for what any of them found, the keys j−Span/2 …
// j+(Span−1)/2, those outside moved to the nearest key between. The keys are laid
// side by side, with ranks as positions (KeyAttention with ranks), or keep their
// own, as the published code has by default.
//
// Claim: retrieval at a million tokens and more, within the trained scope, without
// training.
//
// Cost: 2·HeadDim FLOPs a key and query head, and all keys' bytes, but no values';
// TopK over all keys; then attention over at most Global + Local +
// Heads·Top·Span keys.
//
// Limits: for decode, with PreRoPE keys. As it reads every key, it is at most twice
// as fast as dense decode. The published code rounds the local part to a multiple
// of 128 and may clip what was found by counts; here neither is done.
type ReAttention struct {
	Top    int // keys that a query head finds, at least 1; 1 to 4
	Span   int // keys around a found one, itself included, at least 1; 32
	Global int // first keys, at least 0; 32
	Local  int // last keys, the query's own included, at least 1; 4096
}

// Info describes the selector.
func (ReAttention) Info() SelectorInfo {
	return SelectorInfo{"reattention", "arXiv:2407.15176", "decode", "keys stored unrotated"}
}

// Select lists the keys of each query token, the same for each KV head. in.Query is
// unrotated, and key the cache, [pages, PageSize, KVHeads, HeadDim].
func (m ReAttention) Select(ops kernel.Ops, in *Selection, key tensor.View) (*Keys, error) {
	if m.Top < 1 || m.Span < 1 || m.Global < 0 || m.Local < 1 {
		return nil, fmt.Errorf("attention: reattention: %+v, want Top, Span and Local at least 1, and Global at least 0", m)
	}
	if err := in.score(ops, "reattention", key); err != nil {
		return nil, err
	}
	top, k, err := in.topKeys(ops, in.Scores, budget{m.Global, m.Local, m.Top})
	if err != nil {
		return nil, err
	}
	heads, t := int(in.Query.Shape[1]), 0
	out := &Keys{Indptr: []int32{0}}
	in.eachKey(func(_ int, own int64) {
		var found []int32
		last := own - int64(m.Local) - int64(m.Global) // the last key between
		for _, j := range top[min(t*heads*k, len(top)):min((t+1)*heads*k, len(top))] {
			for n := range int64(m.Span) {
				if j >= 0 {
					found = append(found, int32(min(max(int64(j)-int64(m.Span/2)+n, 0), last)))
				}
			}
		}
		slices.Sort(found)
		found = slices.Compact(found)
		for range in.KVHeads {
			out.add(own, budget{m.Global, m.Local, 0}, found)
		}
		t++
	})
	return out, nil
}
