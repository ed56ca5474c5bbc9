// Barbero et al., "Round and Round We Go! What makes Rotary Positional
// Encodings useful?", https://arxiv.org/abs/2410.06205, section 6 (p-RoPE), in
// the form of Gemma 4's configurations.

package rope

import "github.com/longctx/longctx/kernel"

// Proportional keeps the first k = ⌊Partial·HeadDim/2⌋ frequencies
// θ^(−2i/HeadDim) and sets the others to 0, so their pairs are not turned.
// Unlike partial rotation in other methods, the exponent and the pairs of the
// half-split layout are those of the whole head: RotaryDim, if given, says
// 2k, while Rotation.Dim is HeadDim.
type Proportional struct {
	Base
	Factor float64 // divides the frequencies; 0: 1
}

// Name returns "proportional".
func (Proportional) Name() string { return "proportional" }

// Rotation does not depend on length.
func (m Proportional) Rotation(length int) (kernel.Rotation, error) {
	whole := m.Base
	whole.RotaryDim, whole.Partial = 0, 0
	c := whole.validate(m.Name(), length)
	c.notNegative("Factor", m.Factor)
	if m.RotaryDim < 0 || m.RotaryDim > m.HeadDim || m.RotaryDim%2 != 0 {
		c.fail("RotaryDim", m.RotaryDim, "even, 0 to HeadDim")
	}
	if !(m.partial() > 0 && m.partial() <= 1) {
		c.fail("Partial", m.Partial, "above 0, at most 1")
	}
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	f := scaled(frequencies(m.HeadDim, m.theta()), orDefault(m.Factor, 1))
	k := m.RotaryDim / 2
	if k == 0 {
		k = int(float64(m.HeadDim) * m.partial() / 2)
	}
	clear(f[k:])
	return m.lower(m.Name(), f, 1)
}
