// Striped: Brandon et al., "Striped Attention: Faster Ring Attention for Causal
// Transformers", arXiv 2311.09431. Rank r has the tokens r, r+ranks, r+2·ranks, …,
// so that every round of every rank is causal, half of its pairs: the work of
// ranks differs by at most a token's keys a round. Cost as Ring's. Limit: masks
// that depend on neighbouring indices do not stay intervals of what a rank has.

package parallel

// Striped deals tokens out one by one.
func Striped(tokens, ranks int, causal bool) (*Schedule, error) {
	if err := check("Striped", tokens, ranks); err != nil {
		return nil, err
	}
	s := &Schedule{Name: "striped", Tokens: tokens}
	for r := range ranks {
		s.Held = append(s.Held, []Span{{r, ranks, max(0, (tokens-r+ranks-1)/ranks)}})
	}
	s.Rounds = rotate(s.Held, causal)
	return s, nil
}
