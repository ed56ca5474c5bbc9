package cpu

import (
	"runtime"
	"sync/atomic"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

// The backward of attention (Dao et al., "FlashAttention-2", arXiv 2307.08691,
// algorithm 2) in one pass over spans of keys, with five products for a block
// and a tile. The worker of a span alone adds to its dK and dV. To dQ the spans
// of a KV head add in the order of their keys: each follows the one before it
// from block to block. So each sum has one order, whoever computes it.

// gradArgs is kernel.BackwardArgs made ready.
type gradArgs struct {
	out, dout, dquery, dkey, dvalue reader
	lse, dlse                       scalars
	delta                           []float32 // [tokens][Heads] Σ dO·O − dLSE

	// dQ of each term so far: of the first in dquery, of the others in memory
	sums   [kernel.MaxTerms]reader
	memory []float32      // [terms−1][tokens][Heads][HeadDim]
	done   []atomic.Int32 // [items] blocks that a span has added to
}

// grow makes room for the tokens and items of a batch.
func (g *gradArgs) grow(s *kernel.Spec, b *kernel.Batch, items int64) {
	n := b.Tokens() * s.Heads
	if len(g.delta) < n {
		g.delta = make([]float32, n)
	}
	if n *= (len(b.Terms) - 1) * s.HeadDim; len(g.memory) < n {
		g.memory = make([]float32, n)
	}
	if int64(len(g.done)) < items {
		g.done = make([]atomic.Int32, items)
	}
}

// start makes the sums of a batch with so many tokens ready.
func (g *gradArgs) start(s *kernel.Spec, tokens, terms int) {
	for i := range g.done {
		g.done[i].Store(0)
	}
	g.sums[0] = g.dquery
	row := int64(s.Heads * s.HeadDim)
	for i := 1; i < terms; i++ {
		g.sums[i] = reader{f32: g.memory, offset: int64(i-1) * int64(tokens) * row, row: row, head: int64(s.HeadDim), dim: 1, n: s.HeadDim}
	}
}

// gradScratch is what backward needs beyond forward.
type gradScratch struct {
	dout  []float32 // [rows][vld]
	delta []float32 // [rows] those of gradArgs
	lse   []float32 // [rows] LSE in units of log 2
	dp    []float32 // [rows][tile] dO·v
	th    []float32 // [rows][tile] tanh of the soft cap
	g     []float32 // [rows][tile] gradient of the product q·k, zero where masked
	part  []float32 // [rows][tile] g of one term
	dq    []float32 // [terms][rows][ld] in each term's rotation
	row   []float32 // [max dim]

	finite    [kernel.MaxTerms]bool // whether the queries of a variant are
	finiteOut bool                  // whether dout is

	out, doutColumns []float32 // [ValueDim][vec.Lanes]
}

func newGradScratch(s *kernel.Spec) gradScratch {
	f := func(n int) []float32 { return make([]float32, n) }
	rows, ld, vld := headRows(s), vec.Pad(s.HeadDim), vec.Pad(s.ValueDim)
	g := gradScratch{
		dout: f(rows * vld), delta: f(rows), lse: f(rows),
		dp: f(rows * vec.Stride), g: f(rows * vec.Stride), part: f(rows * vec.Stride),
		dq: f(s.Terms * rows * ld), row: f(max(s.HeadDim, s.ValueDim)),
		out: f(s.ValueDim * vec.Lanes), doutColumns: f(s.ValueDim * vec.Lanes),
	}
	if s.Scores&kernel.ScoreSoftCap != 0 {
		g.th = f(rows * vec.Stride)
	}
	return g
}

// Backward computes delta, then the gradients.
func (a *attention) Backward(args *kernel.BackwardArgs) error {
	if !a.spec.Backward {
		return &kernel.UnsupportedError{Backend: "cpu", Reasons: []string{"Backward of a kernel without Spec.Backward"}}
	}
	if err := a.begin(); err != nil {
		return err
	}
	defer a.busy.Store(false)
	if err := args.Validate(&a.spec, a.batch); err != nil {
		return err
	}
	if err := onHost(&args.Query, &args.Key, &args.Value, &args.Out, &args.LSE, &args.DOut, &args.DLSE, &args.DQuery, &args.DKey, &args.DValue,
		&args.Slopes, &args.RelBias, &args.PrefixBias, &args.SinkLogit); err != nil {
		return err
	}
	a.args.query, a.args.key, a.args.value = read(&args.Query), read(&args.Key), read(&args.Value)
	a.args.direct = [coded + 1]bool{} // tiles are decoded once for many rows
	g := &a.grads
	g.out, g.dout, g.dquery, g.dkey, g.dvalue = read(&args.Out), read(&args.DOut), read(&args.DQuery), read(&args.DKey), read(&args.DValue)
	g.lse, g.dlse = readScalars(&args.LSE), scalars{}
	if !args.DLSE.IsZero() {
		g.dlse = readScalars(&args.DLSE)
	}
	a.score.set(&a.spec, &args.ScoreArgs)
	for _, sc := range a.scratch {
		sc.blk = nil
	}
	g.start(&a.spec, a.batch.Tokens(), len(a.batch.Terms))
	a.mode = startGradients
	a.pool.do(&a.job, a, int64(len(a.heads.blocks)))
	a.mode = spanGradients
	a.pool.do(&a.job, a, a.heads.items(&a.spec))
	return nil
}

// startGradients computes delta and clears dQ of one block.
func (sc *scratch) startGradients(a *attention, b *block) {
	g, start, head := &sc.grad, int64(a.batch.QueryStart[b.seq])+int64(b.t0), int(b.head)
	sc.rows = int(b.n)
	for r := range sc.rows {
		a.grads.dout.loadRow(g.dout[r*sc.vld:], start+int64(r), head)
	}
	sc.findDelta(a, start, head)
	clear(g.row)
	for term := range a.batch.Terms {
		for r := range sc.rows {
			a.grads.sums[term].storeRow(g.row, start+int64(r), head)
		}
	}
}

// loadGradients loads the rows of the current block.
func (sc *scratch) loadGradients(a *attention) {
	sc.loadQueries(a)
	g, start, head := &sc.grad, sc.start(a), int(sc.blk.head)
	for r := range sc.rows {
		t := start + int64(r)
		a.grads.dout.loadRow(g.dout[r*sc.vld:], t, head)
		g.delta[r] = a.grads.delta[int(t)*a.spec.Heads+head]
		g.lse[r] = *a.grads.lse.at(t, int64(head)) * kernel.Log2E
	}
	for v := range a.batch.Terms {
		if a.variant[v] == v {
			g.finite[v] = vec.Finite(sc.queries(a, v, 0)[:sc.rows*sc.ld])
		}
	}
	g.finiteOut = vec.Finite(g.dout[:sc.rows*sc.vld])
}

// start is the first token of the current block in the batch.
func (sc *scratch) start(a *attention) int64 {
	return int64(a.batch.QueryStart[sc.blk.seq]) + int64(sc.blk.t0)
}

// findDelta computes delta of the block's rows, 32 side by side.
func (sc *scratch) findDelta(a *attention, start int64, head int) {
	g, dim := &sc.grad, a.spec.ValueDim
	for r0 := 0; r0 < sc.rows; r0 += vec.Lanes {
		n := min(vec.Lanes, sc.rows-r0)
		for r := range n {
			a.grads.out.loadRow(sc.turn[r*sc.vld:], start+int64(r0+r), head)
		}
		vec.ColumnsF32(g.out, vec.Lanes, sc.turn, sc.vld, n, dim, 0)
		vec.ColumnsF32(g.doutColumns, vec.Lanes, g.dout[r0*sc.vld:], sc.vld, n, dim, 0)
		var sum [vec.Lanes]float32
		for at := 0; at < dim*vec.Lanes; at += vec.Lanes {
			vec.AddProduct(a.spec.Policy, sum[:], g.doutColumns[at:], g.out[at:])
		}
		for r := range n {
			t := start + int64(r0+r)
			if a.grads.dlse.x != nil {
				sum[r] -= *a.grads.dlse.at(t, int64(head))
			}
			a.grads.delta[int(t)*a.spec.Heads+head] = sum[r]
		}
	}
}

// weights computes, for the pairs of the tile, the weights in sc.s and the
// gradient g of the products q·k, both 0 where nothing is seen. It reports
// whether there is a visible pair.
func (sc *scratch) weights(a *attention) bool {
	if !sc.sees(a) || sc.look(a, 0) == 0 {
		return false
	}
	g := &sc.grad
	scale := sc.scoreRows(a)
	vec.MulAdd(a.spec.Policy, vec.Matrix{X: g.dp, Row: vec.Stride}, vec.Matrix{X: g.dout, Row: sc.vld, Col: 1}, vec.Matrix{X: sc.valueColumns(a), Row: tile},
		sc.rows, a.spec.ValueDim, tile, vec.Zero, nil)
	for r := range sc.rows {
		sc.rowWeights(a, r, scale[r])
	}
	return true
}

// rowWeights finishes the scores of row r, still to be multiplied by scale.
func (sc *scratch) rowWeights(a *attention, r int, scale float32) {
	g, at := &sc.grad, r*vec.Stride
	s, dp, out := sc.s[at:][:vec.Stride], g.dp[at:][:vec.Stride], g.g[at:][:vec.Stride]
	vec.ScaleRow(s, scale)
	vec.Gradient(a.spec.Policy, s, dp, out, g.lse[r], g.delta[r], sc.any[r])
	for term := range a.batch.Terms {
		w := sc.words(term)[r]
		c := float32(sc.scale[term*sc.stride+r] * kernel.Ln2)
		if g.th == nil && w == sc.any[r] {
			vec.ScaleRow(out, c)
			return
		}
		for ; w != 0; w &= w - 1 {
			j := lowest(w)
			if g.th != nil {
				th := g.th[at+j]
				out[j] *= vec.FMA(a.spec.Policy, -th, th, 1)
			}
			out[j] *= c
		}
	}
}

// ofTerm is g with only the pairs of a term.
func (sc *scratch) ofTerm(a *attention, term int) []float32 {
	words, same := sc.words(term)[:sc.rows], true
	for r, w := range words {
		same = same && w == sc.any[r]
	}
	if same {
		return sc.grad.g
	}
	part := sc.grad.part[:sc.rows*vec.Stride]
	clear(part)
	for r, w := range words {
		for ; w != 0; w &= w - 1 {
			at := r*vec.Stride + lowest(w)
			part[at] = sc.grad.g[at]
		}
	}
	return part
}

// spanGradients computes dKey and dValue of some tiles of keys of one KV head,
// and adds to dQuery what they give. Several, so that the rows of a block are
// loaded once for them.
func (sc *scratch) spanGradients(a *attention, item int64) {
	span := a.keySpan(item)
	for i := range span.tiles {
		t := span.tile(i)
		sc.setTile(i, t.j0, t.n)
		clear(sc.dk)
		clear(sc.dv)
	}
	sc.blk = nil // the tiles are not those of the block before
	// heads of the group ascending, and of each head the queries ascending
	blocks := a.heads.of(span.seq*a.spec.Heads+span.kvHead*a.spec.Group(), a.spec.Group())
	for b := range blocks {
		sc.setBlock(a, &blocks[b], false)
		sees := sc.seesSpan(a, &span)
		if sees {
			sc.loadGradients(a)
		}
		if span.j0 > 0 {
			a.grads.await(item-int64(a.spec.KVHeads), b)
		}
		last := span.last()
		if sees || last {
			sc.moveQueryGradients(a, (*reader).loadRow)
		}
		for i := 0; sees && i < span.tiles; i++ {
			if sc.tileMemory = &sc.tiles[i]; sc.weights(a) {
				sc.addGradients(a)
			}
		}
		switch {
		case last:
			sc.finishQueryGradients(a)
		case sees:
			sc.moveQueryGradients(a, (*reader).storeRow)
		}
		a.grads.done[item].Store(int32(b + 1))
	}
	for i := range span.tiles {
		sc.tileMemory = &sc.tiles[i]
		sc.storeKeyGradients(a, span.tile(i))
	}
}

// await returns when an item has added to block b. Items are begun in order,
// so that the first one at work never waits.
func (g *gradArgs) await(item int64, b int) {
	for int(g.done[item].Load()) <= b {
		runtime.Gosched()
	}
}

// seesSpan reports whether the block may see a key of the span.
func (sc *scratch) seesSpan(a *attention, span *keySpan) bool {
	for i := range span.tiles {
		if sc.tileMemory = &sc.tiles[i]; sc.sees(a) {
			return true
		}
	}
	return false
}

// moveQueryGradients loads or stores dQ of the block's rows so far.
func (sc *scratch) moveQueryGradients(a *attention, move func(*reader, []float32, int64, int)) {
	start, head := sc.start(a), int(sc.blk.head)
	for term := range a.batch.Terms {
		for r := range sc.rows {
			move(&a.grads.sums[term], sc.dq(term)[r*sc.ld:], start+int64(r), head)
		}
	}
}

// dq is dQ of a term, ld apart.
func (sc *scratch) dq(term int) []float32 { return sc.grad.dq[term*sc.rows*sc.ld:] }

// finishQueryGradients turns back and adds up the terms of dQ.
func (sc *scratch) finishQueryGradients(a *attention) {
	sum := sc.grad.row[:a.spec.HeadDim]
	for r := range sc.rows {
		t, head := sc.row(a, r)
		p := sc.queryPosition(a, t)
		clear(sum)
		for term := range a.batch.Terms {
			dq := sc.dq(term)[r*sc.ld:][:len(sum)]
			if a.spec.RotaryDim > 0 {
				a.rotate(dq, a.batch.Terms[term].RowQ.Row(p), true)
			}
			for d, x := range dq {
				sum[d] += x
			}
		}
		a.grads.dquery.storeRow(sum, int64(a.batch.QueryStart[sc.blk.seq])+t, head)
	}
}

// addGradients adds what the block's rows and the tile give each other.
func (sc *scratch) addGradients(a *attention) {
	g, dim, vdim := &sc.grad, a.spec.HeadDim, a.spec.ValueDim
	for term := range a.batch.Terms {
		words := sc.words(term)[:sc.rows]
		if !anySet(words) {
			continue
		}
		v, ds := a.variant[term], sc.ofTerm(a, term)
		sc.addRows(a, vec.Matrix{X: sc.dq(term), Row: sc.ld}, ds, vec.Matrix{X: sc.keys(a, v), Row: sc.ld}, dim, words)
		sc.addTransposed(a, vec.Matrix{X: sc.dk[term*tile*sc.ld:], Row: sc.ld}, ds, vec.Matrix{X: sc.queries(a, v, 0), Row: sc.ld}, dim, words, g.finite[v])
	}
	sc.addTransposed(a, vec.Matrix{X: sc.dv, Row: sc.vld}, sc.s, vec.Matrix{X: g.dout, Row: sc.vld}, vdim, sc.any[:sc.rows], g.finiteOut)
}

// addTransposed adds wᵀ·b to c for the keys of the tile, rows ascending.
func (sc *scratch) addTransposed(a *attention, c vec.Matrix, w []float32, b vec.Matrix, dim int, words []uint64, finite bool) {
	if finite {
		vec.MulAdd(a.spec.Policy, c, vec.Matrix{X: w, Row: 1, Col: vec.Stride}, b, sc.n, sc.rows, (dim+15)&^15, vec.Keep, nil)
		return
	}
	for r, x := range words { // a weight of 0 would not hide a row that is NaN or Inf
		for ; x != 0; x &= x - 1 {
			j := lowest(x)
			vec.MulAdd(a.spec.Policy, vec.Matrix{X: c.X[j*c.Row:]}, vec.Matrix{X: w[r*vec.Stride+j:]}, vec.Matrix{X: b.X[r*b.Row:]}, 1, 1, dim, vec.Keep, nil)
		}
	}
}

func (sc *scratch) storeKeyGradients(a *attention, t keyTile) {
	g, dim, vdim := &sc.grad, a.spec.HeadDim, a.spec.ValueDim
	sc.seq.set(a.batch, &a.spec, t.seq, a.offsets[t.seq])
	sc.blk = nil // sc.seq may no longer be the block's
	for j := range t.n {
		sum := g.row[:dim]
		clear(sum)
		for term := range a.batch.Terms {
			dk := sc.dk[(term*tile+j)*sc.ld:][:dim]
			if a.turnsKeys() {
				a.rotate(dk, a.batch.Terms[term].RowK.Row(sc.keyPosition(a, t.j0+int64(j))), true)
			}
			for d, x := range dk {
				sum[d] += x
			}
		}
		row := int64(a.batch.KeyStart[t.seq]) + t.j0 + int64(j)
		a.grads.dkey.storeRow(sum, row, t.kvHead)
		dv := sc.dv[j*sc.vld:][:vdim]
		for d := range dv {
			dv[d] += 0
		}
		a.grads.dvalue.storeRow(dv, row, t.kvHead)
	}
}
