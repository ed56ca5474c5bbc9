package cpu

import (
	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

// Scores computes the scores of sequences without a mask.
func (b *Backend) Scores(a *kernel.ScoresArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Query, &a.Key, &a.Out); err != nil {
		return err
	}
	t := newComparing(a.Policy, a.QueryStart, a.KeyStart, int(a.Query.Shape[1]), kernel.ScoreSide{Query: a.Query, Key: a.Key, Scale: a.Scale})
	t.tap = readScalars(&a.Out)
	b.score(t)
	return nil
}

// ScoreLoss compares the scores of two models.
func (b *Backend) ScoreLoss(a *kernel.ScoreLossArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Student.Query, &a.Student.Key, &a.Teacher.Query, &a.Teacher.Key, &a.Out, &a.DQuery, &a.DKey); err != nil {
		return err
	}
	t := newComparing(a.Policy, a.QueryStart, a.KeyStart, int(a.Student.Query.Shape[1]), a.Student, a.Teacher)
	t.loss, t.zeroBelow = readScalars(&a.Out), a.ZeroBelow
	if !a.DQuery.IsZero() {
		t.gradient, t.factor, t.dquery, t.dkey = true, a.Gradient, read(&a.DQuery), read(&a.DKey)
	}
	b.score(t)
	return nil
}

// comparing computes scores a tile of queries and a tile of keys at a time. An item
// is a tile of queries of a head, or with gradients all queries and heads of a KV
// head of Student: each sum has one owner and one order.
type comparing struct {
	policy               kernel.Policy
	sides                []comparedSide
	queryStart, keyStart []int32
	heads                int

	tap       scalars // Out of a Scores
	loss      scalars // or of a ScoreLoss
	zeroBelow float32

	gradient     bool
	factor       float32
	dquery, dkey reader

	blocks  []int64 // [n+1] tiles of queries of the sequences before
	pairs   []int64 // [n+1] pairs of the sequences before
	scratch []*comparingScratch
}

type comparedSide struct {
	query, key reader
	scale      float32
	group, ld  int
}

// comparingScratch is the memory of a worker. Scores lie with the queries of a key
// side by side.
type comparingScratch struct {
	queries [2][]float32 // feature d of query r at d·tile+r
	keys    [2][]float32 // rows ld apart
	scores  [2][]float32 // of key j and query r at j·tile+r
	sums    []float32    // [tile] of a query
	minus   []float32    // [tile] −1
	rows    []float32    // queries of Student, ld apart
	dquery  []float32    // ld apart
	dkey    []float32    // of all keys of a sequence, ld apart
}

func newComparing(p kernel.Policy, queryStart, keyStart []int32, heads int, sides ...kernel.ScoreSide) *comparing {
	t := &comparing{policy: p, queryStart: queryStart, keyStart: keyStart, heads: heads, blocks: []int64{0}, pairs: []int64{0}}
	for i := range sides {
		s := &sides[i]
		dim := int(s.Query.Shape[2])
		t.sides = append(t.sides, comparedSide{read(&s.Query), read(&s.Key), s.Scale, heads / int(s.Key.Shape[1]), vec.Pad(dim)})
	}
	for s := range len(queryStart) - 1 {
		q, k := t.lens(s)
		t.blocks, t.pairs = append(t.blocks, t.blocks[s]+int64(q+tile-1)/tile), append(t.pairs, t.pairs[s]+int64(q)*int64(k))
	}
	return t
}

func (t *comparing) lens(s int) (queries, keys int) {
	return int(t.queryStart[s+1] - t.queryStart[s]), int(t.keyStart[s+1] - t.keyStart[s])
}

// score runs the items, by all workers if there is enough to do.
func (b *Backend) score(t *comparing) {
	last := len(t.blocks) - 1
	n := t.blocks[last] * int64(t.heads)
	if t.gradient {
		n = int64(last) * int64(t.heads/t.sides[0].group)
	}
	t.scratch = make([]*comparingScratch, b.pool.workers)
	if b.pool.workers > 1 && n > 1 && t.pairs[last]*int64(t.heads*t.sides[0].query.n) >= opShare {
		b.pool.do(&job{}, t, n)
		return
	}
	for i := range n {
		t.item(0, i)
	}
}

func (t *comparing) item(slot int, i int64) {
	if t.scratch[slot] == nil {
		t.scratch[slot] = t.newScratch()
	}
	sc := t.scratch[slot]
	if t.gradient {
		kvHeads := int64(t.heads / t.sides[0].group)
		t.gradients(sc, int(i/kvHeads), int(i%kvHeads))
		return
	}
	s, at := 0, i/int64(t.heads)
	for t.blocks[s+1] <= at {
		s++
	}
	t.block(sc, s, int(i%int64(t.heads)), int(at-t.blocks[s])*tile)
}

func (t *comparing) newScratch() *comparingScratch {
	sc := &comparingScratch{sums: make([]float32, tile), minus: make([]float32, tile*tile)}
	for i := range sc.minus {
		sc.minus[i] = -1
	}
	for i := range t.sides {
		s := &t.sides[i]
		sc.queries[i], sc.keys[i], sc.scores[i] = make([]float32, s.query.n*tile), make([]float32, tile*s.ld), make([]float32, tile*tile)
	}
	if t.gradient {
		sc.rows, sc.dquery = make([]float32, tile*t.sides[0].ld), make([]float32, tile*t.sides[0].ld)
	}
	return sc
}

// block computes what the queries from q0 of a head ask for.
func (t *comparing) block(sc *comparingScratch, s, head, q0 int) {
	queries, keys := t.lens(s)
	n, first := min(tile, queries-q0), int64(t.queryStart[s])+int64(q0)
	for i := range t.sides {
		q := &t.sides[i].query
		if n < tile {
			clear(sc.queries[i])
		}
		q.loadRun(sc.queries[i], tile, true, q.offset+first*q.row+int64(head)*q.head, q.row, n, 0)
	}
	if t.gradient {
		q := &t.sides[0].query
		q.loadRun(sc.rows, t.sides[0].ld, false, q.offset+first*q.row+int64(head)*q.head, q.row, n, 0)
		clear(sc.dquery)
	}
	clear(sc.sums)
	for j0 := 0; j0 < keys; j0 += tile {
		m := min(tile, keys-j0)
		for i := range t.sides {
			t.product(sc, i, head, int64(t.keyStart[s])+int64(j0), m)
		}
		if t.tap.x != nil {
			t.store(sc, s, head, q0, n, j0, m)
			continue
		}
		t.compare(sc, m, n)
		if t.gradient {
			t.addGradients(sc, j0, m, n)
		}
	}
	for r := range n {
		if t.loss.x != nil {
			*t.loss.at(first+int64(r), int64(head)) = sc.sums[r]
		}
		if t.gradient {
			t.dquery.storeRow(sc.dquery[r*t.sides[0].ld:], first+int64(r), head)
		}
	}
}

// product computes the scores of n keys from row at on.
func (t *comparing) product(sc *comparingScratch, i, head int, at int64, n int) {
	s := &t.sides[i]
	k := &s.key
	k.loadRun(sc.keys[i], s.ld, false, k.offset+at*k.row+int64(head/s.group)*k.head, k.row, n, 0)
	vec.MulAdd(t.policy, vec.Matrix{X: sc.scores[i], Row: tile}, vec.Matrix{X: sc.keys[i], Row: s.ld, Col: 1},
		vec.Matrix{X: sc.queries[i], Row: tile}, n, k.n, tile, vec.Zero, nil)
	vec.ScaleRow(sc.scores[i][:n*tile], s.scale)
}

// store writes the scores of n queries from q0 and m keys from j0.
func (t *comparing) store(sc *comparingScratch, s, head, q0, n, j0, m int) {
	_, keys := t.lens(s)
	for r := range n {
		at := t.pairs[s] + int64(q0+r)*int64(keys) + int64(j0)
		for j := range m {
			*t.tap.at(int64(head), at+int64(j)) = sc.scores[0][j*tile+r]
		}
	}
}

// compare makes the scores of Student differences and adds up their squares.
func (t *comparing) compare(sc *comparingScratch, m, n int) {
	x, y := sc.scores[0][:m*tile], sc.scores[1][:m*tile]
	var zeroed [tile]uint64 // of a key, the queries whose score of Student was set to 0
	if t.zeroBelow < 0 {
		for i, v := range x {
			if v <= t.zeroBelow {
				x[i] = 0
				zeroed[i/tile] |= 1 << (i % tile)
			}
		}
		for i, v := range y {
			if v <= t.zeroBelow {
				y[i] = 0
			}
		}
	}
	vec.AddProduct(t.policy, x, y, sc.minus)
	for j := range m {
		e := x[j*tile:][:tile]
		vec.AddProduct(t.policy, sc.sums, e, e)
	}
	if t.gradient {
		vec.ScaleRow(x, t.factor)
		for j, w := range zeroed[:m] {
			for ; w != 0; w &= w - 1 {
				x[j*tile+lowest(w)] = 0
			}
		}
	}
}

// addGradients adds what n queries and m keys from j0 give each other.
func (t *comparing) addGradients(sc *comparingScratch, j0, m, n int) {
	ld, cols := t.sides[0].ld, (t.sides[0].query.n+15)&^15
	vec.MulAdd(t.policy, vec.Matrix{X: sc.dquery, Row: ld}, vec.Matrix{X: sc.scores[0], Row: 1, Col: tile}, vec.Matrix{X: sc.keys[0], Row: ld},
		n, m, cols, vec.Keep, nil)
	vec.MulAdd(t.policy, vec.Matrix{X: sc.dkey[j0*ld:], Row: ld}, vec.Matrix{X: sc.scores[0], Row: tile, Col: 1}, vec.Matrix{X: sc.rows, Row: ld},
		m, n, cols, vec.Keep, nil)
}

// gradients computes the loss and the gradients of a sequence and KV head.
func (t *comparing) gradients(sc *comparingScratch, s, kvHead int) {
	queries, keys := t.lens(s)
	side := &t.sides[0]
	if n := keys * side.ld; len(sc.dkey) < n {
		sc.dkey = make([]float32, n)
	}
	clear(sc.dkey)
	for h := kvHead * side.group; h < (kvHead+1)*side.group; h++ {
		for q0 := 0; q0 < queries; q0 += tile {
			t.block(sc, s, h, q0)
		}
	}
	for j := range keys {
		t.dkey.storeRow(sc.dkey[j*side.ld:], int64(t.keyStart[s])+int64(j), kvHead)
	}
}
