package cpu

import (
	"fmt"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

// The backward of attention (Dao et al., "FlashAttention-2", arXiv 2307.08691,
// algorithm 2) in two passes that both compute the weights again from LSE: one
// over blocks of rows for dQ, one over tiles of keys for dK and dV. Each sum
// then has one owner and one order, at the price of a second q·kᵀ.

// gradArgs is kernel.BackwardArgs made ready.
type gradArgs struct {
	out, dout, dquery, dkey, dvalue reader
	lse, dlse                       scalars
	delta                           []float32 // [tokens][Heads] Σ dO·O − dLSE
}

// gradScratch is what backward needs beyond forward.
type gradScratch struct {
	dout  []float32 // [rows][vld]
	delta []float32 // [rows] those of gradArgs
	lse   []float32 // [rows] LSE in units of log 2
	vt    []float32 // [ValueDim][tile] values, transposed
	dp    []float32 // [rows][tile] dO·v
	th    []float32 // [rows][tile] tanh of the soft cap
	g     []float32 // [rows][tile] gradient of the product q·k, zero where masked
	part  []float32 // [rows][tile] g of one term
	dq    []float32 // [terms][rows][ld] in each term's rotation
	dk    []float32 // [terms][tile][ld]
	dv    []float32 // [tile][vld]
	row   []float32 // [max dim]

	out, doutColumns []float32 // [ValueDim][vec.Lanes]
}

func newGradScratch(s *kernel.Spec) gradScratch {
	f := func(n int) []float32 { return make([]float32, n) }
	rows, ld, vld := headRows(s), vec.Pad(s.HeadDim), vec.Pad(s.ValueDim)
	g := gradScratch{
		dout: f(rows * vld), delta: f(rows), lse: f(rows), vt: f(s.ValueDim * tile),
		dp: f(rows * vec.Stride), g: f(rows * vec.Stride), part: f(rows * vec.Stride),
		dq: f(s.Terms * rows * ld), dk: f(s.Terms * tile * ld), dv: f(tile * vld),
		row: f(max(s.HeadDim, s.ValueDim)),
		out: f(s.ValueDim * vec.Lanes), doutColumns: f(s.ValueDim * vec.Lanes),
	}
	if s.Scores&kernel.ScoreSoftCap != 0 {
		g.th = f(rows * vec.Stride)
	}
	return g
}

// Backward computes dQuery, then dKey and dValue.
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
	if err := a.ownRows(); err != nil {
		return err
	}
	a.args.query, a.args.key, a.args.value = read(&args.Query), read(&args.Key), read(&args.Value)
	a.args.direct = [2]bool{} // tiles are decoded once for many rows
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
	a.mode = queryGradients
	a.pool.do(&a.job, a, int64(len(a.heads.blocks)))
	a.mode = keyGradients
	a.pool.do(&a.job, a, a.heads.items(&a.spec))
	return nil
}

// ownRows refuses sequences that share key rows: their gradients would be
// written twice.
func (a *attention) ownRows() error {
	end := int64(0)
	for s, k := range a.batch.KeyStart {
		if n := int64(a.batch.SeqLens[s]); n > 0 {
			if int64(k) < end {
				return fmt.Errorf("cpu: Backward: sequence %d starts at key row %d, want at least %d: rows ascending and not shared", s, k, end)
			}
			end = int64(k) + n
		}
	}
	return nil
}

// prepareGrad is prepare, in rows, with what the gradients need. The first
// pass finds delta.
func (sc *scratch) prepareGrad(a *attention, b *block, findDelta bool) {
	if sc.blk == b {
		return
	}
	sc.setBlock(a, b, false)
	sc.loadQueries(a)
	g, head := &sc.grad, int(b.head)
	start := int64(a.batch.QueryStart[b.seq]) + int64(b.t0)
	for r := range sc.rows {
		a.grads.dout.loadRow(g.dout[r*sc.vld:], start+int64(r), head)
	}
	if findDelta {
		sc.findDelta(a, start, head)
	}
	for r := range sc.rows {
		t := start + int64(r)
		g.delta[r] = a.grads.delta[int(t)*a.spec.Heads+head]
		g.lse[r] = *a.grads.lse.at(t, int64(head)) * kernel.Log2E
	}
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

// queryGradients computes dQuery of one block.
func (sc *scratch) queryGradients(a *attention, i int) {
	sc.prepareGrad(a, &a.heads.blocks[i], true)
	g, dim := &sc.grad, a.spec.HeadDim
	size := sc.rows * sc.ld
	clear(g.dq[:a.spec.Terms*size])
	for j0 := sc.chunk0 * kernel.ChunkSize; j0 < min(sc.chunk1*kernel.ChunkSize, sc.seq.keys); j0 += tile {
		sc.setTile(0, j0, int(min(tile, sc.seq.keys-j0)))
		if !sc.weights(a) {
			continue
		}
		for term := range a.batch.Terms {
			if words := sc.words(term)[:sc.rows]; anySet(words) {
				k := vec.Matrix{X: sc.keys(a, a.variant[term]), Row: sc.ld}
				sc.addRows(a, vec.Matrix{X: g.dq[term*size:], Row: sc.ld}, sc.ofTerm(a, term), k, dim, words)
			}
		}
	}
	start := int64(a.batch.QueryStart[sc.blk.seq])
	for r := range sc.rows {
		t, head := sc.row(a, r)
		p := sc.queryPosition(a, t)
		sum := g.row[:dim]
		clear(sum)
		for term := range a.batch.Terms {
			dq := g.dq[term*size+r*sc.ld:][:dim]
			if a.spec.RotaryDim > 0 {
				a.rotate(dq, a.batch.Terms[term].RowQ.Row(p), true)
			}
			for d, x := range dq {
				sum[d] += x
			}
		}
		a.grads.dquery.storeRow(sum, start+t, head)
	}
}

// keyGradients computes dKey and dValue of one tile of keys of one KV head.
func (sc *scratch) keyGradients(a *attention, item int64) {
	t := a.keyTile(item)
	g := &sc.grad
	clear(g.dk)
	clear(g.dv)
	// heads of the group ascending, and of each head the queries ascending
	blocks := a.heads.of(t.seq*a.spec.Heads+t.kvHead*a.spec.Group(), a.spec.Group())
	for i := range blocks {
		sc.prepareGrad(a, &blocks[i], false)
		if i == 0 {
			sc.setTile(0, t.j0, t.n)
		}
		if sc.weights(a) {
			sc.addColumns(a)
		}
	}
	sc.storeKeyGradients(a, t)
}

// addColumns adds to the gradients of the tile what the block's rows give.
func (sc *scratch) addColumns(a *attention) {
	g, dim, vdim := &sc.grad, a.spec.HeadDim, a.spec.ValueDim
	finite := vec.Finite(g.dout[:sc.rows*sc.vld])
	for term := range a.batch.Terms {
		words := sc.words(term)[:sc.rows]
		if !anySet(words) {
			continue
		}
		q := sc.queries(a, a.variant[term], 0)
		sc.addTransposed(a, vec.Matrix{X: g.dk[term*tile*sc.ld:], Row: sc.ld}, sc.ofTerm(a, term), vec.Matrix{X: q, Row: sc.ld}, dim,
			words, vec.Finite(q[:sc.rows*sc.ld]))
	}
	sc.addTransposed(a, vec.Matrix{X: g.dv, Row: sc.vld}, sc.s, vec.Matrix{X: g.dout, Row: sc.vld}, vdim, sc.any[:sc.rows], finite)
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
			dk := g.dk[(term*tile+j)*sc.ld:][:dim]
			if a.turnsKeys() {
				a.rotate(dk, a.batch.Terms[term].RowK.Row(sc.keyPosition(a, t.j0+int64(j))), true)
			}
			for d, x := range dk {
				sum[d] += x
			}
		}
		row := int64(a.batch.KeyStart[t.seq]) + t.j0 + int64(j)
		a.grads.dkey.storeRow(sum, row, t.kvHead)
		dv := g.dv[j*sc.vld:][:vdim]
		for d := range dv {
			dv[d] += 0
		}
		a.grads.dvalue.storeRow(dv, row, t.kvHead)
	}
}
