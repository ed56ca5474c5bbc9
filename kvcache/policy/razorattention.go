package policy

import (
	"slices"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kvcache"
)

// Tang et al., "RazorAttention: Efficient KV Cache Compression Through Retrieval
// Heads", https://arxiv.org/abs/2407.15891
//
// Retrieval heads, found by how much they attend to echoes and inductions of
// repeated random tokens, keep all keys. The others keep sinks and recent keys, and
// in place of the rest one compensation token: the mean of the keys and of the
// values that went, which counts as often as there were (Head.Bias). Needs: nothing
// at run time. Cost: none. Limits: the heads are found beforehand; attention must
// take the bias (Score{PrefixBias: true}); keys averaged as they are stored.
type RazorAttention struct {
	Retrieval []bool // [Layers·KVHeads]
	Streaming Window // of the others; the paper takes 4 sinks and max(4000, N/5) recent
}

func (RazorAttention) Needs() Needs { return 0 }

// Plan ignores keys.
func (p RazorAttention) Plan(s *Sequence, _ int) ([]kvcache.Plan, error) {
	if err := p.Streaming.check(); err != nil {
		return nil, err
	}
	if err := checkClasses("RazorAttention.Retrieval", len(p.Retrieval), s); err != nil {
		return nil, err
	}
	plans, err := eachHead(s, 0, func(i int, h *Head) ([]int32, error) {
		if p.Retrieval[i] {
			return all(h), nil
		}
		return p.Streaming.keep(h), nil
	})
	if err != nil {
		return nil, err
	}
	for i, h := range s.Heads {
		compensate(h, &plans[i])
	}
	return plans, nil
}

// compensate puts the mean of the keys that go in the place of the first of them.
func compensate(h *Head, p *kvcache.Plan) {
	stays := make([]bool, h.Len())
	for _, j := range p.Keep {
		stays[j] = true
	}
	var gone []int32
	total := float32(0)
	for j := range stays {
		if !stays[j] {
			gone = append(gone, int32(j))
			total += h.count(j)
		}
	}
	if len(gone) == 0 {
		return
	}
	for _, j := range gone {
		w := h.count(int(j)) / total
		p.Merges = append(p.Merges, kvcache.Merge{Into: gone[0], From: j, Key: w, Value: w})
	}
	p.Keep = append(p.Keep, gone[0])
	slices.Sort(p.Keep)
	count := make([]float32, h.Len())
	for j := range count {
		count[j] = h.count(j)
	}
	count[gone[0]] = total
	h.pending.count = count
}

// count is Count[j].
func (h *Head) count(j int) float32 {
	if h.Count == nil {
		return 1
	}
	return h.Count[j]
}

// Bias appends to dst a row of kernel.ScoreArgs.PrefixBias for each key: −ln Count,
// by which attention counts a key as often as the tokens it stands for. It is the
// same for all query heads of the group.
func (h *Head) Bias(dst []float32) []float32 {
	for j := range h.Positions {
		dst = append(dst, -float32(xmath.Log(float64(h.count(j)))))
	}
	return dst
}
