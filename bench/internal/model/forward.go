package model

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// block is the number of rows that pass through the MLP together, so that its
// wide activations stay in cache.
const block = 512

// Prefill runs whole sequences through a model. It serves one goroutine at a
// time and keeps its memory from run to run.
type Prefill struct {
	model  *Model
	slopes tensor.View
	layers []*attention.Attention // of each layer; those that attend alike share one, but for the last
	blocks func(queryLens, keyLens []int) (kernel.BlockSparse, error)
	own    func(b kernel.Backend, layer int, query, key, value, out tensor.View) error
	b      kernel.Backend

	x, normed, qkv, attended, gateUp, act, logits []float32
}

// NewPrefill makes a Prefill whose layers attend as told.
func NewPrefill(m *Model, b kernel.Backend, policy kernel.Policy, how Attending) (*Prefill, error) {
	p := &Prefill{model: m, slopes: slopesView(how), blocks: how.Blocks, own: how.Own, b: b}
	for i := range m.Layers {
		if how.Layer == nil && i > 0 && i < len(m.Layers)-1 {
			p.layers = append(p.layers, p.layers[0])
			continue
		}
		c := m.Config.attention(policy, how)
		if how.Layer != nil {
			if err := how.Layer(i, &c); err != nil {
				return nil, errors.Join(fmt.Errorf("model: layer %d: %w", i, err), p.Close())
			}
		}
		a, err := attention.New(b, c)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("model: %w", err), p.Close())
		}
		p.layers = append(p.layers, a)
	}
	return p, nil
}

func (c *Config) attention(policy kernel.Policy, how Attending) attention.Config {
	return attention.Config{
		Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim,
		Mask: how.Mask, Position: how.Position, Rotary: how.Rotary, Score: how.Score,
		Policy: policy,
	}
}

// everyLayerAlike refuses what only Prefill does.
func (how *Attending) everyLayerAlike() error {
	if how.Layer != nil || how.Blocks != nil || how.Own != nil {
		return errors.New("model: Attending has Layer, Blocks or Own, want none but for Prefill")
	}
	return nil
}

func slopesView(how Attending) tensor.View {
	if !how.Score.Slopes {
		return tensor.View{}
	}
	return tensor.FromF32(how.Slopes)
}

// KernelName says which kernel computes attention.
func (p *Prefill) KernelName() string { return p.layers[0].KernelName() }

// Close frees what the kernels hold.
func (p *Prefill) Close() (err error) {
	for i, a := range p.layers {
		if i == 0 || a != p.layers[i-1] {
			err = errors.Join(err, a.Close())
		}
	}
	return err
}

// plan prepares the layers: the last for the last tokens of each sequence.
func (p *Prefill) plan(lens, lasts []int) error {
	for i, a := range p.layers {
		if i > 0 && a == p.layers[i-1] {
			continue
		}
		step := attention.Step{QueryLens: lens}
		if i == len(p.layers)-1 {
			step = attention.Step{QueryLens: lasts, KeyLens: lens}
		}
		if p.blocks != nil {
			var err error
			if step.Blocks, err = p.blocks(step.QueryLens, step.KeyLens); err != nil {
				return fmt.Errorf("model: %w", err)
			}
		}
		if err := a.Plan(step); err != nil {
			return fmt.Errorf("model: %w", err)
		}
	}
	return nil
}

// Run returns the logits [len(sequences)·last, Vocab] after each of the last
// tokens of each sequence; they are good until the next Run. The last layer is
// computed for these tokens only.
func (p *Prefill) Run(sequences [][]int32, last int) ([]float32, error) {
	lens, lasts := make([]int, len(sequences)), make([]int, len(sequences))
	total := 0
	for i, s := range sequences {
		if last < 1 || len(s) < last {
			return nil, fmt.Errorf("model: Run: sequence %d has %d tokens, want at least the %d asked for, and these at least 1", i, len(s), last)
		}
		lens[i], lasts[i] = len(s), last
		total += len(s)
	}
	if err := p.plan(lens, lasts); err != nil {
		return nil, err
	}
	if err := p.embed(sequences, total); err != nil {
		return nil, err
	}
	rows := total
	for i := range p.model.Layers {
		l := &p.model.Layers[i]
		var keep []int
		if i == len(p.model.Layers)-1 {
			keep = tailRows(lens, last)
			rows = len(keep)
		}
		attend := func() error { return p.attend(l, p.layers[i], total, keep) }
		if p.own != nil {
			attend = func() error { return p.attendOwn(i, lens, keep) }
		}
		if err := attend(); err != nil {
			return nil, fmt.Errorf("model: layer %d: %w", i, err)
		}
		p.mlp(l, rows)
	}
	return p.head(rows), nil
}

// tailRows lists the rows of the last tokens of each sequence.
func tailRows(lens []int, last int) []int {
	rows, end := make([]int, 0, len(lens)*last), 0
	for _, n := range lens {
		end += n
		for r := end - last; r < end; r++ {
			rows = append(rows, r)
		}
	}
	return rows
}

func (p *Prefill) embed(sequences [][]int32, total int) error {
	e := p.model.Embed
	p.x = resize(p.x, total*e.Cols)
	row := 0
	for _, s := range sequences {
		for _, t := range s {
			if t < 0 || int(t) >= e.Rows {
				return fmt.Errorf("model: token %d, want 0 to %d", t, e.Rows-1)
			}
			copy(p.x[row*e.Cols:], e.Data[int(t)*e.Cols:][:e.Cols])
			row++
		}
	}
	return nil
}

// attend adds the attention of a layer to x. With keep, only these rows have
// queries, and x is left with them alone.
func (p *Prefill) attend(l *Layer, a *attention.Attention, total int, keep []int) error {
	c := &p.model.Config
	dim, wide := c.Dim, c.qkv()
	p.normed = resize(p.normed, total*dim)
	p.qkv = resize(p.qkv, total*wide)
	rmsNorm(p.normed, p.x[:total*dim], nil, l.AttnNorm, c.Epsilon)
	linear(p.qkv, p.normed, total, l.QKV)

	query, key, value := c.split(p.qkv, total)
	rows := total
	if keep != nil {
		q := make([]float32, len(keep)*c.Heads*c.HeadDim)
		for i, r := range keep { // r >= i: nothing is overwritten before it is read
			copy(q[i*c.Heads*c.HeadDim:][:c.Heads*c.HeadDim], p.qkv[r*wide:])
			copy(p.x[i*dim:][:dim], p.x[r*dim:])
		}
		rows = len(keep)
		query = tensor.FromF32(q, int64(rows), int64(c.Heads), int64(c.HeadDim))
	}
	p.attended = resize(p.attended, rows*c.Heads*c.HeadDim)
	out := tensor.FromF32(p.attended, int64(rows), int64(c.Heads), int64(c.HeadDim))
	args := kernel.Args{Query: query, Key: key, Value: value, Out: out}
	args.Slopes = p.slopes
	if err := a.Run(&args); err != nil {
		return err
	}
	p.x = p.x[:rows*dim]
	addLinear(p.x, p.attended, rows, l.Out)
	return nil
}

// attendOwn is attend by Attending.Own, of all queries in the last layer too.
func (p *Prefill) attendOwn(layer int, lens, keep []int) error {
	l, c, total := &p.model.Layers[layer], &p.model.Config, 0
	for _, n := range lens {
		total += n
	}
	dim, wide := c.Dim, c.Heads*c.HeadDim
	p.normed, p.qkv, p.attended = resize(p.normed, total*dim), resize(p.qkv, total*c.qkv()), resize(p.attended, total*wide)
	rmsNorm(p.normed, p.x[:total*dim], nil, l.AttnNorm, c.Epsilon)
	linear(p.qkv, p.normed, total, l.QKV)
	query, key, value := c.split(p.qkv, total)
	out, at := tensor.FromF32(p.attended, int64(total), int64(c.Heads), int64(c.HeadDim)), int64(0)
	for _, n := range lens {
		end := at + int64(n)
		if err := p.own(p.b, layer, query.Slice(0, at, end), key.Slice(0, at, end), value.Slice(0, at, end), out.Slice(0, at, end)); err != nil {
			return err
		}
		at = end
	}
	rows := total
	if keep != nil {
		for i, r := range keep { // r >= i: nothing is overwritten before it is read
			copy(p.attended[i*wide:][:wide], p.attended[r*wide:])
			copy(p.x[i*dim:][:dim], p.x[r*dim:])
		}
		rows = len(keep)
	}
	p.x = p.x[:rows*dim]
	addLinear(p.x, p.attended[:rows*wide], rows, l.Out)
	return nil
}

// split views rows of (query, key, value) as the three tensors.
func (c *Config) split(qkv []float32, rows int) (q, k, v tensor.View) {
	all := tensor.FromF32(qkv, int64(rows), int64(c.Heads+2*c.KVHeads), int64(c.HeadDim))
	h, g := int64(c.Heads), int64(c.KVHeads)
	return all.Slice(1, 0, h), all.Slice(1, h, h+g), all.Slice(1, h+g, h+2*g)
}

// mlp adds the feed-forward part of a layer to x, a block of rows at a time.
func (p *Prefill) mlp(l *Layer, rows int) {
	c := &p.model.Config
	for lo := 0; lo < rows; lo += block {
		n := min(block, rows-lo)
		x := p.x[lo*c.Dim:][:n*c.Dim]
		p.normed = resize(p.normed, max(len(p.normed), n*c.Dim))
		p.gateUp, p.act = resize(p.gateUp, n*2*c.FF), resize(p.act, n*c.FF)
		normed := p.normed[:n*c.Dim]
		rmsNorm(normed, x, nil, l.MLPNorm, c.Epsilon)
		linear(p.gateUp, normed, n, l.GateUp)
		swiGLU(p.act, p.gateUp, n, c.FF)
		addLinear(x, p.act, n, l.Down)
	}
}

func (p *Prefill) head(rows int) []float32 {
	m := p.model
	p.normed = resize(p.normed, rows*m.Config.Dim)
	p.logits = resize(p.logits, rows*m.Config.Vocab)
	rmsNorm(p.normed, p.x, nil, m.Norm, m.Config.Epsilon)
	linear(p.logits, p.normed, rows, m.Embed)
	return p.logits
}
