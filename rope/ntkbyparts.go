// bloc97, "NTK-by-parts", 2023, described in Peng et al., "YaRN: Efficient
// Context Window Extension of Large Language Models",
// https://arxiv.org/abs/2309.00071, section 3.2; the constants are those of
// https://github.com/jquesnelle/yarn.

package rope

import "github.com/longctx/longctx/kernel"

// NTKByParts keeps the frequencies that turn often within OriginalLength,
// divides by Factor those that do not complete a turn, and takes NTK's
// between, with a ramp at either border: by number of turns from 16 to 2 and
// from 1.25 to 0.75. YaRN superseded it.
type NTKByParts struct {
	Base
	Factor         float64
	OriginalLength int // trained length
}

// Name returns "ntk-by-parts".
func (NTKByParts) Name() string { return "ntk-by-parts" }

// Rotation does not depend on length.
func (m NTKByParts) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.positive("Factor", m.Factor)
	c.tokens("OriginalLength", m.OriginalLength)
	c.pairsForNTK(m.Base)
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	d := m.dim()
	f := frequencies(d, m.theta())
	ntk := frequencies(d, ntkBase(m.theta(), m.Factor, d))
	slow := newRamp(d, m.theta(), m.OriginalLength, 1.25, 0.75, true)
	fast := newRamp(d, m.theta(), m.OriginalLength, 16, 2, true)
	for i := range f {
		x := blend(ntk[i], f[i]/m.Factor, slow.at(i))
		f[i] = blend(f[i], x, fast.at(i))
	}
	return m.lower(m.Name(), f, 1)
}
