package policy

import (
	"math"
	"slices"

	"github.com/longctx/longctx/kvcache"
)

// Zhang et al., "CaM: Cache Merging for Memory-efficient LLMs Inference", ICML 2024,
// https://openreview.net/forum?id=LCTmppB165
//
// The value of a key that goes is added to the next values that stay, a part of it
// to each, with a probability that grows with its weight: its sum of weights over
// the mean of those of the keys it would be added to. Keys stay as they are. Needs:
// sums. Cost: one pass. Limits: chance, which Seed and the position fix.
type CaM struct {
	Next int // keys that share the value; 32 in the paper's code
	Seed uint64
}

func (CaM) Needs() Needs { return Sums }

// Merge draws for each key that goes.
func (c CaM) Merge(h *Head, keep []int32, dst []kvcache.Merge) ([]kvcache.Merge, error) {
	if c.Next < 1 {
		return nil, valueError("CaM.Next", c.Next, "1 or more")
	}
	into := map[int32][]int32{}
	at := 0
	for j := range int32(h.Len()) {
		for at < len(keep) && keep[at] < j {
			at++
		}
		if at < len(keep) && keep[at] == j || at == len(keep) {
			continue
		}
		next := keep[at:min(at+c.Next, len(keep))]
		mean := float32(0)
		for _, k := range next {
			mean += h.Sum[k] / float32(len(next))
		}
		if draw(c.Seed, uint64(h.Positions[j]))*float64(mean) < float64(h.Sum[j]) {
			for _, k := range next {
				into[k] = append(into[k], j)
			}
		}
	}
	for _, k := range keep {
		if len(into[k]) == 0 {
			continue
		}
		dst = append(dst, kvcache.Merge{Into: k, From: k, Key: 1, Value: 1})
		for _, j := range into[k] {
			at, _ := slices.BinarySearch(keep, j)
			dst = append(dst, kvcache.Merge{Into: k, From: j, Value: 1 / float32(min(c.Next, len(keep)-at))})
		}
	}
	return dst, nil
}

// draw is a number of 0 to 1, a function of the two.
func draw(seed, n uint64) float64 {
	x := seed ^ (n+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return float64((x^x>>31)>>11) / math.Exp2(53)
}
