package cpu

import (
	"math"
	"math/bits"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

const tile = kernel.TileSize

// runArgs is kernel.Args made ready to read.
type runArgs struct {
	query, key, value, out reader
	lse                    scalars
}

func (a *runArgs) set(args *kernel.Args) {
	a.query, a.out = read(&args.Query), read(&args.Out)
	a.key = readKeys(&args.Key, &args.KeyScale, &args.CodedKey)
	a.value = readKeys(&args.Value, &args.ValueScale, &args.CodedValue)
	a.lse = scalars{}
	if !args.LSE.IsZero() {
		a.lse = readScalars(&args.LSE)
	}
}

// scratch is the memory of one worker: a block's rows, one tile of keys and
// values, and the state.
type scratch struct {
	block          int // prepared block, −1: none
	blk            block
	seq            sequence
	rows           int
	chunk0, chunk1 int64 // chunks with a key that some row sees

	q      []float32  // [terms][rows][HeadDim] queries as each variant rotates them
	ranges []keyRange // [terms][rows]
	scale  []float32  // [terms][rows]
	word   []uint64   // [terms][rows] visible keys of the tile
	any    []uint64   // [rows] their union
	raw, s []float32  // [rows][tile] products, scores
	k, kr  []float32  // [tile][HeadDim] keys as stored, and rotated
	v      []float32  // [tile][ValueDim]
	part   state      // of the chunk
	total  state

	grad gradScratch
}

func newScratch(s *kernel.Spec, rows int) *scratch {
	sc := &scratch{
		block:  -1,
		q:      make([]float32, s.Terms*rows*s.HeadDim),
		ranges: make([]keyRange, s.Terms*rows),
		scale:  make([]float32, s.Terms*rows),
		word:   make([]uint64, s.Terms*rows),
		any:    make([]uint64, rows),
		raw:    make([]float32, rows*vec.Stride),
		s:      make([]float32, rows*vec.Stride),
		k:      make([]float32, tile*s.HeadDim),
		kr:     make([]float32, tile*s.HeadDim),
		v:      make([]float32, tile*s.ValueDim),
		part:   newState(rows, s.ValueDim),
		total:  newState(rows, s.ValueDim),
	}
	if s.Backward {
		sc.grad = newGradScratch(s, rows)
	}
	return sc
}

// row is where row r of the block stands: its token in the sequence and head.
func (sc *scratch) row(a *attention, r int) (t int64, head int) {
	g := a.spec.Group()
	return int64(sc.blk.t0) + int64(r/g), int(sc.blk.kvHead)*g + r%g
}

// prepare loads the queries of a block, rotates them for each term, and finds
// the keys its rows see.
func (sc *scratch) prepare(a *attention, i int) {
	if sc.block == i {
		return
	}
	sc.block, sc.blk = i, a.blocks[i]
	s := int(sc.blk.seq)
	sc.seq.set(a.batch, &a.spec, s, a.offsets[s])
	sc.rows = int(sc.blk.n) * a.spec.Group()
	sc.loadQueries(a, &a.args.query)
	sc.findKeys(a)
}

func (sc *scratch) loadQueries(a *attention, query *reader) {
	dim, n := a.spec.HeadDim, sc.rows*a.spec.HeadDim
	start := int64(a.batch.QueryStart[sc.blk.seq])
	for r := range sc.rows {
		t, head := sc.row(a, r)
		query.loadRow(sc.q[r*dim:], start+t, head)
	}
	// from the last term down, so that term 0 can turn the only plain copy
	for term := len(a.batch.Terms) - 1; term >= 0; term-- {
		if a.spec.RotaryDim == 0 || a.variant[term] != term {
			continue
		}
		q := sc.q[term*n:][:n]
		if term > 0 {
			copy(q, sc.q[:n])
		}
		m := &a.batch.Terms[term].RowQ
		for r := range sc.rows {
			t, _ := sc.row(a, r)
			a.rotate(q[r*dim:][:dim], m.Row(sc.queryPosition(a, t)), false)
		}
	}
}

func (sc *scratch) findKeys(a *attention) {
	lo, hi := int64(math.MaxInt64), int64(0)
	tokens := int64(a.batch.Tokens())
	for term := range a.batch.Terms {
		for r := range sc.rows {
			t, _ := sc.row(a, r)
			k := sc.seq.keyRange(sc.seq.i0+t, term)
			if k.lo < k.hi {
				lo, hi = min(lo, k.lo), max(hi, k.hi)
			}
			sc.ranges[term*sc.rows+r] = k
			sc.scale[term*sc.rows+r] = a.batch.ScoreScale[int64(term)*tokens+int64(a.batch.QueryStart[sc.blk.seq])+t]
		}
	}
	sc.chunk0, sc.chunk1 = 0, 0
	if lo < hi {
		sc.chunk0, sc.chunk1 = lo/kernel.ChunkSize, (hi+kernel.ChunkSize-1)/kernel.ChunkSize
	}
}

// rotate turns the features of one row by a row of the table.
func (a *attention) rotate(x []float32, row int64, inverse bool) {
	half := a.spec.RotaryDim / 2
	at := row * int64(half)
	vec.Rotate(x, a.batch.Rotary.Cos[at:][:half], a.batch.Rotary.Sin[at:][:half], a.spec.RotaryLayout, inverse, a.spec.Policy)
}

// chunk computes the state of the block's rows over one chunk of keys.
func (sc *scratch) chunk(a *attention, c int64, st *state) {
	st.reset()
	end := min((c+1)*kernel.ChunkSize, sc.seq.keys)
	for j0 := c * kernel.ChunkSize; j0 < end; j0 += tile {
		n := int(min(tile, end-j0))
		if !sc.look(a, j0) {
			continue
		}
		sc.scores(a, &a.args.key, j0, n)
		a.args.value.loadKeys(sc.v, a.batch, int(sc.blk.seq), a.spec.PageSize, j0, n, int(sc.blk.kvHead))
		sc.update(a, st, n)
	}
}

// look finds which keys of a tile each row sees, and whether any does.
func (sc *scratch) look(a *attention, j0 int64) bool {
	clear(sc.any[:sc.rows])
	var all uint64
	for term := range a.batch.Terms {
		for r := range sc.rows {
			k := term*sc.rows + r
			sc.word[k] = 0
			if sc.ranges[k].hi <= j0 || sc.ranges[k].lo >= j0+tile {
				continue
			}
			t, _ := sc.row(a, r)
			// terms are disjoint; where a faulty module's are not, the first counts
			w := sc.seq.word(sc.ranges[k], sc.seq.i0+t, j0, int(sc.blk.kvHead)) &^ sc.any[r]
			sc.word[k] = w
			sc.any[r] |= w
			all |= w
		}
	}
	return all != 0
}

// scores fills sc.s for the visible pairs of a tile. Each variant (a way to
// rotate both sides) is one product of the rows with the tile; its terms take
// from it what is theirs.
func (sc *scratch) scores(a *attention, key *reader, j0 int64, n int) {
	key.loadKeys(sc.k, a.batch, int(sc.blk.seq), a.spec.PageSize, j0, n, int(sc.blk.kvHead))
	for v := range a.batch.Terms {
		if a.variant[v] != v {
			continue
		}
		lo, hi := sc.active(a, v)
		if lo >= hi {
			continue
		}
		dim := a.spec.HeadDim
		q := sc.q[(v*sc.rows+lo)*dim:]
		dot(a.spec.Policy, sc.raw[lo*vec.Stride:], q, sc.rotateKeys(a, v, j0, n), hi-lo, n, dim)
		for term := v; term < len(a.batch.Terms); term++ {
			if a.variant[term] == v {
				for r := lo; r < hi; r++ {
					sc.take(a, term, r, j0, n)
				}
			}
		}
	}
}

func dot(p kernel.Policy, s, q, k []float32, rows, keys, dim int) {
	if p == kernel.Fast {
		vec.DotFast(s, q, k, rows, keys, dim)
	} else {
		vec.DotExact(s, q, k, rows, keys, dim)
	}
}

// active is the smallest range of rows that holds all with a visible key in a
// term of variant v.
func (sc *scratch) active(a *attention, v int) (lo, hi int) {
	lo = sc.rows
	for term := v; term < len(a.batch.Terms); term++ {
		if a.variant[term] != v {
			continue
		}
		for r, w := range sc.word[term*sc.rows:][:sc.rows] {
			if w != 0 {
				lo, hi = min(lo, r), max(hi, r+1)
			}
		}
	}
	return lo, hi
}

// rotateKeys returns the tile's keys as variant v rotates them.
func (sc *scratch) rotateKeys(a *attention, v int, j0 int64, n int) []float32 {
	if a.spec.RotaryDim == 0 || a.spec.KeyStorage == kernel.PostRoPE {
		return sc.k
	}
	dim := a.spec.HeadDim
	copy(sc.kr, sc.k[:n*dim])
	m := &a.batch.Terms[v].RowK
	for j := range n {
		a.rotate(sc.kr[j*dim:][:dim], m.Row(sc.keyPosition(a, j0+int64(j))), false)
	}
	return sc.kr
}

// queryPosition is where token t of the block's sequence stands.
func (sc *scratch) queryPosition(a *attention, t int64) int64 {
	if p := a.batch.Positions; p != nil && p.Query != nil {
		return int64(p.Query[int64(a.batch.QueryStart[sc.blk.seq])+t])
	}
	return sc.seq.i0 + t
}

func (sc *scratch) keyPosition(a *attention, j int64) int64 {
	if p := a.batch.Positions; p != nil && p.Key != nil {
		return int64(p.Key[sc.seq.keyOffset+j])
	}
	return j
}

// take turns products into scores where a term is visible.
func (sc *scratch) take(a *attention, term, r int, j0 int64, n int) {
	w := sc.word[term*sc.rows+r]
	if w == 0 {
		return
	}
	scale := sc.scale[term*sc.rows+r]
	raw, s := sc.raw[r*vec.Stride:][:n], sc.s[r*vec.Stride:][:n]
	if !a.score.perKey && w == spanBits(0, int64(n)) {
		for j, x := range raw {
			s[j] = x * scale
		}
		return
	}
	t, head := sc.row(a, r)
	for ; w != 0; w &= w - 1 {
		j := lowest(w)
		var th float32
		s[j], th = a.score.at(raw[j], scale, head, sc.seq.i0+t, j0+int64(j), sc.seq.keyOffset)
		if sc.grad.th != nil {
			sc.grad.th[r*vec.Stride+j] = th
		}
	}
}

// update takes a tile into the state: the step of the online softmax.
func (sc *scratch) update(a *attention, st *state, n int) {
	fast, dim, full := a.spec.Policy == kernel.Fast, a.spec.ValueDim, spanBits(0, int64(n))
	for r := range sc.rows {
		if w := sc.any[r]; w != 0 {
			st.seen[r] = true
			sc.softmax(st, r, w, n, fast)
		}
	}
	for r := 0; r < sc.rows; {
		w := sc.any[r]
		o, p := st.o[r*dim:], sc.s[r*vec.Stride:]
		if w == full {
			run := r + 1
			for run < sc.rows && sc.any[run] == full {
				run++
			}
			addPV(fast, o, p, sc.v, run-r, n, dim)
			r = run
			continue
		}
		for w != 0 { // runs of visible keys
			j := lowest(w)
			k := bits.TrailingZeros64(^(w >> j))
			addPV(fast, o, p[j:], sc.v[j*dim:], 1, k, dim)
			w &^= spanBits(int64(j), int64(j+k))
		}
		r++
	}
}

func addPV(fast bool, o, p, v []float32, rows, keys, dim int) {
	if fast {
		vec.AddPVFast(o, p, v, rows, keys, dim)
	} else {
		vec.AddPVExact(o, p, v, rows, keys, dim)
	}
}

// softmax turns the scores of one row into weights and rescales its state.
func (sc *scratch) softmax(st *state, r int, w uint64, n int, fast bool) {
	s, m := sc.s[r*vec.Stride:][:n], st.m[r]
	for x := w; x != 0; x &= x - 1 {
		if t := s[lowest(x)]; t > m {
			m = t
		}
	}
	f := exp2(fast, st.m[r]-m)
	l := float32(st.l[r] * f)
	if f != 1 {
		for d := range st.o[r*st.dim:][:st.dim] {
			st.o[r*st.dim+d] *= f
		}
	}
	for w != 0 {
		j := lowest(w)
		k := bits.TrailingZeros64(^(w >> j))
		if fast {
			l = vec.ExpFast(s[j:j+k], m, l)
		} else {
			l = vec.ExpExact(s[j:j+k], m, l)
		}
		w &^= spanBits(int64(j), int64(j+k))
	}
	st.m[r], st.l[r] = m, l
}

func exp2(fast bool, x float32) float32 {
	if fast {
		return vec.Exp2Fast(x)
	}
	return kernel.Exp2(x)
}

// finish adds the sink, divides, rounds and stores the rows of the block.
func (sc *scratch) finish(a *attention) {
	st, dim := &sc.total, a.spec.ValueDim
	start := int64(a.batch.QueryStart[sc.blk.seq])
	for r := range sc.rows {
		t, head := sc.row(a, r)
		o := st.o[r*dim:][:dim]
		if a.spec.Scores&kernel.ScoreSinkLogit != 0 {
			clear(sc.part.o[:dim])
			st.mergeRow(r, *a.score.sinkLogit.at(int64(head), 0)*kernel.Log2E, 1, sc.part.o[:dim], a.spec.Policy)
		}
		l, lse := st.l[r], float32(math.Inf(-1))
		if l == 0 {
			clear(o)
		} else {
			inv := 1 / l
			for d, x := range o {
				o[d] = float32(x*inv) + 0
			}
			lse = kernel.LSE(st.m[r], l)
		}
		a.args.out.storeRow(o, start+t, head)
		if a.args.lse.x != nil {
			*a.args.lse.at(start+t, int64(head)) = lse
		}
	}
}
