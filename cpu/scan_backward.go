package cpu

import (
	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// The gradient of a scan goes through the chunks of a head from the last to the
// first, with the states before each kept from a pass the other way. An item is
// the heads of one sequence that share queries and keys, whose gradients they add
// up. A gate's gradient is that of the sums of gates: what a decayed factor
// contributes is the product of the factor and its gradient.

// unscanning computes a ScanBackward.
type unscanning struct {
	args               *kernel.ScanBackwardArgs
	state, dFrom, last scanStates
	dout, dq, dk, dv   reader
	dgates, dbeta      scalars // of heads
	dgate              reader  // of channels
	dbonus             reader
	scan
}

// scanBack is the memory of a worker for a gradient.
type scanBack struct {
	in          bool      // a gradient is computed
	states      []float32 // [chunk][channel][feature] before each
	ds          []float32 // gradient of the state after the chunk
	do, du, y   []float32 // [token][feature]; y is what the delta rule stores, before Beta
	doT, uT     []float32 // [feature][token]
	dc, dcT     []float32 // [token][token]
	dq, dk, own []float32 // [channel][token]: of queries, of keys, of keys that the delta rule reads with
	part        []float32 // [channel][token]
	dg          []float64 // [gate][1+token] of sums of gates
	dbonus      []float32
}

// ScanBackward computes the gradients of a Scan.
func (b *Backend) ScanBackward(a *kernel.ScanBackwardArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Query, &a.Key, &a.Value, &a.Gate, &a.Beta, &a.Bonus, &a.State, &a.DOut, &a.DState, &a.DQuery, &a.DKey, &a.DValue, &a.DGate, &a.DBeta, &a.DBonus, &a.DFrom); err != nil {
		return err
	}
	t := &unscanning{args: a, dout: read(&a.DOut), dq: read(&a.DQuery), dk: read(&a.DKey), dv: read(&a.DValue)}
	t.prepare(b, &a.ScanInput, false)
	for _, s := range []struct {
		to *scanStates
		v  *tensor.View
	}{{&t.state, &a.State}, {&t.dFrom, &a.DFrom}, {&t.last, &a.DState}} {
		if !s.v.IsZero() {
			*s.to = readStates(s.v)
		}
	}
	switch {
	case a.DGate.IsZero():
	case t.channels:
		t.dgate = read(&a.DGate)
	default:
		t.dgates = readScalars(&a.DGate)
	}
	if t.delta() {
		t.dbeta = readScalars(&a.DBeta)
	}
	if t.shift > 0 {
		t.dbonus = read(&a.DBonus)
	}
	b.share(t, int64(a.Sequences()*t.keyHeads), 4*a.Query.Len()*int64(t.group*t.valueDim))
	t.release()
	return nil
}

func (t *unscanning) item(slot int, item int64) {
	s := t.take(slot)
	seq, keyHead, lo, hi := t.span(item)
	first, end := int64(t.in.QueryStart[seq]), int64(t.in.QueryStart[seq+1])
	chunks := int((end - first + tile - 1) / tile)
	s.growBack(&t.scan, chunks)
	b := &s.back
	for h := lo; h < hi; h++ {
		state := func(chunk int) vec.Matrix {
			return vec.Matrix{X: b.states[chunk*t.keyDim*s.ld:][:t.keyDim*s.ld], Row: s.ld, Col: 1}
		}
		take := func(chunk int) {
			t0 := first + int64(chunk)*tile
			s.load(&t.scan, keyHead, t0, int(min(tile, end-t0)))
			s.head(&t.scan, h)
			if t.delta() {
				s.solve(&t.scan, state(chunk))
			}
		}
		from := int32(-1)
		if t.in.From != nil {
			from = t.in.From[seq]
		}
		t.state.copyTo(state(0), from, h, t.keyDim, t.valueDim)
		for c := range chunks - 1 {
			take(c)
			copy(state(c+1).X, state(c).X)
			s.advance(&t.scan, state(c+1))
		}
		ds, last := vec.Matrix{X: b.ds, Row: s.ld, Col: 1}, int32(-1)
		if t.last.x != nil {
			last = int32(seq)
		}
		t.last.copyTo(ds, last, h, t.keyDim, t.valueDim)
		clear(b.dbonus)
		for c := chunks - 1; c >= 0; c-- {
			take(c)
			s.backward(t, h, state(c), ds)
			t.store(s, h, keyHead, h > lo)
		}
		if t.shift > 0 {
			t.dbonus.storeRow(b.dbonus, int64(seq), h)
		}
		if t.dFrom.x != nil {
			to := t.dFrom.at(int32(seq), h)
			for d := range t.keyDim {
				copy(to.X[d*to.Row:][:t.valueDim], ds.X[d*ds.Row:])
			}
		}
	}
}

func (s *scanScratch) growBack(t *scan, chunks int) {
	b := &s.back
	b.in = true
	fit(&b.states, max(chunks, 1)*t.keyDim*s.ld)
	fit(&b.ds, t.keyDim*s.ld)
	for _, x := range []*[]float32{&b.do, &b.du, &b.y} {
		fit(x, tile*s.ld)
	}
	for _, x := range []*[]float32{&b.doT, &b.uT} {
		fit(x, tile*t.valueDim)
	}
	for _, x := range []*[]float32{&b.dc, &b.dcT} {
		fit(x, tile*tile)
	}
	for _, x := range []*[]float32{&b.dq, &b.dk, &b.own, &b.part} {
		fit(x, tile*t.keyDim)
	}
	fit(&b.dg, t.gateRows*(tile+1))
	fit(&b.dbonus, t.keyDim)
}

// backward computes the gradients of a chunk, from the state before it and the
// gradient of that after it, which becomes that of the state before.
func (s *scanScratch) backward(t *unscanning, h int, state, ds vec.Matrix) {
	b, n, dim := &s.back, s.n, t.valueDim
	t.dout.loadRun(b.do, s.ld, false, t.dout.offset+s.t0*t.dout.row+int64(h)*t.dout.head, t.dout.row, n, 0)
	vec.ColumnsF32(b.doT, tile, b.do, s.ld, n, dim, 0)
	vec.ColumnsF32(b.uT, tile, s.u, s.ld, n, dim, 0)
	rows := func(x []float32) vec.Matrix { return vec.Matrix{X: x, Row: s.ld, Col: 1} }
	columns := func(x []float32) vec.Matrix { return vec.Matrix{X: x, Row: tile, Col: 1} }
	turned := func(x []float32) vec.Matrix { return vec.Matrix{X: x, Row: 1, Col: tile} }
	clear(b.dg)

	// of what tokens store: from the outputs of later ones, and the state after
	vec.MulAdd(s.policy, rows(b.du), turned(s.p), rows(b.do), n, n, dim, vec.Zero, nil)
	kept := s.decay(&t.scan, s.k, 0, true)
	vec.MulAdd(s.policy, rows(b.du), turned(kept), ds, n, t.keyDim, dim, vec.Keep, nil)
	vec.MulAdd(s.policy, columns(b.dk), ds, columns(b.uT), t.keyDim, dim, n, vec.Zero, nil)
	s.undecay(&t.scan, b.dk)
	s.gateEnd(t, state, ds)

	// of the weights of tokens
	vec.MulAdd(s.policy, columns(b.dc), rows(b.do), columns(b.uT), n, dim, n, vec.Zero, nil)
	own := make([]float32, n)
	for r := range n {
		own[r] = b.dc[r*tile+r]
	}
	vec.MulAdd(s.policy, columns(b.dq), state, columns(b.doT), t.keyDim, dim, n, vec.Zero, nil)
	asked := s.decay(&t.scan, s.q, t.shift, false)
	s.undecay(&t.scan, b.dq)
	if t.gateRows > 0 { // the state before, from the state after
		kept := s.chunkFactors(&t.scan)
		for d := range t.keyDim {
			vec.ScaleRow(ds.X[d*ds.Row:][:dim], kept[min(d, t.gateRows-1)])
		}
	}
	vec.MulAdd(s.policy, ds, columns(asked), rows(b.do), t.keyDim, n, dim, vec.Keep, nil)
	s.pairs(t, b.dq, s.q, t.shift)
	if t.delta() {
		s.deltaBackward(t, h, state, ds)
	}
	s.gateRoles(t)
	s.ownBackward(t, h, own)
}

// undecay multiplies gradients of decayed rows by the factors that decay left.
func (s *scanScratch) undecay(t *scan, x []float32) {
	if t.gateRows == 0 {
		return
	}
	for d := range t.keyDim {
		e, to := s.e[min(d, t.gateRows-1)*tile:][:s.n], x[d*tile:][:s.n]
		for r, f := range e {
			to[r] *= f
		}
	}
}

// gateEnd adds to the gradient of the last sum of gates, by which the state and
// all keys are brought to the end of the chunk.
func (s *scanScratch) gateEnd(t *unscanning, state, ds vec.Matrix) {
	if t.gateRows == 0 {
		return
	}
	b, kept := &s.back, s.chunkFactors(&t.scan)
	for d := range t.keyDim {
		row := min(d, t.gateRows-1) * (tile + 1)
		sum := 0.0
		for e, x := range state.X[d*state.Row:][:t.valueDim] {
			sum += float64(x) * float64(ds.X[d*ds.Row+e])
		}
		sum *= float64(kept[min(d, t.gateRows-1)])
		for r, x := range s.k[d*tile:][:s.n] {
			sum += float64(x) * float64(b.dk[d*tile+r])
		}
		b.dg[row+s.n] += sum
	}
}

// pairs adds to the gradients of rows x and of keys those of their weights, dc.
func (s *scanScratch) pairs(t *unscanning, dx, x []float32, shift int) {
	b, n := &s.back, s.n
	if t.channels {
		s.channelPairs(t, dx, x, shift)
		return
	}
	if t.gateRows > 0 {
		for r := range n {
			e := s.e[r*tile:][:tile]
			clear(e)
			for i := range r {
				e[i] = float32(s.g[r+1-shift] - s.g[i+1])
			}
		}
		s.exp2(s.e, n)
	}
	for r := range n {
		c := b.dc[r*tile:][:n]
		clear(c[r:])
		if t.gateRows > 0 {
			for i, f := range s.e[r*tile:][:r] {
				c[i] *= f
			}
		}
	}
	vec.ColumnsF32(b.dcT, tile, b.dc, tile, n, n, 0)
	columns := func(x []float32) vec.Matrix { return vec.Matrix{X: x, Row: tile, Col: 1} }
	vec.MulAdd(s.policy, columns(dx), columns(s.k), columns(b.dcT), t.keyDim, n, n, vec.Keep, nil)
	vec.MulAdd(s.policy, columns(b.dk), columns(x), columns(b.dc), t.keyDim, n, n, vec.Keep, nil)
}

// channelPairs is pairs with gates of channels.
func (s *scanScratch) channelPairs(t *unscanning, dx, x []float32, shift int) {
	b, n := &s.back, s.n
	vec.ColumnsF32(b.dcT, tile, b.dc, tile, n, n, 0)
	at := func(x []float32, row, col int) vec.Matrix { return vec.Matrix{X: x[row*tile+col:], Row: tile, Col: 1} }
	for h := tile / 2; h > 0; h /= 2 {
		if h >= n {
			continue
		}
		vec.Decays(s.policy, s.w, s.e, x, s.k, s.g, t.keyDim, n, h, shift)
		if h < scanRows && finiteRows(s.w, tile, t.keyDim, n) { // 0 times what is not would be a NaN
			s.smallPairs(t.keyDim, h)
		} else {
			for lo := 0; lo+h < n; lo += 2 * h {
				m := lo + h
				size := min(h, n-m)
				vec.MulAdd(s.policy, at(b.part, 0, m), at(s.w, 0, lo), at(b.dcT, lo, m), t.keyDim, h, size, vec.Zero, nil)
				vec.MulAdd(s.policy, at(b.part, 0, lo), at(s.w, 0, m), at(b.dc, m, lo), t.keyDim, size, h, vec.Zero, nil)
			}
		}
		for d := range t.keyDim {
			part := b.part[d*tile:][:n]
			vec.Multiply(part, part, s.e[d*tile:])
			for lo := 0; lo+h < n; lo += 2 * h { // a last block may have no second half
				m, end := lo+h, min(lo+2*h, n)
				dk, dx := b.dk[d*tile:][lo:m], dx[d*tile:][m:end]
				for r, y := range part[lo:m] {
					dk[r] += y
				}
				for r, y := range part[m:end] {
					dx[r] += y
				}
			}
		}
	}
}

// smallPairs sets part for blocks narrower than a product should be: of all tokens
// around, with weights of 0 between those that are not in two halves of a block.
func (s *scanScratch) smallPairs(keyDim, h int) {
	b := &s.back
	var c [scanRows * scanRows]float32
	for g := 0; g+h < s.n; g += scanRows {
		n := min(scanRows, s.n-g)
		clear(c[:])
		for r := range n {
			if r&h == 0 {
				continue
			}
			lo := r &^ (2*h - 1)
			for i, x := range b.dc[(g+r)*tile+g+lo:][:h] {
				c[r*scanRows+lo+i], c[(lo+i)*scanRows+r] = x, x
			}
		}
		vec.MulAdd(s.policy, vec.Matrix{X: b.part[g:], Row: tile, Col: 1}, vec.Matrix{X: s.w[g:], Row: tile, Col: 1}, vec.Matrix{X: c[:], Row: scanRows, Col: 1}, keyDim, n, scanRows, vec.Zero, nil)
	}
}

// deltaBackward goes back through what the delta rule stores, last token first.
func (s *scanScratch) deltaBackward(t *unscanning, h int, state, ds vec.Matrix) {
	b, n, dim := &s.back, s.n, t.valueDim
	rows := func(x []float32) vec.Matrix { return vec.Matrix{X: x, Row: s.ld, Col: 1} }
	columns := func(x []float32) vec.Matrix { return vec.Matrix{X: x, Row: tile, Col: 1} }
	for r := n - 1; r >= 0; r-- {
		du := b.du[r*s.ld:][:dim]
		if r+1 < n {
			vec.MulAdd(s.policy, rows(du), vec.Matrix{X: s.a[(r+1)*tile+r:], Row: 1, Col: tile}, rows(b.du[(r+1)*s.ld:]), 1, n-1-r, dim, vec.Keep, nil)
		}
		sum := 0.0
		for e, x := range du {
			sum += float64(x) * float64(b.y[r*s.ld+e])
		}
		*t.dbeta.at(s.t0+int64(r), int64(h)) = float32(sum)
		vec.ScaleRow(du, s.beta[r])
	}
	// of the weights, and of the keys with which the state is read: both negative
	vec.MulAdd(s.policy, columns(b.dc), rows(b.du), columns(b.uT), n, dim, n, vec.Zero, nil)
	for r := range n {
		for i, x := range b.dc[r*tile:][:n] {
			b.dc[r*tile+i] = -x
		}
	}
	vec.ColumnsF32(b.doT, tile, b.du, s.ld, n, dim, 0)
	vec.MulAdd(s.policy, columns(b.own), state, columns(b.doT), t.keyDim, dim, n, vec.Zero, nil)
	asked := s.decay(&t.scan, s.k, 0, false)
	s.undecay(&t.scan, b.own)
	for d := range t.keyDim {
		for r, x := range b.own[d*tile:][:n] {
			b.own[d*tile+r] = -x
			b.part[d*tile+r] = -asked[d*tile+r]
		}
	}
	vec.MulAdd(s.policy, ds, columns(b.part), rows(b.du), t.keyDim, n, dim, vec.Keep, nil)
	s.pairs(t, b.own, s.k, 0)
}

// gateRoles adds to the gradients of sums of gates those of decayed rows: of
// queries up to their token, of keys from theirs on.
func (s *scanScratch) gateRoles(t *unscanning) {
	b := &s.back
	for d := range t.keyDim {
		if t.gateRows > 0 {
			dg := b.dg[min(d, t.gateRows-1)*(tile+1):][:s.n+1]
			for r := range s.n {
				q, k := float64(s.q[d*tile+r]), float64(s.k[d*tile+r])
				dg[r+1-t.shift] += q * float64(b.dq[d*tile+r])
				dg[r+1] -= k * float64(b.dk[d*tile+r])
				if t.delta() {
					dg[r+1] += k * float64(b.own[d*tile+r])
				}
			}
		}
		if t.delta() {
			for r, x := range b.own[d*tile:][:s.n] {
				b.dk[d*tile+r] += x
			}
		}
	}
}

// ownBackward adds the gradients of the weights of tokens for themselves.
func (s *scanScratch) ownBackward(t *unscanning, h int, own []float32) {
	b := &s.back
	for d := range t.keyDim {
		f := float32(1)
		if t.shift > 0 {
			f = *t.bonus.at(int64(h), int64(d))
		}
		for r, g := range own {
			q, k := s.q[d*tile+r], s.k[d*tile+r]
			b.dq[d*tile+r] += float32(float32(g*f) * k)
			b.dk[d*tile+r] += float32(float32(g*f) * q)
			b.dbonus[d] += float32(float32(g*q) * k)
		}
	}
}

// store writes the gradients of a chunk, or adds those of queries and keys to
// those of other heads.
func (t *unscanning) store(s *scanScratch, h, keyHead int, add bool) {
	b, scale := &s.back, float32(t.in.Scale)
	for r := range s.n {
		token := s.t0 + int64(r)
		t.dv.storeRow(b.du[r*s.ld:], token, h)
		q := t.dq.f32[t.dq.offset+token*t.dq.row+int64(keyHead)*t.dq.head:]
		k := t.dk.f32[t.dk.offset+token*t.dk.row+int64(keyHead)*t.dk.head:]
		for d := range t.keyDim {
			x, y := &q[int64(d)*t.dq.dim], &k[int64(d)*t.dk.dim]
			if !add {
				*x, *y = 0, 0
			}
			*x += float32(b.dq[d*tile+r] * scale)
			*y += b.dk[d*tile+r]
		}
	}
	if t.args.DGate.IsZero() {
		return
	}
	for d := range t.gateRows {
		sum := 0.0
		for r := s.n - 1; r >= 0; r-- {
			sum += b.dg[d*(tile+1)+r+1]
			token := s.t0 + int64(r)
			var x, g *float32
			if t.channels {
				at := func(r *reader) *float32 {
					return &r.f32[r.offset+token*r.row+int64(h)*r.head+int64(d)*r.dim]
				}
				x, g = at(&t.gate), at(&t.dgate)
			} else {
				x, g = t.gates.at(token, int64(h)), t.dgates.at(token, int64(h))
			}
			*g = 0
			if a := float32(*x * kernel.Log2E); a >= vec.GateFloor && a <= 0 {
				*g = float32(sum)
			}
		}
	}
}
