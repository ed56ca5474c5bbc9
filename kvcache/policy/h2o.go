package policy

// Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of
// Large Language Models", https://arxiv.org/abs/2306.14048
//
// The keys with the largest sums of weights over all queries so far stay, beside
// the last ones: half of the budget each. Needs: sums, at each step. Cost: a
// ColumnStats of all queries, as much as attention itself again. Limits: early
// keys have been seen by more queries, and so have larger sums.

// H2O gives half of the budget to the last keys.
func H2O() *Policy {
	return &Policy{Score: Accumulated{}, RecentPart: 0.5, Trigger: Any{AfterPrompt{}, Every{1}}}
}

// Accumulated scores a key by Head.Sum.
type Accumulated struct{}

func (Accumulated) Needs() Needs { return Sums }

// Score is the sum of weights.
func (Accumulated) Score(h *Head, dst []float32) error {
	copy(dst, h.Sum)
	return nil
}
