// Qianchao Zhu et al., "SampleAttention: Near-Lossless Acceleration of Long Context LLM Inference with Adaptive Structured Sparse Attention", 2024, https://arxiv.org/abs/2406.15486

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// SampleAttention reads the keys that a sample of the queries gives most weight:
// the weights of Rows queries, evenly spaced and the last among them, are added by key, and the
// fewest keys are seen that make Share of the sum, and the last Window keys.
// Lists are of blocks, so that a block is seen whole where a key of it was chosen;
// and a KV head sees what any of its query heads does. Share 1 is dense.
//
// Claim: none beyond the trained length; near lossless in prefill.
//
// Cost: Rows rows of scores a head, and sorting the keys.
//
// Limits: for prefill, in host memory, of plain pages; keys and queries as they are
// attended to. A chosen key costs a whole block, where the paper's kernel gathers
// columns: weight spread over single keys of all blocks saves nothing.
type SampleAttention struct {
	Block  int     // queries and keys of a block, a multiple of PageSize
	Rows   int     // sampled queries, at least 1; the paper has 5 % of them
	Share  float64 // above 0, at most 1; the paper's α, 0.95
	Window int     // last keys, the query's own included, at least 1
}

// Info describes the selector.
func (SampleAttention) Info() SelectorInfo {
	return SelectorInfo{"sampleattention", "arXiv:2406.15486", "prefill", "nothing"}
}

// Select lists the key blocks of each query block and KV head, for Step.Blocks of a
// Mask of causal regions with kernel.MaskBlocks. key is [pages, PageSize, KVHeads,
// HeadDim].
func (m SampleAttention) Select(b kernel.Backend, in *Selection, key tensor.View) (kernel.BlockSparse, error) {
	none := kernel.BlockSparse{}
	if err := shareOf("sampleattention", m.Share); err != nil {
		return none, err
	}
	if m.Rows < 1 || m.Window < 1 || m.Window > kernel.MaxBound {
		return none, fmt.Errorf("attention: sampleattention: Rows %d, Window %d, want at least 1", m.Rows, m.Window)
	}
	p, err := newPrefill("sampleattention", b, in, key, m.Block)
	if err != nil {
		return none, err
	}
	out, err := p.lists(alone(func(s, h int) (marker, error) {
		n, _ := p.queries(s)
		rows := min(m.Rows, n)
		weights, err := p.sampled(s, h, rows, n/rows)
		if err != nil {
			return nil, err
		}
		found := p.lines(s, smallest(columns(weights, int(p.in.SeqLens[s])), m.Share), nil)
		return func(block int, see []bool) {
			found(block, see)
			lo, _ := p.span(s, block)
			for c := max(lo+1-m.Window, 0) / p.block; c <= block; c++ {
				see[c] = true
			}
		}, nil
	}))
	if err != nil {
		return none, fmt.Errorf("attention: sampleattention: %w", err)
	}
	return out, nil
}
