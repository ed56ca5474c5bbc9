// Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million
// Tokens", https://arxiv.org/abs/2402.13753, equation 3; the attention factor
// is that of Abdin et al., "Phi-3 Technical Report",
// https://arxiv.org/abs/2404.14219, models.

package rope

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
)

// LongRoPE divides each frequency by its own factor, from Short up to
// OriginalLength tokens and from Long above, and multiplies queries and keys
// by
//
//	A = ShortMScale or LongMScale, of the list in use, if set
//	A = AttentionFactor                      if set
//	A = √(1 + ln s/ln OriginalLength)        otherwise, and 1 if s <= 1
//
// with s = Factor, or MaxLength/OriginalLength if Factor is 0.
//
// A sequence that grows past OriginalLength changes every frequency at once.
// Pass the longest length the sequence may reach at every step to choose once
// for its life (as vLLM does), or see DependsOnLength of Method.
type LongRoPE struct {
	Base
	Short, Long     []float64 // [RotaryDim/2]
	OriginalLength  int       // trained length
	MaxLength       int       // extended length; read only where Factor is 0
	Factor          float64   // 0: MaxLength/OriginalLength
	AttentionFactor float64   // 0: not set
	ShortMScale     float64   // 0: not set
	LongMScale      float64   // 0: not set
}

// Name returns "longrope".
func (LongRoPE) Name() string { return "longrope" }

// DependsOnLength returns true.
func (LongRoPE) DependsOnLength() bool { return true }

// Rotation depends on whether length > OriginalLength: a sequence of exactly
// OriginalLength tokens is still a short one.
func (m LongRoPE) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.tokens("OriginalLength", m.OriginalLength)
	c.notNegative("Factor", m.Factor)
	c.notNegative("AttentionFactor", m.AttentionFactor)
	c.notNegative("ShortMScale", m.ShortMScale)
	c.notNegative("LongMScale", m.LongMScale)
	c.factors("Short", m.Short, m.Base)
	c.factors("Long", m.Long, m.Base)
	scale, by := m.ShortMScale, m.Short
	if length > m.OriginalLength {
		scale, by = m.LongMScale, m.Long
	}
	a := m.attention(c, scale)
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	f := frequencies(m.dim(), m.theta())
	for i := range f {
		f[i] /= by[i]
	}
	return m.lower(m.Name(), f, a)
}

func (m LongRoPE) attention(c *check, scale float64) float64 {
	switch {
	case scale != 0:
		return scale
	case m.AttentionFactor != 0:
		return m.AttentionFactor
	}
	s := m.Factor
	if s == 0 {
		c.tokens("MaxLength (Factor and AttentionFactor are not set)", m.MaxLength)
		s = float64(m.MaxLength) / float64(m.OriginalLength)
	}
	if s <= 1 {
		return 1
	}
	if m.OriginalLength < 2 {
		c.fail("OriginalLength", m.OriginalLength, "2 or more")
	}
	return math.Sqrt(1 + xmath.Log(s)/xmath.Log(float64(m.OriginalLength)))
}

// factors checks a list of divisors, one a pair.
func (c *check) factors(field string, x []float64, b Base) {
	if c.err != nil {
		return
	}
	if len(x) != b.dim()/2 {
		c.fail(fmt.Sprintf("len(%s)", field), len(x), fmt.Sprintf("RotaryDim/2 = %d", b.dim()/2))
	}
	for i, v := range x {
		c.positive(fmt.Sprintf("%s[%d]", field, i), v)
	}
}
