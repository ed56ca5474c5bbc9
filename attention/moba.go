// Enzhe Lu et al., "MoBA: Mixture of Block Attention for Long-Context LLMs", 2025, https://arxiv.org/abs/2502.13189

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// MoBA reads, for each query, the chunks whose mean key scores highest. Its own
// chunk is always among them and counts in Chunks; later ones never are. With
// several query heads to a KV head, a KV head reads the chunks that any of them
// chose. Chunks at least the number of chunks is dense attention.
//
// Claim: none beyond the trained length; a model trained so, or tuned, attends to a
// few chunks with little loss.
//
// Cost: HeadDim FLOPs four times for each chunk, query and head, one mean of a
// chunk kept and made again as it grows, then attention over Chunks chunks.
//
// Limits: made of plain pages; a chunk is whole pages. Of equal scores the earlier
// chunk is taken, where the published code leaves that to its sort. In prefill the
// queries of a tile differ in what they choose, and package cpu reads what any of
// them did.
type MoBA struct {
	Chunk  int // keys of a chunk, a multiple of PageSize
	Chunks int // a query head sees, its own included, at least 1
}

// Info describes the selector.
func (MoBA) Info() SelectorInfo {
	return SelectorInfo{"moba", "arXiv:2502.13189", "decode, prefill", "mean of the keys of a chunk"}
}

// Means brings the means of chunks up to date, of a sequence those that hold key
// from[s] or a later one; nil: all. The mean of a chunk lies in the row of its first
// page. key is [pages, PageSize, KVHeads, HeadDim], means [pages, KVHeads, HeadDim] F32.
func (m MoBA) Means(b kernel.Backend, in *Selection, key, means tensor.View, from []int32) error {
	p, err := newPrefill("moba", b, in, key, m.Chunk)
	if err != nil {
		return err
	}
	if from != nil && len(from) != len(in.SeqLens) {
		return fmt.Errorf("attention: moba: %d first keys for %d sequences", len(from), len(in.SeqLens))
	}
	if means.Rank != 3 || means.DType != tensor.F32 || means.Shape[0] != key.Shape[0] || means.Shape[1] != key.Shape[2] || means.Shape[2] != key.Shape[3] {
		return fmt.Errorf("attention: moba: means are %v, want f32 [%d, %d, %d]", &means, key.Shape[0], key.Shape[2], key.Shape[3])
	}
	var slots []int32
	made, _, err := p.keyMeans(func(s int) (lo, hi int) {
		lo, hi = p.keyBlocks(s)
		if from != nil {
			lo = min(max(int(from[s])/m.Chunk, 0), hi)
		}
		slots = append(slots, p.firstPages(s)[lo:hi]...)
		return lo, hi
	})
	if err != nil {
		return fmt.Errorf("attention: moba: %w", err)
	}
	if len(slots) == 0 {
		return nil
	}
	cache := tensor.View{Buf: means.Buf, DType: means.DType, Rank: 4, Offset: means.Offset}
	copy(cache.Shape[:], []int64{means.Shape[0], 1, means.Shape[1], means.Shape[2]})
	copy(cache.Stride[:], []int64{means.Stride[0], means.Stride[0], means.Stride[1], means.Stride[2]})
	// An append takes keys and values: the means are both, and written twice alike.
	if err := b.AppendKV(&kernel.AppendArgs{Key: made, KeyCache: cache, Value: made, ValueCache: cache, Slots: slots}); err != nil {
		return fmt.Errorf("attention: moba: %w", err)
	}
	return nil
}

// firstPages are the first pages of the chunks of a sequence.
func (p *prefill) firstPages(s int) (out []int32) {
	pages := p.in.Pages.Indices[p.in.Pages.Indptr[s]:p.in.Pages.Indptr[s+1]]
	for at := 0; at < len(pages); at += p.block / p.in.PageSize {
		out = append(out, pages[at])
	}
	return out
}

// Select lists the chunks of each query token and KV head, for Step.Blocks of a
// Mask of causal regions with kernel.MaskBlocks. in.Scores has room for the chunks
// of a sequence. means are as Means left them.
func (m MoBA) Select(b kernel.Backend, in *Selection, key, means tensor.View) (kernel.BlockSparse, error) {
	if m.Chunks < 1 {
		return kernel.BlockSparse{}, fmt.Errorf("attention: moba: Chunks is %d, want at least 1", m.Chunks)
	}
	p, err := newPrefill("moba", b, in, key, m.Chunk)
	if err != nil {
		return kernel.BlockSparse{}, err
	}
	chunks := *in
	chunks.PageSize, chunks.Pages = m.Chunk, kernel.BlockTable{Indptr: []int32{0}}
	for s := range in.SeqLens {
		chunks.Pages.Indices = append(chunks.Pages.Indices, p.firstPages(s)...)
		chunks.Pages.Indptr = append(chunks.Pages.Indptr, int32(len(chunks.Pages.Indices)))
	}
	return chunks.choose(b, means, means, budget{0, 1, m.Chunks - 1})
}
