package policy

import "github.com/longctx/longctx/kvcache"

// Xiao et al., "DuoAttention: Efficient Long-Context LLM Inference with Retrieval
// and Streaming Heads", https://arxiv.org/abs/2410.10819
//
// Some heads retrieve from the whole context and keep all keys; the others get by
// with sinks and recent keys. Which are which was learned, a gate of 0 to 1 for
// each KV head. Needs: nothing at run time. Cost: none. Limits: the gates are the
// model's; the number of keys is what they make it.
type DuoAttention struct {
	Gates     []float32 // [Layers·KVHeads]
	Threshold float32   // gates of this and more retrieve
	Streaming Window    // of the others; the paper takes 64 sinks and 256 recent
}

func (DuoAttention) Needs() Needs { return 0 }

// Plan ignores keys.
func (p DuoAttention) Plan(s *Sequence, _ int) ([]kvcache.Plan, error) {
	if err := p.Streaming.check(); err != nil {
		return nil, err
	}
	if err := checkClasses("DuoAttention.Gates", len(p.Gates), s); err != nil {
		return nil, err
	}
	return eachHead(s, 0, func(i int, h *Head) ([]int32, error) {
		if p.Gates[i] >= p.Threshold {
			return all(h), nil
		}
		return p.Streaming.keep(h), nil
	})
}
