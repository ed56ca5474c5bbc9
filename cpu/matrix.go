package cpu

import (
	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/cpu/internal/vec/bf16"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// The Fast policy where all is BF16 runs in a processor's matrix unit
// where it has one: scores and outputs of strips by package bf16. States are
// those of strip.go, so that what does not fit there, a tile with a NaN or
// blocks with few rows, goes the usual way in between.

// matrices says how a Spec is computed by package bf16.
type matrices struct {
	use        bool
	queryParts int // bf16.Exact where queries are rotated
	keyParts   int // bf16.Exact where keys are rotated
}

func chooseMatrices(s *kernel.Spec) matrices {
	m := matrices{queryParts: 1, keyParts: 1}
	if s.RotaryDim > 0 && s.KeyStorage == kernel.PreRoPE {
		m.keyParts = bf16.Exact
	}
	if s.RotaryDim > 0 {
		m.queryParts = bf16.Exact
	}
	m.use = s.Policy == kernel.Fast && s.DType == tensor.BF16 && s.KVDType == tensor.BF16 && s.Coding.IsZero() && s.Terms == 1 &&
		s.Scores&^kernel.ScoreSinkLogit == 0 && bf16.Fits(s.HeadDim) && bf16.Fits(s.ValueDim) &&
		vec.Active() == vec.AVX512 && bf16.Supported(m.keyParts, m.queryParts)
	return m
}

// matrixScratch is the memory of one worker for package bf16.
type matrixScratch struct {
	tile   bf16.Tile
	work   *bf16.Scratch
	query  []uint16 // [strips][parts] packed
	rows   []uint16 // [tile][dim] keys or values that do not lie evenly
	finite bool     // the block's queries are
}

// grow makes room for so many rows.
func (m *matrixScratch) grow(s *kernel.Spec, how matrices, rows int) {
	if m.work == nil {
		m.work = bf16.NewScratch()
		m.tile = bf16.Tile{
			Key: bf16.Uint16s(how.keyParts * tile * s.HeadDim), Value: bf16.Uint16s(tile * s.ValueDim),
			HeadDim: s.HeadDim, ValueDim: s.ValueDim, KeyParts: how.keyParts, QueryParts: how.queryParts,
		}
		m.rows = bf16.Uint16s(tile * max(s.HeadDim, s.ValueDim))
	}
	m.query = bf16.Uint16s(how.queryParts * rows * s.HeadDim)
}

// packQueries packs the rotated queries of a wide block.
func (sc *scratch) packQueries(a *attention) {
	m, n := &sc.matrix, a.spec.HeadDim*vec.Lanes
	m.finite = true
	for x := range sc.parts() {
		q := sc.queries(a, 0, x)[:n]
		m.finite = m.finite && vec.Finite(q)
		bf16.PackPairs(m.query[x*n*a.matrices.queryParts:], q, a.spec.HeadDim, a.matrices.queryParts)
	}
}

// matrixTile takes the tile into the state of all strips, or reports that it
// has not: where something is not finite.
func (sc *scratch) matrixTile(a *attention, st *state) bool {
	m := &sc.matrix
	if !m.finite {
		return false
	}
	if !sc.seesTile(a) {
		return true
	}
	if !sc.packKeys(a) {
		return false
	}
	if v, ld := sc.rows16(a, &a.args.value); !bf16.PackValue(m.tile.Value, v, ld, a.spec.ValueDim) {
		return false
	}
	first := 0 // strips from here on wait: they see the whole tile
	for x := range sc.parts() {
		c := sc.covers(a, x, 0)
		if c == all && sc.n < tile {
			c = some
		}
		if c == all {
			continue
		}
		sc.attend(a, st, first, x, nil)
		first = x + 1
		if c == some && sc.look(a, x) != 0 {
			sc.attend(a, st, x, x+1, sc.lanes(0))
		}
	}
	sc.attend(a, st, first, sc.parts(), nil)
	return true
}

// seesTile reports whether any row may see a key of the tile.
func (sc *scratch) seesTile(a *attention) bool {
	for x := range sc.parts() {
		if sc.covers(a, x, 0) != none {
			return true
		}
	}
	return false
}

// attend takes the tile into the state of strips lo … hi−1.
func (sc *scratch) attend(a *attention, st *state, lo, hi int, visible []uint32) {
	if lo >= hi {
		return
	}
	for x := lo; x < hi; x++ {
		if !st.seen[x] {
			_, _, o := st.strip(x)
			clear(o)
			st.seen[x] = true
		}
	}
	t, at := sc.matrix.tile, lo*vec.Lanes
	t.Query = sc.matrix.query[at*t.HeadDim*t.QueryParts:]
	t.Scale, t.M, t.L, t.Out, t.Visible = sc.scale[at:], st.m[at:], st.l[at:], st.o[at*st.dim:], visible
	t.Attend(sc.matrix.work, hi-lo)
}

// packKeys packs the keys of the tile and reports whether all are finite.
func (sc *scratch) packKeys(a *attention) bool {
	dst, dim := sc.matrix.tile.Key, a.spec.HeadDim
	if !a.turnsKeys() {
		src, ld := sc.rows16(a, &a.args.key)
		return bf16.PackKey(dst, src, ld, dim)
	}
	k := sc.keys(a, 0)
	clear(k[sc.n*sc.ld:])
	if !vec.Finite(k) {
		return false
	}
	bf16.PackKeyF32(dst, k, sc.ld, dim, bf16.Exact)
	return true
}

// rows16 is the rows of the tile as they are stored, ld apart: in place where
// they lie evenly, and else in memory of their own, filled up with zeros.
func (sc *scratch) rows16(a *attention, r *reader) (rows []uint16, ld int) {
	at, stride, n := r.place(a, sc, 0)
	if n == tile && r.dim == 1 {
		return r.bits[at:], int(stride)
	}
	rows = sc.matrix.rows[:tile*r.n]
	for j := 0; j < sc.n; j += n {
		at, stride, n = r.place(a, sc, j)
		for k := range n {
			copyStrided(rows[(j+k)*r.n:], r.bits[at+int64(k)*stride:], 1, r.dim, r.n)
		}
	}
	clear(rows[sc.n*r.n:])
	return rows, r.n
}
