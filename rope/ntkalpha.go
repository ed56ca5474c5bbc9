// Sun et al., "Hunyuan-Large: An Open-Source MoE Model with 52 Billion
// Activated Parameters by Tencent", https://arxiv.org/abs/2411.02265, whose
// configurations name the factor of NTK-aware scaling "alpha".

package rope

import "github.com/longctx/longctx/kernel"

// NTKAlpha is NTK with its factor named as configurations of type "dynamic"
// with a key "alpha" have it: the base is θ·Alpha^(d/(d−2)) at every length,
// so such a configuration is not dynamic.
type NTKAlpha struct {
	Base
	Alpha float64
}

// Name returns "ntk-alpha".
func (NTKAlpha) Name() string { return "ntk-alpha" }

// Rotation does not depend on length.
func (m NTKAlpha) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.positive("Alpha", m.Alpha)
	c.pairsForNTK(m.Base)
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	d := m.dim()
	return m.lower(m.Name(), frequencies(d, ntkBase(m.theta(), m.Alpha, d)), 1)
}
