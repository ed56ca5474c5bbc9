package policy

import "math"

// Yang et al., "PyramidInfer: Pyramid KV Cache Compression for High-throughput LLM
// Inference", https://arxiv.org/abs/2405.12532
//
// Each layer keeps the keys that the recent tokens attend to, by the mean over its
// heads, and each fewer than the layer before. Needs: recent sums. Cost: a
// ColumnStats of the last queries. Limits: the paper drops keys of deeper layers
// while it computes them, which saves computing too; here a plan is made after the
// prompt. The paper weighs later queries more; a Recent made so will do.

// PyramidInfer keeps a recent part of the budget, and layers shrink by decay, below
// 1, from one to the next.
func PyramidInfer(layers int, recentPart, decay float64) *Policy {
	b := Curve{}
	for l := range layers {
		b.Weights = append(b.Weights, math.Pow(decay, float64(l)))
	}
	return &Policy{Score: LastQueries{}, Budget: b, RecentPart: recentPart, Share: true, Trigger: Any{AfterPrompt{}, Every{64}}}
}
