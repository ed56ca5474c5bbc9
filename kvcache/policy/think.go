package policy

import (
	"slices"

	"github.com/longctx/longctx/tensor"
)

// Xu et al., "ThinK: Thinner Key Cache by Query-Driven Pruning",
// https://arxiv.org/abs/2407.21018
//
// Not keys go but channels of them: those of the least ‖q_c‖²·‖k_c‖², over the last
// queries and all keys of a KV head. A cache of HeadDim Keep then holds what is left
// (TakeChannels) of keys, and of queries before they attend, with the Scale of all
// channels. Needs: keys and the last queries. Cost: one pass over the keys. Limits:
// keys that are stored rotated; all keys of a head lose the same channels, where the
// paper's code leaves the last 32 keys whole.
type ThinK struct {
	Keep    int // channels that stay
	Queries int // last queries that count; 32 in the paper
}

// Channels are those that stay, ascending, of the keys [n, dim] of a KV head, by the
// queries [tokens, heads, dim] of its group, in host memory.
func (t ThinK) Channels(query, key tensor.View) ([]int32, error) {
	if key.Rank != 2 || key.Bytes() == nil || query.Rank != 3 || query.Bytes() == nil || query.Shape[2] != key.Shape[1] {
		return nil, valueError("ThinK: query", &query, "[tokens,heads,dim], and keys [n,dim] (got %v), in host memory", &key)
	}
	dim := key.Shape[1]
	if t.Keep < 1 || int64(t.Keep) > dim || t.Queries < 1 {
		return nil, valueError("ThinK.Keep", t.Keep, "1 to %d, and Queries (%d) of 1 or more", dim, t.Queries)
	}
	scores, channels := make([]float32, dim), make([]int32, dim)
	for d := range dim {
		q, k := 0.0, 0.0
		for i := max(query.Shape[0]-int64(t.Queries), 0); i < query.Shape[0]; i++ {
			for h := range query.Shape[1] {
				x := float64(query.At(i, h, d))
				q += float64(x * x)
			}
		}
		for j := range key.Shape[0] {
			x := float64(key.At(j, d))
			k += float64(x * x)
		}
		scores[d], channels[d] = float32(q*k), int32(d)
	}
	keep := best(scores, channels, t.Keep)
	slices.Sort(keep)
	return keep, nil
}

// TakeChannels copies some channels of a tensor in host memory, of any rank; they are
// its last dimension.
func TakeChannels(v tensor.View, channels []int32) (tensor.View, error) {
	if v.Rank < 1 || v.Bytes() == nil {
		return tensor.View{}, valueError("TakeChannels: tensor", &v, "one in host memory")
	}
	last := v.Rank - 1
	for _, c := range channels {
		if c < 0 || int64(c) >= v.Shape[last] {
			return tensor.View{}, valueError("TakeChannels: channel", c, "0 to %d", v.Shape[last]-1)
		}
	}
	shape := slices.Clone(v.Shape[:v.Rank])
	shape[last] = int64(len(channels))
	out := tensor.New(v.DType, shape...)
	at := make([]int64, v.Rank)
	for range out.Len() {
		to := slices.Clone(at)
		at[last] = int64(channels[to[last]])
		x := v.At(at...)
		at[last] = to[last]
		out.Set(x, to...)
		for d := last; d >= 0; d-- {
			if at[d]++; at[d] < shape[d] {
				break
			}
			at[d] = 0
		}
	}
	return out, nil
}
