package model

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// Reader runs the tokens of prompts behind what a cache already has of them. It
// serves one goroutine at a time.
type Reader struct {
	rows      Prefill // the memory and the arithmetic of rows
	backend   kernel.Backend
	rotation  kernel.Rotation
	attention *attention.Attention
	Cache     *kvcache.Cache
}

// NewReader makes a Reader over a cache of so many pages, of keys that are rotated.
func NewReader(m *Model, b kernel.Backend, policy kernel.Policy, r kernel.Rotation, pages, pageSize int) (*Reader, error) {
	c := &m.Config
	a, err := attention.New(b, attention.Config{Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim, PageSize: pageSize, Mask: attention.Causal(),
		KeyStorage: kernel.PostRoPE, Scale: c.scale() * r.ScoreScale, Policy: policy})
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	cache, err := kvcache.New(b, kvcache.Config{Layers: c.Layers, Pages: pages, PageSize: pageSize, KVHeads: c.KVHeads, HeadDim: c.HeadDim, ValueDim: c.HeadDim,
		DType: tensor.F32, KeyStorage: kernel.PostRoPE})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("model: %w", err), a.Close())
	}
	return &Reader{rows: Prefill{model: m}, backend: b, rotation: r, attention: a, Cache: cache}, nil
}

// Close frees the cache and what the kernel holds.
func (r *Reader) Close() error { return errors.Join(r.attention.Close(), r.Cache.Close()) }

// Read runs the last tokens of sequence id, for which slots were made, and returns
// the logits [Vocab] after them.
func (r *Reader) Read(id kvcache.ID, slots, tokens []int32) ([]float32, error) {
	p, n := &r.rows, len(tokens)
	c := &p.model.Config
	have, err := r.Cache.Len(id)
	if err != nil {
		return nil, err
	}
	places := make([]int32, n)
	for t := range places {
		places[t] = int32(have - n + t)
	}
	if err := r.attention.Plan(attention.Step{QueryLens: []int{n}, KV: r.Cache.Sequences(id)}); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if err := p.embed([][]int32{tokens}, n); err != nil {
		return nil, err
	}
	for i := range p.model.Layers {
		l := &p.model.Layers[i]
		p.normed, p.qkv, p.attended = resize(p.normed, n*c.Dim), resize(p.qkv, n*c.qkv()), resize(p.attended, n*c.Heads*c.HeadDim)
		rmsNorm(p.normed, p.x, nil, l.AttnNorm, c.Epsilon)
		linear(p.qkv, p.normed, n, l.QKV)
		query, key, value := c.split(p.qkv, n)
		err := errors.Join(rope.Apply(r.backend, query, rope.Text(places), r.rotation, kernel.QuerySide), rope.Apply(r.backend, key, rope.Text(places), r.rotation, kernel.KeySide))
		if err == nil {
			err = r.Cache.Append(i, slots, key, value)
		}
		if err == nil {
			args := kernel.Args{Query: query, Out: tensor.FromF32(p.attended, int64(n), int64(c.Heads), int64(c.HeadDim)), Key: r.Cache.KeyView(i), Value: r.Cache.ValueView(i)}
			err = r.attention.Run(&args)
		}
		if err != nil {
			return nil, fmt.Errorf("model: layer %d: %w", i, err)
		}
		addLinear(p.x, p.attended, n, l.Out)
		p.mlp(l, n)
	}
	p.x = p.x[(n-1)*c.Dim:]
	return p.head(1), nil
}
