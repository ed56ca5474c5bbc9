// Package selected attends in a model by the selectors of package attention, and
// judges them beside dense attention over the same queries and keys.
package selected

import (
	"errors"
	"fmt"
	"math"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// Runner attends as Attending.Own says: dense, and in place of it by a selector for
// the last Judged queries, or for all if it is a prefill selector. It adds up what it
// judges.
type Runner struct {
	Policy   kernel.Policy // of attention
	Config   model.Config
	Rotation kernel.Rotation // of queries and keys, by places
	Page     int             // keys a page
	Share    float64         // of a sequence's keys that a query head sees; 1: all
	Judged   int             // last tokens of a sequence that a decode selector is for
	Selector *Selector       // nil: dense

	sum sums
}

// sums are over layers, and over queries of all query heads or keys of all KV heads.
type sums struct{ layers, queries, keys, seen, mass, apart float64 }

// Judgement is what was measured of a selector, in the mean of layers and queries.
type Judgement struct {
	Seen  float64 // share of the keys up to a query's own that its KV head reads
	Mass  float64 // share of dense attention's weights that lies on these
	Error float64 // ‖out − dense‖/‖dense‖ of a layer
}

// Judgement is the mean of all layers and sequences so far.
func (r *Runner) Judgement() Judgement {
	if r.sum.layers == 0 {
		return Judgement{1, 1, 0}
	}
	return Judgement{r.sum.seen / r.sum.keys, r.sum.mass / r.sum.queries, r.sum.apart / r.sum.layers}
}

// layer is one layer of a sequence.
type layer struct {
	*Runner
	Backend             kernel.Backend
	tokens, judged      int
	query, key, value   tensor.View // [tokens, heads, dim], rotated
	plainQ, plainK      tensor.View // not rotated
	pages, plainPages   tensor.View // of keys [pages, Page, KVHeads, dim]
	valuePages          tensor.View
	table, rows         []int32 // pages in order, and the keys of each
	queries             tensor.View
	plain               tensor.View // queries that are judged, not rotated
	dense               *kernel.Args
	scale               float64
	heads, kvHeads, dim int
}

// Own is model.Attending.Own.
func (r *Runner) Own(b kernel.Backend, _ int, query, key, value, out tensor.View) (err error) {
	l, err := r.newLayer(b, query, key, value)
	if err != nil {
		return err
	}
	args, err := l.all(l.query, attention.Causal(), nil)
	if err != nil {
		return fmt.Errorf("selected: dense: %w", err)
	}
	l.dense = args
	copyRows(out, args.Out, 0)
	if r.Selector == nil {
		return nil
	}
	c, err := r.Selector.attend(l)
	if err != nil {
		return fmt.Errorf("selected: %s: %w", r.Selector.Name, err)
	}
	l.judge(c)
	copyRows(out, c.out, l.tokens-l.judged)
	return nil
}

func copyRows(to, from tensor.View, at int) {
	for t := range from.Shape[0] {
		for h := range from.Shape[1] {
			for d := range from.Shape[2] {
				to.Set(from.At(t, h, d), int64(at)+t, h, d)
			}
		}
	}
}

func clone(v tensor.View) tensor.View {
	out := tensor.New(tensor.F32, v.Shape[0], v.Shape[1], v.Shape[2])
	copyRows(out, v, 0)
	return out
}

func (r *Runner) newLayer(b kernel.Backend, query, key, value tensor.View) (*layer, error) {
	c := &r.Config
	l := &layer{Runner: r, Backend: b, tokens: int(query.Shape[0]), heads: c.Heads, kvHeads: c.KVHeads, dim: c.HeadDim}
	if r.Page < 1 || r.Share <= 0 || r.Share > 1 || r.Judged < 1 {
		return nil, fmt.Errorf("selected: Page %d, Share %v, Judged %d, want at least 1, above 0 and at most 1, at least 1", r.Page, r.Share, r.Judged)
	}
	l.judged = min(r.Judged, l.tokens)
	if r.Selector != nil && r.Selector.Prefill {
		l.judged = l.tokens
	}
	l.plainQ, l.plainK, l.value = clone(query), clone(key), clone(value)
	l.query, l.key = clone(query), clone(key)
	places := make([]int32, l.tokens)
	for t := range places {
		places[t] = int32(t)
	}
	if err := errors.Join(rope.Apply(b, l.query, rope.Text(places), r.Rotation, kernel.QuerySide),
		rope.Apply(b, l.key, rope.Text(places), r.Rotation, kernel.KeySide)); err != nil {
		return nil, err
	}
	l.scale = r.Rotation.ScoreScale / math.Sqrt(float64(l.dim))
	l.pages, l.plainPages, l.valuePages = l.paged(l.key), l.paged(l.plainK), l.paged(l.value)
	for at := 0; at < l.tokens; at += r.Page {
		l.table, l.rows = append(l.table, int32(len(l.table))), append(l.rows, int32(min(r.Page, l.tokens-at)))
	}
	first := int64(l.tokens - l.judged)
	l.queries, l.plain = l.query.Slice(0, first, int64(l.tokens)), l.plainQ.Slice(0, first, int64(l.tokens))
	return l, nil
}

// paged lays rows in pages, with zeros after the last.
func (l *layer) paged(v tensor.View) tensor.View {
	pages := int64((l.tokens + l.Page - 1) / l.Page)
	out := tensor.New(tensor.F32, pages, int64(l.Page), v.Shape[1], v.Shape[2])
	copy(out.F32s(), v.F32s())
	return out
}

// KeyStorage, PageSize, KeyPositions and LowerKV make a layer a KVSource.
func (l *layer) KeyStorage() kernel.KeyStorage    { return kernel.PostRoPE }
func (l *layer) PageSize() int                    { return l.Page }
func (l *layer) KeyPositions(dst []int32) []int32 { return nil }
func (l *layer) LowerKV(dst *kernel.Batch) error {
	dst.SeqLens = append(dst.SeqLens[:0], int32(l.tokens))
	dst.Pages.Indptr = append(dst.Pages.Indptr[:0], 0, int32(len(l.table)))
	dst.Pages.Indices = append(dst.Pages.Indices[:0], l.table...)
	return nil
}

// config is that of attention over the layer's keys.
func (l *layer) config(mask attention.Mask) attention.Config {
	return attention.Config{Heads: l.heads, KVHeads: l.kvHeads, HeadDim: l.dim, PageSize: l.Page, Mask: mask,
		KeyStorage: kernel.PostRoPE, Scale: l.scale, Policy: l.Policy}
}

func (l *layer) args(query tensor.View) *kernel.Args {
	n := query.Shape[0]
	return &kernel.Args{Query: query, Key: l.pages, Value: l.valuePages,
		Out: tensor.New(tensor.F32, n, int64(l.heads), int64(l.dim)), LSE: tensor.New(tensor.F32, n, int64(l.heads))}
}

// all is attention of queries, the last of the sequence, to the keys in a mask.
func (l *layer) all(query tensor.View, mask attention.Mask, blocks *kernel.BlockSparse) (*kernel.Args, error) {
	a, err := attention.New(l.Backend, l.config(mask))
	if err != nil {
		return nil, err
	}
	defer a.Close()
	step, args := attention.Step{QueryLens: []int{int(query.Shape[0])}, KV: l}, l.args(query)
	if blocks != nil {
		step.Blocks = *blocks
	}
	if err := a.Plan(step); err != nil {
		return nil, err
	}
	return args, a.Run(args)
}

// selection is what selectors choose from, with room for scores of a query head.
func (l *layer) selection(query tensor.View, scores int) *attention.Selection {
	return &attention.Selection{Query: query, QueryStart: []int32{0, int32(l.judged)}, SeqLens: []int32{int32(l.tokens)},
		Pages: kernel.BlockTable{Indptr: []int32{0, int32(len(l.table))}, Indices: l.table}, PageSize: l.Page, KVHeads: l.kvHeads,
		Scale: float32(l.scale), Policy: kernel.Exact, Scores: tensor.New(tensor.F32, int64(l.judged), int64(l.heads), int64(scores))}
}

// choice is what a selector's attention gave.
type choice struct {
	out, lse tensor.View // [judged, heads, …]
	pairs    int         // of judged queries and keys that their KV heads read, over KV heads
}

// judge adds what a choice misses of dense attention.
func (l *layer) judge(c *choice) {
	first := int64(l.tokens - l.judged)
	var difference, norm float64
	for t := range int64(l.judged) {
		for h := range int64(l.heads) {
			l.sum.mass += math.Exp(float64(c.lse.At(t, h)) - float64(l.dense.LSE.At(first+t, h)))
			for d := range int64(l.dim) {
				y := float64(l.dense.Out.At(first+t, h, d))
				x := float64(c.out.At(t, h, d)) - y
				difference, norm = difference+x*x, norm+y*y
			}
		}
		l.sum.keys += float64(l.kvHeads) * float64(first+t+1)
	}
	l.sum.queries += float64(l.judged * l.heads)
	l.sum.seen += float64(c.pairs)
	l.sum.apart += math.Sqrt(difference / max(norm, math.SmallestNonzeroFloat64))
	l.sum.layers++
}
