// Zig-zag: the load balance of Llama 3 (Grattafiori et al., "The Llama 3 Herd of
// Models", arXiv 2407.21783, section 3.3.2) and of zigzag ring attention. The
// sequence is cut into twice as many runs as ranks; rank r has the r-th and the
// r-th from the end. Cost as Ring's; causal, every rank has the same work to within
// the rounding of lengths.

package parallel

// ZigZag gives rank r the r-th run and the r-th from the end.
func ZigZag(tokens, ranks int, causal bool) (*Schedule, error) {
	if err := check("ZigZag", tokens, ranks); err != nil {
		return nil, err
	}
	s, runs := &Schedule{Name: "zig-zag", Tokens: tokens}, parts(tokens, 2*ranks)
	for r := range ranks {
		s.Held = append(s.Held, []Span{runs[r], runs[2*ranks-1-r]})
	}
	s.Rounds = rotate(s.Held, causal)
	return s, nil
}
