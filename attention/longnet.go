// Jiayu Ding et al., "LongNet: Scaling Transformers to 1,000,000,000 Tokens", 2023, https://arxiv.org/abs/2307.02486

package attention

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Dilated is dilated attention: pattern n divides the tokens into segments of
// Segments[n], of which KV head g keeps every Rates[n]-th from the (g mod
// Rates[n])-th on; these see one another. A query's outputs in all patterns that
// keep it are summed in proportion to their softmax denominators:
//
//	i sees j <= i in pattern n, if ⌊i/Segment⌋ = ⌊j/Segment⌋ and i ≡ j ≡ g mod Rate
//
// A key that several patterns show counts as often. Segments and rates grow
// together, so that all of a long context is in sight, the farther the sparser.
//
// Claim: none beyond the trained length: training at lengths out of reach of full
// attention.
//
// Cost: Segment/Rate keys a query that a pattern keeps, n/Rate of n queries:
// Σ n·Segment/Rate²·(HeadDim+ValueDim) FLOPs a head, half the keys being masked
// on average, and one merge of rows a pattern after the first.
//
// Limits: for models trained so. Contiguous keys: a pattern reads them by a
// stride, which pages do not have. The paper deals offsets out to heads, its code
// to blocks of heads; here the heads of one KV head share one, as they share keys.
type Dilated struct {
	Segments []int // a multiple of the pattern's rate
	Rates    []int // at least 1, the first 1: every query is kept once
}

// Name returns "longnet".
func (Dilated) Name() string { return "longnet" }

// DilatedAttention is an Attention of several patterns.
type DilatedAttention struct {
	backend       kernel.Backend
	spec          kernel.Spec // of all heads
	passes        []dilatedPass
	queries, keys int
	planned       bool

	buffers [2]tensor.Buffer // Out and LSE of a pattern, to be merged
	room    int              // queries they have room for
}

// dilatedPass is a pattern for the KV heads of one offset.
type dilatedPass struct {
	attention    *Attention
	rate, offset int64
	first        int64 // query row
	rows         int64 // query rows kept
}

// New makes an Attention of these patterns. Its Config has no Mask (it is Causal)
// and no Position, contiguous keys, and of scores at most a soft cap: the others go
// by indices, which a pattern counts anew.
func (m Dilated) New(b kernel.Backend, c Config) (*DilatedAttention, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	if c.Mask.Regions != nil || c.Mask.Kinds != 0 || c.Position != nil || c.PageSize != 0 || c.Backward || c.ColumnStats || c.Score != (Score{SoftCap: c.Score.SoftCap}) {
		return nil, fmt.Errorf("attention: longnet: Config has a Mask, Position, PageSize, Backward, ColumnStats or a score beside SoftCap, want none")
	}
	whole := c
	whole.Mask = Causal()
	all, err := New(b, whole) // every fault of the Config
	if err != nil {
		return nil, err
	}
	a := &DilatedAttention{backend: b, spec: all.spec}
	if err := all.Close(); err != nil {
		return nil, err
	}
	group := c.Heads / c.KVHeads
	c.Heads, c.KVHeads = group, 1
	for n, rate := range m.Rates {
		c.Mask = Chunked(m.Segments[n] / rate)
		for offset := range min(rate, a.spec.KVHeads) {
			one, err := New(b, c)
			if err != nil {
				return nil, errors.Join(err, a.Close())
			}
			a.passes = append(a.passes, dilatedPass{attention: one, rate: int64(rate), offset: int64(offset)})
		}
	}
	return a, nil
}

func (m Dilated) check() error {
	if len(m.Rates) == 0 || len(m.Rates) != len(m.Segments) || m.Rates[0] != 1 {
		return fmt.Errorf("attention: longnet: Segments %v, Rates %v, want as many of each, and 1 as first rate", m.Segments, m.Rates)
	}
	for n, r := range m.Rates {
		if s := m.Segments[n]; r < 1 || s < 1 || s%r != 0 || s >= kernel.MaxBound {
			return fmt.Errorf("attention: longnet: pattern %d has Segment %d and Rate %d, want both at least 1, and the segment a multiple of the rate", n, s, r)
		}
	}
	return nil
}

// Close frees what the kernels hold.
func (a *DilatedAttention) Close() error {
	var err error
	for _, p := range a.passes {
		err = errors.Join(err, p.attention.Close())
	}
	return err
}

// Plan prepares a step of one sequence, whose queries are its last tokens.
func (a *DilatedAttention) Plan(queries, keys int) error {
	a.planned = false
	if queries < 0 || queries > keys || keys >= kernel.MaxBound {
		return fmt.Errorf("attention: longnet: %d queries and %d keys, want at most as many queries as keys, below 2³¹−1", queries, keys)
	}
	a.queries, a.keys = queries, keys
	for i := range a.passes {
		p := &a.passes[i]
		n, q := int64(keys), int64(queries)
		p.first = (p.offset - (n - q)) % p.rate
		if p.first < 0 {
			p.first += p.rate
		}
		p.rows = strided(q, p.first, p.rate)
		if p.rows == 0 {
			continue
		}
		positions := make([]int32, 0, strided(n, p.offset, p.rate))
		for j := p.offset; j < n; j += p.rate {
			positions = append(positions, int32(j))
		}
		if err := p.attention.Plan(Step{QueryLens: []int{int(p.rows)}, KeyLens: []int{len(positions)}, KeyPos: positions}); err != nil {
			return err
		}
	}
	if queries > a.room {
		if err := a.alloc(); err != nil {
			return err
		}
	}
	a.planned = true
	return nil
}

// alloc makes room for the state of one pattern.
func (a *DilatedAttention) alloc() error {
	s := &a.spec
	rows := int64(a.queries) * int64(s.Heads)
	out, err := a.backend.Alloc(rows * int64(s.ValueDim) * s.DType.Size())
	if err != nil {
		return err
	}
	lse, err := a.backend.Alloc(2 * rows * tensor.F32.Size()) // a second, where the caller wants none
	if err != nil {
		return err
	}
	a.buffers, a.room = [2]tensor.Buffer{out, lse}, a.queries
	return nil
}

// strided is the number of rows first, first+step, … below n.
func strided(n, first, step int64) int64 { return max((n-first+step-1)/step, 0) }

// every takes rows first, first+step, … of a dimension.
func every(v tensor.View, dim int, first, step int64) tensor.View {
	n := strided(v.Shape[dim], first, step)
	if n > 0 {
		v.Offset += first * v.Stride[dim]
	}
	v.Shape[dim], v.Stride[dim] = n, v.Stride[dim]*step
	return v
}

// Run computes one layer of the step: Query and Out [queries, Heads, dim], Key and
// Value [keys, KVHeads, dim].
func (a *DilatedAttention) Run(args *kernel.Args) error {
	if !a.planned {
		return fmt.Errorf("attention: longnet: %w", kernel.ErrNoPlan)
	}
	if args == nil {
		return &kernel.ValueError{Name: "Args", Got: "nil", Want: "arguments"}
	}
	if err := a.checkArgs(args); err != nil {
		return err
	}
	s, group := &a.spec, int64(a.spec.Group())
	queries, heads := int64(a.queries), int64(s.Heads)
	lse := args.LSE
	if lse.IsZero() {
		lse = tensor.Of(a.buffers[1], tensor.F32, queries, heads)
	}
	other := tensor.Of(a.buffers[1], tensor.F32, queries, heads)
	other.Offset = int64(a.room) * heads
	out := tensor.Of(a.buffers[0], s.DType, queries, heads, int64(s.ValueDim))
	for i := range a.passes {
		p := &a.passes[i]
		if p.rows == 0 {
			continue
		}
		for g := p.offset; g < int64(s.KVHeads); g += p.rate {
			of := func(v tensor.View) tensor.View {
				return every(v.Slice(1, g*group, (g+1)*group), 0, p.first, p.rate)
			}
			one := *args
			one.Query, one.Out, one.LSE = of(args.Query), of(args.Out), of(lse)
			one.Key = every(args.Key.Slice(1, g, g+1), 0, p.offset, p.rate)
			one.Value = every(args.Value.Slice(1, g, g+1), 0, p.offset, p.rate)
			if !args.KeyScale.IsZero() {
				one.KeyScale = args.KeyScale.Slice(0, g, g+1)
			}
			if !args.ValueScale.IsZero() {
				one.ValueScale = args.ValueScale.Slice(0, g, g+1)
			}
			if i > 0 {
				one.Out, one.LSE = of(out), of(other)
			}
			if err := p.attention.Run(&one); err != nil {
				return err
			}
			if i == 0 {
				continue
			}
			if err := a.backend.Merge(&kernel.MergeArgs{
				OutA: of(args.Out), LSEA: of(lse), OutB: one.Out, LSEB: one.LSE, Out: of(args.Out), LSE: of(lse), Policy: s.Policy,
			}); err != nil {
				return fmt.Errorf("attention: longnet: %w", err)
			}
		}
	}
	return nil
}

func (a *DilatedAttention) checkArgs(args *kernel.Args) error {
	s := &a.spec
	for _, x := range []struct {
		name  string
		view  *tensor.View
		shape [3]int
	}{
		{"Query", &args.Query, [3]int{a.queries, s.Heads, s.HeadDim}}, {"Out", &args.Out, [3]int{a.queries, s.Heads, s.ValueDim}},
		{"Key", &args.Key, [3]int{a.keys, s.KVHeads, s.HeadDim}}, {"Value", &args.Value, [3]int{a.keys, s.KVHeads, s.ValueDim}},
	} {
		v := x.view
		if v.Rank != 3 || v.Shape[0] != int64(x.shape[0]) || v.Shape[1] != int64(x.shape[1]) || v.Shape[2] != int64(x.shape[2]) {
			return &kernel.ShapeError{Tensor: x.name, Got: v.String(), Want: fmt.Sprint(x.shape)}
		}
	}
	if v := &args.LSE; !v.IsZero() && (v.Rank != 2 || v.Shape[0] != int64(a.queries) || v.Shape[1] != int64(s.Heads)) {
		return &kernel.ShapeError{Tensor: "LSE", Got: v.String(), Want: fmt.Sprintf("[%d %d]", a.queries, s.Heads)}
	}
	for _, v := range []*tensor.View{&args.KeyScale, &args.ValueScale} {
		if !v.IsZero() && (v.Rank != 1 || v.Shape[0] != int64(s.KVHeads)) {
			return &kernel.ShapeError{Tensor: "KeyScale or ValueScale", Got: v.String(), Want: fmt.Sprintf("[%d]", s.KVHeads)}
		}
	}
	return nil
}
