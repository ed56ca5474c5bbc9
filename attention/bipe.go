// Zhenyu He et al., "Two Stones Hit One Bird: Bilevel Positional Encoding for Better Length Extrapolation", 2024, https://arxiv.org/abs/2401.16421

package attention

import (
	"fmt"

	"github.com/longctx/longctx/tensor"
)

// BiPE is bilevel positional encoding: a token has the number of its segment, and
// its place within. Attention uses the segment,
//
//	BiPE-RoPE    query at segment(i), key at segment(j): Levels as Step.KeyPos
//	BiPE-ALiBi   s −= Slopes[h]·(segment(i) − segment(j)): Bias
//
// and the place within a segment is an embedding that the model adds to its input.
//
// Claim: weak; perplexity stays flat where segments keep their trained length, of
// which a long text has more.
//
// Cost: that of Absolute, of fewer distinct positions. BiPE-ALiBi has one
// addition a pair, and one float32 a token and head.
//
// Limits: for models trained so. Tokens of a segment are told apart by content
// and by the model's embedding alone.
type BiPE struct {
	// Ends[n] is the number of tokens up to the end of segment n, ascending. What
	// comes after the last is one more segment.
	Ends []int
}

// Name returns "bipe".
func (BiPE) Name() string { return "bipe" }

// Levels returns the segment and the place within it of tokens 0 to n−1.
func (m BiPE) Levels(n int) (segment, within []int32, err error) {
	if err := parameter("tokens", n, 0); err != nil {
		return nil, nil, fmt.Errorf("attention: bipe: %w", err)
	}
	for k, end := range m.Ends {
		if end < 1 || k > 0 && end <= m.Ends[k-1] {
			return nil, nil, fmt.Errorf("attention: bipe: Ends[%d] is %d, want ascending and at least 1", k, end)
		}
	}
	segment, within = make([]int32, n), make([]int32, n)
	s, start := 0, 0
	for t := range n {
		for s < len(m.Ends) && t >= m.Ends[s] {
			start = m.Ends[s]
			s++
		}
		segment[t], within[t] = int32(s), int32(t-start)
	}
	return segment, within, nil
}

// Bias returns the rows of tokens 0 to n−1 of ScoreArgs.PrefixBias, for
// Score{PrefixBias: true} and a causal mask: the penalty of BiPE-ALiBi.
func (m BiPE) Bias(n int, slopes []float32) (tensor.View, error) {
	segment, _, err := m.Levels(n)
	if err != nil {
		return tensor.View{}, err
	}
	if len(slopes) == 0 {
		return tensor.View{}, fmt.Errorf("attention: bipe: no slopes, want one for each head")
	}
	out := make([]float32, 0, n*len(slopes))
	for _, s := range segment {
		for _, slope := range slopes {
			out = append(out, -slope*float32(s))
		}
	}
	return tensor.FromF32(out, int64(n), int64(len(slopes))), nil
}
