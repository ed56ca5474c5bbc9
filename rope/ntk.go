// bloc97, "NTK-Aware Scaled RoPE", 2023, described in Peng et al., "YaRN:
// Efficient Context Window Extension of Large Language Models",
// https://arxiv.org/abs/2309.00071, section 3.1, definition 1.

package rope

import "github.com/longctx/longctx/kernel"

// NTK is NTK-aware scaling with a fixed factor: the base becomes
// θ·Factor^(d/(d−2)), so that the highest frequency stays and the lowest is
// divided by Factor.
type NTK struct {
	Base
	Factor float64
}

// Name returns "ntk".
func (NTK) Name() string { return "ntk" }

// Rotation does not depend on length.
func (m NTK) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.positive("Factor", m.Factor)
	c.pairsForNTK(m.Base)
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	d := m.dim()
	return m.lower(m.Name(), frequencies(d, ntkBase(m.theta(), m.Factor, d)), 1)
}
