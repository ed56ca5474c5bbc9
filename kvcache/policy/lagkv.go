package policy

import (
	"cmp"
	"math"
	"slices"

	"github.com/longctx/longctx/tensor"
)

// Liang et al., "LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens
// Are Important", https://arxiv.org/abs/2504.04704
//
// Keys and values are taken in chunks. Each channel of a chunk is scaled by its
// least and largest value in the chunk after it, which lags behind; a token whose
// channels then deviate most from one another stays. Sinks, the last whole chunk
// and what follows it stay. Needs: keys and values. Cost: two passes over them.
// Limits: a channel that is constant in the next chunk counts 0.

// LagKV has sinks, 4 in the paper's code, and chunks of lag tokens, 128.
func LagKV(sinks, lag int) *Policy {
	return &Policy{Score: Lag{Sinks: sinks, Chunk: lag}, Sinks: sinks, Trigger: Any{AfterPrompt{}, Every{lag}}}
}

// Lag scores a token by its rank within its chunk, so that chunks keep the same
// part of theirs.
type Lag struct {
	Sinks, Chunk int
}

func (Lag) Needs() Needs { return Keys | Values }

// Score is the rank within the chunk, 0 to 1; 2 and more, by place, for what stays.
func (l Lag) Score(h *Head, dst []float32) error {
	if l.Sinks < 0 || l.Chunk < 1 {
		return valueError("Lag.Chunk", l.Chunk, "1 or more, with Sinks of 0 or more")
	}
	for j := range dst {
		dst[j] = 2 + float32(j)
	}
	for lo := l.Sinks; lo+2*l.Chunk <= len(dst); lo += l.Chunk {
		hi := lo + l.Chunk
		key, value := l.deviations(&h.Key, lo), l.deviations(&h.Value, lo)
		sum, order := make([]float64, l.Chunk), make([]int, l.Chunk)
		for i := range sum {
			sum[i], order[i] = (key[i]+value[i])/2, i
		}
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sum[a], sum[b]) })
		for rank, i := range order {
			dst[lo:hi][i] = float32(rank) / float32(l.Chunk)
		}
	}
	return nil
}

// deviations are the softmax over the chunk from lo of the standard deviations over
// channels.
func (l Lag) deviations(v *tensor.View, lo int) []float64 {
	dim := int(v.Shape[1])
	least, most := make([]float64, dim), make([]float64, dim)
	row := make([]float64, dim)
	for j := lo + l.Chunk; j < lo+2*l.Chunk; j++ {
		for d, x := range rowInto(row, v, j) {
			if j == lo+l.Chunk {
				least[d], most[d] = x, x
			}
			least[d], most[d] = min(least[d], x), max(most[d], x)
		}
	}
	out := make([]float64, l.Chunk)
	for i := range out {
		x := rowInto(row, v, lo+i)
		mean, square := 0.0, 0.0
		for d := range x {
			if most[d] > least[d] {
				x[d] = (x[d] - least[d]) / (most[d] - least[d])
			} else {
				x[d] = 0
			}
			mean += x[d] / float64(dim)
		}
		for _, y := range x {
			square += float64((y - mean) * (y - mean))
		}
		out[i] = math.Sqrt(square / float64(max(dim-1, 1)))
	}
	softmax(out)
	return out
}
