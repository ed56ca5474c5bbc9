// Xunhao Lai et al., "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference", 2025, https://arxiv.org/abs/2502.20766

package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// FlexPrefill chooses in each head, from the last Block queries, how it looks for
// keys. Their weights, added by block of keys, are held against the weights that
// the means of the blocks have. Where the root of the Jensen-Shannon divergence (of
// natural logarithms) is below Divergence, the means are trusted: over the map of all query and key blocks the fewest
// pairs that make Share of its weight are seen. Elsewhere the last queries are:
// the fewest columns and the fewest diagonals that make Share of their weight.
// The first block and the last MinBlocks, the own one included, are always seen. With several
// query heads to a KV head, a KV head reads what any of them chose. Share 1 is dense.
//
// Claim: none beyond the trained length; recall close to dense in prefill.
//
// Cost: Block rows of scores a head, a mean of every block, and their products.
//
// Limits: for prefill, in host memory, of plain pages; keys and queries as they are
// attended to. A column costs a whole block.
type FlexPrefill struct {
	Block      int     // queries and keys of a block, a multiple of PageSize; the paper has 128
	Share      float64 // above 0, at most 1; the paper's γ, 0.9
	Divergence float64 // at least 0; the paper's τ, 0.1
	MinBlocks  int     // a query block sees so many of its last blocks, at least 1
}

// Info describes the selector.
func (FlexPrefill) Info() SelectorInfo {
	return SelectorInfo{"flexprefill", "arXiv:2502.20766", "prefill", "nothing"}
}

// Select lists the key blocks of each query block and KV head, for Step.Blocks of a
// Mask of causal regions with kernel.MaskBlocks. key is [pages, PageSize, KVHeads,
// HeadDim].
func (m FlexPrefill) Select(b kernel.Backend, in *Selection, key tensor.View) (kernel.BlockSparse, error) {
	none := kernel.BlockSparse{}
	if err := shareOf("flexprefill", m.Share); err != nil {
		return none, err
	}
	if !(m.Divergence >= 0) || m.MinBlocks < 1 {
		return none, fmt.Errorf("attention: flexprefill: Divergence %v, MinBlocks %d, want at least 0 and at least 1", m.Divergence, m.MinBlocks)
	}
	p, err := newPrefill("flexprefill", b, in, key, m.Block)
	if err != nil {
		return none, err
	}
	pool, err := p.pool()
	if err != nil {
		return none, fmt.Errorf("attention: flexprefill: %w", err)
	}
	out, err := p.lists(alone(func(s, h int) (marker, error) {
		n, _ := p.queries(s)
		weights, err := p.sampled(s, h, min(m.Block, n), 1)
		if err != nil {
			return nil, err
		}
		keys := int(p.in.SeqLens[s])
		sums := columns(weights, keys)
		var found marker
		if m.trusts(p, &pool, sums, len(weights)/keys, s, h) {
			found = m.blocks(p, &pool, s, h)
		} else {
			found = p.lines(s, smallest(sums, m.Share), smallest(diagonals(weights, keys), m.Share))
		}
		return func(block int, see []bool) {
			found(block, see)
			see[0] = true
			for c := max(block+1-m.MinBlocks, 0); c <= block; c++ {
				see[c] = true
			}
		}, nil
	}))
	if err != nil {
		return none, fmt.Errorf("attention: flexprefill: %w", err)
	}
	return out, nil
}

// trusts reports whether the means tell what the last n queries see.
func (m *FlexPrefill) trusts(p *prefill, pool *pooled, columns []float32, n, s, h int) bool {
	_, hi := p.queryBlocks(s)
	seen := make([]float64, hi)
	for c := range seen {
		for _, w := range columns[c*p.block : min((c+1)*p.block, len(columns))] {
			seen[c] += float64(w)
		}
		seen[c] /= float64(n)
	}
	return math.Sqrt(divergence(pool.row(p, s, h, hi-1), seen)) < m.Divergence
}

// divergence is that of Jensen and Shannon.
func divergence(x []float32, y []float64) (sum float64) {
	for i, b := range y {
		a := float64(x[i])
		mean := (a + b) / 2
		if a > 0 {
			sum += a * math.Log(a/mean) / 2
		}
		if b > 0 {
			sum += b * math.Log(b/mean) / 2
		}
	}
	return max(sum, 0)
}

// blocks marks the pairs of blocks of most weight in the map of a head.
func (m *FlexPrefill) blocks(p *prefill, pool *pooled, s, h int) marker {
	lo, hi := p.queryBlocks(s)
	var all []float32
	start := []int{0}
	for block := lo; block < hi; block++ {
		all = append(all, pool.row(p, s, h, block)...)
		start = append(start, len(all))
	}
	chosen := make([]bool, len(all))
	for _, i := range smallest(all, m.Share) {
		chosen[i] = true
	}
	return func(block int, see []bool) {
		for c, x := range chosen[start[block-lo]:start[block-lo+1]] {
			see[c] = see[c] || x
		}
	}
}
