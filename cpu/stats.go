package cpu

import (
	"math"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

// statsArgs is kernel.ColumnStatsArgs made ready. Query and Key are in
// runArgs.
type statsArgs struct {
	lse, out scalars
	square   bool
	maximum  bool
	window   int // 0: all queries
}

// statsScratch is what ColumnStats needs beyond forward.
type statsScratch struct {
	blk  block     // the block at work, without the tokens before the window
	sums []float32 // [tile] of one query head; with Maximum the largest
	zero []float32 // [tile]
	row  []float32 // [tile]
}

func newStatsScratch() statsScratch {
	return statsScratch{sums: make([]float32, tile), zero: make([]float32, tile), row: make([]float32, tile)}
}

// ColumnStats sums the weights of each key, a tile of keys of one KV head an
// item, so that each sum has one owner and one order.
func (a *attention) ColumnStats(args *kernel.ColumnStatsArgs) error {
	if !a.spec.ColumnStats {
		return &kernel.UnsupportedError{Backend: "cpu", Reasons: []string{"ColumnStats of a kernel without Spec.ColumnStats"}}
	}
	if err := a.begin(); err != nil {
		return err
	}
	defer a.busy.Store(false)
	if err := args.Validate(&a.spec, a.batch); err != nil {
		return err
	}
	if err := onHost(&args.Query, &args.Key, &args.KeyScale, &args.LSE, &args.Out, &args.Slopes, &args.RelBias, &args.PrefixBias, &args.SinkLogit); err != nil {
		return err
	}
	if err := codedOnHost(&args.CodedKey); err != nil {
		return err
	}
	a.args.query, a.args.key = read(&args.Query), readKeys(&args.Key, &args.KeyScale, &args.CodedKey, a.spec.Coding.Key)
	a.args.direct = [coded + 1]bool{} // tiles are decoded once for many rows
	a.stats = statsArgs{readScalars(&args.LSE), readScalars(&args.Out), args.Power == 2, args.Maximum, args.Window}
	a.score.set(&a.spec, &args.ScoreArgs)
	for _, sc := range a.scratch {
		sc.blk = nil
	}
	a.mode = columnStats
	a.pool.do(&a.job, a, a.heads.items(&a.spec))
	return nil
}

// columnStats computes the sums of some tiles of keys for the query heads of
// one KV head.
func (sc *scratch) columnStats(a *attention, item int64) {
	span := a.keySpan(item)
	for i := range span.tiles {
		sc.tileStats(a, span.tile(i))
	}
}

func (sc *scratch) tileStats(a *attention, t keyTile) {
	first := 0 // query token
	if w := a.stats.window; w > 0 {
		first = max(a.batch.QueryLen(t.seq)-w, 0)
	}
	sc.blk = nil // the tile at hand may be of another sequence
	c := &sc.stats
	for h := t.kvHead * a.spec.Group(); h < (t.kvHead+1)*a.spec.Group(); h++ {
		clear(c.sums)
		for _, b := range a.heads.of(t.seq*a.spec.Heads+h, 1) {
			if b = b.from(first); b.n == 0 {
				continue
			}
			fresh := sc.blk == nil
			c.blk = b
			sc.setBlock(a, &c.blk, false)
			if fresh {
				sc.setTile(0, t.j0, t.n)
			}
			if sc.sees(a) && sc.look(a, 0) != 0 {
				sc.loadQueries(a)
				sc.addColumnStats(a)
			}
		}
		for j, x := range c.sums[:t.n] {
			*a.stats.out.at(a.offsets[t.seq]+t.j0+int64(j), int64(h)) = x
		}
	}
}

// from is b without the tokens before t.
func (b block) from(t int) block {
	if skip := min(max(int32(t)-b.t0, 0), b.n); skip > 0 {
		b.t0, b.n = b.t0+skip, b.n-skip
	}
	return b
}

// addColumnStats adds the weights that the block's rows give to the tile.
func (sc *scratch) addColumnStats(a *attention) {
	c, scale := &sc.stats, sc.scoreRows(a)
	start := int64(a.batch.QueryStart[sc.blk.seq]) + int64(sc.blk.t0)
	for r := range sc.rows {
		s := sc.s[r*vec.Stride:][:vec.Stride]
		lse, visible := *a.stats.lse.at(start+int64(r), int64(sc.blk.head)), sc.any[r]
		if math.IsInf(float64(lse), -1) {
			visible = 0
		}
		vec.ScaleRow(s, scale[r])
		vec.Gradient(a.spec.Policy, s, c.zero, c.row, lse*kernel.Log2E, 0, visible) // for the weights alone
		if a.stats.square {
			clear(c.row)
			vec.AddProduct(a.spec.Policy, c.row, s, s)
			copy(s, c.row)
		}
	}
	if a.stats.maximum {
		for r := range sc.rows {
			largest(c.sums, sc.s[r*vec.Stride:][:tile])
		}
		return
	}
	vec.MulAdd(a.spec.Policy, vec.Matrix{X: c.sums}, vec.Matrix{X: ones[:], Col: 1}, vec.Matrix{X: sc.s, Row: vec.Stride},
		1, sc.rows, vec.Stride, vec.Keep, nil)
}

// largest raises each element of most to that of x; a NaN stays.
func largest(most, x []float32) {
	for j, w := range x {
		if w > most[j] || w != w {
			most[j] = w
		}
	}
}
