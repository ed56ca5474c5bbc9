package policy

import (
	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kvcache"
)

// Wan et al., "D2O: Dynamic Discriminative Operations for Efficient Long-Context
// Inference of Large Language Models", https://arxiv.org/abs/2406.13035
//
// A key that goes is merged, value and all, into the key that stays to which it has
// the largest cosine, if that is above a threshold; else it is gone. Weights are
// exponentials of the cosines, and e for the key that stays. The threshold is the
// mean of the largest cosines, smoothed from plan to plan. Needs: keys. Cost: a
// product of the keys that go with those that stay. Limits: the paper's budgets by
// the variance of a layer's attention are the caller's Curve.
type D2O struct {
	Beta float64 // weight of the newest mean in the threshold, 0 to 1; the paper takes 0.7
}

func (D2O) Needs() Needs { return Keys }

// Merge finds the nearest key for each that goes.
func (d D2O) Merge(h *Head, keep []int32, dst []kvcache.Merge) ([]kvcache.Merge, error) {
	if !(d.Beta >= 0 && d.Beta <= 1) {
		return nil, valueError("D2O.Beta", d.Beta, "0 to 1")
	}
	gone := others(h, keep)
	if len(gone) == 0 || len(keep) == 0 {
		return dst, nil
	}
	units := make([][]float64, len(keep))
	for i, j := range keep {
		units[i] = unit(row(&h.Key, int(j)))
	}
	nearest, similar, mean := make([]int, len(gone)), make([]float64, len(gone)), 0.0
	for g, j := range gone {
		x := unit(row(&h.Key, int(j)))
		for i, u := range units {
			if c := dot(u, x); i == 0 || c > similar[g] {
				nearest[g], similar[g] = i, c
			}
		}
		mean += similar[g] / float64(len(gone))
	}
	threshold := mean
	if h.threshold != 0 {
		threshold = float64(d.Beta*mean) + float64((1-d.Beta)*float64(h.threshold))
	}
	h.pending.threshold = float32(threshold)
	for i, k := range keep {
		total, first := xmath.Exp(1), len(dst)
		for g, j := range gone {
			if nearest[g] == i && similar[g] >= threshold {
				if len(dst) == first {
					dst = append(dst, kvcache.Merge{Into: k, From: k, Key: float32(xmath.Exp(1))})
				}
				w := xmath.Exp(similar[g])
				total += w
				dst = append(dst, kvcache.Merge{Into: k, From: j, Key: float32(w)})
			}
		}
		for m := first; m < len(dst); m++ {
			dst[m].Key /= float32(total)
			dst[m].Value = dst[m].Key
		}
	}
	return dst, nil
}

// others are the ordinals that are not in keep.
func others(h *Head, keep []int32) []int32 {
	var out []int32
	for j := range int32(h.Len()) {
		if len(keep) > 0 && keep[0] == j {
			keep = keep[1:]
		} else {
			out = append(out, j)
		}
	}
	return out
}
