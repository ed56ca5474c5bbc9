// Zhixuan Lin et al., "Forgetting Transformer: Softmax Attention with a Forget Gate", 2025, https://arxiv.org/abs/2503.02130

package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/tensor"
)

// Forgetting is forgetting attention (FoX): each token and head has a gate
// 0 < f <= 1, and what lies behind gates counts less.
//
//	s += Σ ln f[t,h] over j < t <= i  =  C[i,h] − C[j,h],   C = running sum of ln f
//
// Gates of 1 are attention without. ALiBi is one constant gate a head, e^−slope.
//
// Claim: weak, and the paper finds retrieval kept within the trained length.
//
// Cost: one subtraction and one addition a pair; one float32 a token and head,
// 4·Heads bytes beside the 2·KVHeads·HeadDim values that a cache holds of a token.
//
// Limits: for models trained so. C is rounded to float32, so that beside a sum
// of 10⁴ a bias is exact to 10⁻³; where sums grow so far, near keys alone are in
// sight.
type Forgetting struct {
	Heads int // query heads
}

// Name returns "forgetting".
func (Forgetting) Name() string { return "forgetting" }

// Extend appends to sums the rows C of the next tokens of one sequence, given
// their ln f as [tokens·Heads]. The rows of all sequences, one after another,
// are ScoreArgs.PrefixBias for Score{PrefixBias: true}.
func (m Forgetting) Extend(sums []float64, logGates []float32) ([]float64, error) {
	if m.Heads < 1 || len(logGates)%m.Heads != 0 || len(sums)%m.Heads != 0 {
		return sums, fmt.Errorf("attention: forgetting: %d sums and %d gates for %d heads, want multiples of at least 1 head", len(sums), len(logGates), m.Heads)
	}
	for i, g := range logGates {
		if !(g <= 0) || math.IsInf(float64(g), -1) {
			return sums, fmt.Errorf("attention: forgetting: logarithm of gate %d of head %d is %v, want finite and at most 0", i/m.Heads, i%m.Heads, g)
		}
	}
	for _, g := range logGates {
		before := 0.0
		if len(sums) >= m.Heads {
			before = sums[len(sums)-m.Heads]
		}
		sums = append(sums, before+float64(g))
	}
	return sums, nil
}

// Bias is sums as ScoreArgs.PrefixBias, each rounded once.
func (m Forgetting) Bias(sums []float64) (tensor.View, error) {
	if m.Heads < 1 || len(sums)%m.Heads != 0 {
		return tensor.View{}, fmt.Errorf("attention: forgetting: %d sums for %d heads, want a multiple of at least 1 head", len(sums), m.Heads)
	}
	out := make([]float32, len(sums))
	for i, x := range sums {
		out[i] = float32(x)
	}
	return tensor.FromF32(out, int64(len(sums)/m.Heads), int64(m.Heads)), nil
}
