package policy

import "fmt"

// Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation",
// https://arxiv.org/abs/2404.14469
//
// The last queries of the prompt, the observation window, vote for the keys before
// them by their weights; the votes are pooled over neighbours, so that keys stay
// with what is around them. The window itself stays. Needs: recent sums, of the
// window. Cost: a ColumnStats of the window, once. Limits: the end of the prompt
// must hold the question.

// SnapKV has a window of as many queries, 32 in the paper's code, and pools over 5
// neighbours.
func SnapKV(window int) *Policy {
	return &Policy{Score: Pooled{Window: window, Kernel: 5}, Recent: window}
}

// Pooled scores the keys before the observation window by Head.Recent, pooled.
type Pooled struct {
	Window int  // last keys, that are not pooled
	Kernel int  // neighbours, odd
	Max    bool // the largest instead of the mean; of the mean of a group, where the paper pools each query head
}

func (Pooled) Needs() Needs { return Recent }

// Score is the mean over Kernel neighbours, those past an end counting 0.
func (p Pooled) Score(h *Head, dst []float32) error {
	if p.Kernel < 1 || p.Kernel%2 == 0 || p.Window < 0 {
		return valueError("Pooled", fmt.Sprintf("%+v", p), "Window of 0 or more and an odd Kernel")
	}
	n := max(h.Len()-p.Window, 0)
	copy(dst[n:], h.Recent[n:])
	for j := range n {
		sum, most := float32(0), float32(0)
		for k := max(j-p.Kernel/2, 0); k <= min(j+p.Kernel/2, n-1); k++ {
			sum, most = sum+h.Recent[k], max(most, h.Recent[k])
		}
		if dst[j] = sum / float32(p.Kernel); p.Max {
			dst[j] = most
		}
	}
	return nil
}
