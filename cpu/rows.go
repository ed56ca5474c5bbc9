package cpu

import (
	"math/bits"

	"github.com/longctx/longctx/cpu/internal/vec"
)

// rowsTile takes the tile into the state of a block with few rows: keys, and
// then features, lie side by side.
func (sc *scratch) rowsTile(a *attention, st *state) {
	if !sc.sees(a) || sc.look(a, 0) == 0 {
		return
	}
	policy, rows := a.spec.Policy, sc.rows
	scale := sc.scoreRows(a)
	var f [wideRows]float32
	vec.SoftmaxRows(policy, sc.s, rows, scale, sc.any, st.m, st.l, f[:rows])

	if !st.seen[0] {
		clear(st.o[:rows*st.ld])
	} else {
		for r, x := range f[:rows] {
			if x != 1 {
				vec.ScaleRow(st.o[r*st.ld:][:st.ld], x)
			}
		}
	}
	st.seen[0] = true
	o := vec.Matrix{X: st.o, Row: st.ld}
	switch how := sc.stored(a); {
	case how == halves && hidesNothing(sc.any[:rows], sc.n):
		sc.addHalves(a, o)
		return
	case how == coded && hidesNothing(sc.any[:rows], sc.n):
		for j := 0; j < sc.n; {
			x, n := a.args.value.codes(a, sc, j, &a.args.key)
			vec.TokenProduct(o, vec.Matrix{X: sc.s[j:], Row: vec.Stride, Col: 1}, &x, rows, n, a.spec.ValueDim, &sc.coded.CodeScratch)
			j += n
		}
		return
	}
	sc.addRows(a, o, sc.s, vec.Matrix{X: sc.values(a), Row: sc.vld}, a.spec.ValueDim, sc.any[:rows])
}

// addHalves is addRows for values as they are stored, of which none is hidden.
func (sc *scratch) addHalves(a *attention, c vec.Matrix) {
	r := &a.args.value
	for j := 0; j < sc.n; {
		at, stride, n := r.place(a, sc, j)
		next := vec.Next{Half: true}
		if x := r.next(a, sc); x != nil {
			next.X = x[min(n*r.n/2, len(x)):]
		} else if ahead := int64(r.ahead(a, sc, j)); ahead != 0 {
			next = vec.Next{X: r.bits[at+ahead:], Row: int(stride)}
		}
		vec.MulAdd16(a.spec.Policy, c, vec.Matrix{X: sc.s[j:], Row: vec.Stride, Col: 1}, vec.Matrix16{X: r.bits[at:], Row: int(stride), DType: r.dtype},
			sc.rows, n, a.spec.ValueDim, vec.Keep, next)
		j += n
	}
}

// addRows adds w·b to c for the rows of the block, keys ascending, with
// weights 0 where words hide a key.
func (sc *scratch) addRows(a *attention, c vec.Matrix, w []float32, b vec.Matrix, dim int, words []uint64) {
	if hidesNothing(words, sc.n) || vec.Finite(b.X[:sc.n*b.Row]) {
		vec.MulAdd(a.spec.Policy, c, vec.Matrix{X: w, Row: vec.Stride, Col: 1}, b, sc.rows, sc.n, (dim+15)&^15, vec.Keep, nil)
		return
	}
	for r, x := range words { // runs of visible keys: a weight of 0 would not hide NaN or Inf
		for x != 0 {
			j := lowest(x)
			n := bits.TrailingZeros64(^(x >> j))
			vec.MulAdd(a.spec.Policy, vec.Matrix{X: c.X[r*c.Row:]}, vec.Matrix{X: w[r*vec.Stride+j:], Col: 1}, vec.Matrix{X: b.X[j*b.Row:], Row: b.Row},
				1, n, dim, vec.Keep, nil)
			x &^= spanBits(int64(j), int64(j+n))
		}
	}
}

// sees reports whether any row may see a key of the tile.
func (sc *scratch) sees(a *attention) bool {
	for term := range a.batch.Terms {
		if sc.covers(a, 0, term) != none {
			return true
		}
	}
	return false
}

// hidesNothing reports whether every row sees all of n keys.
func hidesNothing(words []uint64, n int) bool {
	full := spanBits(0, int64(n))
	for _, w := range words {
		if w != full {
			return false
		}
	}
	return true
}

// scoreRows fills sc.s for the visible pairs of the tile and returns what they
// are still to be multiplied by.
func (sc *scratch) scoreRows(a *attention) (scale []float32) {
	active, only := 0, 0
	for term := range a.batch.Terms {
		if anySet(sc.words(term)[:sc.rows]) {
			active, only = active+1, term
		}
	}
	if active == 1 && !a.score.perKey {
		sc.dotRows(a, sc.s, a.variant[only])
		return sc.scale[only*sc.stride:][:sc.rows]
	}
	for v := range a.batch.Terms {
		if a.variant[v] != v {
			continue
		}
		ready := false
		for term := v; term < len(a.batch.Terms); term++ {
			if a.variant[term] != v || !anySet(sc.words(term)[:sc.rows]) {
				continue
			}
			if !ready {
				sc.dotRows(a, sc.raw, v)
				ready = true
			}
			sc.takeRows(a, term)
		}
	}
	return ones[:sc.rows]
}

// takeRows turns products into scores where a term is visible.
func (sc *scratch) takeRows(a *attention, term int) {
	for r, w := range sc.words(term)[:sc.rows] {
		if w == 0 {
			continue
		}
		at, s := r*vec.Stride, sc.s[r*vec.Stride:][:vec.Stride]
		if sc.grad.th != nil { // the gradient wants the hyperbolic tangent too
			t, head := sc.row(a, r)
			for scale := sc.scale[term*sc.stride+r]; w != 0; w &= w - 1 {
				j := lowest(w)
				s[j], sc.grad.th[at+j] = a.score.at(sc.raw[at+j], scale, head, sc.seq.i0+t, sc.j0+int64(j), sc.seq.keyOffset)
			}
			continue
		}
		scores := sc.modifyRow(a, term, r)
		if w == sc.any[r] {
			copy(s, scores)
			continue
		}
		for ; w != 0; w &= w - 1 {
			s[lowest(w)] = scores[lowest(w)]
		}
	}
}

// dotRows sets s to the products of the rows with the keys of the tile.
func (sc *scratch) dotRows(a *attention, s []float32, v int) {
	c, q := vec.Matrix{X: s, Row: vec.Stride}, vec.Matrix{X: sc.queries(a, v, 0), Row: sc.ld, Col: 1}
	switch sc.stored(a) {
	case halves:
		vec.MulAdd16(a.spec.Policy, c, q, sc.halfColumns(a), sc.rows, a.spec.HeadDim, tile, vec.Zero, vec.Next{X: a.args.key.next(a, sc)})
		return
	case coded:
		for j := 0; j < sc.n; {
			x, n := a.args.key.codes(a, sc, j, &a.args.value)
			vec.ChannelProduct(vec.Matrix{X: s[j:], Row: vec.Stride}, q, &x, sc.rows, n, a.spec.HeadDim, &sc.coded.CodeScratch)
			j += n
		}
		return
	}
	vec.MulAdd(a.spec.Policy, c, q, vec.Matrix{X: sc.columns(a, v), Row: tile}, sc.rows, a.spec.HeadDim, tile, vec.Zero, nil)
}
