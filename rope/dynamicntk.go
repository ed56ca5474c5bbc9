// emozilla, "Dynamically Scaled RoPE", 2023, described in Peng et al., "YaRN:
// Efficient Context Window Extension of Large Language Models",
// https://arxiv.org/abs/2309.00071, section 3.3.

package rope

import "github.com/longctx/longctx/kernel"

// DynamicNTK is NTK-aware scaling that grows with the sequence. With
// n = max(length, MaxLength) the base is
//
//	θ·(Factor·n/MaxLength − (Factor−1))^(d/(d−2))
//
// so nothing changes up to MaxLength. Beyond it every step changes every
// frequency: see DependsOnLength of Method for what that asks of a cache.
type DynamicNTK struct {
	Base
	Factor    float64
	MaxLength int // trained length
	// AtMaxLength computes the base once, at n = Factor·MaxLength, for all
	// lengths: how vLLM reads type "dynamic". The method then depends on
	// length no more, and differs from Hugging Face at every length but that.
	AtMaxLength bool
}

// Name returns "dynamic".
func (DynamicNTK) Name() string { return "dynamic" }

// DependsOnLength returns true, unless AtMaxLength is set.
func (m DynamicNTK) DependsOnLength() bool { return !m.AtMaxLength }

// Rotation depends on length above MaxLength, unless AtMaxLength is set.
func (m DynamicNTK) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.positive("Factor", m.Factor)
	c.tokens("MaxLength", m.MaxLength)
	c.pairsForNTK(m.Base)
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	grown := max(1, float64(length)/float64(m.MaxLength))
	if m.AtMaxLength {
		grown = max(1, m.Factor)
	}
	d := m.dim()
	// s·g − (s−1), written so that it is exactly 1 at g = 1
	s := 1 + float64(m.Factor*(grown-1))
	return m.lower(m.Name(), frequencies(d, ntkBase(m.theta(), s, d)), 1)
}
