package selected

import (
	"fmt"
	"slices"
	"strings"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// prefillSelectors are those that choose for blocks of queries, of two pages each.
func prefillSelectors() []Selector {
	type selector interface {
		Select(kernel.Backend, *attention.Selection, tensor.View) (kernel.BlockSparse, error)
	}
	of := func(name string, make func(l *layer) selector) Selector {
		return Selector{Name: name, Prefill: true, attend: func(l *layer) (*choice, error) {
			b, err := make(l).Select(l.Backend, l.selection(l.query, 1), l.pages)
			if err != nil {
				return nil, err
			}
			return l.blocks(b)
		}}
	}
	shape := func(l *layer, p attention.MInferencePattern, first, second int) selector {
		return attention.MInference{Block: 2 * l.Page, Last: min(32, l.tokens), Heads: []attention.MInferenceHead{{Pattern: p, First: first, Second: second}}}
	}
	return []Selector{
		{Name: "moba", Prefill: true, attend: (*layer).moba},
		of("minference-a-shape", func(l *layer) selector { return shape(l, attention.AShape, 2*l.Page, l.budget()) }),
		of("minference-vertical-slash", func(l *layer) selector {
			if l.Share == 1 {
				return shape(l, attention.VerticalSlash, l.tokens, l.tokens)
			}
			lines := max(l.budget()/4, 1) // of either kind 30 are the first ones, whatever they score
			return shape(l, attention.VerticalSlash, lines, lines)
		}),
		of("minference-block-sparse", func(l *layer) selector { return shape(l, attention.BlockSparse, (l.pageBudget()+1)/2, 0) }),
		of("flexprefill", func(l *layer) selector {
			return attention.FlexPrefill{Block: 2 * l.Page, Share: l.weight(), Divergence: 0.1, MinBlocks: 1}
		}),
		of("xattention", func(l *layer) selector {
			stride := 8
			for 2*l.Page%stride != 0 {
				stride /= 2
			}
			return attention.XAttention{Block: 2 * l.Page, Stride: stride, Threshold: l.weight()}
		}),
		of("spargeattn", func(l *layer) selector {
			return attention.SpargeAttn{Block: 2 * l.Page, Alike: 0.1, Share: l.weight()}
		}),
		of("sampleattention", func(l *layer) selector {
			return attention.SampleAttention{Block: 2 * l.Page, Rows: min(32, l.tokens), Share: l.weight(), Window: max(l.budget()/2, 1)}
		}),
	}
}

// weight is the share of weights that selectors look for which have no budget of
// keys: 0.95 for a half of the keys, 0.9 for a quarter, 0.8 for an eighth.
func (l *layer) weight() float64 {
	if l.Share == 1 {
		return 1
	}
	return max(1-0.025/l.Share, 0.1)
}

func (l *layer) moba() (*choice, error) {
	block := 2 * l.Page
	m := attention.MoBA{Chunk: block, Chunks: max(int(l.Share*float64((l.tokens+block-1)/block)+0.5), 2)}
	means := l.means()
	if err := m.Means(l.Backend, l.selection(l.query, 1), l.pages, means, nil); err != nil {
		return nil, err
	}
	b, err := m.Select(l.Backend, l.selection(l.query, len(l.table)), l.pages, means)
	if err != nil {
		return nil, err
	}
	return l.blocks(b)
}

// blocks is attention of all queries to blocks of keys.
func (l *layer) blocks(b kernel.BlockSparse) (*choice, error) {
	mask := attention.Causal()
	mask.Kinds |= kernel.MaskBlocks
	args, err := l.all(l.query, mask, &b)
	if err != nil {
		return nil, err
	}
	c := &choice{out: args.Out, lse: args.LSE}
	q, k := int(b.QueryBlock), int(b.KeyBlock)
	blocks := (l.tokens + q - 1) / q
	for t := range l.tokens {
		for g := range l.kvHeads {
			row := t / q
			if b.PerHead {
				row += g * blocks
			}
			for _, i := range b.Indices[b.Indptr[row]:b.Indptr[row+1]] {
				c.pairs += min(max(t+1-int(i)*k, 0), k)
			}
		}
	}
	return c, nil
}

// Selectors lists all of them, decode selectors first.
func Selectors() []Selector { return append(decodeSelectors(), prefillSelectors()...) }

// Select picks selectors by names with commas, or all.
func Select(list string) (out []Selector, err error) {
	all := Selectors()
	if list == "" || list == "all" {
		return all, nil
	}
	var names []string
	for _, s := range all {
		names = append(names, s.Name)
	}
	for name := range strings.SplitSeq(list, ",") {
		i := slices.Index(names, name)
		if i < 0 {
			return nil, fmt.Errorf("selected: selector %q, want some of %s", name, strings.Join(names, ","))
		}
		out = append(out, all[i])
	}
	return out, nil
}
