// Chaojun Xiao et al., "InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context Memory", 2024, https://arxiv.org/abs/2402.04617

package attention

import (
	"fmt"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// InfLLM reads the first keys, the last, and the blocks whose representatives
// score highest; of a block these are its Representatives keys that got most
// attention from the queries after them. With r_p their mean, of KV head g,
//
//	score(p) = Scale · Σ_h q_h · r_p[g(h)]
//
// summed over all heads of the layer: every head reads the same blocks, the Blocks
// of the largest score between the Init first and the Local last pages. Far keys
// keep no distance: with position ReRoPE of the local window, PreRoPE keys, and
// queries scored as turned to that window, it is the paper's attention, and all
// blocks is ReRoPE.
//
// Claim: retrieval far beyond the trained length without training.
//
// Cost: 2·HeadDim FLOPs a page and KV head, a 1/PageSize of the keys' bytes, then
// attention over Init + Blocks + Local pages.
//
// Limits: for decode. A block that no representative stands for is not found. The
// published code keeps most blocks in host memory. Here all are pages of the
// backend: kvcache.SwapSpace moves whole sequences between steps, while each layer and
// token chooses other blocks. It takes the mean over the queries of a chunk; here each
// token has its own choice.
type InfLLM struct {
	Blocks          int // chosen by score, at least 1; 16
	Init            int // first pages, at least 0; 1 of 128 keys
	Local           int // last pages, the query's own included, at least 1; 32 of 128 keys
	Representatives int // keys that stand for a block, at least 1; 4
}

// Info describes the selector.
func (InfLLM) Info() SelectorInfo {
	return SelectorInfo{"infllm", "arXiv:2402.04617", "decode", "a mean of representative keys a page; sums of weights by key, of ColumnStats"}
}

func (m InfLLM) check() error {
	if m.Blocks < 1 || m.Init < 0 || m.Local < 1 || m.Representatives < 1 {
		return fmt.Errorf("attention: infllm: %+v, want Blocks, Local and Representatives at least 1, and Init at least 0", m)
	}
	return nil
}

// Represent writes the mean of the representatives of each page of a sequence with
// so many keys to means [pages, KVHeads, HeadDim] F32, in host memory. weights
// [keys, Heads] F32 are ColumnStats, of which those of a group are added; of equal
// sums the earlier key is taken.
func (m InfLLM) Represent(key, weights, means tensor.View, pages []int32, keys int) error {
	if err := m.check(); err != nil {
		return err
	}
	if key.Rank != 4 || key.Shape[2] < 1 || weights.Rank != 2 || weights.Shape[0] < int64(keys) || weights.Shape[1]%key.Shape[2] != 0 || weights.Shape[1] < 1 ||
		means.Rank != 3 || means.Shape[0] != key.Shape[0] || means.Shape[1] != key.Shape[2] || means.Shape[2] != key.Shape[3] || means.DType != tensor.F32 {
		return fmt.Errorf("attention: infllm: means %v of keys %v with weights %v, want [pages, KVHeads, HeadDim] F32 and [at least %d keys, Heads]", &means, &key, &weights, keys)
	}
	if err := onHost("infllm", &weights, &means); err != nil {
		return err
	}
	rows := make([]int32, len(pages))
	for i := range rows {
		rows[i] = int32(min(max(int64(keys)-int64(i)*key.Shape[1], 0), key.Shape[1]))
	}
	group := weights.Shape[1] / key.Shape[2]
	return eachPage("infllm", &key, pages, rows, func(i int, block tensor.View) error {
		for g := range key.Shape[2] {
			sums, order := make([]float64, rows[i]), make([]int, rows[i])
			for j := range sums {
				order[j] = j
				for h := range group {
					sums[j] += float64(weights.At(int64(i)*key.Shape[1]+int64(j), g*group+h))
				}
			}
			slices.SortStableFunc(order, func(a, b int) int {
				switch {
				case sums[a] > sums[b]:
					return -1
				case sums[a] < sums[b]:
					return 1
				}
				return 0
			})
			order = order[:min(m.Representatives, len(order))]
			for d := range key.Shape[3] {
				mean := 0.0
				for _, j := range order {
					mean += float64(block.At(int64(j), g, d))
				}
				means.Set(float32(mean/float64(len(order))), int64(pages[i]), g, d)
			}
		}
		return nil
	})
}

// Select lists the pages of each query token, for Step.Blocks. means are as
// Represent left them, row-major; in.Query is in host memory.
func (m InfLLM) Select(ops kernel.Ops, in *Selection, means tensor.View) (kernel.BlockSparse, error) {
	none := kernel.BlockSparse{}
	if err := m.check(); err != nil {
		return none, err
	}
	if err := in.check(); err != nil {
		return none, err
	}
	dim, heads := in.Query.Shape[2], int64(in.KVHeads)
	if means.Rank != 3 || means.Shape[1] != heads || means.Shape[2] != dim || means.Stride[2] != 1 || means.Stride[1] != dim {
		return none, fmt.Errorf("attention: infllm: means are %v, want [pages, %d, %d], row-major", &means, heads, dim)
	}
	q, err := in.hostQuery("infllm")
	if err != nil {
		return none, err
	}
	// One head of all features: sums over a group of queries, beside each other.
	all := *in
	if all.Scores, err = in.keyScores("infllm", 1); err != nil {
		return none, err
	}
	all.KVHeads, all.Query = 1, tensor.New(tensor.F32, in.Query.Shape[0], 1, heads*dim)
	x, group := all.Query.F32s(), int(in.Query.Shape[1]/heads)
	for i, v := range q {
		row, d := i/int(dim), i%int(dim)
		x[row/group*int(dim)+d] += v
	}
	means.Shape[1], means.Shape[2], means.Stride[1] = 1, heads*dim, heads*dim
	out, err := all.choose(ops, means, means, budget{m.Init, m.Local, m.Blocks})
	out.PerHead = false
	return out, err
}
