package cpu

import (
	"math"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

const tile = kernel.TileSize

// wideRows is the number of rows above which a block is worked on in strips: a
// strip costs the same with few rows as with all of its 32, and spares the
// transposition of the keys.
const wideRows = 16

// runArgs is kernel.Args made ready to read.
type runArgs struct {
	query, key, value, out reader
	lse                    scalars
	direct                 [coded + 1]bool // whether products can take keys and values as they are stored
}

func (a *runArgs) set(s *kernel.Spec, args *kernel.Args) {
	a.query, a.out = read(&args.Query), read(&args.Out)
	a.key = readKeys(&args.Key, &args.KeyScale, &args.CodedKey, s.Coding.Key)
	a.value = readKeys(&args.Value, &args.ValueScale, &args.CodedValue, s.Coding.Value)
	a.direct = direct(s, &a.key, &a.value)
	a.lse = scalars{}
	if !args.LSE.IsZero() {
		a.lse = readScalars(&args.LSE)
	}
}

// scratch is the memory of one worker: a block's rows, one tile of keys and
// values, and the state. A wide block is worked on in strips (strip.go), any
// other in rows (rows.go); package vec has the two layouts.
type scratch struct {
	blk            *block // prepared block, or nil
	seq            sequence
	rows           int
	wide           bool
	chunk0, chunk1 int64 // chunks with a key that some row sees

	ld, vld int        // between rows of HeadDim and ValueDim features
	q       []float32  // [terms] queries as each variant rotates them: [strips][HeadDim][Lanes] or [rows][ld]
	qsize   int        // elements of q for a term
	ranges  []keyRange // [terms][rows]
	bounds  []bounds   // [terms][parts]
	scale   []float32  // [terms][rows, in whole strips]
	stride  int        // of scale: rows in whole strips

	word    []uint64  // [terms][rows of the part] visible keys of the tile
	any     []uint64  // [rows of the part] their union
	visible []uint32  // [tile] visible lanes of a key
	raw, s  []float32 // products and scores of a part
	turn    []float32 // [Lanes][max ld] rows to be transposed

	*tileMemory              // the current one
	tiles       []tileMemory // of a chunk

	part  state // of the chunk
	total state

	coded  *codedScratch
	mods   scoreScratch
	matrix matrixScratch
	grad   gradScratch
	stats  statsScratch
}

// tileMemory is a tile of keys: as stored, as each variant rotates them, and
// transposed.
type tileMemory struct {
	k, kr, kt []float32 // [tile][ld], [terms][tile][ld], [HeadDim][tile]
	v         []float32 // [tile][vld]
	halves    []uint16  // [HeadDim][tile]
	vt        []float32 // [ValueDim][tile] backward: values, transposed
	dk, dv    []float32 // [terms][tile][ld], [tile][vld] backward: gradients of keys and values
	have      uint16    // which of them: see load.go
	turned    int       // the variant that kt holds
	j0        int64     // first key of the tile
	n         int       // keys of the tile
}

func newScratch(s *kernel.Spec) *scratch {
	ld, vld := vec.Pad(s.HeadDim), vec.Pad(s.ValueDim)
	sc := &scratch{
		ld: ld, vld: vld,
		visible: make([]uint32, tile),
		tiles:   make([]tileMemory, kernel.ChunkSize/tile),
		turn:    make([]float32, vec.Lanes*max(ld, vld)),
	}
	sc.tileMemory = &sc.tiles[0]
	sc.growTile(s, 0)
	sc.halves = make([]uint16, s.HeadDim*tile)
	for i := range min(maxSpan, len(sc.tiles)) {
		if s.Backward {
			sc.growTile(s, i)
		}
	}
	if !s.Coding.IsZero() {
		sc.coded = new(codedScratch)
	}
	if s.Backward {
		sc.grad = newGradScratch(s)
	}
	if s.ColumnStats {
		sc.stats = newStatsScratch()
	}
	return sc
}

// growTile makes room for tile i of a chunk.
func (sc *scratch) growTile(s *kernel.Spec, i int) {
	t := &sc.tiles[i]
	if t.k != nil {
		return
	}
	t.k, t.v = make([]float32, tile*sc.ld), make([]float32, tile*sc.vld)
	if s.RotaryDim > 0 && s.KeyStorage == kernel.PreRoPE {
		t.kr = make([]float32, s.Terms*tile*sc.ld)
	}
	if i == 0 || s.Backward && i < maxSpan {
		t.kt = make([]float32, s.HeadDim*tile)
	}
	if s.Backward && i < maxSpan {
		t.vt, t.dk, t.dv = make([]float32, s.ValueDim*tile), make([]float32, s.Terms*tile*sc.ld), make([]float32, tile*sc.vld)
	}
}

// grow makes room for blocks of so many rows.
func (sc *scratch) grow(s *kernel.Spec, how matrices, rows int) {
	if rows > wideRows && !how.use {
		for i := range sc.tiles {
			sc.growTile(s, i)
		}
	}
	rows = strips(max(rows, headRows(s))) * vec.Lanes
	if rows <= sc.stride {
		return
	}
	sc.stride = rows
	sc.qsize = rows * sc.ld
	sc.q = make([]float32, s.Terms*sc.qsize)
	sc.ranges = make([]keyRange, s.Terms*rows)
	sc.bounds = make([]bounds, s.Terms*rows/vec.Lanes)
	sc.scale = make([]float32, s.Terms*rows)
	part := max(vec.Lanes, min(rows, max(wideRows, headRows(s))))
	sc.word = make([]uint64, s.Terms*part)
	sc.any = make([]uint64, part)
	sc.raw, sc.s = make([]float32, part*vec.Stride), make([]float32, part*vec.Stride)
	if s.Scores != 0 || s.Terms > 1 {
		sc.mods.mod = make([]float32, part*vec.Stride)
		sc.mods.ramp = make([]float32, max(vec.Stride, (vec.Stride+vec.Lanes)*s.Group()))
	}
	if how.use {
		sc.matrix.grow(s, how, rows)
	}
	sc.part.grow(rows, s.ValueDim)
	sc.total.grow(rows, s.ValueDim)
}

// ones is a scale that changes nothing.
var ones = func() (x [128]float32) {
	for i := range x {
		x[i] = 1
	}
	return x
}()

// row is where row r of the block stands: its token in the sequence and head.
func (sc *scratch) row(a *attention, r int) (t int64, head int) {
	n := int(sc.blk.heads)
	return int64(sc.blk.t0) + int64(r/n), int(sc.blk.head) + r%n
}

// prepare loads the queries of a block, rotates them for each term, and finds
// the keys its rows see.
func (sc *scratch) prepare(a *attention, b *block) {
	if sc.blk == b {
		return
	}
	sc.setBlock(a, b, int(b.n*b.heads) > wideRows)
	sc.loadQueries(a)
	if sc.wide && a.matrices.use {
		sc.packQueries(a)
	}
}

// setBlock makes b the current block.
func (sc *scratch) setBlock(a *attention, b *block, wide bool) {
	if sc.blk == nil || sc.blk.seq != b.seq || sc.blk.kvHead != b.kvHead {
		sc.have = 0
	}
	sc.blk, sc.wide = b, wide
	s := int(b.seq)
	sc.seq.set(a.batch, &a.spec, s, a.offsets[s])
	sc.rows = int(b.n * b.heads)
	sc.findKeys(a)
}

// parts is the number of strips, or 1.
func (sc *scratch) parts() int {
	if sc.wide {
		return strips(sc.rows)
	}
	return 1
}

// partRows is the rows lo … hi−1 of part x.
func (sc *scratch) partRows(x int) (lo, hi int) {
	if sc.wide {
		return x * vec.Lanes, min((x+1)*vec.Lanes, sc.rows)
	}
	return 0, sc.rows
}

// queries are those of part x as variant v rotates them.
func (sc *scratch) queries(a *attention, v, x int) []float32 {
	q := sc.q[v*sc.qsize:][:sc.qsize]
	if sc.wide {
		return q[x*a.spec.HeadDim*vec.Lanes:]
	}
	return q
}

func (sc *scratch) loadQueries(a *attention) {
	dim := a.spec.HeadDim
	start := int64(a.batch.QueryStart[sc.blk.seq])
	for v := range a.batch.Terms {
		if a.variant[v] != v {
			continue
		}
		for x := range sc.parts() {
			lo, hi := sc.partRows(x)
			q, rows := sc.queries(a, v, x), sc.turn
			if !sc.wide {
				rows = q
			}
			for r := lo; r < hi; r++ {
				t, head := sc.row(a, r)
				row := rows[(r-lo)*sc.ld:][:dim]
				a.args.query.loadRow(row, start+t, head)
				if a.spec.RotaryDim > 0 {
					a.rotate(row, a.batch.Terms[v].RowQ.Row(sc.queryPosition(a, t)), false)
				}
			}
			if sc.wide {
				clear(rows[(hi-lo)*sc.ld : vec.Lanes*sc.ld])
				vec.ColumnsF32(q, vec.Lanes, rows, sc.ld, vec.Lanes, dim, 0)
			}
		}
	}
}

// bounds are the extremes of the key intervals of a part's rows.
type bounds struct{ minLo, maxLo, minHi, maxHi int64 }

// noKeys is the interval of a row that sees nothing: no tile is full for it.
var noKeys = keyRange{math.MaxInt64, 0}

func (sc *scratch) findKeys(a *attention) {
	lo, hi := int64(math.MaxInt64), int64(0)
	tokens, g := int64(a.batch.Tokens()), int(sc.blk.heads)
	for term := range a.batch.Terms {
		scales := a.batch.ScoreScale[int64(term)*tokens+int64(a.batch.QueryStart[sc.blk.seq])+int64(sc.blk.t0):]
		scale := sc.scale[term*sc.stride:][:sc.stride]
		clear(scale[sc.rows:])
		var k keyRange
		for r := range sc.rows {
			if r%g == 0 { // the heads of a token see the same
				k = sc.seq.keyRange(sc.seq.i0+int64(sc.blk.t0)+int64(r/g), term)
				if k.lo >= k.hi {
					k = noKeys
				} else {
					lo, hi = min(lo, k.lo), max(hi, k.hi)
				}
			}
			sc.ranges[term*sc.stride+r] = k
			scale[r] = scales[r/g]
		}
		for x := range sc.parts() {
			b := bounds{math.MaxInt64, 0, math.MaxInt64, 0}
			first, end := sc.partRows(x)
			for _, k := range sc.ranges[term*sc.stride+first : term*sc.stride+end] {
				b.minLo, b.maxLo = min(b.minLo, k.lo), max(b.maxLo, k.lo)
				b.minHi, b.maxHi = min(b.minHi, k.hi), max(b.maxHi, k.hi)
			}
			sc.bounds[term*sc.parts()+x] = b
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

// chunk computes the state of the block's rows over one chunk of keys.
func (sc *scratch) chunk(a *attention, c int64, st *state) {
	st.reset(sc.rows, sc.wide)
	j0, end := c*kernel.ChunkSize, min((c+1)*kernel.ChunkSize, sc.seq.keys)
	switch {
	case !sc.wide:
		for ; j0 < end; j0 += tile {
			sc.setTile(0, j0, int(min(tile, end-j0)))
			sc.rowsTile(a, st)
		}
	case a.matrices.use:
		for ; j0 < end; j0 += tile {
			sc.setTile(0, j0, int(min(tile, end-j0)))
			if !sc.matrixTile(a, st) {
				for x := range sc.parts() {
					sc.strip(a, st, x)
				}
			}
		}
	default: // a strip after another, so that its queries and sums stay near
		n := 0
		for ; j0 < end; j0 += tile {
			sc.setTile(n, j0, int(min(tile, end-j0)))
			n++
		}
		for x := range sc.parts() {
			for i := range n {
				sc.tileMemory = &sc.tiles[i]
				sc.strip(a, st, x)
			}
		}
	}
}

// finish adds the sink, divides, rounds and stores the rows of the block.
func (sc *scratch) finish(a *attention) {
	st := &sc.total
	for x := range st.seen {
		if !st.seen[x] {
			if sc.wide {
				_, _, o := st.strip(x)
				clear(o)
			} else {
				clear(st.o[:sc.rows*st.ld])
			}
		}
		if a.spec.Scores&kernel.ScoreSinkLogit != 0 {
			st.addSink(x, func(r int) float32 {
				_, head := sc.row(a, r)
				return *a.score.sinkLogit.at(int64(head), 0)
			}, &sc.part, a.spec.Policy)
		}
		sc.store(a, x)
	}
}

// store writes part x of the total.
func (sc *scratch) store(a *attention, x int) {
	st, dim := &sc.total, a.spec.ValueDim
	start := int64(a.batch.QueryStart[sc.blk.seq])
	rows := st.o
	if sc.wide {
		_, l, o := st.strip(x)
		vec.FinishStrip(o, l, dim)
		rows = sc.turn
		vec.ColumnsF32(rows, st.ld, o, vec.Lanes, dim, vec.Lanes, 0)
	}
	lo, hi := sc.partRows(x)
	for r := lo; r < hi; r++ {
		t, head := sc.row(a, r)
		o := rows[(r-lo)*st.ld:][:dim]
		if !sc.wide {
			vec.FinishRow(o, st.l[r])
		}
		a.args.out.storeRow(o, start+t, head)
		if a.args.lse.x != nil {
			lse := float32(math.Inf(-1))
			if st.l[r] != 0 {
				lse = kernel.LSE(st.m[r], st.l[r])
			}
			*a.args.lse.at(start+t, int64(head)) = lse
		}
	}
}
