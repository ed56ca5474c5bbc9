package model

import (
	"fmt"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// Eviction is the cache policy of StreamingLLM (Xiao et al., arXiv 2309.17453):
// the first Sinks keys and the last Recent ones stay, the rest is dropped, and
// keys and query are rotated to their ranks in what is left.
type Eviction struct{ Sinks, Recent int }

// Decoder runs a batch of sequences token by token over a paged cache. Keys are
// cached before rotation. It serves one goroutine at a time.
type Decoder struct {
	rows      Prefill // the memory and the arithmetic of one row a sequence
	attention *attention.Attention
	cache     *kvcache.Cache
	view      *kvcache.View
	ids       []kvcache.ID
	evict     *Eviction

	ones             []int
	slots            []int32
	queryPos, keyPos []int32
}

// DecoderConfig says what a Decoder holds.
type DecoderConfig struct {
	Sequences int
	Length    int       // the longest sequence; with Evict no limit, and ignored
	PageSize  int       // 1 with Evict, so that any key can be dropped; 0: 16, or 1 with Evict
	Evict     *Eviction // nil: all keys stay
}

// NewDecoder makes a Decoder of empty sequences.
func NewDecoder(m *Model, b kernel.Backend, policy kernel.Policy, how Attending, dc DecoderConfig) (*Decoder, error) {
	if err := how.everyLayerAlike(); err != nil {
		return nil, err
	}
	size, keys := dc.PageSize, dc.Length
	if dc.Evict != nil {
		if dc.Evict.Sinks < 0 || dc.Evict.Recent < 1 {
			return nil, fmt.Errorf("model: Evict keeps %d sinks and %d recent keys, want at least 0 and 1", dc.Evict.Sinks, dc.Evict.Recent)
		}
		if size > 1 {
			return nil, fmt.Errorf("model: PageSize is %d, want 1 with Evict", size)
		}
		size, keys = 1, dc.Evict.Sinks+dc.Evict.Recent+1
	}
	if size == 0 {
		size = 16
	}
	c := &m.Config
	cache, err := kvcache.New(b, kvcache.Config{
		Layers: c.Layers, Pages: dc.Sequences * ((keys + size - 1) / size), PageSize: size,
		KVHeads: c.KVHeads, HeadDim: c.HeadDim, ValueDim: c.HeadDim,
		DType: tensor.F32, KeyStorage: kernel.PreRoPE,
	})
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	ac := c.attention(policy, how)
	ac.PageSize = size
	a, err := attention.New(b, ac)
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	d := &Decoder{attention: a, cache: cache, evict: dc.Evict}
	d.rows = Prefill{model: m, slopes: slopesView(how)}
	for range dc.Sequences {
		d.ids, d.ones = append(d.ids, cache.NewSequence()), append(d.ones, 1)
	}
	d.view = cache.Sequences(d.ids...)
	return d, nil
}

// KernelName says which kernel computes attention.
func (d *Decoder) KernelName() string { return d.attention.KernelName() }

// Close frees what the kernel holds.
func (d *Decoder) Close() error { return d.attention.Close() }

// Step gives each sequence its next token and returns the logits [sequences,
// Vocab] after it, good until the next Step, or nil unless want.
func (d *Decoder) Step(tokens []int32, want bool) ([]float32, error) {
	n := len(d.ids)
	if len(tokens) != n {
		return nil, fmt.Errorf("model: Step: %d tokens, want one for each of %d sequences", len(tokens), n)
	}
	if err := d.extend(); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	sequences := make([][]int32, n)
	for i := range tokens {
		sequences[i] = tokens[i : i+1]
	}
	if err := d.rows.embed(sequences, n); err != nil {
		return nil, err
	}
	for i := range d.rows.model.Layers {
		l := &d.rows.model.Layers[i]
		if err := d.attend(i, l); err != nil {
			return nil, fmt.Errorf("model: layer %d: %w", i, err)
		}
		d.rows.mlp(l, n)
	}
	if !want {
		return nil, nil
	}
	return d.rows.head(n), nil
}

// extend makes room for the tokens, drops what the policy drops, and plans.
func (d *Decoder) extend() error {
	var err error
	if d.slots, err = d.cache.Extend(d.ids, d.ones, d.slots[:0]); err != nil {
		return err
	}
	step := attention.Step{QueryLens: d.ones, KV: d.view}
	if d.evict != nil {
		d.queryPos, d.keyPos = d.queryPos[:0], d.keyPos[:0]
		for _, id := range d.ids {
			n, err := d.cache.Len(id)
			if err != nil {
				return err
			}
			if keep := d.evict.Sinks + d.evict.Recent; n > keep {
				if err := d.cache.Drop(id, d.evict.Sinks, d.evict.Sinks+n-keep); err != nil {
					return err
				}
				n = keep
			}
			for rank := range n {
				d.keyPos = append(d.keyPos, int32(rank))
			}
			d.queryPos = append(d.queryPos, int32(n-1))
		}
		step.QueryPos, step.KeyPos = d.queryPos, d.keyPos
	}
	return d.attention.Plan(step)
}

// attend adds the attention of layer number i to the rows.
func (d *Decoder) attend(i int, l *Layer) error {
	p, n := &d.rows, len(d.ids)
	c := &p.model.Config
	p.normed, p.qkv = resize(p.normed, n*c.Dim), resize(p.qkv, n*c.qkv())
	p.attended = resize(p.attended, n*c.Heads*c.HeadDim)
	rmsNorm(p.normed, p.x, nil, l.AttnNorm, c.Epsilon)
	linear(p.qkv, p.normed, n, l.QKV)
	query, key, value := c.split(p.qkv, n)
	if err := d.cache.Append(i, d.slots, key, value); err != nil {
		return err
	}
	out := tensor.FromF32(p.attended, int64(n), int64(c.Heads), int64(c.HeadDim))
	args := kernel.Args{Query: query, Key: d.cache.KeyView(i), Value: d.cache.ValueView(i), Out: out}
	args.Slopes = p.slopes
	if err := d.attention.Run(&args); err != nil {
		return err
	}
	addLinear(p.x, p.attended, n, l.Out)
	return nil
}
