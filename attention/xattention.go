// Ruyi Xu et al., "XAttention: Block Sparse Attention with Antidiagonal Scoring", 2025, https://arxiv.org/abs/2503.16428

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// XAttention reads the blocks of keys whose antidiagonals score highest. In each
// square of Stride queries and keys the scores of one antidiagonal are added,
//
//	a(x, y) = Scale/Stride · Σ_n q[x·Stride + Stride−1−n] · k[y·Stride + n]
//
// softmax over y ≤ x makes them weights, and their sums over a pair of blocks are
// what the block is worth. Of each row of blocks the fewest are seen that make
// Threshold of its weight, and the first and the own. With several query heads to a
// KV head, a KV head reads the blocks that any of them chose. Threshold 1 is dense.
//
// Claim: none beyond the trained length; recall close to dense in prefill.
//
// Cost: 1/Stride of the FLOPs of all scores, twice, and 1/Stride² of their
// exponentials, once each on one processor; a copy of the keys of a head.
//
// Limits: for prefill, in host memory, of plain pages. Keys and queries as they are
// attended to: turned, where attention turns them. A key of a sequence's last
// square that is not there counts as 0. The threshold is one for all heads; the
// paper may search one for each.
type XAttention struct {
	Block     int     // queries and keys of a block, a multiple of PageSize and of Stride
	Stride    int     // at least 1; the paper has 8 and 16
	Threshold float64 // share of the weights, above 0, at most 1; the paper has 0.9
}

// Info describes the selector.
func (XAttention) Info() SelectorInfo {
	return SelectorInfo{"xattention", "arXiv:2503.16428", "prefill", "nothing"}
}

// squares are rows of Stride tokens beside each other.
const squaresAtOnce = 512

// Select lists the key blocks of each query block and KV head, for Step.Blocks of a
// Mask of causal regions with kernel.MaskBlocks. key is [pages, PageSize, KVHeads,
// HeadDim].
func (m XAttention) Select(b kernel.Backend, in *Selection, key tensor.View) (kernel.BlockSparse, error) {
	none := kernel.BlockSparse{}
	if m.Stride < 1 || m.Block < 1 || m.Block%m.Stride != 0 {
		return none, fmt.Errorf("attention: xattention: Block %d, Stride %d, want a Stride of at least 1 that divides Block", m.Block, m.Stride)
	}
	if err := shareOf("xattention", m.Threshold); err != nil {
		return none, err
	}
	p, err := newPrefill("xattention", b, in, key, m.Block)
	if err != nil {
		return none, err
	}
	out, err := p.lists(func(s, g int) (headMarker, error) {
		keys, err := m.keys(p, s, g)
		if err != nil {
			return nil, err
		}
		return func(h int) (marker, error) {
			worth, err := m.worth(p, s, h, keys)
			if err != nil {
				return nil, err
			}
			lo, _ := p.queryBlocks(s)
			return func(block int, see []bool) {
				see[0] = true
				for _, c := range smallest(worth[block-lo], m.Threshold) {
					see[c] = true
				}
			}, nil
		}, nil
	})
	if err != nil {
		return none, fmt.Errorf("attention: xattention: %w", err)
	}
	return out, nil
}

// keys are the keys of a head in rows of Stride: [squares, 1, Stride·dim].
func (m XAttention) keys(p *prefill, s, g int) (tensor.View, error) {
	n, wide := int(p.in.SeqLens[s]), m.Stride*p.dim
	out := tensor.New(tensor.F32, int64((n+m.Stride-1)/m.Stride), 1, int64(wide))
	x, v := out.F32s(), &p.key
	pages := p.in.Pages.Indices[p.in.Pages.Indptr[s]:p.in.Pages.Indptr[s+1]]
	at := 0
	for i, page := range pages {
		rows := int64(min(p.in.PageSize, n-i*p.in.PageSize))
		one := tensor.View{Buf: v.Buf, DType: v.DType, Rank: 3, Offset: v.Offset + int64(page)*v.Stride[0]}
		copy(one.Shape[:], []int64{rows, 1, v.Shape[3]})
		one.Offset += int64(g) * v.Stride[2]
		copy(one.Stride[:], v.Stride[1:4])
		if _, err := hostRows(x[at:at], &one); err != nil {
			return out, err
		}
		at += int(rows) * p.dim
	}
	return out, nil
}

// worth is the weight of each key block for each query block: [query blocks][…].
func (m XAttention) worth(p *prefill, s, h int, keys tensor.View) ([][]float32, error) {
	n, first := p.queries(s)
	lo, hi := p.queryBlocks(s)
	out := make([][]float32, hi-lo)
	for i := range out {
		out[i] = make([]float32, lo+i+1)
	}
	head := p.in.Query.Slice(0, int64(p.in.QueryStart[s]), int64(p.in.QueryStart[s+1])).Slice(1, int64(h), int64(h)+1)
	rows, err := hostRows(nil, &head)
	if err != nil {
		return nil, err
	}
	all := make([]int32, keys.Shape[0])
	for i := range all {
		all[i] = int32(i)
	}
	each := m.Block / m.Stride
	for x0 := first / m.Stride; x0 <= (first+n-1)/m.Stride; x0 += squaresAtOnce {
		x1 := min(x0+squaresAtOnce, (first+n-1)/m.Stride+1)
		q := tensor.New(tensor.F32, int64(x1-x0), 1, int64(m.Stride*p.dim))
		to := q.F32s()
		for i := max(x0*m.Stride, first); i < min(x1*m.Stride, first+n); i++ {
			at := (i/m.Stride-x0)*m.Stride + m.Stride - 1 - i%m.Stride
			copy(to[at*p.dim:], rows[(i-first)*p.dim:][:p.dim])
		}
		scores, err := p.scores(q, keys, []int32{0, int32(x1 - x0)}, kernel.BlockTable{Indptr: []int32{0, int32(x1)}, Indices: all[:x1]}, int64(x1))
		if err != nil {
			return nil, err
		}
		for x := x0; x < x1; x++ {
			row := scores.F32s()[(x-x0)*x1:][:x+1]
			softmax(row, 1/float32(m.Stride))
			sums := out[x/each-lo]
			for y, w := range row {
				sums[y/each] += w
			}
		}
	}
	return out, nil
}
