package policy

import (
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kvcache"
)

// Wang et al., "Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs
// on Long-Context Tasks" (KVMerger), https://arxiv.org/abs/2407.08454
//
// Neighbouring keys of a large cosine form runs; a run is merged into its pivot
// with Gaussian weights of the distance to it. Here the pivots are the keys that
// stay by score, and a run reaches from a pivot to either side as far as keys that
// go resemble their neighbour. Needs: keys. Cost: one pass over the keys. Limits:
// keys of no run are gone, where the paper merges all.
type KVMerger struct {
	Threshold float64 // cosine of neighbours, −1 to 1; the paper takes 0.75
}

func (KVMerger) Needs() Needs { return Keys }

// Merge forms the runs. A key between two pivots goes to the one before it if it
// resembles that side, else to the one after it.
func (m KVMerger) Merge(h *Head, keep []int32, dst []kvcache.Merge) ([]kvcache.Merge, error) {
	if !(m.Threshold >= -1 && m.Threshold <= 1) {
		return nil, valueError("KVMerger.Threshold", m.Threshold, "−1 to 1")
	}
	n := h.Len()
	if n == 0 {
		return dst, nil
	}
	pivot := make([]int32, n) // of each key, or −1
	for j := range pivot {
		pivot[j] = -1
	}
	for _, k := range keep {
		pivot[k] = k
	}
	like := make([]bool, n) // key j resembles key j−1
	before := unit(row(&h.Key, 0))
	for j := 1; j < n; j++ {
		x := unit(row(&h.Key, j))
		like[j] = dot(before, x) > m.Threshold
		before = x
	}
	for j := 1; j < n; j++ {
		if pivot[j] < 0 && like[j] {
			pivot[j] = pivot[j-1]
		}
	}
	for j := n - 2; j >= 0; j-- {
		if pivot[j] < 0 && like[j+1] {
			pivot[j] = pivot[j+1]
		}
	}
	runs := map[int32][]int32{}
	for j, k := range pivot {
		if k >= 0 {
			runs[k] = append(runs[k], int32(j))
		}
	}
	for _, k := range keep {
		if run := runs[k]; len(run) > 1 {
			dst = gaussian(h, k, run, dst)
		}
	}
	return dst, nil
}

// gaussian merges a run into its pivot: weights exp(−r²/(2σ²)) of distance r, with
// σ the mean distance over √2, made to sum to 1.
func gaussian(h *Head, pivot int32, run []int32, dst []kvcache.Merge) []kvcache.Merge {
	p := row(&h.Key, int(pivot))
	r, mean := make([]float64, len(run)), 0.0
	for i, j := range run {
		for d, x := range row(&h.Key, int(j)) {
			r[i] += float64((x - p[d]) * (x - p[d]))
		}
		mean += math.Sqrt(r[i]) / float64(len(run))
	}
	total := 0.0
	for i := range r {
		if mean > 0 {
			r[i] = xmath.Exp(-r[i] / (mean * mean))
		} else {
			r[i] = 1
		}
		total += r[i]
	}
	for i, j := range run {
		w := float32(r[i] / total)
		dst = append(dst, kvcache.Merge{Into: pivot, From: j, Key: w, Value: w})
	}
	return dst
}
