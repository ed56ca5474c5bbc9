// Sun et al., "A Length-Extrapolatable Transformer",
// https://arxiv.org/abs/2212.10554, section 3.2.

package rope

import (
	"github.com/longctx/longctx/kernel"
)

// XPos adds a decay to the rotation: pair i of a query at position p is
// multiplied by ζ_i^(p/ScaleBase) and of a key divided by it, with
// ζ_i = (2i + Gamma·d)/((1+Gamma)·d). A score decays with the distance of
// query and key alone, but each factor goes with its position: past some
// 36,000 tokens (with the published constants) one leaves float32, and Table
// refuses the position. Subtract a common origin from all positions there.
//
// The paper pairs neighbours: Layout kernel.Interleaved.
type XPos struct {
	Base
	ScaleBase float64 // 0: 512
	Gamma     float64 // 0: 0.4
}

// Name returns "xpos".
func (XPos) Name() string { return "xpos" }

// Rotation does not depend on length.
func (m XPos) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.notNegative("ScaleBase", m.ScaleBase)
	c.notNegative("Gamma", m.Gamma)
	if m.CompatF32 {
		c.fail("CompatF32", true, "false: it has no decay")
	}
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	d := float64(m.dim())
	r, err := m.lower(m.Name(), frequencies(m.dim(), m.theta()), 1)
	if err != nil {
		return r, err
	}
	gamma := orDefault(m.Gamma, 0.4)
	r.ZetaBase = orDefault(m.ScaleBase, 512)
	r.Zeta = make([]float64, len(r.InvFreq))
	for i := range r.Zeta {
		r.Zeta[i] = (float64(2*i)/d + gamma) / (1 + gamma)
	}
	return r, nil
}
