// Yi Lu et al., "LongHeads: Multi-Head Attention is Secretly a Long Context Processor", 2024, https://arxiv.org/abs/2402.10685

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// LongHeads has each head read chunks of its own within the trained length: the
// first, the last two, and those whose representation scores highest. A chunk's
// representation is made of its own tokens, with attention in both directions:
//
//	q_c = mean over the chunk of softmax(Q·Kᵀ/√HeadDim)·V
//	r_c = softmax(q_c·Kᵀ/√HeadDim)·K
//	score(c) = Scale · q · r_c
//
// of equal scores the earlier. A chunk is a page. The first and the last two count
// in Chunks. The chosen keys are laid side by side: their positions are ranks in
// the list, and the query's is that of the last, which KeyAttention with ranks has
// from BlockKeys of the choice.
//
// Claim: retrieval at 128k by a model of 4k, without training.
//
// Cost: 2·HeadDim FLOPs a page and query head, 1/PageSize of the keys' bytes, then
// attention over Chunks pages. A representation costs the chunk's attention to
// itself.
//
// Limits: for decode. With several query heads to a KV head, a KV head reads the
// chunks that any of them chose, more than Chunks, and a chunk's representation is
// of the mean over them: the paper has one head each. Values have HeadDim features.
type LongHeads struct {
	Chunks int // pages a query head sees, at least 3; the trained length over PageSize
}

// Info describes the selector.
func (LongHeads) Info() SelectorInfo {
	return SelectorInfo{"longheads", "arXiv:2402.10685", "decode", "a representation a page, of its queries, keys and values"}
}

func (m LongHeads) check() error {
	if m.Chunks < 3 {
		return fmt.Errorf("attention: longheads: Chunks is %d, want at least 3: the first and the last two are always seen", m.Chunks)
	}
	return nil
}

// chunkPages are pages of one sequence as sequences of their own.
type chunkPages struct {
	size        int
	pages, rows []int32
}

func (p *chunkPages) KeyStorage() kernel.KeyStorage { return kernel.PreRoPE }
func (p *chunkPages) PageSize() int                 { return p.size }
func (p *chunkPages) KeyPositions([]int32) []int32  { return nil }
func (p *chunkPages) LowerKV(dst *kernel.Batch) error {
	dst.SeqLens, dst.Pages.Indptr = append(dst.SeqLens[:0], p.rows...), append(dst.Pages.Indptr[:0], 0)
	for i, page := range p.pages {
		dst.Pages.Indices = append(dst.Pages.Indices, page)
		dst.Pages.Indptr = append(dst.Pages.Indptr, int32(i+1))
	}
	return nil
}

// Represent writes the representations of pages with rows[i] keys each, at least 1, to
// means [pages, KVHeads, HeadDim] F32. query [Σ rows, Heads, HeadDim] are the queries
// of their tokens, one page after another, turned as the keys are. All is F32 in
// host memory.
func (m LongHeads) Represent(b kernel.Backend, query, key, value, means tensor.View, pages, rows []int32) error {
	if key.Rank != 4 || key.Shape[2] < 1 || len(pages) < 1 || len(rows) != len(pages) || query.Rank != 3 || query.Shape[1] < 1 || query.Shape[1]%key.Shape[2] != 0 ||
		means.Rank != 3 || means.Shape[0] != key.Shape[0] || means.Shape[1] != key.Shape[2] || means.Shape[2] != key.Shape[3] || means.DType != tensor.F32 {
		return fmt.Errorf("attention: longheads: %d pages and %d counts, queries %v, keys %v, representations %v, want at least a page, a count each, and [pages, KVHeads, HeadDim] F32", len(pages), len(rows), &query, &key, &means)
	}
	if err := onHost("longheads", &query, &key, &value, &means); err != nil {
		return err
	}
	each := &chunkPages{int(key.Shape[1]), pages, rows}
	attend := func(q, v tensor.View, lens []int) (tensor.View, error) {
		a, err := New(b, Config{Heads: int(q.Shape[1]), KVHeads: int(key.Shape[2]), HeadDim: int(key.Shape[3]), PageSize: each.size, Mask: Bidirectional()})
		if err != nil {
			return q, fmt.Errorf("attention: longheads: %w", err)
		}
		defer a.Close()
		args := kernel.Args{Query: q, Key: key, Value: v, Out: tensor.New(tensor.F32, q.Shape[0], q.Shape[1], q.Shape[2])}
		if err = a.Plan(Step{QueryLens: lens, KV: each}); err == nil {
			err = a.Run(&args)
		}
		return args.Out, err
	}
	var lens, ones []int
	for _, n := range rows {
		if n < 1 {
			return fmt.Errorf("attention: longheads: a page of %d keys, want at least 1", n)
		}
		lens, ones = append(lens, int(n)), append(ones, 1)
	}
	out, err := attend(query, value, lens)
	if err != nil {
		return err
	}
	mean := meanQueries(out.F32s(), rows, int(query.Shape[1]), int(key.Shape[2]), int(key.Shape[3]))
	if out, err = attend(mean, key, ones); err != nil {
		return err
	}
	for i, p := range pages {
		for g := range key.Shape[2] {
			for d := range key.Shape[3] {
				means.Set(out.At(int64(i), g, d), int64(p), g, d)
			}
		}
	}
	return nil
}

// meanQueries is the mean over the tokens of each page, and the heads of a group.
func meanQueries(x []float32, rows []int32, heads, kvHeads, dim int) tensor.View {
	out := tensor.New(tensor.F32, int64(len(rows)), int64(kvHeads), int64(dim))
	y, group, at := out.F32s(), heads/kvHeads, 0
	for i, n := range rows {
		sums := make([]float64, kvHeads*dim)
		for range int(n) * heads {
			g := at / dim % heads / group
			for d := range dim {
				sums[g*dim+d] += float64(x[at+d])
			}
			at += dim
		}
		for k, v := range sums {
			y[i*kvHeads*dim+k] = float32(v / float64(int(n)*group))
		}
	}
	return out
}

// Select lists the pages of each query token and KV head. means are [pages,
// KVHeads, HeadDim] as Represent left them.
func (m LongHeads) Select(ops kernel.Ops, in *Selection, means tensor.View) (kernel.BlockSparse, error) {
	if err := m.check(); err != nil {
		return kernel.BlockSparse{}, err
	}
	return in.choose(ops, means, means, budget{1, 2, m.Chunks - 3})
}

// BlockKeys lists the keys of blocks that a selector listed for in: each list ends at
// the query's own key.
func BlockKeys(in *Selection, blocks kernel.BlockSparse) (*Keys, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	if blocks.QueryBlock != 1 || blocks.KeyBlock != int32(in.PageSize) || len(blocks.RowStart) != len(in.SeqLens) {
		return nil, fmt.Errorf("attention: BlockKeys: blocks of %d queries and %d keys of %d sequences, want 1, %d and %d", blocks.QueryBlock, blocks.KeyBlock, len(blocks.RowStart), in.PageSize, len(in.SeqLens))
	}
	out, t := &Keys{Indptr: []int32{0}}, int32(0)
	var err error
	in.eachKey(func(s int, own int64) {
		for g := range int32(in.KVHeads) {
			row := int64(blocks.RowStart[s]) + int64(t-in.QueryStart[s])
			if blocks.PerHead {
				row += int64(g) * int64(in.QueryStart[s+1]-in.QueryStart[s])
			}
			if row < 0 || row+1 >= int64(len(blocks.Indptr)) || blocks.Indptr[row] < 0 || blocks.Indptr[row] > blocks.Indptr[row+1] || int(blocks.Indptr[row+1]) > len(blocks.Indices) {
				err = fmt.Errorf("attention: BlockKeys: no row %d for token %d and KV head %d, want %d rows", row, t, g, len(blocks.Indptr)-1)
				return
			}
			for _, p := range blocks.Indices[blocks.Indptr[row]:blocks.Indptr[row+1]] {
				for j := int64(p) * int64(in.PageSize); j < min(int64(p+1)*int64(in.PageSize), own+1); j++ {
					out.Indices = append(out.Indices, int32(j))
				}
			}
			out.Indptr = append(out.Indptr, int32(len(out.Indices)))
		}
		t++
	})
	return out, err
}
