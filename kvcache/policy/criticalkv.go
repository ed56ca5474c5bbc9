package policy

import "math"

// Feng et al., "Identify Critical KV Cache in LLM Inference from an Output
// Perturbation Perspective", https://arxiv.org/abs/2502.03805
//
// What a key changes in the output is bounded by its weight times the norm of its
// projected value. Half of a head's keys stay by their weight, the rest by weight
// times ‖Wₒ·v‖₁. Needs: those of the score within, and projected: norms that the
// caller computes of its output projection. Cost: a product of all values with Wₒ.
// Limits: none of its own.

// CriticalKV is SnapKV with Critical scores.
func CriticalKV(window int) *Policy {
	p := SnapKV(window)
	p.Score = Critical{Of: p.Score, First: 0.5}
	return p
}

// Critical looks again at the keys that do not stay by the score within.
type Critical struct {
	Of    Score
	First float64 // part that stays by Of alone, 0 to 1; the paper takes ½
}

// criticalFloor is added to a score before it is multiplied by a norm.
const criticalFloor = 1e-4

// Needs adds the norms to what the score needs.
func (c Critical) Needs() Needs { return c.Of.Needs() | Projected }

// Score is that of Of.
func (c Critical) Score(h *Head, dst []float32) error { return c.Of.Score(h, dst) }

// Rescore puts the first keys before all others and multiplies the others'.
func (c Critical) Rescore(h *Head, scores []float32, candidates []int32, free int) error {
	if !(c.First >= 0 && c.First <= 1) {
		return valueError("Critical.First", c.First, "0 to 1")
	}
	first := best(scores, candidates, int(c.First*float64(free)))
	for j := range scores {
		scores[j] = (scores[j] + criticalFloor) * h.Projected[j]
	}
	for _, j := range first {
		scores[j] = float32(math.Inf(1))
	}
	return nil
}
