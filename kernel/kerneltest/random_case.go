package kerneltest

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
)

// Random is a case drawn from all that a Config and a Step can say, the same
// one for the same seed: sizes around those of tiles, blocks and registers,
// every mask, position method and score, all element types, codings, layouts and
// page sizes, and now and then a NaN, an Inf or a subnormal; or a PageBounds, a
// PageScores or a RowScores.
func Random(seed uint64) Case {
	name := fmt.Sprintf("random=%d", seed)
	if d := (&drawn{random: newRandom(seed, 101)}); d.chance(10) {
		op, check := randomPages(d, seed)
		return Case{Op: op, Name: name, check: check}
	}
	d := &drawn{random: newRandom(seed, 100)}
	p := d.problem(seed)
	d.columnStats(p)
	op := "attention"
	switch c := &p.Config; {
	case c.Backward:
		op = "backward"
	case c.ColumnStats:
		op = "columnstats"
		if p.Maximum {
			op = "columnmax"
		}
	}
	return Case{Op: op, Name: name, Problem: p, expected: new(expected)}
}

// drawn draws the parts of a random case.
type drawn struct{ *random }

func one[T any](d *drawn, from ...T) T   { return from[d.below(len(from))] }
func (d *drawn) chance(percent int) bool { return d.below(100) < percent }

func (d *drawn) problem(seed uint64) *Problem {
	c := &attention.Config{KVHeads: 1 + d.below(3), HeadDim: 1 + d.below(40)}
	c.Heads = c.KVHeads * one(d, 1, 1, 2, 3, 4, 8, 17)
	if d.chance(60) {
		c.HeadDim = one(d, 8, 16, 32, 64, 72, 100, 128, 256)
	}
	c.ValueDim = c.HeadDim
	if d.chance(20) {
		c.ValueDim = 1 + d.below(140)
	}
	types := allTypes()
	c.DType, c.KVDType = one(d, types[:]...), one(d, types[:]...)
	c.Backward = d.chance(15)
	if !c.Backward && d.chance(60) {
		c.PageSize = one(d, 1, 5, 16, 16, 32, 64, 64, 100, 128, 512)
	}
	p := &Problem{Config: *c, Seed: seed, Drawn: true, Layout: Layout{Gap: d.below(3), Pad: d.below(3), HeadsFirst: d.chance(30)}}
	if d.chance(10) {
		p.Layout.Spread = 2
	}
	d.step(p)
	d.position(p)
	d.mask(p)
	d.score(p)
	d.specials(p)
	p.WithoutLSE = !c.Backward && d.chance(20)
	p.WithDLSE, p.DOutF32 = c.Backward && d.chance(40), d.chance(30)
	(&drawn{random: newRandom(seed, 102)}).coding(p)
	return p
}

// coding makes pages coded, at times. Their keys and values are finite: pages of
// others are not coded.
func (d *drawn) coding(p *Problem) {
	c := &p.Config
	if c.PageSize == 0 || !d.chance(60) {
		return
	}
	c.Coding = kernel.Coding{Key: d.quantizer(c.PageSize, c.HeadDim), Value: d.quantizer(c.PageSize, c.ValueDim)}
	p.Coded, p.Straight = codedMix(d.below(3)), d.chance(10)
	p.Special = slices.DeleteFunc(p.Special, func(s Special) bool { return s.Tensor != 'q' })
}

func (d *drawn) quantizer(size, dim int) (q kernel.Quantizer) {
	q.Codec = kernel.Int8
	if c := one(d, kernel.Int4, kernel.Int4, kernel.Int2, kernel.Int1); dim*bits(c)%32 == 0 {
		q.Codec = c
	}
	if d.chance(60) {
		q.Group = one(d, dim, dim, 1+d.below(dim), 16, 32)
		for dim%q.Group != 0 {
			q.Group--
		}
	}
	q.Levels = d.chance(30)
	q.RMS = q.Levels && d.chance(40)
	if size*dim <= 1<<16 && d.chance(30) {
		q.Outliers = 1 + d.below(min(size*dim, 100))
	}
	if d.chance(20) {
		q.Rank = 1 + d.below(min(size, dim, 10))
	}
	return q
}

// step draws lengths, of a cost that the float64 oracle can bear.
func (d *drawn) step(p *Problem) {
	budget := 3e6 / float64(p.Config.Heads*(p.Config.HeadDim+p.Config.ValueDim))
	if p.Config.Backward {
		budget /= 3
	}
	s := &p.Step
	for range 1 + d.below(4) {
		keys := 1 + d.below(one(d, 10, 70, 200, 600, 1500))
		if d.chance(40) {
			keys = one(d, 1, 63, 64, 65, 128, 511, 512, 513, 577, 1024, 1100)
		}
		queries := one(d, 1, 1, 2, 4, 5, 1+d.below(40), 32, 33, 64, 1+d.below(600), keys)
		queries = min(queries, keys, max(1, int(budget/float64(keys))))
		if d.chance(5) {
			queries = 0
		}
		s.QueryLens, s.KeyLens = append(s.QueryLens, queries), append(s.KeyLens, keys)
		if budget -= float64(queries * keys); budget < 0 {
			break
		}
	}
	if d.chance(10) {
		for i := range sum(s.QueryLens) {
			s.QueryPos = append(s.QueryPos, int32(d.below(3000)+i))
		}
		for range sum(s.KeyLens) {
			s.KeyPos = append(s.KeyPos, int32(d.below(3000)))
		}
	}
}

func (d *drawn) position(p *Problem) {
	c := &p.Config
	if c.HeadDim >= 2 && d.chance(70) {
		dim := 2 * (1 + d.below(c.HeadDim/2))
		if d.chance(60) {
			dim = c.HeadDim &^ 1
		}
		r := rope(dim)
		if d.chance(40) {
			interleaved((*kernel.Rotation)(&r))
		}
		if d.chance(20) {
			xpos((*kernel.Rotation)(&r))
		}
		c.Rotary = r
		if d.chance(40) {
			c.KeyStorage = kernel.PostRoPE
		}
	}
	w := int32(1 + d.below(200))
	if d.chance(35) {
		c.Position = one[attention.Position](d, reRoPE(w), leaky(w, 0.125), selfExtend(8*w, 4), dualChunk(int(w), int(w)+8), scaled(), partial())
		if c.KeyStorage == kernel.PostRoPE {
			c.Position = dualChunk(int(w), int(w)+8) // its terms turn keys alike
		}
	}
}

func (d *drawn) mask(p *Problem) {
	c, s := &p.Config, &p.Step
	w := 1 + d.below(300)
	c.Mask = one(d, attention.Causal(), attention.Causal(), attention.Bidirectional(), attention.Window(w), attention.WindowSinks(w, 4), attention.Chunked(w))
	if _, several := c.Position.(positions); several && len(c.Mask.Regions) > 1 {
		c.Mask = attention.Causal() // regions × terms has a limit
	}
	with := func(m attention.Mask) bool {
		both, err := c.Mask.And(m)
		if err == nil {
			c.Mask = both
		}
		return err == nil
	}
	switch d.below(10) {
	case 0:
		if with(attention.PrefixLM()) {
			for _, n := range s.KeyLens {
				s.PrefixLens = append(s.PrefixLens, d.below(n+1))
			}
		}
	case 1:
		if with(attention.Documents()) {
			id := int32(0)
			for range sum(s.KeyLens) {
				if d.chance(3) {
					id++
				}
				s.Documents = append(s.Documents, id)
			}
		}
	case 2:
		if with(attention.Tree()) {
			s.Tree = tree(p.Seed, s.QueryLens)
		}
	case 3:
		if with(attention.Blocks()) {
			s.Blocks = blocks(p.Seed, *s, one(d, 1, 16, 64, 100), one(d, 1, 16, 64, 128), c.KVHeads, d.chance(50))
		}
	}
}

func (d *drawn) score(p *Problem) {
	if d.chance(65) {
		return
	}
	s := &p.Config.Score
	s.Slopes, s.RelBias, s.PrefixBias, s.SinkLogit = d.chance(30), d.chance(30), d.chance(30), d.chance(50)
	if d.chance(30) {
		s.SoftCap = one(d, 0.5, 5, 50)
	}
	if d.chance(30) {
		s.LogN = 2 + d.below(100)
	}
	s.RelBiasStart = int32(d.below(20) - 10)
	p.RelBias = 1 + d.below(100)
}

func (d *drawn) specials(p *Problem) {
	for d.chance(15) {
		seq := d.below(len(p.Step.KeyLens))
		x := Special{Tensor: one(d, byte('q'), 'k', 'v'), Sequence: seq, Head: -1, Feature: d.below(min(p.Config.HeadDim, p.Config.ValueDim))}
		n := p.Step.KeyLens[seq]
		if x.Tensor == 'q' {
			n = p.Step.QueryLens[seq]
		}
		if n == 0 {
			return
		}
		x.Lo = d.below(n)
		x.Hi = x.Lo + 1 + d.below(n-x.Lo)
		x.Value = one(d, float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), 0, float32(math.Copysign(0, -1)), 0x1p-140, 0x1p-24)
		dtype := p.Config.KVDType
		if x.Tensor == 'q' {
			dtype = p.Config.DType
		}
		x.Value = float32(round(dtype, float64(x.Value))) // what the type can hold
		p.Special = append(p.Special, x)
		p.Wild = true
	}
}
