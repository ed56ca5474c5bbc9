package kerneltest

import (
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// solveExact is the Exact policy of package kernel, rules 1 to 8, 10 and 15, as
// they stand there: one row at a time, one key at a time. A kernel must give
// these bits.
func solveExact(g *geometry, in *inputs) *answer {
	x := &exact{geometry: g, in: in}
	c := &g.Config
	x.answer.out = words{c.DType, make([]uint32, g.tokens()*c.Heads*c.ValueDim)}
	x.answer.lse = words{tensor.F32, make([]uint32, g.tokens()*c.Heads)}
	x.cap = float32(c.Score.SoftCap * math.Log2E)
	x.inv = float32(1 / (c.Score.SoftCap * math.Log2E))
	for s := range g.Step.QueryLens {
		for head := range c.KVHeads {
			x.sequence(s, head)
		}
	}
	if c.Backward {
		x.backward(in)
	}
	if c.ColumnStats {
		x.columnStats()
	}
	return &x.answer
}

type exact struct {
	*geometry
	in       *inputs
	answer   answer
	cap, inv float32
}

// state is the running maximum, denominator and output of a softmax.
type state struct {
	m, l float32
	o    []float32
}

func newState(dim int) state { return state{kernel.MaxStart, 0, make([]float32, dim)} }

// Ways to turn: features to their position, and gradients back from it.
const (
	there = 1
	back  = -1
)

// turned is v rotated to position p, or back from it.
func (x *exact) turned(v []float32, p float64, side kernel.Side, way float32) []float32 {
	out := append([]float32(nil), v...)
	half := x.rotation.Dim / 2
	cos, sin := make([]float32, half), make([]float32, half)
	x.rotation.Fill(cos, sin, [3]float64{p}, side)
	for k := range half {
		a, b := x.pair(k)
		s := way * sin[k]
		out[a] = kernel.FMA(v[a], cos[k], -float32(v[b]*s))
		out[b] = kernel.FMA(v[b], cos[k], float32(v[a]*s))
	}
	return out
}

// rotatedTerms is [term][j] the keys of a sequence and KV head as each Term
// sees them.
func (x *exact) rotatedTerms(s, head int) [][][]float32 {
	c := &x.Config
	keys := make([][][]float32, len(x.terms))
	for n := range x.terms {
		for j := range x.Step.KeyLens[s] {
			k := x.in.key[((x.keyAt[s]+j)*c.KVHeads+head)*c.HeadDim:][:c.HeadDim]
			if x.rotatedKeys() {
				k = x.turned(k, mapped(x.terms[n].PosK, x.keyPos(s, j)), kernel.KeySide, there)
			}
			keys[n] = append(keys[n], k)
		}
	}
	return keys
}

func (x *exact) sequence(s, head int) {
	c, keys := &x.Config, x.rotatedTerms(s, head)
	for r := range x.Step.QueryLens[s] {
		terms := make([]int, x.Step.KeyLens[s])
		for j := range terms {
			terms[j] = x.term(s, head, r, j)
		}
		for h := head * (c.Heads / c.KVHeads); h < (head+1)*(c.Heads/c.KVHeads); h++ {
			x.row(s, r, h, head, terms, keys)
		}
	}
}

func (x *exact) row(s, r, h, head int, terms []int, keys [][][]float32) {
	c, at := &x.Config, (x.tokenAt[s]+r)*x.Config.Heads+h
	query := x.in.query[at*c.HeadDim:][:c.HeadDim]
	queries, scales := make([][]float32, len(x.terms)), make([]float32, len(x.terms))
	for n := range queries {
		queries[n] = x.turned(query, mapped(x.terms[n].PosQ, x.queryPos(s, r)), kernel.QuerySide, there)
		scales[n] = x.scoreScale(n, x.index(s, r))
	}
	total := newState(c.ValueDim)
	for c0 := 0; c0 < len(terms); c0 += kernel.ChunkSize {
		chunk, seen := newState(c.ValueDim), false
		for t0 := c0; t0 < min(c0+kernel.ChunkSize, len(terms)); t0 += kernel.TileSize {
			var scores []float32
			var js []int
			for j := t0; j < min(t0+kernel.TileSize, len(terms)); j++ {
				if n := terms[j]; n >= 0 {
					t, _ := x.score(s, h, x.index(s, r), j, queries[n], keys[n][j], scales[n])
					scores, js = append(scores, t), append(js, j)
				}
			}
			if len(js) > 0 {
				seen = true
				chunk.tile(scores, func(k int) []float32 {
					return x.in.value[((x.keyAt[s]+js[k])*c.KVHeads+head)*c.ValueDim:][:c.ValueDim]
				})
			}
		}
		if seen {
			total.merge(&chunk)
		}
	}
	if c.Score.SinkLogit {
		sink := newState(c.ValueDim)
		sink.m, sink.l = float32(x.in.sinkLogit[h]*kernel.Log2E), 1
		total.merge(&sink)
	}
	x.write(at, &total)
}

func (x *exact) scoreScale(term, i int) float32 {
	scale := math.Log2E * x.Config.Scale
	if f := x.rotation.ScoreScale; f != 0 {
		scale *= f
	}
	if f := x.terms[term].Scale; f != 0 {
		scale *= f
	}
	if n := x.Config.Score.LogN; n > 0 && i > 0 {
		scale *= max(1, xmath.Log(float64(i+1))/xmath.Log(float64(n)))
	}
	return float32(scale)
}

// score is rule 4: t, and the tanh of the soft cap.
func (x *exact) score(s, h, i, j int, q, k []float32, scale float32) (t, tanh float32) {
	c := &x.Config
	a := float32(0)
	for d := range q {
		a = kernel.FMA(k[d], q[d], a)
	}
	t = float32(a * scale)
	if c.Score.SoftCap != 0 {
		tanh = kernel.Tanh(float32(t * x.inv))
		t = float32(tanh * x.cap)
	}
	if c.Score.Slopes {
		t = kernel.FMA(float32(x.in.slopes[h]*kernel.Log2E), -float32(math.Abs(float64(i-j))), t)
	}
	if c.Score.RelBias {
		at := min(max(i-j-int(c.Score.RelBiasStart), 0), x.Problem.RelBias-1)
		t = kernel.FMA(x.in.relBias[h*x.Problem.RelBias+at], kernel.Log2E, t)
	}
	if c.Score.PrefixBias {
		b := x.in.prefixBias
		t = kernel.FMA(b[(x.keyAt[s]+i)*c.Heads+h]-b[(x.keyAt[s]+j)*c.Heads+h], kernel.Log2E, t)
	}
	return t, tanh
}

func (a *state) tile(scores []float32, value func(k int) []float32) {
	m := a.m
	for _, t := range scores {
		if t > m { // never for NaN
			m = t
		}
	}
	f := kernel.Exp2(a.m - m)
	a.m, a.l = m, float32(a.l*f)
	for d := range a.o {
		a.o[d] = float32(a.o[d] * f)
	}
	for k, t := range scores {
		p := kernel.Exp2(t - m)
		a.l += p
		for d, v := range value(k) {
			a.o[d] = kernel.FMA(v, p, a.o[d])
		}
	}
}

func (a *state) merge(b *state) {
	m := max(a.m, b.m)
	fa, fb := kernel.Exp2(a.m-m), kernel.Exp2(b.m-m)
	a.m, a.l = m, kernel.FMA(b.l, fb, float32(a.l*fa))
	for d := range a.o {
		a.o[d] = kernel.FMA(b.o[d], fb, float32(a.o[d]*fa))
	}
}

func (x *exact) write(at int, a *state) {
	c := &x.Config
	lse, inv := float32(math.Inf(-1)), float32(0)
	if a.l != 0 {
		lse, inv = kernel.LSE(a.m, a.l), 1/a.l
	}
	x.answer.lse.bits[at] = math.Float32bits(lse)
	for d, o := range a.o {
		v := float32(0)
		if a.l != 0 {
			v = float32(o*inv) + 0
		}
		x.answer.out.bits[at*c.ValueDim+d] = encode(c.DType, round(c.DType, float64(v)))
	}
}
