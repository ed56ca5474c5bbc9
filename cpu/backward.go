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
	tiles                           []int64 // [sequences+1] key tiles of the sequences before each
}

// gradScratch is what backward needs beyond forward.
type gradScratch struct {
	dout   []float32 // [rows][ValueDim]
	delta  []float32 // [rows] Σ dO·O − dLSE
	lse    []float32 // [rows] LSE in units of log 2
	dp     []float32 // [rows][tile] dO·v
	th     []float32 // [rows][tile] tanh of the soft cap
	g      []float32 // [rows][tile] gradient of the product q·k, zero where masked
	dq     []float32 // [terms][rows][HeadDim] in each term's rotation
	dk     []float32 // [terms][tile][HeadDim]
	dv     []float32 // [tile][ValueDim]
	row    []float32 // [max dim]
	turned []float32 // [HeadDim]
}

func newGradScratch(s *kernel.Spec, rows int) gradScratch {
	f := func(n int) []float32 { return make([]float32, n) }
	return gradScratch{
		dout: f(rows * s.ValueDim), delta: f(rows), lse: f(rows),
		dp: f(rows * vec.Stride), th: f(rows * vec.Stride), g: f(rows * vec.Stride),
		dq: f(s.Terms * rows * s.HeadDim), dk: f(s.Terms * tile * s.HeadDim), dv: f(tile * s.ValueDim),
		row: f(max(s.HeadDim, s.ValueDim)), turned: f(s.HeadDim),
	}
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
	g := &a.grads
	g.out, g.dout, g.dquery, g.dkey, g.dvalue = read(&args.Out), read(&args.DOut), read(&args.DQuery), read(&args.DKey), read(&args.DValue)
	g.lse, g.dlse = readScalars(&args.LSE), scalars{}
	if !args.DLSE.IsZero() {
		g.dlse = readScalars(&args.DLSE)
	}
	a.score.set(&a.spec, &args.ScoreArgs)
	g.tiles = append(g.tiles[:0], 0)
	for s, n := range a.batch.SeqLens {
		g.tiles = append(g.tiles, g.tiles[s]+(int64(n)+tile-1)/tile)
	}
	for _, sc := range a.scratch {
		sc.block = -1
	}
	a.mode = queryGradients
	a.pool.do(&a.job, a, int64(len(a.blocks)))
	a.mode = keyGradients
	a.pool.do(&a.job, a, g.tiles[len(g.tiles)-1]*int64(a.spec.KVHeads))
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

// prepareGrad is prepare, with what the gradients of the block's rows need.
func (sc *scratch) prepareGrad(a *attention, i int) {
	if sc.block == i {
		return
	}
	sc.prepare(a, i)
	g, dim := &sc.grad, a.spec.ValueDim
	start := int64(a.batch.QueryStart[sc.blk.seq])
	for r := range sc.rows {
		t, head := sc.row(a, r)
		d := g.dout[r*dim:][:dim]
		a.grads.dout.loadRow(d, start+t, head)
		a.grads.out.loadRow(g.row, start+t, head)
		var delta float32
		for k, x := range d {
			delta = fma(a.spec.Policy, x, g.row[k], delta)
		}
		if a.grads.dlse.x != nil {
			delta -= *a.grads.dlse.at(start+t, int64(head))
		}
		g.delta[r] = delta
		g.lse[r] = *a.grads.lse.at(start+t, int64(head)) * kernel.Log2E
	}
}

func fma(p kernel.Policy, a, b, c float32) float32 {
	if p == kernel.Fast {
		return float32(a*b) + c
	}
	return kernel.FMA(a, b, c)
}

// weights computes, for the visible pairs of a tile, p in sc.s and the
// gradient of the product q·k in grad.g.
func (sc *scratch) weights(a *attention, j0 int64, n int) {
	g, fast := &sc.grad, a.spec.Policy == kernel.Fast
	sc.scores(a, &a.args.key, j0, n)
	a.args.value.loadKeys(sc.v, a.batch, int(sc.blk.seq), 0, j0, n, int(sc.blk.kvHead))
	dot(a.spec.Policy, g.dp, g.dout, sc.v, sc.rows, n, a.spec.ValueDim)
	for r := range sc.rows {
		s, dp, out := sc.s[r*vec.Stride:], g.dp[r*vec.Stride:], g.g[r*vec.Stride:]
		for term := range a.batch.Terms {
			scale := float32(sc.scale[term*sc.rows+r] * kernel.Ln2)
			for w := sc.word[term*sc.rows+r]; w != 0; w &= w - 1 {
				j := lowest(w)
				p := exp2(fast, s[j]-g.lse[r])
				ds := float32(p * (dp[j] - g.delta[r]))
				if a.spec.Scores&kernel.ScoreSoftCap != 0 {
					th := g.th[r*vec.Stride+j]
					ds *= fma(a.spec.Policy, -th, th, 1)
				}
				s[j], out[j] = p, float32(ds*scale)
			}
		}
	}
}

// queryGradients computes dQuery of one block.
func (sc *scratch) queryGradients(a *attention, i int) {
	sc.prepareGrad(a, i)
	g, dim := &sc.grad, a.spec.HeadDim
	clear(g.dq)
	for j0 := sc.chunk0 * kernel.ChunkSize; j0 < min(sc.chunk1*kernel.ChunkSize, sc.seq.keys); j0 += tile {
		n := int(min(tile, sc.seq.keys-j0))
		if !sc.look(a, j0) {
			continue
		}
		sc.weights(a, j0, n)
		for term := range a.batch.Terms {
			words := sc.word[term*sc.rows:][:sc.rows]
			if !anySet(words) {
				continue
			}
			k := sc.rotateKeys(a, a.variant[term], j0, n)
			for r, w := range words {
				for dq := g.dq[(term*sc.rows+r)*dim:][:dim]; w != 0; w &= w - 1 {
					j := lowest(w)
					axpy(a.spec.Policy, dq, k[j*dim:][:dim], g.g[r*vec.Stride+j])
				}
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
			dq := g.dq[(term*sc.rows+r)*dim:][:dim]
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

func anySet(words []uint64) bool {
	for _, w := range words {
		if w != 0 {
			return true
		}
	}
	return false
}

func axpy(p kernel.Policy, y, x []float32, a float32) {
	if p == kernel.Fast {
		vec.AxpyFast(y, x, a)
	} else {
		vec.AxpyExact(y, x, a)
	}
}

// keyGradients computes dKey and dValue of one tile of keys of one KV head:
// item = tile·KVHeads + head.
func (sc *scratch) keyGradients(a *attention, item int64) {
	kvHead, at := int(item%int64(a.spec.KVHeads)), item/int64(a.spec.KVHeads)
	s := 0
	for a.grads.tiles[s+1] <= at {
		s++
	}
	j0 := (at - a.grads.tiles[s]) * tile
	n := int(min(tile, int64(a.batch.SeqLens[s])-j0))
	g := &sc.grad
	clear(g.dk)
	clear(g.dv)
	// heads of the group ascending, and of each head the queries ascending
	for h := range a.spec.Group() {
		for i := len(a.blocks) - 1; i >= 0; i-- {
			if b := &a.blocks[i]; int(b.seq) == s && int(b.kvHead) == kvHead {
				sc.addKeyGradients(a, i, h, j0, n)
			}
		}
	}
	sc.storeKeyGradients(a, s, kvHead, j0, n)
}

func (sc *scratch) addKeyGradients(a *attention, i, h int, j0 int64, n int) {
	sc.prepareGrad(a, i)
	if !sc.look(a, j0) {
		return
	}
	g, dim, vdim := &sc.grad, a.spec.HeadDim, a.spec.ValueDim
	sc.weights(a, j0, n)
	for r := h; r < sc.rows; r += a.spec.Group() {
		for term := range a.batch.Terms {
			q := sc.q[(a.variant[term]*sc.rows+r)*dim:][:dim]
			for w := sc.word[term*sc.rows+r]; w != 0; w &= w - 1 {
				j := lowest(w)
				axpy(a.spec.Policy, g.dk[(term*tile+j)*dim:][:dim], q, g.g[r*vec.Stride+j])
				axpy(a.spec.Policy, g.dv[j*vdim:][:vdim], g.dout[r*vdim:][:vdim], sc.s[r*vec.Stride+j])
			}
		}
	}
}

func (sc *scratch) storeKeyGradients(a *attention, s, kvHead int, j0 int64, n int) {
	g, dim, vdim := &sc.grad, a.spec.HeadDim, a.spec.ValueDim
	sc.seq.set(a.batch, &a.spec, s, a.offsets[s])
	sc.block = -1 // sc.seq may no longer be the block's
	for j := range n {
		sum := g.row[:dim]
		clear(sum)
		for term := range a.batch.Terms {
			dk := g.dk[(term*tile+j)*dim:][:dim]
			if a.spec.RotaryDim > 0 && a.spec.KeyStorage == kernel.PreRoPE {
				a.rotate(dk, a.batch.Terms[term].RowK.Row(sc.keyPosition(a, j0+int64(j))), true)
			}
			for d, x := range dk {
				sum[d] += x
			}
		}
		row := int64(a.batch.KeyStart[s]) + j0 + int64(j)
		a.grads.dkey.storeRow(sum, row, kvHead)
		a.grads.dvalue.storeRow(g.dv[j*vdim:][:vdim], row, kvHead)
	}
}
