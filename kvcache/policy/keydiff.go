package policy

// Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context
// LLM Inference in Resource-Constrained Environments",
// https://arxiv.org/abs/2504.15364
//
// Keys unlike the others stay: those of the least cosine with the mean of all
// keys, each taken with norm 1. Needs: keys. Cost: two passes over the keys.
// Limits: keys as they are stored, rotated or not.

// KeyDiff keeps the keys most unlike their mean.
func KeyDiff() *Policy {
	return &Policy{Score: KeyDifference{}, Trigger: Any{AfterPrompt{}, Every{128}}}
}

// KeyDifference scores a key by −cos(k, mean of k/‖k‖).
type KeyDifference struct{}

func (KeyDifference) Needs() Needs { return Keys }

// Score is minus the cosine.
func (KeyDifference) Score(h *Head, dst []float32) error {
	if len(dst) == 0 {
		return nil
	}
	anchor, x := make([]float64, h.Key.Shape[1]), make([]float64, h.Key.Shape[1])
	for j := range dst {
		scale := 1 / max(norm2(rowInto(x, &h.Key, j)), tiny)
		for d := range anchor {
			anchor[d] += float64(x[d] * scale)
		}
	}
	for j := range dst {
		n := norm2(rowInto(x, &h.Key, j))
		dst[j] = -float32(dot(x, anchor) / (max(n, tiny) * max(norm2(anchor), tiny)))
	}
	return nil
}
