// Su, "Transformer upgrade path 11: carrying β-base positions to the end" (in
// Chinese), https://kexue.fm/archives/9706.

package rope

import (
	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
)

// NTKFixed multiplies the base by Factor and divides every frequency by
// Factor^(2/d), which together divide the lowest frequency by Factor. vLLM
// reads type "ntk" without "mixed_b" so.
type NTKFixed struct {
	Base
	Factor float64
}

// Name returns "ntk-fixed".
func (NTKFixed) Name() string { return "ntk-fixed" }

// Rotation does not depend on length.
func (m NTKFixed) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.positive("Factor", m.Factor)
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	d := m.dim()
	f := frequencies(d, m.theta()*m.Factor)
	return m.lower(m.Name(), scaled(f, xmath.Pow(m.Factor, 2/float64(d))), 1)
}
