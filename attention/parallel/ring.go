// Ring: Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers for
// Near-Infinite Context", arXiv 2310.01889 (the ring itself: Li et al., "Sequence
// Parallelism", arXiv 2105.13120). Each rank has a run of tokens; keys and values
// go round. Cost a rank and step: its share of the pairs; (ranks−1)/ranks of all
// keys and values pass through it, 2·tokens·KVHeads·HeadDim elements, and hide
// behind the products where a rank's tokens are many. Limit: causal, the last rank
// has twice the mean of the work.

package parallel

// Ring gives each rank a run of tokens.
func Ring(tokens, ranks int, causal bool) (*Schedule, error) {
	if err := check("Ring", tokens, ranks); err != nil {
		return nil, err
	}
	s := &Schedule{Name: "ring", Tokens: tokens}
	for _, x := range parts(tokens, ranks) {
		s.Held = append(s.Held, []Span{x})
	}
	s.Rounds = rotate(s.Held, causal)
	return s, nil
}
