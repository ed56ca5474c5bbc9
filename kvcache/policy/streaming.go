package policy

// Xiao et al., "Efficient Streaming Language Models with Attention Sinks",
// https://arxiv.org/abs/2309.17453
//
// The first tokens, on which models rest attention that they need nowhere else,
// and the last ones stay. Needs: nothing. Cost: none. Limits: what lies between is
// gone; positions are meant to be ranks in the cache (attention.Step.ByRank with
// unrotated keys).

// StreamingLLM keeps sinks tokens at the start, 4 in the paper, and the last ones.
func StreamingLLM(sinks int) *Policy { return &Policy{Score: Recency{}, Sinks: sinks} }

// Recency scores a key by its place.
type Recency struct{}

func (Recency) Needs() Needs { return 0 }

// Score is the ordinal.
func (Recency) Score(_ *Head, dst []float32) error {
	for j := range dst {
		dst[j] = float32(j)
	}
	return nil
}
