package prefix

import (
	"fmt"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
)

// Cascade splits attention over sequences that share pages in two: over each
// shared prefix, once for all queries of the sequences that have it, and over
// what each has of its own (Juravsky et al., "Hydragen: High-Throughput LLM
// Inference with Shared Prefixes", https://arxiv.org/abs/2402.05099; Ye et al.,
// FlashInfer, https://arxiv.org/abs/2501.01005). Merge joins the two:
//
//	c.Plan(queryLens)
//	shared.Plan(attention.Step{KV: c.Shared(), QueryLens: c.SharedQueryLens(), QueryPos: c.QueryPos(), Length: n})
//	tails.Plan(attention.Step{KV: c.Tails(), QueryLens: queryLens, QueryPos: c.QueryPos(), Length: n})
//	…                                    // for each layer: Run of both on the same Query, with LSE
//	backend.Merge(&kernel.MergeArgs{OutA, LSEA of shared, OutB, LSEB of tails, …})
//
// shared has Mask attention.Bidirectional: every query comes after the prefix.
// tails has attention.Causal. For both it is one Config else, and one Length.
// Other masks, scores by distance and position methods of several Terms go by
// indices, which the halves do not know; sink logits must be given to one half.
//
// The result is that of attention in one pass but for rounding: the prefix is
// merged by its Out and LSE. It has the same bits whichever other sequences
// share the prefix, as long as it is cut at the same key. A sequence that shares
// nothing has the bits of one pass.
type Cascade struct {
	view *kvcache.View

	all       kernel.Batch // of the view
	positions []int32      // of all keys, sequence by sequence
	keyStart  []int        // [n+1] first key of each sequence in positions
	groups    []group

	queryLens []int   // of each group
	queryPos  []int32 // of each query
}

// group is neighbouring sequences first <= s < end and how many first pages are
// read for all of them at once.
type group struct{ first, end, pages, queries int }

// NewCascade is a Cascade over the sequences of v. Only neighbours in v are
// grouped: their queries lie together.
func NewCascade(v *kvcache.View) *Cascade { return &Cascade{view: v} }

// Plan looks at the tables, for a step with so many query tokens of each
// sequence, whose own keys are the last ones. It is due when LowerKV would be.
func (c *Cascade) Plan(queryLens []int) error {
	if err := c.view.LowerKV(&c.all); err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	n := len(c.all.SeqLens)
	if len(queryLens) != n {
		return valueError("Cascade: number of query lengths", len(queryLens), "that of sequences, %d", n)
	}
	c.keyStart = append(c.keyStart[:0], 0)
	for s, length := range c.all.SeqLens {
		if q := queryLens[s]; q < 0 || q > int(length) {
			return valueError(fmt.Sprintf("Cascade: query length %d", s), q, "0 to the length %d", length)
		}
		c.keyStart = append(c.keyStart, c.keyStart[s]+int(length))
	}
	if positions := c.view.KeyPositions(c.positions[:0]); positions != nil {
		c.positions = positions
	} else {
		c.positions = c.positions[:0]
		for _, length := range c.all.SeqLens {
			for j := range length {
				c.positions = append(c.positions, j)
			}
		}
	}
	c.group(queryLens)
	c.queryPos = c.queryPos[:0]
	for s, q := range queryLens {
		c.queryPos = append(c.queryPos, c.positions[c.keyStart[s+1]-q:c.keyStart[s+1]]...)
	}
	return nil
}

// group puts neighbours together for as long as it saves keys: n sequences that
// share p pages save (n−1)·p of them.
func (c *Cascade) group(queryLens []int) {
	size := c.view.PageSize()
	c.groups, c.queryLens = c.groups[:0], c.queryLens[:0]
	for s, q := range queryLens {
		own := (int(c.all.SeqLens[s]) - q) / size // pages that all of its queries come after
		if last := len(c.groups) - 1; last >= 0 {
			g := &c.groups[last]
			n := g.end - g.first
			if pages := c.common(g.first, s, min(own, g.pages)); n*pages > (n-1)*g.pages {
				g.end, g.pages, g.queries = s+1, pages, g.queries+q
				continue
			}
		}
		c.groups = append(c.groups, group{s, s + 1, own, q})
	}
	for i := range c.groups {
		g := &c.groups[i]
		if g.end-g.first == 1 {
			g.pages = 0 // nothing is shared
		}
		c.queryLens = append(c.queryLens, g.queries)
	}
}

// common is the number of first pages, at most most, that two sequences share at
// the same positions.
func (c *Cascade) common(a, b, most int) int {
	t, size := &c.all.Pages, c.view.PageSize()
	ta, tb := int(t.Indptr[a]), int(t.Indptr[b])
	for k := range most {
		ja, jb := c.keyStart[a]+k*size, c.keyStart[b]+k*size
		if t.Indices[ta+k] != t.Indices[tb+k] || t.IsCoded(ta+k) != t.IsCoded(tb+k) ||
			!slices.Equal(c.positions[ja:ja+size], c.positions[jb:jb+size]) {
			return k
		}
	}
	return most
}

// SharedQueryLens are the query tokens of each sequence of Shared: all those of
// a group.
func (c *Cascade) SharedQueryLens() []int { return c.queryLens }

// QueryPos are the positions of all query tokens.
func (c *Cascade) QueryPos() []int32 { return c.queryPos }

// Saved is the number of keys that one pass would read and the two do not.
func (c *Cascade) Saved() (keys int64) {
	for _, g := range c.groups {
		keys += int64(g.end-g.first-1) * int64(g.pages*c.view.PageSize())
	}
	return keys
}

// Shared has a sequence for each group, which is its shared prefix and may be
// empty.
func (c *Cascade) Shared() Part { return Part{c, true} }

// Tails has the sequences of the view, without their shared prefix.
func (c *Cascade) Tails() Part { return Part{c, false} }

// Part is one half of a Cascade, as attention takes its keys.
type Part struct {
	cascade *Cascade
	shared  bool
}

// KeyStorage is Config.KeyStorage of the cache.
func (p Part) KeyStorage() kernel.KeyStorage { return p.cascade.view.KeyStorage() }

// PageSize is Config.PageSize of the cache.
func (p Part) PageSize() int { return p.cascade.view.PageSize() }

// each calls f for the sequences of the part: the keys from <= j < to of sequence
// s of the view.
func (p Part) each(f func(s, from, to int)) {
	size := p.PageSize()
	for _, g := range p.cascade.groups {
		if p.shared {
			f(g.first, 0, g.pages*size)
			continue
		}
		for s := g.first; s < g.end; s++ {
			f(s, g.pages*size, int(p.cascade.all.SeqLens[s]))
		}
	}
}

// LowerKV writes SeqLens and Pages of dst, as the last Plan found them.
func (p Part) LowerKV(dst *kernel.Batch) error {
	if dst == nil {
		return valueError("LowerKV: dst", "nil", "a Batch")
	}
	from, t, size := &p.cascade.all.Pages, &dst.Pages, p.PageSize()
	dst.KeyStart, dst.SeqLens = dst.KeyStart[:0], dst.SeqLens[:0]
	t.Indptr, t.Indices, t.Coded = append(t.Indptr[:0], 0), t.Indices[:0], t.Coded[:0]
	p.each(func(s, lo, hi int) {
		dst.SeqLens = append(dst.SeqLens, int32(hi-lo))
		first, end := int(from.Indptr[s])+lo/size, int(from.Indptr[s])+(hi+size-1)/size
		t.Indices = append(t.Indices, from.Indices[first:end]...)
		if len(from.Coded) > 0 {
			t.Coded = append(t.Coded, from.Coded[first:end]...)
		}
		t.Indptr = append(t.Indptr, int32(len(t.Indices)))
	})
	return nil
}

// KeyPositions appends the positions of the keys of the part to dst.
func (p Part) KeyPositions(dst []int32) []int32 {
	if dst == nil {
		dst = []int32{} // nil would say: the ordinals
	}
	p.each(func(s, lo, hi int) {
		at := p.cascade.keyStart[s]
		dst = append(dst, p.cascade.positions[at+lo:at+hi]...)
	})
	return dst
}
