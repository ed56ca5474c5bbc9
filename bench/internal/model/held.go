package model

import (
	"errors"
	"fmt"
	"math"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/codec"
	"github.com/longctx/longctx/kvcache/policy"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// HeldConfig says how a Held keeps keys and values.
type HeldConfig struct {
	Cache    kvcache.Config // of the model's layers and heads, with the features that Bases make
	Rotation kernel.Rotation
	Policy   kernel.Policy
	Bases    []codec.Bases // of each layer; nil: rows are held as they are
	Bias     bool          // heads may have a bias of scores, as merged keys do
}

// Held runs one sequence over a cache whose heads hold what a policy leaves them, in
// the coding of a codec. Keys are stored rotated, by their place in the text, unless
// the Cache is PreRoPE: attention rotates them then. It serves one goroutine at a time.
type Held struct {
	rows      Prefill // the memory and the arithmetic of rows
	config    HeldConfig
	backend   kernel.Backend
	attention *attention.Attention
	cache     *kvcache.HeadCache
	id        kvcache.ID
	tokens    int

	Sequence *policy.Sequence // what is known of the heads
	view     kvcache.View
	slots    []int32
}

// rotation is a Rotary that does not depend on the length.
type rotation struct{ r kernel.Rotation }

func (x rotation) Rotation(int) (kernel.Rotation, error) { return x.r, nil }

// NewHeld makes one with an empty sequence.
func NewHeld(m *Model, b kernel.Backend, c HeldConfig) (_ *Held, err error) {
	k := &c.Cache
	h := &Held{config: c, backend: b, rows: Prefill{model: m}, Sequence: policy.NewSequence(k.Layers, k.KVHeads)}
	ac := attention.Config{
		Heads: m.Config.Heads / k.KVHeads, KVHeads: 1, HeadDim: k.HeadDim, ValueDim: k.ValueDim, DType: tensor.F32, KVDType: k.DType, PageSize: k.PageSize, Coding: k.Coding,
		Mask: attention.Causal(), Score: attention.Score{PrefixBias: c.Bias}, Scale: m.Config.scale() * c.Rotation.ScoreScale,
		KeyStorage: k.KeyStorage, Policy: c.Policy, ColumnStats: true,
	}
	if k.KeyStorage == kernel.PreRoPE {
		ac.Rotary, ac.Scale = rotation{c.Rotation}, m.Config.scale()
	}
	if h.cache, err = kvcache.NewHeads(b, *k); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if h.attention, err = attention.New(b, ac); err != nil {
		return nil, errors.Join(fmt.Errorf("model: %w", err), h.cache.Close())
	}
	h.id = h.cache.NewSequence()
	return h, nil
}

func (c *Config) scale() float64 { return 1 / math.Sqrt(float64(c.HeadDim)) }

// Close frees the cache and what the kernel holds.
func (h *Held) Close() error { return errors.Join(h.attention.Close(), h.cache.Close()) }

// Stats is what the cache holds.
func (h *Held) Stats() kvcache.Stats { return h.cache.Stats() }

// Observer is told of each head what its last queries saw.
type Observer func(layer, head int, o *Observed) error

// Observed is a head after its attention to the last tokens.
type Observed struct {
	*policy.Head
	Query  tensor.View // [tokens, query heads of the group, dim], as attention has it
	Tokens int
	stats  func(power, window int, most bool) ([]float32, error)
}

// Weights are sums of powers of weights over the last queries, window 0 all, or the
// largest of them, of each key.
func (o *Observed) Weights(power, window int, most bool) ([]float32, error) {
	return o.stats(power, window, most)
}

// Extend runs the next tokens and returns the logits [last, Vocab] after the last of
// them, good until the next Extend. observe may be nil.
func (h *Held) Extend(tokens []int32, last int, observe Observer) ([]float32, error) {
	n := len(tokens)
	var err error
	if h.slots, err = h.cache.Extend([]kvcache.ID{h.id}, []int{n}, h.slots[:0]); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	h.Sequence.Extend(n)
	if err := h.rows.embed([][]int32{tokens}, n); err != nil {
		return nil, err
	}
	for i := range h.rows.model.Layers {
		l := &h.rows.model.Layers[i]
		if err := h.attend(i, l, n, observe); err != nil {
			return nil, fmt.Errorf("model: layer %d: %w", i, err)
		}
		h.rows.mlp(l, n)
	}
	h.tokens += n
	dim := h.rows.model.Config.Dim
	h.rows.x = h.rows.x[(n-last)*dim:]
	out := h.rows.head(last)
	return out, nil
}

// attend adds the attention of layer number i to the rows.
func (h *Held) attend(i int, l *Layer, n int, observe Observer) error {
	p := &h.rows
	c := &p.model.Config
	p.normed, p.qkv = resize(p.normed, n*c.Dim), resize(p.qkv, n*c.qkv())
	p.attended = resize(p.attended, n*c.Heads*c.HeadDim)
	rmsNorm(p.normed, p.x[:n*c.Dim], nil, l.AttnNorm, c.Epsilon)
	linear(p.qkv, p.normed, n, l.QKV)
	query, key, value := c.split(p.qkv, n)
	if err := h.rotate(query, key, n); err != nil {
		return err
	}
	var bases codec.Bases
	if h.config.Bases != nil {
		bases = h.config.Bases[i]
	}
	for _, x := range []struct{ rows, basis *tensor.View }{{&query, &bases.Query}, {&key, &bases.Key}, {&value, &bases.Value}} {
		var err error
		if *x.rows, err = codec.Project(*x.rows, *x.basis); err != nil {
			return err
		}
	}
	if err := h.cache.Append(i, h.slots, key, value); err != nil {
		return err
	}
	out := tensor.New(tensor.F32, int64(n), int64(c.Heads), int64(h.config.Cache.ValueDim))
	group := int64(c.Heads / c.KVHeads)
	for head := range c.KVHeads {
		lo, hi := int64(head)*group, int64(head+1)*group
		if err := h.attendHead(i, head, query.Slice(1, lo, hi), out.Slice(1, lo, hi), observe); err != nil {
			return err
		}
	}
	out, err := codec.Project(out, bases.Out)
	if err != nil {
		return err
	}
	copy(p.attended, out.F32s())
	addLinear(p.x, p.attended, n, l.Out)
	return nil
}

// rotate turns queries and keys by the places of the tokens, where keys are stored so.
func (h *Held) rotate(query, key tensor.View, n int) error {
	if h.config.Cache.KeyStorage != kernel.PostRoPE {
		return nil
	}
	places := make([]int32, n)
	for t := range places {
		places[t] = int32(h.tokens + t)
	}
	if err := rope.Apply(h.backend, query, rope.Text(places), h.config.Rotation, kernel.QuerySide); err != nil {
		return err
	}
	return rope.Apply(h.backend, key, rope.Text(places), h.config.Rotation, kernel.KeySide)
}

// attendHead is the attention of a KV head, and of what its queries saw.
func (h *Held) attendHead(layer, head int, query, out tensor.View, observe Observer) error {
	if err := h.cache.Head(&h.view, layer, head, h.id); err != nil {
		return err
	}
	n, known := int(query.Shape[0]), h.Sequence.Head(layer, head)
	step := attention.Step{QueryLens: []int{n}, KV: &h.view}
	if err := h.attention.Plan(step); err != nil {
		return err
	}
	args := kernel.Args{Query: query, Out: out, LSE: tensor.New(tensor.F32, int64(n), query.Shape[1])}
	if err := h.cache.Bind(&args); err != nil {
		return err
	}
	if h.config.Bias {
		args.PrefixBias = tensor.New(tensor.F32, int64(known.Len()), query.Shape[1])
		for j, x := range known.Bias(nil) {
			for g := range query.Shape[1] {
				args.PrefixBias.Set(x, int64(j), g)
			}
		}
	}
	if err := h.attention.Run(&args); err != nil {
		return err
	}
	if observe == nil {
		return nil
	}
	return observe(layer, head, &Observed{Head: known, Query: query, Tokens: n, stats: func(power, window int, most bool) ([]float32, error) {
		sums := tensor.New(tensor.F32, int64(known.Len()), query.Shape[1])
		if err := h.attention.ColumnStats(&kernel.ColumnStatsArgs{Query: query, Key: args.Key, KeyScale: args.KeyScale, CodedKey: args.CodedKey, LSE: args.LSE,
			ScoreArgs: args.ScoreArgs, Power: power, Window: window, Maximum: most, Out: sums}); err != nil {
			return nil, err
		}
		return policy.Weights(sums, 0, known.Len(), 0, int(query.Shape[1]))
	}})
}

// Load gives the heads their keys and values as attention reads them.
func (h *Held) Load() error { return h.Sequence.Load(h.cache, h.id) }

// Apply carries out a plan for each head, all or none.
func (h *Held) Apply(plans []kvcache.Plan) error {
	if err := h.cache.Apply([]kvcache.ID{h.id}, plans); err != nil {
		return err
	}
	return h.Sequence.Applied(plans)
}

// Reread runs tokens again behind the sequence, which stays as it is, and tells the
// observer of its keys alone.
func (h *Held) Reread(tokens []int32, observe Observer) (err error) {
	id, known, at := h.id, h.Sequence, h.tokens
	fork, err := h.cache.Fork(id)
	if err != nil {
		return err
	}
	h.id, h.Sequence = fork, known.Clone()
	defer func() {
		err = errors.Join(err, h.cache.Free(fork))
		h.id, h.Sequence, h.tokens = id, known, at
	}()
	_, err = h.Extend(tokens, 1, func(layer, head int, o *Observed) error {
		original, all := known.Head(layer, head), o.stats
		o.Head = original
		o.stats = func(power, window int, most bool) ([]float32, error) {
			w, err := all(power, window, most)
			return w[:min(original.Len(), len(w))], err
		}
		return observe(layer, head, o)
	})
	return err
}

// KeepPlain keeps pages of a head from being coded.
func (h *Held) KeepPlain(layer, head int, pages []int) error {
	return h.cache.KeepPlain(h.id, layer, head, pages)
}

// Projected is the length by absolute values of what the output projection makes of
// each value [n, features] of a KV head, mean over its query heads: what CriticalKV
// weighs by.
func (h *Held) Projected(layer, head int, value tensor.View) ([]float32, error) {
	c, l := &h.rows.model.Config, &h.rows.model.Layers[layer]
	n, group := value.Shape[0], c.Heads/c.KVHeads
	rows := tensor.View{Buf: value.Buf, DType: value.DType, Rank: 3, Offset: value.Offset, Shape: [4]int64{n, 1, value.Shape[1]}, Stride: [4]int64{value.Stride[0], 0, value.Stride[1]}}
	if h.config.Bases != nil {
		basis := h.config.Bases[layer].Out
		if !basis.IsZero() {
			at := int64(head) * basis.Shape[0] / int64(c.KVHeads)
			basis = basis.Slice(0, at, at+1)
		}
		var err error
		if rows, err = codec.Project(rows, basis); err != nil {
			return nil, err
		}
	}
	out, row, made := make([]float32, n), make([]float32, c.Heads*c.HeadDim), make([]float32, c.Dim)
	for j := range out {
		for q := head * group; q < (head+1)*group; q++ {
			clear(row)
			for d := range c.HeadDim {
				row[q*c.HeadDim+d] = rows.At(int64(j), 0, int64(d))
			}
			linear(made, row, 1, l.Out)
			for _, x := range made {
				out[j] += max(x, -x) / float32(group)
			}
		}
	}
	return out, nil
}
