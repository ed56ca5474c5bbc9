package selected

import (
	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// Beyond lists the selectors that carry a model beyond its trained length by
// positions of their own, which all queries have. Of Runner.Share they take nothing:
// what a query sees stays within the trained length.
func Beyond() []Selector {
	ranked := func(choose func(l *layer) (*attention.Keys, error)) func(l *layer) (*choice, error) {
		return func(l *layer) (*choice, error) {
			keys, err := choose(l)
			if err != nil {
				return nil, err
			}
			return l.placed(keys, nil)
		}
	}
	return []Selector{
		{Name: "infllm", Prefill: true, attend: (*layer).infLLMBeyond},
		{Name: "longheads", Prefill: true, attend: ranked((*layer).longHeadsBeyond)},
		{Name: "reattention", Prefill: true, attend: ranked((*layer).reAttentionBeyond)},
	}
}

// fixed is a Rotary that does not depend on the length.
type fixed struct{ r kernel.Rotation }

func (x fixed) Rotation(int) (kernel.Rotation, error) { return x.r, nil }

// placed is attention to lists of keys that are not rotated, by a position module or,
// with none, by ranks in the list.
func (l *layer) placed(keys *attention.Keys, position attention.Position) (*choice, error) {
	k, err := attention.NewKeyAttention(l.Backend, l.unrotated(attention.Mask{}, position), position == nil)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	if err := k.Plan(l.selection(l.plain, 1), keys, l.plainPages); err != nil {
		return nil, err
	}
	args := l.args(l.plain)
	args.Key = l.plainPages
	return &choice{args.Out, args.LSE, len(keys.Indices)}, k.Run(args)
}

// unrotated is a config that rotates rows by a position module.
func (l *layer) unrotated(mask attention.Mask, position attention.Position) attention.Config {
	c := l.config(mask)
	c.KeyStorage, c.Position, c.Rotary, c.Scale = kernel.PreRoPE, position, fixed{l.Rotation}, 0
	return c
}

// plainKV are the layer's keys as they are before rotation.
type plainKV struct{ *layer }

func (plainKV) KeyStorage() kernel.KeyStorage { return kernel.PreRoPE }

// infLLMBeyond sees the last half of the trained length at true distances, and of the
// rest as many keys, all at the end of that window. Regions of KeyAttention count
// places in a list: the window ends where the last pages are sure to reach.
func (l *layer) infLLMBeyond() (*choice, error) {
	local := max(l.Config.Context/2/l.Page, 2)
	m := attention.InfLLM{Blocks: max(local-1, 1), Init: 1, Local: local, Representatives: 4}
	window := (local - 1) * l.Page
	position := attention.ReRoPE{Window: window}
	weights, err := l.weights(position)
	if err != nil {
		return nil, err
	}
	means := l.means()
	if err := m.Represent(l.plainPages, weights, means, l.table, l.tokens); err != nil {
		return nil, err
	}
	in := l.selection(clone(l.plain), len(l.table))
	if err := l.turn(in.Query, window); err != nil {
		return nil, err
	}
	blocks, err := m.Select(l.Backend, in, means)
	if err != nil {
		return nil, err
	}
	keys, err := attention.BlockKeys(in, blocks)
	if err != nil {
		return nil, err
	}
	return l.placed(keys, position)
}

// turn rotates all queries to one place.
func (l *layer) turn(query tensor.View, place int) error {
	places := make([]int32, query.Shape[0])
	for t := range places {
		places[t] = int32(place)
	}
	return rope.Apply(l.Backend, query, rope.Text(places), l.Rotation, kernel.QuerySide)
}

// weights are what keys get of all queries, [tokens, Heads].
func (l *layer) weights(position attention.Position) (tensor.View, error) {
	out := tensor.New(tensor.F32, int64(l.tokens), int64(l.heads))
	c := l.unrotated(attention.Causal(), position)
	c.ColumnStats = true
	a, err := attention.New(l.Backend, c)
	if err != nil {
		return out, err
	}
	defer a.Close()
	if err := a.Plan(attention.Step{QueryLens: []int{l.tokens}, KV: plainKV{l}}); err != nil {
		return out, err
	}
	args := l.args(l.plainQ)
	args.Key = l.plainPages
	if err := a.Run(args); err != nil {
		return out, err
	}
	return out, a.ColumnStats(&kernel.ColumnStatsArgs{Query: l.plainQ, Key: l.plainPages, LSE: args.LSE, Power: 1, Out: out})
}

// longHeadsBeyond has so many chunks that what the heads of a group choose stays within
// the trained length. Representations are of rows that are not rotated: no distance
// is in what is chosen.
func (l *layer) longHeadsBeyond() (*attention.Keys, error) {
	group := l.heads / l.kvHeads
	m, means := attention.LongHeads{Chunks: max((l.Config.Context/l.Page-3)/group+3, 3)}, l.means()
	if err := m.Represent(l.Backend, l.plainQ, l.plainPages, l.valuePages, means, l.table, l.rows); err != nil {
		return nil, err
	}
	in := l.selection(l.plain, len(l.table))
	blocks, err := m.Select(l.Backend, in, means)
	if err != nil {
		return nil, err
	}
	return attention.BlockKeys(in, blocks)
}

// reAttentionBeyond has the last half of the trained length, and of the rest what the
// heads find.
func (l *layer) reAttentionBeyond() (*attention.Keys, error) {
	const span, global = 8, 4
	local := max(l.Config.Context/2, 1)
	m := attention.ReAttention{Span: span, Global: global, Local: local, Top: max((l.Config.Context-local-global)/(span*l.heads), 1)}
	return m.Select(l.Backend, l.selection(l.plain, l.tokens), l.plainPages)
}
