// Jiaming Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", 2024, https://arxiv.org/abs/2406.10774

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Quest reads the pages whose keys can score highest. Of page p the least and
// the largest value of each feature are kept; for a query q
//
//	bound(p) = Scale · Σ_d max(q_d·Min[p,d], q_d·Max[p,d])  ≥  Scale · q·k  for every key k of p
//
// and the query sees its Pages pages of the largest bound, of equal ones the
// earlier. Sinks and Recent pages are seen whatever their bound and count in
// Pages. With several query heads to a KV head, a KV head reads the pages that
// any of them chose. Pages at least the number of pages is dense attention.
//
// Claim: recall close to dense with a few thousand keys a step, where dropping
// keys for good fails; nothing is dropped.
//
// Cost: 4·HeadDim FLOPs and 2·HeadDim values a page and query head, 1/PageSize
// of the keys' bytes twice, then attention over Pages pages.
//
// Limits: for decode, and made of plain pages. The bound is loose where a page
// holds unlike keys. Queries must be turned as the bounded keys are: bounds of
// PostRoPE keys are those of the true scores; of PreRoPE keys they rank by
// content alone. Package cpu reads tiles of 64 keys, so that there smaller pages
// save less than their share.
type Quest struct {
	Pages  int // pages a query head sees, at least 1
	Sinks  int // of these, first pages, at least 0
	Recent int // of these, last pages, the query's own included, at least 1
}

// Info describes the selector.
func (Quest) Info() SelectorInfo {
	return SelectorInfo{"quest", "arXiv:2406.10774", "decode", "least and largest value of each feature of a page"}
}

// Bounds brings Min and Max of pages up to date: those that have changed since,
// with the number of their keys.
func (Quest) Bounds(ops kernel.Ops, key, least, most tensor.View, pages, rows []int32) error {
	if err := ops.PageBounds(&kernel.PageBoundsArgs{Key: key, Pages: pages, Rows: rows, Min: least, Max: most}); err != nil {
		return fmt.Errorf("attention: quest: %w", err)
	}
	return nil
}

// Select lists the pages of each query token and KV head, for Step.Blocks of a
// Mask of causal regions with kernel.MaskBlocks: the lists end at the query's own
// page, of which they do not hide later keys.
// least and most are [pages, KVHeads, HeadDim] as Bounds left them.
func (q Quest) Select(ops kernel.Ops, in *Selection, least, most tensor.View) (kernel.BlockSparse, error) {
	if q.Sinks < 0 || q.Recent < 1 || q.Pages < 1 || q.Sinks > q.Pages-q.Recent {
		return kernel.BlockSparse{}, fmt.Errorf("attention: quest: Pages %d, Sinks %d, Recent %d, want Sinks at least 0, Recent at least 1, and both together at most Pages", q.Pages, q.Sinks, q.Recent)
	}
	return in.choose(ops, least, most, budget{q.Sinks, q.Recent, q.Pages - q.Sinks - q.Recent})
}
