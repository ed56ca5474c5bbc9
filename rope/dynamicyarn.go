// Peng et al., "YaRN: Efficient Context Window Extension of Large Language
// Models", https://arxiv.org/abs/2309.00071, sections 3.3 and 3.4 together.

package rope

import "github.com/longctx/longctx/kernel"

// DynamicYaRN is YaRN with the factor max(1, length/OriginalLength) of each
// step: the trained model up to OriginalLength, and from there new
// frequencies and a new attention factor with every token. See
// DependsOnLength of Method for what that asks of a cache.
type DynamicYaRN struct {
	Base
	OriginalLength int     // trained length
	BetaFast       float64 // as in YaRN
	BetaSlow       float64 // as in YaRN
	NoTruncate     bool    // as in YaRN
}

// Name returns "dynamic-yarn".
func (DynamicYaRN) Name() string { return "dynamic-yarn" }

// DependsOnLength returns true.
func (DynamicYaRN) DependsOnLength() bool { return true }

// Rotation depends on length above OriginalLength.
func (m DynamicYaRN) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.tokens("OriginalLength", m.OriginalLength)
	c.betas(m.BetaFast, m.BetaSlow)
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	s := max(1, float64(length)/float64(m.OriginalLength))
	f := yarnFrequencies(m.Base, s, m.OriginalLength, m.BetaFast, m.BetaSlow, !m.NoTruncate)
	return m.lower(m.Name(), f, yarnScale(s, 1))
}
