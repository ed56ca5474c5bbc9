// Huiqiang Jiang et al., "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention", 2024, https://arxiv.org/abs/2407.02490

package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// MInferencePattern is the shape of what a head sees.
type MInferencePattern uint8

const (
	AShape        MInferencePattern = iota // first First keys and last Second before and with a query
	VerticalSlash                          // First columns and Second diagonals
	BlockSparse                            // First blocks
)

// MInferenceHead is the pattern of a query head with its two numbers.
type MInferenceHead struct {
	Pattern       MInferencePattern
	First, Second int // First at least 1; Second at least 1, of BlockSparse 0
}

// MInference reads, in each head, a pattern found beforehand, whose indices are
// made anew for each prompt.
//
// Vertical-slash: the weights of the last Last queries are added by column and by
// diagonal; the largest columns are seen, the first 30 keys among them, and the
// largest diagonals, the last 30 among them. Block-sparse: of each block of queries
// the blocks of keys whose means score highest, the own one among them and
// counted. A-shape: sinks and a window. Lists are of blocks, so that a block is seen whole
// where a line of a head crosses it; and a KV head sees what any of its query heads does.
//
// Claim: none beyond the trained length; a million tokens in a tenth of the time.
//
// Cost: vertical-slash Last rows of scores; block-sparse a mean of every block and
// their products.
//
// Limits: for prefill, in host memory, of plain pages; keys and queries as they are
// attended to. Columns cost a whole block each here, where the published kernel gathers them.
type MInference struct {
	Block int              // queries and keys of a block, a multiple of PageSize
	Last  int              // queries that vertical-slash is estimated from; the paper has 64
	Heads []MInferenceHead // of query heads; one: of all
}

// Keys and diagonals that vertical-slash sees whatever their weight.
const forcedLines = 30

// Info describes the selector.
func (MInference) Info() SelectorInfo {
	return SelectorInfo{"minference", "arXiv:2407.02490", "prefill", "a pattern of each head, from MInference.Choose"}
}

func (m *MInference) check(heads int) error {
	if m.Last < 1 {
		return fmt.Errorf("attention: minference: Last is %d, want at least 1", m.Last)
	}
	if len(m.Heads) != 1 && len(m.Heads) != heads {
		return fmt.Errorf("attention: minference: patterns of %d heads, want 1 or %d", len(m.Heads), heads)
	}
	for h, x := range m.Heads {
		switch {
		case x.Pattern > BlockSparse:
			return fmt.Errorf("attention: minference: Heads[%d] has pattern %d, want AShape, VerticalSlash or BlockSparse", h, x.Pattern)
		case x.First < 1 || x.First > kernel.MaxBound || x.Second > kernel.MaxBound || (x.Second < 1) != (x.Pattern == BlockSparse) || x.Second < 0:
			return fmt.Errorf("attention: minference: Heads[%d] has the numbers %d and %d, want at least 1, and of BlockSparse the second 0", h, x.First, x.Second)
		}
	}
	return nil
}

// Select lists the key blocks of each query block and KV head, for Step.Blocks of a
// Mask of causal regions with kernel.MaskBlocks. key is [pages, PageSize, KVHeads,
// HeadDim].
func (m MInference) Select(b kernel.Backend, in *Selection, key tensor.View) (kernel.BlockSparse, error) {
	none := kernel.BlockSparse{}
	p, err := newPrefill("minference", b, in, key, m.Block)
	if err != nil {
		return none, err
	}
	if err := m.check(p.heads); err != nil {
		return none, err
	}
	var pool pooled
	for _, x := range m.Heads {
		if x.Pattern == BlockSparse && pool.start == nil {
			if pool, err = p.pool(); err != nil {
				return none, fmt.Errorf("attention: minference: %w", err)
			}
		}
	}
	out, err := p.lists(alone(func(s, h int) (marker, error) {
		var weights []float32
		x := m.Heads[h%len(m.Heads)]
		if x.Pattern == VerticalSlash {
			var err error
			if weights, err = m.weights(p, s, h); err != nil {
				return nil, err
			}
		}
		return m.marker(p, &pool, x, weights, s, h), nil
	}))
	if err != nil {
		return none, fmt.Errorf("attention: minference: %w", err)
	}
	return out, nil
}

func (m *MInference) weights(p *prefill, s, h int) ([]float32, error) {
	n, _ := p.queries(s)
	return p.sampled(s, h, min(m.Last, n), 1)
}

// marker marks what a head of a pattern sees.
func (m *MInference) marker(p *prefill, pool *pooled, x MInferenceHead, weights []float32, s, h int) marker {
	switch x.Pattern {
	case AShape:
		return func(block int, see []bool) {
			lo, _ := p.span(s, block)
			for c := range see {
				see[c] = see[c] || c*p.block < x.First || (c+1)*p.block > lo+1-x.Second
			}
		}
	case VerticalSlash:
		keys := int(p.in.SeqLens[s])
		vertical, slash := columns(weights, keys), diagonals(weights, keys)
		for j := range min(forcedLines, keys) {
			vertical[j], slash[j] = math.MaxFloat32, math.MaxFloat32
		}
		return p.lines(s, largest(vertical)[:min(x.First, keys)], largest(slash)[:min(x.Second, keys)])
	}
	return func(block int, see []bool) {
		row := pool.row(p, s, h, block)
		for _, c := range largest(row[:block])[:min(x.First-1, block)] {
			see[c] = true
		}
	}
}

// Choose returns for each query head the candidate that recalls most of the weights
// of Last evenly spaced queries of each sequence, of equal ones the earlier:
// candidates are to cost about the same. The paper searches so, by output error, once
// for a model.
func (m MInference) Choose(b kernel.Backend, in *Selection, key tensor.View, candidates []MInferenceHead) ([]MInferenceHead, error) {
	p, err := newPrefill("minference", b, in, key, m.Block)
	if err != nil {
		return nil, err
	}
	if len(candidates) == 0 {
		return nil, fmt.Errorf("attention: minference: no candidates, want at least one")
	}
	for _, c := range candidates {
		one := m
		one.Heads = []MInferenceHead{c}
		if err := one.check(p.heads); err != nil {
			return nil, err
		}
	}
	pool, err := p.pool()
	if err != nil {
		return nil, fmt.Errorf("attention: minference: %w", err)
	}
	out := make([]MInferenceHead, p.heads)
	for h := range out {
		recalled := make([]float64, len(candidates))
		for s := range in.SeqLens {
			n, _ := p.queries(s)
			if n == 0 {
				continue
			}
			last, err := m.weights(p, s, h)
			if err != nil {
				return nil, fmt.Errorf("attention: minference: %w", err)
			}
			step := max(n/m.Last, 1)
			spread, err := p.sampled(s, h, min(m.Last, n), step)
			if err != nil {
				return nil, fmt.Errorf("attention: minference: %w", err)
			}
			for i, c := range candidates {
				recalled[i] += p.recalled(s, spread, step, m.marker(p, &pool, c, last, s, h))
			}
		}
		best := 0
		for i, x := range recalled {
			if x > recalled[best] {
				best = i
			}
		}
		out[h] = candidates[best]
	}
	return out, nil
}

// recalled is the weight of what a marker lets sampled queries see.
func (p *prefill) recalled(s int, weights []float32, step int, mark marker) (sum float64) {
	keys := int(p.in.SeqLens[s])
	n, have := len(weights)/keys, -1
	var see []bool
	for r := range n {
		i := keys - 1 - (n-1-r)*step
		if block := i / p.block; block != have {
			have, see = block, make([]bool, block+1)
			mark(block, see)
			see[block] = true
		}
		for j, w := range weights[r*keys:][:i+1] {
			if see[j/p.block] {
				sum += float64(w)
			}
		}
	}
	return sum
}
