// Ulysses: Jacobs et al., "DeepSpeed Ulysses: System Optimizations for Enabling
// Training of Extreme Long Sequence Transformer Models", arXiv 2309.14509. Before
// attention an all-to-all gives each rank all tokens of its share of heads, after
// it another gives each rank all heads of its tokens. Cost a rank: its share of
// the heads' pairs, always balanced where heads divide; 4·tokens·Heads·HeadDim/ranks
// elements sent. Limit: at most as many ranks as KV heads.

package parallel

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// Ulysses gives each rank a run of tokens to hold and a run of KV heads, with the
// query heads that share them, to compute.
func Ulysses(tokens, heads, kvHeads, ranks int, causal bool) (*Schedule, error) {
	if err := check("Ulysses", tokens, ranks); err != nil {
		return nil, err
	}
	if kvHeads < 1 || heads < 1 || heads > kernel.MaxHeads || heads%kvHeads != 0 {
		return nil, fmt.Errorf("parallel: Ulysses of %d query and %d KV heads, want a multiple of at least 1, up to %d", heads, kvHeads, kernel.MaxHeads)
	}
	if ranks > kvHeads {
		return nil, fmt.Errorf("parallel: Ulysses of %d ranks, want at most the %d KV heads", ranks, kvHeads)
	}
	s, group := &Schedule{Name: "ulysses", Tokens: tokens}, heads/kvHeads
	shares, all := parts(kvHeads, ranks), Span{0, 1, tokens}
	for r, x := range parts(tokens, ranks) {
		s.Held = append(s.Held, []Span{x})
		var rounds []Round
		if round, ok := meet(r, all, all, causal); ok {
			round.Heads = [2]int{shares[r].First * group, (shares[r].First + shares[r].Count) * group}
			rounds = append(rounds, round)
		}
		s.Rounds = append(s.Rounds, rounds)
	}
	return s, nil
}
