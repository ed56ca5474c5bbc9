package kerneltest

import (
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// backward is rule 10 of package kernel. The Terms it speaks of are those of a
// Batch: a region of the mask within a Term of the position module. Gradients
// that the keys of a row add up are kept apart for each until the end.
func (x *exact) backward(in *inputs) {
	c := &x.Config
	grads := func(n int) words { return words{tensor.F32, make([]uint32, n)} }
	x.answer.dquery, x.answer.dkey, x.answer.dvalue = grads(len(in.query)), grads(len(in.key)), grads(len(in.value))
	for s := range x.Step.QueryLens {
		for head := range c.KVHeads {
			x.sequenceBackward(s, head)
		}
	}
}

// pieces is the number of Terms of a Batch, empty ones included.
func (x *exact) pieces() int { return len(x.Config.Mask.Regions) * len(x.terms) }

// piece is the Term of a Batch that joins query r and key j, or −1.
func (x *exact) piece(s, head, r, j int) int {
	term := x.term(s, head, r, j)
	if term < 0 {
		return -1
	}
	for n := range x.Config.Mask.Regions {
		if x.holds(&x.Config.Mask.Regions[n], s, x.index(s, r), j) {
			return n*len(x.terms) + term
		}
	}
	panic("kerneltest: internal error: a pair in no region")
}

func rows32(n, dim int) [][]float32 {
	out := make([][]float32, n)
	for i := range out {
		out[i] = make([]float32, dim)
	}
	return out
}

func fmaRow(y, v []float32, a float32) {
	for d := range y {
		y[d] = kernel.FMA(v[d], a, y[d])
	}
}

func (x *exact) sequenceBackward(s, head int) {
	c, n, keys := &x.Config, x.Step.KeyLens[s], x.rotatedTerms(s, head)
	dkeys := make([][][]float32, x.pieces())
	for i := range dkeys {
		dkeys[i] = rows32(n, c.HeadDim)
	}
	dvalues := rows32(n, c.ValueDim)
	for h := head * (c.Heads / c.KVHeads); h < (head+1)*(c.Heads/c.KVHeads); h++ {
		for r := range x.Step.QueryLens[s] {
			x.rowBackward(s, r, h, head, keys, dkeys, dvalues)
		}
	}
	for j := range n {
		at := (x.keyAt[s]+j)*c.KVHeads + head
		total := make([]float32, c.HeadDim)
		for i := range dkeys {
			d := dkeys[i][j]
			if x.rotatedKeys() {
				d = x.turned(d, mapped(x.terms[i%len(x.terms)].PosK, x.keyPos(s, j)), kernel.KeySide, back)
			}
			for k := range total {
				total[k] += d[k]
			}
		}
		put(&x.answer.dkey, at*c.HeadDim, total)
		put(&x.answer.dvalue, at*c.ValueDim, dvalues[j])
	}
}

func put(w *words, at int, x []float32) {
	for d, v := range x {
		w.bits[at+d] = math.Float32bits(v)
	}
}

func (x *exact) rowBackward(s, r, h, head int, keys, dkeys [][][]float32, dvalues [][]float32) {
	c, i, at := &x.Config, x.index(s, r), (x.tokenAt[s]+r)*x.Config.Heads+h
	dout := x.in.dout[at*c.ValueDim:][:c.ValueDim]
	offset := float32(0)
	for d := range dout {
		offset = kernel.FMA(dout[d], float32(x.answer.out.value(at*c.ValueDim+d)), offset)
	}
	if x.in.dlse != nil {
		offset -= x.in.dlse[at]
	}
	lse := float32(float32(x.answer.lse.value(at)) * kernel.Log2E)
	dqueries, queries := rows32(x.pieces(), c.HeadDim), make([][]float32, len(x.terms))
	for n := range queries {
		queries[n] = x.turned(x.in.query[at*c.HeadDim:][:c.HeadDim], mapped(x.terms[n].PosQ, x.queryPos(s, r)), kernel.QuerySide, there)
	}
	for j := range x.Step.KeyLens[s] {
		piece := x.piece(s, head, r, j)
		if piece < 0 {
			continue
		}
		n := piece % len(x.terms)
		scale := x.scoreScale(n, i)
		t, tanh := x.score(s, h, i, j, queries[n], keys[n][j], scale)
		p := kernel.Exp2(t - lse)
		dp := float32(0)
		for d, v := range x.in.value[((x.keyAt[s]+j)*c.KVHeads+head)*c.ValueDim:][:c.ValueDim] {
			dp = kernel.FMA(dout[d], v, dp)
		}
		ds := float32(p * (dp - offset))
		if c.Score.SoftCap != 0 {
			ds = float32(ds * kernel.FMA(-tanh, tanh, 1))
		}
		g := float32(ds * float32(scale*kernel.Ln2))
		fmaRow(dqueries[piece], keys[n][j], g)
		fmaRow(dkeys[piece][j], queries[n], g)
		fmaRow(dvalues[j], dout, p)
	}
	total := make([]float32, c.HeadDim)
	for i, d := range dqueries {
		d = x.turned(d, mapped(x.terms[i%len(x.terms)].PosQ, x.queryPos(s, r)), kernel.QuerySide, back)
		for k := range total {
			total[k] += d[k]
		}
	}
	put(&x.answer.dquery, at*c.HeadDim, total)
}
