package cpu

import (
	"math"

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
		d := i - j
		if d > 0 {
			d = -d
		}
		t = kernel.FMA(*c.slopes.at(int64(h), 0)*kernel.Log2E, float32(d), t)
	}
	if c.scores&kernel.ScoreRelBias != 0 {
		k := min(max(i-j-c.relBiasStart, 0), c.relBias.cols-1)
		t = kernel.FMA(*c.relBias.at(int64(h), k), kernel.Log2E, t)
	}
	if c.scores&kernel.ScorePrefixBias != 0 {
		d := *c.prefixBias.at(keyOffset+i, int64(h)) - *c.prefixBias.at(keyOffset+j, int64(h))
		t = kernel.FMA(d, kernel.Log2E, t)
	}
	return t, th
}
