package kerneltest

import (
	"math"
	"slices"

	"github.com/longctx/longctx/tensor"
)

// manner is how a naive program goes about it. The error of one program on one
// small case may be small by luck, so there are two of them, and the larger
// error counts.
type manner struct {
	backwards bool         // sums from the last feature and the last key, and powers of 2, not of e
	held      tensor.DType // of probabilities and score gradients
}

// solve32 computes a Problem as a program without tiles would: plain float32,
// a library exponential, a row of scores at a time, outputs rounded to their
// types. Its error is the measure of a kernel's. Under the Fast policy
// probabilities and score gradients may be held in Config.DType, which a matrix
// unit would take them in.
func solve32(g *geometry, in *inputs, how manner) *reference {
	c := &g.Config
	n := &naive{geometry: g, in: in, manner: how}
	ref := &reference{
		out: make([]float64, g.tokens()*c.Heads*c.ValueDim),
		lse: make([]float64, g.tokens()*c.Heads),
	}
	n.dquery, n.dkey, n.dvalue = make([]float32, len(in.query)), make([]float32, len(in.key)), make([]float32, len(in.value))
	n.stats = make([]float32, g.keys()*c.Heads)
	for s := range g.Step.QueryLens {
		for head := range c.KVHeads {
			keys := n.rotateKeys(s, head)
			for r := range g.Step.QueryLens[s] {
				var seen, terms []int
				for j := range g.Step.KeyLens[s] {
					if t := g.term(s, head, r, j); t >= 0 {
						seen, terms = append(seen, j), append(terms, t)
					}
				}
				if how.backwards {
					slices.Reverse(seen)
					slices.Reverse(terms)
				}
				for h := head * (c.Heads / c.KVHeads); h < (head+1)*(c.Heads/c.KVHeads); h++ {
					n.row(ref, s, r, h, head, seen, terms, keys)
				}
			}
		}
	}
	ref.stats = widen(n.stats)
	if c.Backward {
		ref.dquery, ref.dkey, ref.dvalue = widen(n.dquery), widen(n.dkey), widen(n.dvalue)
	}
	return ref
}

type naive struct {
	*geometry
	in *inputs
	manner
	dquery, dkey, dvalue []float32
	stats                []float32
}

func (n *naive) hold(x float32) float32 {
	if n.held == tensor.F32 {
		return x
	}
	return float32(round(n.held, float64(x)))
}

func (n *naive) rotateKeys(s, head int) [][][]float32 {
	c := &n.Config
	out := make([][][]float32, len(n.terms))
	for t := range n.terms {
		for j := range n.Step.KeyLens[s] {
			x := append([]float32(nil), n.in.key[((n.keyAt[s]+j)*c.KVHeads+head)*c.HeadDim:][:c.HeadDim]...)
			if n.rotatedKeys() {
				n.rotate(x, mapped(n.terms[t].PosK, n.keyPos(s, j)), true, false)
			}
			out[t] = append(out[t], x)
		}
	}
	return out
}

func (n *naive) rotate(x []float32, p float64, key, transpose bool) {
	for k := range n.rotation.Dim / 2 {
		a, b := n.pair(k)
		c64, s64 := n.turn(k, p, key)
		cos, sin := float32(c64), float32(s64)
		if transpose {
			sin = -sin
		}
		x[a], x[b] = x[a]*cos-x[b]*sin, x[b]*cos+x[a]*sin
	}
}

func (n *naive) row(ref *reference, s, r, h, head int, seen, terms []int, keys [][][]float32) {
	c, token, i := &n.Config, n.tokenAt[s]+r, n.index(s, r)
	at := token*c.Heads + h
	queries := make([][]float32, len(n.terms))
	for t := range queries {
		queries[t] = append([]float32(nil), n.in.query[at*c.HeadDim:][:c.HeadDim]...)
		n.rotate(queries[t], mapped(n.terms[t].PosQ, n.queryPos(s, r)), false, false)
	}
	score, slope := make([]float32, len(seen)), make([]float32, len(seen))
	largest := float32(math.Inf(-1))
	for k, j := range seen {
		x := n.dot(queries[terms[k]], keys[terms[k]][j]) * float32(n.scale(terms[k], i))
		score[k], slope[k] = n.modify(x, s, h, i, j)
		score[k] *= n.unit()
		largest = max(largest, score[k])
	}
	sink := float32(math.Inf(-1))
	if c.Score.SinkLogit {
		sink = n.in.sinkLogit[h]
	}
	ref.lse[at] = float64(sink)
	if len(seen) == 0 || largest < -1e30 {
		return
	}
	sink *= n.unit()
	largest = max(largest, sink)
	total := n.exp(sink - largest)
	p := make([]float32, len(seen))
	for k := range seen {
		p[k] = n.exp(score[k] - largest)
		total += p[k]
	}
	lse := largest + float32(math.Log(float64(total)))*n.unit()
	lse /= n.unit()
	ref.lse[at] = float64(lse)
	lse *= n.unit()
	n.columnStats(s, r, h, seen, score, lse)
	value := func(j int) []float32 { return n.in.value[((n.keyAt[s]+j)*c.KVHeads+head)*c.ValueDim:][:c.ValueDim] }
	out := make([]float32, c.ValueDim)
	for k, j := range seen {
		p[k] = n.hold(p[k] / total)
		for d, v := range value(j) {
			out[d] += p[k] * v
		}
	}
	for d := range out {
		ref.out[at*c.ValueDim+d] = round(c.DType, float64(out[d]))
	}
	if !c.Backward {
		return
	}
	dout := n.in.dout[at*c.ValueDim:][:c.ValueDim]
	offset := float32(0)
	for d := range dout {
		offset += dout[d] * float32(ref.out[at*c.ValueDim+d])
	}
	if n.in.dlse != nil {
		offset -= n.in.dlse[at]
	}
	for k, j := range seen {
		pk := n.hold(n.exp(score[k] - lse))
		row := (n.keyAt[s]+j)*c.KVHeads + head
		for d := range dout {
			n.dvalue[row*c.ValueDim+d] += pk * dout[d]
		}
		t := &n.terms[terms[k]]
		dx := n.hold(pk*(n.dot(dout, value(j))-offset)*slope[k]) * float32(n.scale(terms[k], i))
		dq, dk := make([]float32, c.HeadDim), make([]float32, c.HeadDim)
		for d := range dq {
			dq[d], dk[d] = dx*keys[terms[k]][j][d], dx*queries[terms[k]][d]
		}
		n.rotate(dq, mapped(t.PosQ, n.queryPos(s, r)), false, true)
		if n.rotatedKeys() {
			n.rotate(dk, mapped(t.PosK, n.keyPos(s, j)), true, true)
		}
		for d := range dq {
			n.dquery[at*c.HeadDim+d] += dq[d]
			n.dkey[row*c.HeadDim+d] += dk[d]
		}
	}
}

// modify is the score after the modifications of Config.Score, and the slope
// of the soft cap.
func (n *naive) modify(x float32, s, h, i, j int) (score, slope float32) {
	c := &n.Config
	slope = 1
	if m := float32(c.Score.SoftCap); m != 0 {
		t := float32(math.Tanh(float64(x / m)))
		x, slope = m*t, 1-t*t
	}
	if c.Score.Slopes {
		x -= n.in.slopes[h] * float32(math.Abs(float64(i-j)))
	}
	if c.Score.RelBias {
		x += n.in.relBias[h*n.Problem.RelBias+min(max(i-j-int(c.Score.RelBiasStart), 0), n.Problem.RelBias-1)]
	}
	if c.Score.PrefixBias {
		x += n.in.prefixBias[(n.keyAt[s]+i)*c.Heads+h] - n.in.prefixBias[(n.keyAt[s]+j)*c.Heads+h]
	}
	return x, slope
}

func (n *naive) dot(a, b []float32) float32 {
	s := float32(0)
	for d := range a {
		if n.backwards {
			d = len(a) - 1 - d
		}
		s += a[d] * b[d]
	}
	return s
}

// unit is what a score is multiplied by before it is an exponent.
func (n *naive) unit() float32 {
	if n.backwards {
		return math.Log2E
	}
	return 1
}

func (n *naive) exp(x float32) float32 {
	if n.backwards {
		return float32(math.Exp2(float64(x)))
	}
	return float32(math.Exp(float64(x)))
}
