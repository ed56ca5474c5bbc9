package cpu

import (
	"math"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// scanRows is how many tokens of a chunk have their weights multiplied together,
// and what assembly wants the number of columns to be a multiple of: with fewer
// tokens than there is room for, products of what is left there are cheaper than
// the right number of columns.
const scanRows = 16

// wide is n tokens as columns of a product.
func wide(n int) int { return (n + scanRows - 1) &^ (scanRows - 1) }

// scanScratch is the chunk of a scan that a worker is at. What is by channel has
// tokens side by side, what is by token features.
type scanScratch struct {
	policy kernel.Policy
	seen   []float32 // for exponentials: zeros, ones, and rows' visible keys
	ones   []float32
	all    []uint64
	trash  []float32
	ld     int // of rows of values
	states []vec.Matrix
	state  []float32 // of heads whose states are not kept

	t0     int64
	n      int // tokens
	q, k   []float32
	qk, kk []float32 // [token][token] products, the same for all heads of a group
	g      []float64 // [gate][1+token] sums of gates, in powers of two
	e, w   []float32 // [channel][token] factors; decayed queries or keys
	packed []float32
	same   []float32 // [feature] one factor
	p, a   []float32 // [token][token] weights of outputs, and of the delta rule negated
	u, o   []float32 // [token][feature]
	beta   [tile]float32

	back scanBack
}

// newScanScratch is memory that grow fits to a scan.
func newScanScratch() any { return new(scanScratch) }

func (s *scanScratch) grow(t *scan) {
	s.policy, s.ld = t.in.Policy, vec.Pad(t.valueDim)
	rows := max(t.keyDim, tile)
	if len(s.seen) < rows {
		s.seen, s.ones, s.trash, s.all = make([]float32, rows), make([]float32, rows), make([]float32, 2*rows), make([]uint64, rows)
		for i := range rows {
			s.ones[i], s.all[i] = 1, math.MaxUint64
		}
	}
	for _, x := range []*[]float32{&s.q, &s.k, &s.w} {
		fit(x, t.keyDim*tile)
	}
	fit(&s.e, rows*tile)
	fit(&s.packed, (rows+1)*tile)
	for _, x := range []*[]float32{&s.qk, &s.kk, &s.p, &s.a} {
		fit(x, tile*tile)
	}
	fit(&s.same, t.valueDim)
	fit(&s.u, tile*s.ld)
	fit(&s.o, tile*s.ld)
	fit(&s.g, t.gateRows*(tile+1))
	s.state, s.back.in = nil, false
}

// fit makes x at least n long.
func fit[T any](x *[]T, n int) {
	if len(*x) < n {
		*x = make([]T, n)
	}
}

// load takes the queries and keys of n tokens from t0.
func (s *scanScratch) load(t *scan, keyHead int, t0 int64, n int) {
	s.t0, s.n = t0, n
	columns := func(dst []float32, r *reader) {
		r.loadRun(dst, tile, true, r.offset+t0*r.row+int64(keyHead)*r.head, r.row, n, 0)
	}
	columns(s.q, &t.q)
	columns(s.k, &t.k)
	scale := float32(t.in.Scale)
	for d := range t.keyDim {
		vec.ScaleRow(s.q[d*tile:][:n], scale)
	}
	if !t.channels {
		s.products(s.qk, s.q, t.keyDim)
		if t.delta() {
			s.products(s.kk, s.k, t.keyDim)
		}
	}
}

func (t *scan) delta() bool { return t.beta.x != nil }

// products sets c[r,s] = x[r]·k[s] for s <= r, and for others something.
func (s *scanScratch) products(c, x []float32, keyDim int) {
	for r := 0; r < s.n; r += scanRows {
		to := min(r+scanRows, s.n)
		vec.MulAdd(s.policy, vec.Matrix{X: c[r*tile:], Row: tile, Col: 1}, vec.Matrix{X: x[r:], Row: 1, Col: tile}, vec.Matrix{X: s.k, Row: tile, Col: 1}, to-r, keyDim, wide(to), vec.Zero, nil)
	}
}

// head takes what is a head's own: its values, and the weights between tokens.
func (s *scanScratch) head(t *scan, h int) {
	t.v.loadRun(s.u, s.ld, false, t.v.offset+s.t0*t.v.row+int64(h)*t.v.head, t.v.row, s.n, 0)
	s.sumGates(t, h)
	switch {
	case t.channels:
		s.channelWeights(t)
	case t.gateRows > 0:
		s.headWeights(t)
	default:
		copy(s.p[:s.n*tile], s.qk)
		if t.delta() {
			s.negate(s.a, s.kk)
		}
	}
	if t.delta() {
		for r := range s.n {
			s.beta[r] = *t.beta.at(s.t0+int64(r), int64(h))
		}
	}
	s.diagonal(t, h)
	for r := range s.n {
		clear(s.p[r*tile+r+1 : r*tile+s.n])
	}
}

// sumGates sums the gates of a chunk.
func (s *scanScratch) sumGates(t *scan, h int) {
	if t.channels {
		t.gate.loadRun(s.w, tile, true, t.gate.offset+s.t0*t.gate.row+int64(h)*t.gate.head, t.gate.row, s.n, 0)
	} else if t.gateRows > 0 {
		for r := range s.n {
			s.w[r] = *t.gates.at(s.t0+int64(r), int64(h))
		}
	}
	vec.Gates(s.g, s.w, t.gateRows, s.n)
}

// exp2 sets the tokens of rows of a tile to their powers of two: x <= 0. Few
// tokens are packed first.
func (s *scanScratch) exp2(x []float32, rows int) {
	if s.n > tile/4 {
		s.exp2Rows(x, rows)
		return
	}
	for d := range rows {
		copy(s.packed[d*s.n:], x[d*tile:][:s.n])
	}
	s.exp2Packed(s.packed, rows*s.n)
	for d := range rows {
		copy(x[d*tile:][:s.n], s.packed[d*s.n:])
	}
}

// exp2Packed is exp2 for n numbers side by side, with room for whole rows.
func (s *scanScratch) exp2Packed(x []float32, n int) {
	rows := (n + tile - 1) / tile
	clear(x[n : rows*tile])
	s.exp2Rows(x, rows)
}

func (s *scanScratch) exp2Rows(x []float32, rows int) {
	vec.SoftmaxRows(s.policy, x, rows, s.ones, s.all, s.seen, s.trash, s.trash[len(s.trash)/2:])
}

func (s *scanScratch) negate(to, from []float32) {
	for r := range s.n {
		for i, x := range from[r*tile:][:r] {
			to[r*tile+i] = -x
		}
	}
}

// headWeights decays products by the gates of a head.
func (s *scanScratch) headWeights(t *scan) {
	g := s.g[:s.n+1]
	for r := range s.n {
		e := s.e[r*tile:][:tile]
		clear(e)
		for i := range r {
			e[i] = float32(g[r+1-t.shift] - g[i+1])
		}
	}
	s.exp2(s.e, s.n)
	for r := range s.n {
		e := s.e[r*tile:][:r]
		vec.Multiply(s.p[r*tile:][:r], s.qk[r*tile:], e)
		if t.delta() {
			a, c := s.a[r*tile:][:r], s.kk[r*tile:][:r]
			for i, x := range e {
				a[i] = -(c[i] * x)
			}
		}
	}
}

// channelWeights are products whose every term decays by its own gate. Factors
// from a token to another part at a boundary between both, so that each is at
// most 1: of the halves of a block of tokens the second takes those to its start,
// the first those to its end, and then the halves are blocks.
func (s *scanScratch) channelWeights(t *scan) {
	for h := tile / 2; h > 0; h /= 2 {
		if h >= s.n {
			continue
		}
		vec.Decays(s.policy, s.w, s.e, s.q, s.k, s.g, t.keyDim, s.n, h, t.shift)
		s.levelProducts(s.p, s.w, t.keyDim, h)
		if t.delta() {
			vec.Multiply(s.w[:t.keyDim*tile], s.e, s.k)
			s.levelProducts(s.a, s.w, t.keyDim, h)
		}
	}
	if t.delta() {
		s.negate(s.a, s.a)
	}
}

// levelProducts multiplies second halves with first ones.
func (s *scanScratch) levelProducts(c, w []float32, keyDim, h int) {
	if h < scanRows {
		s.smallProducts(c, w, keyDim, h)
		return
	}
	for b := 0; b+h < s.n; b += 2 * h {
		m := b + h
		vec.MulAdd(s.policy, vec.Matrix{X: c[m*tile+b:], Row: tile, Col: 1}, vec.Matrix{X: w[m:], Row: 1, Col: tile}, vec.Matrix{X: w[b:], Row: tile, Col: 1}, min(h, s.n-m), keyDim, h, vec.Zero, nil)
	}
}

// smallProducts is levelProducts for blocks narrower than a product should be: it
// makes those of all tokens around, and takes what it needs.
func (s *scanScratch) smallProducts(c, w []float32, keyDim, h int) {
	var all [scanRows * scanRows]float32
	for g := 0; g+h < s.n; g += scanRows {
		n := min(scanRows, s.n-g)
		vec.MulAdd(s.policy, vec.Matrix{X: all[:], Row: scanRows, Col: 1}, vec.Matrix{X: w[g:], Row: 1, Col: tile}, vec.Matrix{X: w[g:], Row: tile, Col: 1}, n, keyDim, scanRows, vec.Zero, nil)
		for r := range n {
			if r&h != 0 {
				b := r &^ (2*h - 1)
				copy(c[(g+r)*tile+g+b:][:h], all[r*scanRows+b:])
			}
		}
	}
}

// diagonal is the weights of tokens for themselves.
func (s *scanScratch) diagonal(t *scan, h int) {
	var sum, x [tile]float32
	for d := range t.keyDim {
		q := s.q[d*tile:][:s.n]
		if t.shift > 0 {
			f := *t.bonus.at(int64(h), int64(d))
			for r, y := range q {
				x[r] = y * f
			}
			q = x[:s.n]
		}
		vec.AddProduct(s.policy, sum[:s.n], q, s.k[d*tile:])
	}
	for r := range s.n {
		s.p[r*tile+r] = sum[r]
	}
}

// decay is x [channel][token] by the gates up to each token, or from each to the
// end. It is x itself where nothing decays. For a gradient the factors are kept.
func (s *scanScratch) decay(t *scan, x []float32, shift int, toEnd bool) []float32 {
	if t.gateRows == 0 || s.n == 1 && (toEnd || shift > 0) && !s.back.in {
		return x // of one token the factors are 1
	}
	if s.n == 1 && !s.back.in { // what it reads decays as the state does
		for d, f := range s.chunkFactors(t)[:t.gateRows] {
			s.e[d*tile] = f
		}
		for d := range t.keyDim {
			s.w[d*tile] = x[d*tile] * s.e[min(d, t.gateRows-1)*tile]
		}
		return s.w
	}
	h := 0
	if toEnd {
		h = tile
	}
	vec.Decays(s.policy, s.w, s.e, x, x, s.g, t.gateRows, s.n, h, shift)
	for d := t.gateRows; d < t.keyDim; d++ { // a gate of all
		vec.Multiply(s.w[d*tile:][:s.n], x[d*tile:], s.e)
	}
	return s.w
}

// read sets c [token][feature] to the product of decayed rows and a state.
func (s *scanScratch) read(t *scan, c, x []float32, state vec.Matrix) {
	vec.MulAdd(s.policy, vec.Matrix{X: c, Row: s.ld, Col: 1}, vec.Matrix{X: x, Row: 1, Col: tile}, state, s.n, t.keyDim, t.valueDim, vec.Zero, nil)
}

// forward computes the outputs of the chunk, and what its tokens store.
func (s *scanScratch) forward(t *scan, state vec.Matrix) {
	if t.delta() {
		s.solve(t, state)
	}
	s.read(t, s.o, s.decay(t, s.q, t.shift, false), state)
	values := vec.Matrix{X: s.u, Row: s.ld, Col: 1}
	for r := 0; r < s.n; r += scanRows {
		to, step := min(r+scanRows, s.n), scanRows
		if !finiteRows(s.u[r*s.ld:], s.ld, to-r, t.valueDim) {
			step = 1 // 0 times a value that comes later must not be a NaN
		}
		for i := r; i < to; i += step {
			end := min(i+step, to)
			vec.MulAdd(s.policy, vec.Matrix{X: s.o[i*s.ld:], Row: s.ld, Col: 1}, vec.Matrix{X: s.p[i*tile:], Row: tile, Col: 1}, values, end-i, end, t.valueDim, vec.Keep, nil)
		}
	}
	for r := range s.n {
		vec.FinishRow(s.o[r*s.ld:][:t.valueDim], 1) // + 0
	}
}

func finiteRows(x []float32, ld, rows, n int) bool {
	for r := range rows {
		if !vec.Finite(x[r*ld:][:n]) {
			return false
		}
	}
	return true
}

// solve replaces values by what the delta rule stores, from the first token on.
func (s *scanScratch) solve(t *scan, state vec.Matrix) {
	s.read(t, s.o, s.decay(t, s.k, 0, false), state)
	for r := range s.n {
		u, y := s.u[r*s.ld:][:t.valueDim], s.o[r*s.ld:][:t.valueDim]
		for i := range u {
			u[i] -= y[i]
		}
	}
	before := vec.Matrix{X: s.u, Row: s.ld, Col: 1}
	for b := 0; b < s.n; b += scanRows {
		to := min(b+scanRows, s.n)
		if b > 0 {
			vec.MulAdd(s.policy, vec.Matrix{X: s.u[b*s.ld:], Row: s.ld, Col: 1}, vec.Matrix{X: s.a[b*tile:], Row: tile, Col: 1}, before, to-b, b, t.valueDim, vec.Keep, nil)
		}
		for r := b; r < to; r++ {
			if r > b {
				vec.MulAdd(s.policy, vec.Matrix{X: s.u[r*s.ld:], Row: s.ld, Col: 1}, vec.Matrix{X: s.a[r*tile+b:], Row: tile, Col: 1}, vec.Matrix{X: s.u[b*s.ld:], Row: s.ld, Col: 1}, 1, r-b, t.valueDim, vec.Keep, nil)
			}
			if s.back.in {
				copy(s.back.y[r*s.ld:][:t.valueDim], s.u[r*s.ld:])
			}
			vec.ScaleRow(s.u[r*s.ld:][:t.valueDim], s.beta[r])
		}
	}
}

// chunkFactors is what a chunk leaves of a state, of each gate.
func (s *scanScratch) chunkFactors(t *scan) []float32 {
	for d := range t.gateRows {
		s.packed[d] = float32(s.g[d*(tile+1)+s.n])
	}
	s.exp2Packed(s.packed, t.gateRows)
	return s.packed
}

// advance takes the chunk into the state.
func (s *scanScratch) advance(t *scan, state vec.Matrix) {
	start := vec.Keep
	switch {
	case t.channels:
		for d, f := range s.chunkFactors(t)[:t.keyDim] {
			vec.ScaleRow(state.X[d*state.Row:][:t.valueDim], f)
		}
	case t.gateRows > 0: // one factor for all: the product does it on its way
		start = vec.Scale
		f := s.chunkFactors(t)[0]
		for i := range t.valueDim {
			s.same[i] = f
		}
	}
	k := s.decay(t, s.k, 0, true)
	vec.MulAdd(s.policy, state, vec.Matrix{X: k, Row: tile, Col: 1}, vec.Matrix{X: s.u, Row: s.ld, Col: 1}, t.keyDim, s.n, t.valueDim, start, s.same)
}

func readStates(v *tensor.View) scanStates {
	return scanStates{v.F32s(), v.Offset, v.Stride[0], v.Stride[1], v.Stride[2]}
}
