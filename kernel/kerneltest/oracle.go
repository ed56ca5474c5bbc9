package kerneltest

import (
	"math"
	"slices"
)

// reference is what a Problem should give, as real numbers in the logical
// order of the tensors.
type reference struct {
	out, lse             []float64 // [tokens, Heads, ValueDim], [tokens, Heads]
	dquery, dkey, dvalue []float64 // as Query, Key and Value of inputs
	stats                []float64 // [keys, Heads]
}

// solve64 computes a Problem in float64 as the formulas stand: for each row
// all scores, then the softmax, then the sums, and for the gradients
//
//	P = exp(s − LSE)   ds = P·(dOut·Value − dOut·Out + dLSE)   dx = ds·∂s/∂x
//	dQuery = Σ rotᵀ(dx·rot(Key))   dKey = Σ rotᵀ(dx·rot(Query))   dValue = Σ P·dOut
func solve64(g *geometry, in *inputs) *reference {
	c := &g.Config
	ref := &reference{
		out: make([]float64, g.tokens()*c.Heads*c.ValueDim),
		lse: make([]float64, g.tokens()*c.Heads),
	}
	if c.Backward {
		ref.dquery, ref.dkey, ref.dvalue = make([]float64, len(in.query)), make([]float64, len(in.key)), make([]float64, len(in.value))
	}
	if c.ColumnStats {
		ref.stats = make([]float64, g.keys()*c.Heads)
	}
	for s := range g.Step.QueryLens {
		for head := range c.KVHeads {
			keys := g.rotateKeys64(in, s, head)
			for r := range g.Step.QueryLens[s] {
				terms := make([]int, g.Step.KeyLens[s])
				for j := range terms {
					terms[j] = g.term(s, head, r, j)
				}
				for h := head * (c.Heads / c.KVHeads); h < (head+1)*(c.Heads/c.KVHeads); h++ {
					row := &row64{geometry: g, in: in, ref: ref, s: s, r: r, h: h, head: head, terms: slices.Clone(terms), keys: keys}
					row.forward()
					if c.Backward {
						row.backward()
					}
					if c.ColumnStats {
						row.columnStats()
					}
				}
			}
		}
	}
	return ref
}

// rotateKeys64 is [term][j] the rotated keys of a sequence and KV head.
func (g *geometry) rotateKeys64(in *inputs, s, head int) [][][]float64 {
	c := &g.Config
	out := make([][][]float64, len(g.terms))
	for n := range g.terms {
		for j := range g.Step.KeyLens[s] {
			x := widen(in.key[((g.keyAt[s]+j)*c.KVHeads+head)*c.HeadDim:][:c.HeadDim])
			if g.rotatedKeys() {
				g.rotate64(x, mapped(g.terms[n].PosK, g.keyPos(s, j)), true, false)
			}
			out[n] = append(out[n], x)
		}
	}
	return out
}

func widen(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}

// rotate64 turns x to position p, or applies the transpose of that.
func (g *geometry) rotate64(x []float64, p float64, key, transpose bool) {
	for k := range g.rotation.Dim / 2 {
		a, b := g.pair(k)
		cos, sin := g.turn(k, p, key)
		if transpose {
			sin = -sin
		}
		x[a], x[b] = x[a]*cos-x[b]*sin, x[b]*cos+x[a]*sin
	}
}

// row64 is one query token and head.
type row64 struct {
	*geometry
	in            *inputs
	ref           *reference
	s, r, h, head int
	terms         []int // of each key; −1: not seen
	keys          [][][]float64

	queries       [][]float64 // rotated, of each term
	score, linear []float64   // s[j], and ∂s[j]/∂(scaled product): the soft cap's slope
}

func (w *row64) token() int { return w.tokenAt[w.s] + w.r }

func (w *row64) value(j int) []float32 {
	d := w.Config.ValueDim
	return w.in.value[((w.keyAt[w.s]+j)*w.Config.KVHeads+w.head)*d:][:d]
}

func (w *row64) forward() {
	c := &w.Config
	for n := range w.geometry.terms {
		x := widen(w.in.query[(w.token()*c.Heads+w.h)*c.HeadDim:][:c.HeadDim])
		w.rotate64(x, mapped(w.geometry.terms[n].PosQ, w.queryPos(w.s, w.r)), false, false)
		w.queries = append(w.queries, x)
	}
	w.score, w.linear = make([]float64, len(w.terms)), make([]float64, len(w.terms))
	largest, nan := math.Inf(-1), false
	for j, n := range w.terms {
		if n < 0 {
			continue
		}
		w.score[j], w.linear[j] = w.logit(n, j)
		nan = nan || math.IsNaN(w.score[j])
		largest = math.Max(largest, w.score[j])
	}
	at := w.token()*c.Heads + w.h
	out := w.ref.out[at*c.ValueDim:][:c.ValueDim]
	sink := math.Inf(-1)
	if c.Score.SinkLogit {
		sink = float64(w.in.sinkLogit[w.h])
	}
	if !nan && largest < -1e30 { // nothing seen, or nothing that counts
		w.ref.lse[at] = sink
		for j := range w.terms {
			w.terms[j] = -1
		}
		return
	}
	largest = math.Max(largest, sink)
	total := math.Exp(sink - largest)
	for j, n := range w.terms {
		if n >= 0 {
			total += math.Exp(w.score[j] - largest)
		}
	}
	w.ref.lse[at] = largest + math.Log(total)
	for j, n := range w.terms {
		if n < 0 {
			continue
		}
		p := math.Exp(w.score[j]-largest) / total
		for d, v := range w.value(j) {
			out[d] += p * float64(v)
		}
	}
}

// logit is the score of key j, and its derivative by the scaled product.
func (w *row64) logit(n, j int) (score, slope float64) {
	c, i := &w.Config, w.index(w.s, w.r)
	x := 0.0
	for d, q := range w.queries[n] {
		x += q * w.keys[n][j][d]
	}
	x *= w.scale(n, i)
	slope = 1
	if m := c.Score.SoftCap; m != 0 {
		t := math.Tanh(x / m)
		x, slope = m*t, 1-t*t
	}
	if c.Score.Slopes {
		x -= float64(w.in.slopes[w.h]) * math.Abs(float64(i-j))
	}
	if c.Score.RelBias {
		at := min(max(i-j-int(c.Score.RelBiasStart), 0), w.Problem.RelBias-1)
		x += float64(w.in.relBias[w.h*w.Problem.RelBias+at])
	}
	if c.Score.PrefixBias {
		bias := func(k int) float64 { return float64(w.in.prefixBias[(w.keyAt[w.s]+k)*c.Heads+w.h]) }
		x += bias(i) - bias(j)
	}
	return x, slope
}

func (w *row64) backward() {
	c, at := &w.Config, w.token()*w.Config.Heads+w.h
	dout := widen(w.in.dout[at*c.ValueDim:][:c.ValueDim])
	out := w.ref.out[at*c.ValueDim:][:c.ValueDim]
	offset := 0.0
	for d := range dout {
		offset += dout[d] * out[d]
	}
	if w.in.dlse != nil {
		offset -= float64(w.in.dlse[at])
	}
	for j, n := range w.terms {
		if n < 0 {
			continue
		}
		p := math.Exp(w.score[j] - w.ref.lse[at])
		dp := 0.0
		dvalue := w.ref.dvalue[((w.keyAt[w.s]+j)*c.KVHeads+w.head)*c.ValueDim:]
		for d, v := range w.value(j) {
			dp += dout[d] * float64(v)
			dvalue[d] += p * dout[d]
		}
		dx := p * (dp - offset) * w.linear[j] * w.scale(n, w.index(w.s, w.r))
		dq, dk := make([]float64, c.HeadDim), make([]float64, c.HeadDim)
		for d := range dq {
			dq[d], dk[d] = dx*w.keys[n][j][d], dx*w.queries[n][d]
		}
		t := &w.geometry.terms[n]
		w.rotate64(dq, mapped(t.PosQ, w.queryPos(w.s, w.r)), false, true)
		if w.rotatedKeys() {
			w.rotate64(dk, mapped(t.PosK, w.keyPos(w.s, j)), true, true)
		}
		add(w.ref.dquery[at*c.HeadDim:], dq)
		add(w.ref.dkey[((w.keyAt[w.s]+j)*c.KVHeads+w.head)*c.HeadDim:], dk)
	}
}

func add(dst, x []float64) {
	for i, v := range x {
		dst[i] += v
	}
}
