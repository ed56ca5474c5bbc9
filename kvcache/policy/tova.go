package policy

// Oren et al., "Transformers are Multi-State RNNs", https://arxiv.org/abs/2401.06104
//
// The keys to which the last query gave the most weight stay, by the mean over the
// heads of a layer. Needs: recent sums, of one query. Cost: a ColumnStats with
// Window 1 a step. Limits: all heads of a layer keep the same keys; one query
// decides.

// TOVA protects no key but by its score.
func TOVA() *Policy {
	return &Policy{Score: LastQueries{}, Share: true, Trigger: Any{AfterPrompt{}, Every{1}}}
}

// LastQueries scores a key by Head.Recent.
type LastQueries struct{}

func (LastQueries) Needs() Needs { return Recent }

// Score is the sum of weights of the last queries.
func (LastQueries) Score(h *Head, dst []float32) error {
	copy(dst, h.Recent)
	return nil
}
