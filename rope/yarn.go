// Peng et al., "YaRN: Efficient Context Window Extension of Large Language
// Models", https://arxiv.org/abs/2309.00071, section 3.4.

package rope

import (
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
)

// YaRN divides by Factor the frequencies that do not turn BetaSlow times
// within OriginalLength, keeps those that turn BetaFast times, blends between,
// and multiplies queries and keys by an attention factor A:
//
//	A = AttentionFactor                           if it is set: it replaces the rest
//	A = g(MScale)/g(MScaleAllDim)                 if both are set
//	A = g(1)                                      otherwise
//	g(m) = 1 + 0.1·m·ln Factor, and 1 if Factor <= 1
type YaRN struct {
	Base
	Factor         float64 // new length / OriginalLength
	OriginalLength int     // trained length
	BetaFast       float64 // turns; 0: 32
	BetaSlow       float64 // turns; 0: 1
	// NoTruncate leaves the borders of the ramp where the formula puts them,
	// between pairs (gpt-oss). Otherwise they are moved outward to whole pairs.
	NoTruncate      bool
	MScale          float64 // 0: not set
	MScaleAllDim    float64 // 0: not set
	AttentionFactor float64 // 0: not set
	// ScaleScores multiplies every score by g(MScaleAllDim)², as the
	// attention of DeepSeek-V2 and later models with latent attention does
	// beside the factor A: Rotation.ScoreScale.
	ScaleScores bool
}

// Name returns "yarn".
func (YaRN) Name() string { return "yarn" }

// Rotation does not depend on length.
func (m YaRN) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.positive("Factor", m.Factor)
	c.tokens("OriginalLength", m.OriginalLength)
	c.betas(m.BetaFast, m.BetaSlow)
	c.notNegative("MScale", m.MScale)
	c.notNegative("MScaleAllDim", m.MScaleAllDim)
	c.notNegative("AttentionFactor", m.AttentionFactor)
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	f := yarnFrequencies(m.Base, m.Factor, m.OriginalLength, m.BetaFast, m.BetaSlow, !m.NoTruncate)
	a := yarnScale(m.Factor, 1)
	switch {
	case m.AttentionFactor != 0:
		a = m.AttentionFactor
	case m.MScale != 0 && m.MScaleAllDim != 0:
		a = yarnScale(m.Factor, m.MScale) / yarnScale(m.Factor, m.MScaleAllDim)
	}
	r, err := m.lower(m.Name(), f, a)
	if err == nil && m.ScaleScores {
		g := yarnScale(m.Factor, m.MScaleAllDim)
		r.ScoreScale = g * g
		if !(r.ScoreScale <= math.MaxFloat32) {
			c.fail("MScaleAllDim", m.MScaleAllDim, "smaller: the score scale is no float32")
			return kernel.Rotation{}, c.err
		}
	}
	return r, err
}

// yarnScale is g(m).
func yarnScale(s, m float64) float64 {
	if s <= 1 {
		return 1
	}
	return float64(0.1*m*xmath.Log(s)) + 1
}

func (c *check) betas(fast, slow float64) {
	c.notNegative("BetaFast", fast)
	c.notNegative("BetaSlow", slow)
	if fast, slow = orDefault(fast, 32), orDefault(slow, 1); c.err == nil && fast < slow {
		c.fail("BetaFast", fast, "BetaSlow or more")
	}
}

func yarnFrequencies(b Base, s float64, length int, fast, slow float64, truncate bool) []float64 {
	f := frequencies(b.dim(), b.theta())
	r := newRamp(b.dim(), b.theta(), length, orDefault(fast, 32), orDefault(slow, 1), truncate)
	for i := range f {
		f[i] = blend(f[i], f[i]/s, r.at(i))
	}
	return f
}

// ramp goes from 0 at pair low to 1 at pair high.
type ramp struct{ low, high float64 }

// newRamp puts the ends where a pair turns fast and slow times in length
// positions. The upper end is clamped to d−1, although the last pair is
// d/2−1: all implementations do so, and gpt-oss was trained so.
func newRamp(d int, theta float64, length int, fast, slow float64, truncate bool) ramp {
	pair := func(turns float64) float64 {
		return float64(d) * xmath.Log(float64(length)/(turns*2*math.Pi)) / (2 * xmath.Log(theta))
	}
	r := ramp{pair(fast), pair(slow)}
	if truncate {
		r.low, r.high = math.Floor(r.low), math.Ceil(r.high)
	}
	r.low, r.high = max(r.low, 0), min(r.high, float64(d-1))
	if r.low == r.high {
		r.high += 0.001 // a step, where a ramp would divide by 0
	}
	return r
}

func (r ramp) at(i int) float64 {
	return min(max((float64(i)-r.low)/(r.high-r.low), 0), 1)
}

// blend is x at t = 0 and y at t = 1, both exactly.
func blend(x, y, t float64) float64 {
	return float64(y*t) + float64(x*(1-t))
}
