package policy

import "math"

// Ren and Zhu, "On the Efficacy of Eviction Policy for Key-Value Constrained
// Generative Language Model Inference", https://arxiv.org/abs/2402.06262
//
// RoCo: keys whose weights vary most between queries are kept whatever their mean,
// and of the others those with the largest mean. Needs: sums and squares. Cost:
// two ColumnStats of all queries. Limits: H2O's bias to early keys is gone, as it
// takes means.

// RoCo keeps a part of the budget, 0 to 1, by deviation.
func RoCo(part float64) *Policy {
	return &Policy{Score: Robust{Part: part}, RecentPart: 0.1, Trigger: Any{AfterPrompt{}, Every{1}}}
}

// Robust scores a key by the mean of its weights, and then by their standard
// deviation the part of keys where that is largest.
type Robust struct {
	Part float64
}

func (Robust) Needs() Needs { return Sums | Squares }

// Score is the mean weight.
func (Robust) Score(h *Head, dst []float32) error {
	for j := range dst {
		dst[j] = h.Sum[j] / max(h.Queries[j], 1)
	}
	return nil
}

// Rescore puts the keys of the largest deviation first.
func (r Robust) Rescore(h *Head, scores []float32, candidates []int32, free int) error {
	if !(r.Part >= 0 && r.Part <= 1) {
		return valueError("Robust.Part", r.Part, "0 to 1")
	}
	deviation := make([]float32, len(scores))
	for j, mean := range scores {
		deviation[j] = float32(math.Sqrt(float64(max(h.Square[j]/max(h.Queries[j], 1)-float32(mean*mean), 0))))
	}
	for _, j := range best(deviation, candidates, int(r.Part*float64(free))) {
		scores[j] = float32(math.Inf(1))
	}
	return nil
}
