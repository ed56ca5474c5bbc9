package policy

import "github.com/longctx/longctx/kvcache"

// Zhang et al., "SimLayerKV: A Simple Framework for Layer-Level KV Cache
// Reduction", https://arxiv.org/abs/2410.13846
//
// A layer is lazy if its last queries give sinks and recent keys more than a
// threshold of their weight, in the mean over its heads. Lazy layers keep only
// these keys, the others all. Needs: recent sums. Cost: a ColumnStats of the last
// queries, once. Limits: the threshold is of a model, 0.65 to 0.9 in the paper; the
// number of keys is what it makes it.
type SimLayerKV struct {
	Lazy      Window  // the paper takes 4 sinks and 1020 recent
	Threshold float64 // 0 to 1
}

func (SimLayerKV) Needs() Needs { return Recent }

// Plan ignores keys.
func (p SimLayerKV) Plan(s *Sequence, _ int) ([]kvcache.Plan, error) {
	if err := p.Lazy.check(); err != nil {
		return nil, err
	}
	if !(p.Threshold >= 0 && p.Threshold <= 1) {
		return nil, valueError("SimLayerKV.Threshold", p.Threshold, "0 to 1")
	}
	if err := checkHeads(s, Recent); err != nil {
		return nil, err
	}
	lazy := make([]bool, s.Layers)
	for layer := range lazy {
		mean := 0.0
		for head := range s.KVHeads {
			h := s.Head(layer, head)
			mean += massOf(h.Recent, p.Lazy.keep(h)) / float64(s.KVHeads)
		}
		lazy[layer] = mean > p.Threshold
	}
	return eachHead(s, Recent, func(i int, h *Head) ([]int32, error) {
		if !lazy[i/s.KVHeads] {
			return all(h), nil
		}
		return p.Lazy.keep(h), nil
	})
}

// massOf is the part of Σ x that the listed keys have; 1 of nothing.
func massOf(x []float32, keys []int32) float64 {
	part, total := 0.0, 0.0
	for _, v := range x {
		total += float64(v)
	}
	for _, j := range keys {
		part += float64(x[j])
	}
	if total == 0 {
		return 1
	}
	return part / total
}
