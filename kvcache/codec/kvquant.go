package codec

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
)

// KVQuant gives pages the coding of Hooper et al., "KVQuant: Towards 10 Million
// Context Length LLM Inference with KV Cache Quantization",
// https://arxiv.org/abs/2401.18079: keys that are not rotated per channel, values
// per token, 4 bits of levels by NUQ and 1 % outliers. Config.Levels is the
// caller's. The paper has scales of keys and thresholds of outliers from samples;
// here they are of the page.
func KVQuant(c *kvcache.Config) {
	coded(kernel.Int4, 0)(c)
	c.KeyStorage = kernel.PreRoPE
	c.Coding.Key.Levels, c.Coding.Value.Levels = true, true
	c.Coding.Key.Outliers = share(0.01, c.PageSize*c.HeadDim)
	c.Coding.Value.Group = c.ValueDim
	c.Coding.Value.Outliers = share(0.01, c.PageSize*c.ValueDim)
}

// nuqRounds bounds the rounds of NUQ, which ends where no level moves.
const nuqRounds = 1000

// NUQ finds the levels of a width from samples (x − zero)/scale, from 0 to the
// largest code, by k-means: they make the sum of Weights[i]·(x − level)² small.
// The paper's weights are squares of gradients; nil: 1. A level to which no sample
// is nearest stays where uniform ones lie. Levels ascend.
func NUQ(k kernel.Codec, samples, weights []float32) ([]float32, error) {
	if k.Bits() == 0 {
		return nil, &ValueError{"Codec", k.String(), "int8, int4, int2 or int1"}
	}
	if weights != nil && len(weights) != len(samples) {
		return nil, &ValueError{"weights", fmt.Sprintf("of %d samples", len(weights)), fmt.Sprintf("nil or %d", len(samples))}
	}
	type sample struct{ x, w float64 }
	all := make([]sample, len(samples))
	for i, x := range samples {
		all[i] = sample{float64(x), 1}
		if weights != nil {
			all[i].w = float64(weights[i])
		}
		if s := all[i]; !(s.x >= 0 && s.x <= float64(k.MaxCode())) || !(s.w >= 0 && s.w <= math.MaxFloat32) {
			return nil, &ValueError{fmt.Sprintf("sample %d", i), fmt.Sprintf("%g of weight %g", s.x, s.w), fmt.Sprintf("0 to %d, of a finite weight from 0", k.MaxCode())}
		}
	}
	slices.SortStableFunc(all, func(a, b sample) int {
		if a.x < b.x {
			return -1
		} else if a.x > b.x {
			return 1
		}
		return 0
	})
	levels := make([]float64, int(k.MaxCode())+1)
	for c := range levels {
		levels[c] = float64(c)
	}
	for range nuqRounds {
		at, moved := 0, false
		next := slices.Clone(levels)
		for c := range levels {
			sum, weight := 0.0, 0.0
			for ; at < len(all) && (c == len(levels)-1 || all[at].x <= (levels[c]+levels[c+1])/2); at++ {
				sum, weight = sum+all[at].w*all[at].x, weight+all[at].w
			}
			if weight > 0 && sum/weight != levels[c] {
				next[c], moved = sum/weight, true
			}
		}
		if levels = next; !moved {
			break
		}
	}
	out := make([]float32, len(levels))
	for c, x := range levels {
		out[c] = float32(x)
	}
	return out, nil
}
