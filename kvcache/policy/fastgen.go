package policy

import (
	"slices"

	"github.com/longctx/longctx/kvcache"
)

// Ge et al., "Model Tells You What to Discard: Adaptive KV Cache Compression for
// LLMs" (FastGen), https://arxiv.org/abs/2310.01801
//
// Each head takes the cheapest mix that recovers a part of its attention: special
// tokens; these and punctuation; these and the most frequent; these and the local
// ones; all. Needs: tags and recent sums. Cost: a ColumnStats of the last queries,
// once. Limits: what a mix recovers is measured by the last queries, not by the
// whole attention map of the prompt; the number of keys is what that makes it.
type FastGen struct {
	Recover  float64 // 0 to 1, of the weight of the last queries
	Frequent float64 // part of the keys that the mixes with frequent ones have, 0 to 1; the paper takes 0.3
	Local    float64 // and of local ones, 0.3
}

func (FastGen) Needs() Needs { return Recent | Tags }

// Plan ignores keys.
func (p FastGen) Plan(s *Sequence, _ int) ([]kvcache.Plan, error) {
	for _, x := range []struct {
		name  string
		value float64
	}{{"Recover", p.Recover}, {"Frequent", p.Frequent}, {"Local", p.Local}} {
		if !(x.value >= 0 && x.value <= 1) {
			return nil, valueError("FastGen."+x.name, x.value, "0 to 1")
		}
	}
	return eachHead(s, p.Needs(), func(_ int, h *Head) ([]int32, error) {
		for _, mix := range p.mixes(h) {
			if massOf(h.Recent, mix) >= p.Recover {
				return mix, nil
			}
		}
		return all(h), nil
	})
}

// mixes are the sets of keys to try, from the least. The last key, to which the
// next token belongs, is in all.
func (p FastGen) mixes(h *Head) [][]int32 {
	n := h.Len()
	var special, punctuation, local []int32
	for j, tag := range h.Tags {
		switch tag {
		case Special:
			special = append(special, int32(j))
		case Punctuation:
			punctuation = append(punctuation, int32(j))
		}
	}
	if n > 0 {
		special = append(special, int32(n-1))
	}
	for j := n - int(p.Local*float64(n)); j < n; j++ {
		local = append(local, int32(j))
	}
	frequent := best(h.Recent, all(h), int(p.Frequent*float64(n)))
	var out [][]int32
	var mix []int32
	for _, more := range [][]int32{special, punctuation, frequent, local} {
		mix = append(slices.Clone(mix), more...)
		slices.Sort(mix)
		mix = slices.Compact(mix)
		out = append(out, mix)
	}
	return out
}
