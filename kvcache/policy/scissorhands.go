package policy

// Liu et al., "Scissorhands: Exploiting the Persistence of Importance Hypothesis
// for LLM KV Cache Compression at Test Time", https://arxiv.org/abs/2305.17118
//
// A key that few queries of the recent history gave less than an even share of
// their weight (1/n of n keys) stays: what was important stays so. Needs: each
// query by itself, as the share is one of a query. Cost: a ColumnStats with Window
// 1 a step. Limits: the history is that since the last plan; a prompt counts only
// as far as its queries were observed one by one.

// Scissorhands keeps the last recent keys too, 10 in the paper.
func Scissorhands(recent int) *Policy {
	return &Policy{Score: Persistence{}, Recent: recent, Trigger: Any{AfterPrompt{}, Every{64}}}
}

// Persistence scores a key by Head.Low, fewest first.
type Persistence struct{}

func (Persistence) Needs() Needs { return Each }

// Score is −Low.
func (Persistence) Score(h *Head, dst []float32) error {
	for j := range dst {
		dst[j] = -h.Low[j]
	}
	return nil
}
