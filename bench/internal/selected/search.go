package selected

import (
	"github.com/longctx/longctx/attention"
)

// searched is attention to what a search finds. What an estimate of the sum weighs
// more is judged by the keys themselves.
func (l *layer) searched(a *attention.SearchedAttention, sinks, window int, find func(found *attention.Found) error) (*choice, error) {
	var found attention.Found
	if err := find(&found); err != nil {
		return nil, err
	}
	if err := a.Plan(attention.Step{QueryLens: []int{l.judged}, KV: l}); err != nil {
		return nil, err
	}
	args := l.args(l.queries)
	if err := a.Run(args, &found); err != nil {
		return nil, err
	}
	c := &choice{out: args.Out, lse: args.LSE}
	if len(found.LogWeight) > 0 {
		plain := l.args(l.queries)
		found.LogWeight = nil
		if err := a.Run(plain, &found); err != nil {
			return nil, err
		}
		c.lse = plain.LSE
	}
	group := l.heads / l.kvHeads
	seen := make([]bool, l.tokens)
	for t := range l.judged {
		own := l.tokens - l.judged + t
		for g := range l.kvHeads {
			clear(seen)
			for row := t*l.heads + g*group; row < t*l.heads+(g+1)*group; row++ {
				for _, j := range found.Indices[found.Indptr[row]:found.Indptr[row+1]] {
					seen[j] = true
				}
			}
			for j := range own + 1 {
				if seen[j] || j < sinks || j > own-window {
					c.pairs++
				}
			}
		}
	}
	return c, nil
}

// magicPIG has as few bits as make it take about the budget of such short texts.
func (l *layer) magicPIG() (*choice, error) {
	m := attention.MagicPIG{Bits: 8, Tables: 75, Sinks: sinks, Window: recent, Seed: 1}
	switch {
	case l.Share > 0.4:
		m.Bits = 5
	case l.Share > 0.2:
		m.Bits = 6
	case l.Share > 0.1:
		m.Bits = 7
	}
	a, err := m.New(l.Backend, l.config(attention.Mask{}))
	if err != nil {
		return nil, err
	}
	defer a.Close()
	index, err := m.NewIndex(l.kvHeads, l.dim)
	if err != nil {
		return nil, err
	}
	if err := index.Append(l.Backend, l.key); err != nil {
		return nil, err
	}
	return l.searched(a, m.Sinks, m.Window, func(found *attention.Found) error {
		return index.Search(l.Backend, l.queries, l.tokens, found)
	})
}

// retrieval learns from the queries before those judged.
func (l *layer) retrieval() (*choice, error) {
	top := max(l.budget()-sinks-recent, 1)
	m := attention.RetrievalAttention{TopK: top, Beam: top + top/4 + 8, Degree: 8, Neighbours: 16, Sinks: sinks, Window: recent}
	a, err := m.New(l.Backend, l.config(attention.Mask{}))
	if err != nil {
		return nil, err
	}
	defer a.Close()
	index, err := m.NewIndex(l.kvHeads, l.dim)
	if err != nil {
		return nil, err
	}
	if err := index.Append(l.key); err != nil {
		return nil, err
	}
	if before := int64(l.tokens - l.judged); before > 0 {
		if err := index.Learn(l.Backend, l.query.Slice(0, 0, before)); err != nil {
			return nil, err
		}
	}
	return l.searched(a, m.Sinks, m.Window, func(found *attention.Found) error { return index.Search(l.queries, l.tokens, found) })
}
