package soak

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/policy"
	"github.com/longctx/longctx/tensor"
)

// headSequence is what the model knows of a sequence of a HeadCache.
type headSequence struct {
	streams [][]token // [layers·heads]
	all     *sequence // its tokens, evicted ones included
	policy  *policy.Sequence
}

// headActor drives a cache with a table for each head, and policies on it.
type headActor struct {
	w      *world
	in     source
	cache  *kvcache.HeadCache
	space  *kvcache.HeadSwapSpace
	attend *attention.Attention

	model      map[kvcache.ID]*headSequence
	live, away []kvcache.ID
	log        []string
}

var planners = func() (list []policy.Entry) {
	for _, e := range policy.Policies() {
		if e.Kind == "evict" || e.Kind == "merge" {
			list = append(list, e)
		}
	}
	return list
}()

func newHeadActor(w *world, in source) *headActor {
	a := &headActor{w: w, in: in, model: map[kvcache.ID]*headSequence{}}
	c := w.config
	c.Pages, c.MaxPages = 2*c.Pages, 0
	var err error
	a.cache, err = kvcache.NewHeads(w.backend, c)
	must("NewHeads", err)
	a.space, err = a.cache.NewSwapSpace(4+in.below(c.Pages), in.below(c.CodedPages+1))
	must("NewSwapSpace of heads", err)
	a.attend, err = attention.New(w.backend, w.format.attention(&c, 2, 1, attention.Causal()))
	must("attention.New of heads", err)
	return a
}

func (a *headActor) step() {
	ops := []func() string{a.begin, a.extend, a.extend, a.extend, a.fork, a.truncate, a.plan, a.plan, a.free, a.swapOut, a.bringBack}
	if len(a.log) >= 40 {
		a.log = slices.Delete(a.log, 0, 1)
	}
	a.log = append(a.log, "heads: "+ops[a.in.below(len(ops))]())
	if !a.w.together {
		a.w.backend.disarm()
	}
	a.w.counts.add(func(c *counts) { c.steps++ })
}

func (a *headActor) pick() (kvcache.ID, *headSequence) {
	if len(a.live) == 0 {
		return 0, nil
	}
	id := a.live[a.in.below(len(a.live))]
	return id, a.model[id]
}

func (a *headActor) refused(what string, ctx context.Context, err error) bool {
	if err == nil {
		return false
	}
	shared := &actor{w: &world{together: true, faults: a.w.faults, config: a.w.config, format: a.w.format}, in: a.in}
	shared.refused(what, ctx, err, snapshot{})
	a.w.counts.add(func(c *counts) { c.refused++ })
	return true
}

func (a *headActor) begin() string {
	if len(a.live)+len(a.away) >= 4 {
		return a.free()
	}
	id, c := a.cache.NewSequence(), &a.w.config
	a.model[id] = &headSequence{streams: make([][]token, c.Layers*c.KVHeads), all: &sequence{scope: a.in.below(len(scopes))}, policy: policy.NewSequence(c.Layers, c.KVHeads)}
	a.live = append(a.live, id)
	a.w.counts.add(func(c *counts) { c.sequences++ })
	return fmt.Sprintf("NewSequence is %d", id)
}

func (a *headActor) extend() string {
	id, s := a.pick()
	n := 1 + a.in.below(20)
	if s == nil || len(s.all.tokens)+n > 4*maxTokens {
		return "no Extend"
	}
	what := fmt.Sprintf("Extend(%d, %d)", id, n)
	arm := &actor{w: a.w, in: a.in}
	arm.arm(&a.w.backend.copies)
	slots, err := a.cache.Extend([]kvcache.ID{id}, []int{n}, nil)
	if a.refused(what, nil, err) {
		return what + " refused"
	}
	var batch []token
	for range n {
		batch = append(batch, s.all.push(int32(a.in.below(3))))
	}
	for i := range s.streams {
		s.streams[i] = append(s.streams[i][:len(s.streams[i]):len(s.streams[i])], batch...)
	}
	for layer := range a.w.config.Layers {
		arm.arm(&a.w.backend.appends)
		for {
			err := a.cache.Append(layer, slots, a.w.shape.rows(layer, 0, batch), a.w.shape.rows(layer, 1, batch))
			if err == nil {
				break
			}
			if !a.w.faults || !errors.Is(err, errInjected) {
				fail("HeadCache.Append: %w", err)
			}
		}
	}
	s.policy.Extend(n)
	for _, h := range s.policy.Heads {
		a.observe(h, n)
	}
	return what
}

// observe tells a head what policies may need.
func (a *headActor) observe(h *policy.Head, n int) {
	weights := func() []float32 {
		w := make([]float32, h.Len())
		for i := range w {
			w[i] = float32(a.in.below(64)) / 64
		}
		return w
	}
	must("Observe", h.Observe(policy.Observation{Queries: n, Sum: weights(), Square: weights(), Max: weights(), RecentQueries: min(n, 4), Recent: weights()}))
	if h.External == nil {
		h.External, h.Tags, h.Low = make([]float32, h.Len()), make([]policy.Tag, h.Len()), make([]float32, h.Len())
	}
	for j := h.Len() - n; j < h.Len(); j++ {
		h.External[j], h.Tags[j] = float32(a.in.below(64))/16-2, policy.Tag(max(a.in.below(9)-6, 0))
	}
	h.Moments = nil
	for range 2 {
		m, err := policy.MomentsOf(queries(4, 1), 0)
		must("MomentsOf", err)
		h.Moments = append(h.Moments, m)
	}
}

func (a *headActor) fork() string {
	id, s := a.pick()
	if s == nil || len(a.live)+len(a.away) >= 4 {
		return "no Fork"
	}
	other, err := a.cache.Fork(id)
	must("Fork", err)
	a.model[other] = &headSequence{streams: slices.Clone(s.streams), all: s.all.clone(), policy: s.policy.Clone()}
	a.live = append(a.live, other)
	return fmt.Sprintf("Fork(%d) is %d", id, other)
}

func (a *headActor) truncate() string {
	id, s := a.pick()
	if s == nil {
		return "no Truncate"
	}
	n := len(s.all.tokens) - a.in.below(min(len(s.all.tokens), 12)+1)
	what := fmt.Sprintf("Truncate(%d, %d)", id, n)
	if a.refused(what, nil, a.cache.Truncate(id, n)) {
		return what + " refused"
	}
	s.all.tokens, s.all.next = s.all.tokens[:n:n], int32(n)
	for i, stream := range s.streams {
		k := 0
		for k < len(stream) && int(stream[k].position) < n {
			k++
		}
		s.streams[i] = stream[:k:k]
	}
	s.policy.Truncate(n)
	return what
}

// plan lets a policy decide.
func (a *headActor) plan() string {
	id, s := a.pick()
	e := planners[a.in.below(len(planners))]
	keys, c := 8+a.in.below(40), &a.w.config
	if s == nil || len(s.all.tokens) == 0 {
		return "no plan"
	}
	sizes := policy.Sizes{Layers: c.Layers, KVHeads: c.KVHeads, HeadDim: dim, Keys: keys, PageSize: c.PageSize}
	p, err := e.Planner(sizes)
	must("Planner of "+e.Name, err)
	if p, ok := p.(*policy.Policy); ok && a.w.format.coded() && a.in.below(4) > 0 {
		p.Block = c.PageSize
	}
	what := fmt.Sprintf("%s(%d, %d keys)", e.Name, id, keys)
	must("Load", s.policy.Load(a.cache, id))
	for _, h := range s.policy.Heads {
		h.Prompt, h.Projected = max(h.Tokens-5, 0), make([]float32, h.Len())
		for j := range h.Projected {
			h.Projected[j] = float32(a.in.below(64)) / 16
		}
	}
	plans, err := p.Plan(s.policy, keys)
	if value := (*policy.ValueError)(nil); errors.As(err, &value) && value.Name == "Share" {
		return what + " refused: another policy has made the heads of a layer differ"
	}
	must(what, err)
	(&actor{w: a.w, in: a.in}).arm(&a.w.backend.gathers)
	if a.refused(what, nil, a.cache.Apply([]kvcache.ID{id}, plans)) {
		return what + " refused"
	}
	must("Applied", s.policy.Applied(plans))
	for i := range s.streams {
		s.streams[i] = a.shape(i).apply(s.streams[i], &plans[i])
	}
	a.w.counts.add(func(c *counts) { c.policy++ })
	return what
}

// shape is that of the rows of a stream.
func (a *headActor) shape(stream int) shape {
	heads := a.w.config.KVHeads
	return shape{dtype: a.w.config.DType, layers: 1, heads: 1, layer0: stream / heads, head0: stream % heads}
}

func (a *headActor) free() string {
	id, s := a.pick()
	if s == nil {
		return "no Free"
	}
	must("HeadCache.Free", a.cache.Free(id))
	delete(a.model, id)
	a.live = slices.DeleteFunc(a.live, func(x kvcache.ID) bool { return x == id })
	return fmt.Sprintf("Free(%d)", id)
}

func (a *headActor) swapOut() string {
	id, s := a.pick()
	if s == nil {
		return "no SwapOut"
	}
	what := fmt.Sprintf("SwapOut(%d)", id)
	ctx, cancel := (&actor{w: a.w, in: a.in}).context()
	defer cancel()
	if a.refused(what, ctx, a.space.SwapOut(ctx, id)) {
		return what + " refused"
	}
	a.live = slices.DeleteFunc(a.live, func(x kvcache.ID) bool { return x == id })
	a.away = append(a.away, id)
	a.w.counts.add(func(c *counts) { c.swaps++ })
	return what
}

func (a *headActor) bringBack() string {
	if len(a.away) == 0 {
		return "none is away"
	}
	id := a.away[0]
	what := fmt.Sprintf("Restore(%d)", id)
	ctx, cancel := (&actor{w: a.w, in: a.in}).context()
	defer cancel()
	(&actor{w: a.w, in: a.in}).arm(&a.w.backend.swaps)
	err := a.space.Restore(ctx, id)
	if full := (*kvcache.OutOfPagesError)(nil); errors.As(err, &full) && a.in.below(3) == 0 {
		must("Discard", a.space.Discard(id))
		delete(a.model, id)
		a.away = a.away[1:]
		return fmt.Sprintf("Discard(%d)", id)
	}
	if a.refused(what, ctx, err) {
		return what + " refused"
	}
	a.away = a.away[1:]
	a.live = append(a.live, id)
	return what
}

// check compares all with the model, and attention over it with float64.
func (a *headActor) check() {
	tokens := int64(0)
	for _, id := range a.live {
		s := a.model[id]
		for i, stream := range s.streams {
			tokens += int64(len(stream))
			a.checkStream(id, i, stream, s.policy.Heads[i].Positions)
		}
	}
	if s := a.cache.Stats(); s.Tokens != tokens || s.Free+s.Used != s.Pages {
		fail("heads: %+v, want %d tokens", s, tokens)
	}
}

func (a *headActor) checkStream(id kvcache.ID, i int, stream []token, told []int32) {
	layer, head := i/a.w.config.KVHeads, i%a.w.config.KVHeads
	what := fmt.Sprintf("sequence %d of heads, layer %d, head %d", id, layer, head)
	positions, err := a.cache.Positions(id, layer, head, nil)
	must("Positions", err)
	if len(positions) != len(stream) || !slices.Equal(positions, told) {
		fail("%s: positions %v, the policy thinks %v, want %d", what, positions, told, len(stream))
	}
	for j, p := range positions {
		if p != stream[j].position {
			fail("%s: key %d is at position %d, want %d", what, j, p, stream[j].position)
		}
	}
	key, value, err := a.cache.Gather(id, layer, head)
	must("Gather", err)
	var v kvcache.View
	var b kernel.Batch
	must("Head", a.cache.Head(&v, layer, head, id))
	must("LowerKV", v.LowerKV(&b))
	for kind, rows := range []tensor.View{key, value} {
		a.shape(i).compare(what, 0, kind, rows, stream, func(j int) float64 {
			if b.Pages.IsCoded(j / a.w.config.PageSize) {
				return a.w.format.tolerance
			}
			return 0
		})
	}
	if len(stream) == 0 {
		return
	}
	must("Plan", a.attend.Plan(attention.Step{QueryLens: []int{1}, KV: &v}))
	args := kernel.Args{Query: queries(1, 2), Out: tensor.New(tensor.F32, 1, 2, dim)}
	must("Bind", a.cache.Bind(&args))
	must("Run", a.attend.Run(&args))
	compareAttention(what, args, 0, key, value)
}

func (a *headActor) end() {
	for len(a.live) > 0 {
		a.free()
	}
	for _, id := range a.away {
		must("Discard", a.space.Discard(id))
	}
}
