package cpu

import (
	"math"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

// scoring turns dot products into scores in units of log 2.
type scoring struct {
	scores       kernel.Scores
	perKey       bool // a modification depends on more than the product
	inv, capL    float32
	relBiasStart int64

	slopes, relBias, prefixBias, sinkLogit scalars
}

// scoreScratch is the memory of modifications.
type scoreScratch struct {
	mod  []float32 // [rows][tile] or [tile][vec.Lanes] scores of a term
	ramp []float32 // a value for each distance and head
	a, b [vec.Lanes]float32
	row  [vec.Stride]float32
}

func (c *scoring) set(s *kernel.Spec, a *kernel.ScoreArgs) {
	*c = scoring{scores: s.Scores, relBiasStart: int64(s.RelBiasStart)}
	c.perKey = s.Scores&^kernel.ScoreSinkLogit != 0
	c.inv, c.capL = float32(1/(s.SoftCap*math.Log2E)), float32(s.SoftCap*math.Log2E)
	if s.Scores&kernel.ScoreSlopes != 0 {
		c.slopes = readScalars(&a.Slopes)
	}
	if s.Scores&kernel.ScoreRelBias != 0 {
		c.relBias = readScalars(&a.RelBias)
	}
	if s.Scores&kernel.ScorePrefixBias != 0 {
		c.prefixBias = readScalars(&a.PrefixBias)
	}
	if s.Scores&kernel.ScoreSinkLogit != 0 {
		c.sinkLogit = readScalars(&a.SinkLogit)
	}
}

// at is the score of product x = q·k for head h, indices i and j, after all
// modifications. Their order is that of package kernel. th is the hyperbolic
// tangent of the soft cap, which its gradient needs.
func (c *scoring) at(x, scale float32, h int, i, j, keyOffset int64) (t, th float32) {
	t = x * scale
	if c.scores&kernel.ScoreSoftCap != 0 {
		th = kernel.Tanh(t * c.inv)
		t = th * c.capL
	}
	if c.scores&kernel.ScoreSlopes != 0 {
		t = kernel.FMA(*c.slopes.at(int64(h), 0)*kernel.Log2E, c.relative(kernel.ScoreSlopes, h, i-j), t)
	}
	if c.scores&kernel.ScoreRelBias != 0 {
		t = kernel.FMA(c.relative(kernel.ScoreRelBias, h, i-j), kernel.Log2E, t)
	}
	if c.scores&kernel.ScorePrefixBias != 0 {
		t = kernel.FMA(c.prefix(int64(h), i, j, keyOffset), kernel.Log2E, t)
	}
	return t, th
}

// relative is the value for a pair of distance i−j: what the slopes or the
// relative bias of head h are multiplied with or add.
func (c *scoring) relative(kind kernel.Scores, h int, distance int64) float32 {
	if kind == kernel.ScoreSlopes {
		return float32(-max(distance, -distance))
	}
	return *c.relBias.at(int64(h), min(max(distance-c.relBiasStart, 0), c.relBias.cols-1))
}

// modifyStrip sets scores of keys lo … hi−1 of the tile for strip x from the
// products sc.raw, all lanes alike, seen or not: at for 32 rows side by side.
func (sc *scratch) modifyStrip(a *attention, term, x, lo, hi int) (scores []float32) {
	c, m := &a.score, &sc.mods
	scores = m.mod[lo*vec.Lanes : hi*vec.Lanes]
	vec.Take(scores, sc.raw[lo*vec.Lanes:], hi-lo, sc.scale[term*sc.stride+x*vec.Lanes:], everything)
	if c.scores&kernel.ScoreSoftCap != 0 {
		vec.SoftCap(scores, c.inv, c.capL)
	}
	first, end := sc.partRows(x)
	for _, kind := range [...]kernel.Scores{kernel.ScoreSlopes, kernel.ScoreRelBias} {
		if c.scores&kind == 0 {
			continue
		}
		for i := range vec.Lanes {
			m.b[i] = kernel.Log2E
			if kind == kernel.ScoreSlopes && first+i < end {
				_, head := sc.row(a, first+i)
				m.b[i] = *c.slopes.at(int64(head), 0) * kernel.Log2E
			}
		}
		// A pair's value depends on i−j and the head alone, so that the lanes
		// of one key are those of the key before, moved by a token.
		g := int(sc.blk.heads)
		t0, t1 := first/g, (end-1)/g
		i0 := sc.seq.i0 + int64(sc.blk.t0)
		ramp := m.ramp[:0]
		for d := i0 + int64(t0) - sc.j0 - int64(hi-1); d <= i0+int64(t1)-sc.j0-int64(lo); d++ {
			for h := range g {
				ramp = append(ramp, c.relative(kind, int(sc.blk.head)+h, d))
			}
		}
		n := end - first
		for j := lo; j < hi; j++ {
			at := (hi-1-j)*g + first - t0*g
			vec.AddProduct(kernel.Exact, scores[(j-lo)*vec.Lanes:][:n], ramp[at:], m.b[:])
		}
	}
	if c.scores&kernel.ScorePrefixBias != 0 {
		for i := range m.b {
			m.b[i] = kernel.Log2E
		}
		for j := lo; j < hi; j++ {
			for i := range end - first {
				t, head := sc.row(a, first+i)
				m.a[i] = c.prefix(int64(head), sc.seq.i0+t, sc.j0+int64(j), sc.seq.keyOffset)
			}
			vec.AddProduct(kernel.Exact, scores[(j-lo)*vec.Lanes:][:end-first], m.a[:], m.b[:])
		}
	}
	return scores
}

// everything shows all keys to all lanes.
var everything = func() []uint32 {
	x := make([]uint32, vec.Stride)
	for i := range x {
		x[i] = 1<<vec.Lanes - 1
	}
	return x
}()

// modifyRow sets the scores of row r with all keys of the tile, as modifyStrip
// does.
func (sc *scratch) modifyRow(a *attention, term, r int) (scores []float32) {
	c, m := &a.score, &sc.mods
	scores = m.mod[r*vec.Stride:][:vec.Stride]
	copy(scores, sc.raw[r*vec.Stride:])
	vec.ScaleRow(scores, sc.scale[term*sc.stride+r])
	if c.scores&kernel.ScoreSoftCap != 0 {
		vec.SoftCap(scores, c.inv, c.capL)
	}
	t, head := sc.row(a, r)
	i := sc.seq.i0 + t
	add := func(f float32, value func(j int64) float32) {
		for k := range sc.n {
			m.row[k] = value(sc.j0 + int64(k))
			m.ramp[k] = f
		}
		vec.AddProduct(kernel.Exact, scores[:sc.n], m.row[:], m.ramp[:vec.Stride])
	}
	if c.scores&kernel.ScoreSlopes != 0 {
		add(*c.slopes.at(int64(head), 0)*kernel.Log2E, func(j int64) float32 { return c.relative(kernel.ScoreSlopes, head, i-j) })
	}
	if c.scores&kernel.ScoreRelBias != 0 {
		add(kernel.Log2E, func(j int64) float32 { return c.relative(kernel.ScoreRelBias, head, i-j) })
	}
	if c.scores&kernel.ScorePrefixBias != 0 {
		add(kernel.Log2E, func(j int64) float32 { return c.prefix(int64(head), i, j, sc.seq.keyOffset) })
	}
	return scores
}

// prefix is the prefix bias of a pair. A query before the first key has none,
// and sees none.
func (c *scoring) prefix(head, i, j, keyOffset int64) float32 {
	if i < 0 {
		return 0
	}
	return *c.prefixBias.at(keyOffset+i, head) - *c.prefixBias.at(keyOffset+j, head)
}
