package policy

// Guo et al., "Attention Score is not All You Need for Token Importance Indicator
// in KV Cache Reduction: Value Also Matters", https://arxiv.org/abs/2406.12335
//
// A key of much weight whose value is small changes little: scores are weights
// times ‖v‖₁. Sinks have small values and would go, so they are kept. Needs: sums
// and values. Cost: H2O's and one pass over the values. Limits: H2O's.

// VATP is H2O times the norms of values, with sinks that stay, 20 in the paper.
func VATP(sinks int) *Policy {
	p := H2O()
	p.Score, p.Sinks = ValueNorm{Of: p.Score}, sinks
	return p
}

// ValueNorm multiplies the score of another by ‖v‖₁.
type ValueNorm struct{ Of Score }

// Needs adds the values.
func (s ValueNorm) Needs() Needs { return s.Of.Needs() | Values }

// Score is that of Of times ‖v‖₁.
func (s ValueNorm) Score(h *Head, dst []float32) error {
	if err := s.Of.Score(h, dst); err != nil {
		return err
	}
	if len(dst) == 0 {
		return nil
	}
	x := make([]float64, h.Value.Shape[1])
	for j := range dst {
		dst[j] *= float32(norm1(rowInto(x, &h.Value, j)))
	}
	return nil
}
