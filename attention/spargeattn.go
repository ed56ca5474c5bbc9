// Jintao Zhang et al., "SpargeAttn: Accurate Sparse Attention Accelerating Any Model Inference", 2025, https://arxiv.org/abs/2502.18137

package attention

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// SpargeAttn reads the blocks of keys whose means weigh most, where a mean says
// something: the mean cosine of two rows of a block, one with itself included, is
// its likeness. A block of keys less alike than Alike is seen by all, and its mean
// has no weight; a block of unlike queries sees everything. Of the other blocks of
// a row the fewest are seen that make Share of their weight, and the own one. With several
// query heads to a KV head, a KV head reads what any of them chose. Share 1 is dense.
//
// Claim: none beyond the trained length; made for any model that attends.
//
// Cost: one pass over queries and keys for likeness and means, and the products of
// the means.
//
// Limits: for prefill, in host memory, of plain pages; keys and queries as they are
// attended to. The paper's second stage skips the values of a tile whose scores lie far
// below the running maximum of its rows. It is not here: that maximum is of the keys
// in the order of the kernel's loop, so that no list made before can hold it, and
// what is skipped would change with the tiles of a backend. Its coded products are
// not here either, and blocks of queries and keys are of one size. Features of keys drawn at random have no likeness, and then all is seen.
type SpargeAttn struct {
	Block int     // queries and keys of a block, a multiple of PageSize
	Alike float64 // −1 to 1; the paper's θ
	Share float64 // above 0, at most 1; the paper's τ
}

// Info describes the selector.
func (SpargeAttn) Info() SelectorInfo {
	return SelectorInfo{"spargeattn", "arXiv:2502.18137", "prefill", "nothing"}
}

// Select lists the key blocks of each query block and KV head, for Step.Blocks of a
// Mask of causal regions with kernel.MaskBlocks. key is [pages, PageSize, KVHeads,
// HeadDim].
func (m SpargeAttn) Select(b kernel.Backend, in *Selection, key tensor.View) (kernel.BlockSparse, error) {
	none := kernel.BlockSparse{}
	if err := shareOf("spargeattn", m.Share); err != nil {
		return none, err
	}
	if !(m.Alike >= -1 && m.Alike <= 1) {
		return none, fmt.Errorf("attention: spargeattn: Alike is %v, want -1 to 1", m.Alike)
	}
	p, err := newPrefill("spargeattn", b, in, key, m.Block)
	if err != nil {
		return none, err
	}
	pool, err := p.pool()
	if err != nil {
		return none, fmt.Errorf("attention: spargeattn: %w", err)
	}
	out, err := p.lists(func(s, g int) (headMarker, error) {
		keys, err := m.alikeKeys(p, s, g)
		if err != nil {
			return nil, err
		}
		return func(h int) (marker, error) {
			queries, err := m.alikeQueries(p, s, h)
			if err != nil {
				return nil, err
			}
			return m.marker(p, &pool, s, h, queries, keys), nil
		}, nil
	})
	if err != nil {
		return none, fmt.Errorf("attention: spargeattn: %w", err)
	}
	return out, nil
}

// marker marks all blocks for queries that are not alike, and keys that are not;
// of the others those of most weight.
func (m *SpargeAttn) marker(p *prefill, pool *pooled, s, h int, queries, keys []bool) marker {
	lo, _ := p.queryBlocks(s)
	return func(block int, see []bool) {
		if !queries[block-lo] {
			for c := range see {
				see[c] = true
			}
			return
		}
		at := ((int(pool.start[s])+block-lo)*p.heads + h) * int(pool.scores.Shape[2])
		row := slices.Clone(pool.scores.F32s()[at : at+block+1])
		for c := range row {
			if !keys[c] {
				see[c], row[c] = true, float32(math.Inf(-1))
			}
		}
		softmax(row, 1)
		for _, c := range smallest(row, m.Share) {
			see[c] = true
		}
	}
}

// alikeQueries says of which blocks of queries the mean says something.
func (m *SpargeAttn) alikeQueries(p *prefill, s, h int) ([]bool, error) {
	lo, hi := p.queryBlocks(s)
	_, first := p.queries(s)
	var out []bool
	for block := lo; block < hi; block++ {
		from, to := p.span(s, block)
		at := int64(p.in.QueryStart[s]) - int64(first)
		v := p.in.Query.Slice(0, at+int64(from), at+int64(to)).Slice(1, int64(h), int64(h)+1)
		x, err := hostRows(nil, &v)
		if err != nil {
			return nil, err
		}
		out = append(out, likeness(x, p.dim) >= m.Alike)
	}
	return out, nil
}

func (m *SpargeAttn) alikeKeys(p *prefill, s, g int) ([]bool, error) {
	x := XAttention{Stride: 1}
	keys, err := x.keys(p, s, g)
	if err != nil {
		return nil, err
	}
	var out []bool
	for rows := keys.F32s(); len(rows) > 0; {
		n := min(len(rows), p.block*p.dim)
		out = append(out, likeness(rows[:n], p.dim) >= m.Alike)
		rows = rows[n:]
	}
	return out, nil
}

// likeness is the mean cosine of two rows: the square of the length of the mean of
// rows of length 1. A row of zeros is like none.
func likeness(x []float32, dim int) (out float64) {
	sums, n := make([]float64, dim), len(x)/dim
	for ; len(x) > 0; x = x[dim:] {
		length := math.Sqrt(float64(dot(x[:dim], x[:dim])))
		if length == 0 {
			continue
		}
		for d, v := range x[:dim] {
			sums[d] += float64(v) / length
		}
	}
	for _, v := range sums {
		out += float64(v / float64(n) * (v / float64(n))) // rounded, so that it is the same everywhere
	}
	return out
}
