// Chen et al., "Extending Context Window of Large Language Models via Position
// Interpolation", https://arxiv.org/abs/2306.15595, equation 3.

package rope

import "github.com/longctx/longctx/kernel"

// Linear is position interpolation: every frequency divided by Factor, which
// is every position divided by Factor.
type Linear struct {
	Base
	Factor float64 // new length / trained length
}

// Name returns "linear".
func (Linear) Name() string { return "linear" }

// Rotation does not depend on length.
func (m Linear) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.positive("Factor", m.Factor)
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	return m.lower(m.Name(), scaled(frequencies(m.dim(), m.theta()), m.Factor), 1)
}
