package policy

import (
	"slices"

	"github.com/longctx/longctx/kvcache"
)

// Nawrot et al., "Dynamic Memory Compression: Retrofitting LLMs for Accelerated
// Inference", https://arxiv.org/abs/2403.09636
//
// The model decides for each token and head to append its key and value or to
// accumulate them: add them to the last ones, as a mean weighted by importance.
// Needs: external, the importance of a token, which is negative where it is to be
// accumulated (its size then counts). Cost: none. Limits: the model was trained so;
// here tokens are accumulated when a plan is made, and until then attention sees
// them apart. The keys that are merged must not be rotated.
type DMC struct{}

func (DMC) Needs() Needs { return External }

// Plan accumulates what was decided; it ignores keys.
func (DMC) Plan(s *Sequence, _ int) ([]kvcache.Plan, error) {
	if err := checkHeads(s, External); err != nil {
		return nil, err
	}
	plans := make([]kvcache.Plan, len(s.Heads))
	for i, h := range s.Heads {
		h.pending = pending{threshold: h.threshold, external: slices.Clone(h.External)}
		p := &plans[i]
		for lo := 0; lo < h.Len(); {
			hi, total := lo+1, abs(h.External[lo])
			for ; hi < h.Len() && h.External[hi] < 0; hi++ {
				total += abs(h.External[hi])
			}
			p.Keep = append(p.Keep, int32(lo))
			for j := lo; j < hi && hi > lo+1 && total > 0; j++ {
				w := abs(h.External[j]) / total
				p.Merges = append(p.Merges, kvcache.Merge{Into: int32(lo), From: int32(j), Key: w, Value: w})
			}
			h.pending.external[lo] = total // what is accumulated next is weighed against all of it
			lo = hi
		}
	}
	return plans, nil
}

func abs(x float32) float32 { return max(x, -x) }
