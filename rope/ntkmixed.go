// Su, "Transformer upgrade path 11: carrying β-base positions to the end" (in
// Chinese), https://kexue.fm/archives/9706: the mixed-base form.

package rope

import (
	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
)

// NTKMixed divides frequency i by exp(a·(i+1)^b) with a = ln Factor/(d/2)^b:
// the lowest by Factor, higher ones by less. vLLM reads type "ntk" with
// "mixed_b" so.
type NTKMixed struct {
	Base
	Factor   float64
	Exponent float64 // b; 0: 0.625
}

// Name returns "ntk-mixed".
func (NTKMixed) Name() string { return "ntk-mixed" }

// Rotation does not depend on length.
func (m NTKMixed) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.positive("Factor", m.Factor)
	c.notNegative("Exponent", m.Exponent)
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	b := orDefault(m.Exponent, 0.625)
	f := frequencies(m.dim(), m.theta())
	a := xmath.Log(m.Factor)
	for i := range f {
		// ((i+1)/(d/2))^b, not two powers: those overflow apart for a large b
		f[i] /= xmath.Exp(a * xmath.Pow(float64(i+1)/float64(len(f)), b))
	}
	return m.lower(m.Name(), f, 1)
}

func orDefault(x, d float64) float64 {
	if x == 0 {
		return d
	}
	return x
}
