// Star: Acharya, Jia, Ginsburg, "Star Attention: Efficient LLM Inference over Long
// Sequences", arXiv 2411.17116. The context is cut into blocks, one a rank. First
// each block is encoded by itself behind a copy of the first one, the anchor; then
// the query tokens, which the last rank holds, see every key, and what the ranks
// give is joined by log-sum-exp. Cost: the context's pairs grow with its length,
// not with its square; no keys are sent but the anchor's, once. It is an
// approximation: a token of the context sees the anchor and its own block alone.

package parallel

import "fmt"

// Star cuts the first tokens, all but the last query ones, into a block for each
// rank.
func Star(tokens, query, ranks int) (*Schedule, error) {
	if err := check("Star", tokens, ranks); err != nil {
		return nil, err
	}
	if query < 0 || query > tokens {
		return nil, fmt.Errorf("parallel: Star with %d query tokens, want 0 to the %d of the sequence", query, tokens)
	}
	s, blocks := &Schedule{Name: "star", Tokens: tokens}, parts(tokens-query, ranks)
	last := Span{tokens - query, 1, query}
	for r, b := range blocks {
		held, rounds := []Span{b}, []Round(nil)
		add := func(from int, q, k Span) {
			if x, ok := meet(from, q, k, true); ok {
				rounds = append(rounds, x)
			}
		}
		add(r, b, b)
		if r > 0 {
			add(0, b, blocks[0])
		}
		if r == ranks-1 {
			held = append(held, last)
			add(r, last, last)
			for k := range blocks {
				add(ranks-1-k, last, blocks[ranks-1-k])
			}
		}
		s.Held, s.Rounds = append(s.Held, held), append(s.Rounds, rounds)
	}
	return s, nil
}
