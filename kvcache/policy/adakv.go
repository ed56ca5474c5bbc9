package policy

// Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation
// for Efficient LLM Inference", https://arxiv.org/abs/2407.11550
//
// SnapKV in which the heads of a layer compete for its keys: the best of all heads
// stay, and of each head a floor. Needs and cost: SnapKV's. Limits: heads of
// different lengths, so the cache needs a table a head (kvcache.HeadCache).

// AdaKV is SnapKV with Adaptive{0.2}.
func AdaKV(window int) *Policy {
	p := SnapKV(window)
	p.Budget = Adaptive{Floor: 0.2}
	return p
}
