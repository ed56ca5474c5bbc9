// Grattafiori et al., "The Llama 3 Herd of Models",
// https://arxiv.org/abs/2407.21783; the rule is that of the Llama 3.1 code.

package rope

import (
	"math"

	"github.com/longctx/longctx/kernel"
)

// Llama3 divides by Factor the frequencies whose wavelength exceeds
// OriginalLength/LowFreqFactor, keeps those below OriginalLength/HighFreqFactor
// and blends between, by the number of turns in OriginalLength.
type Llama3 struct {
	Base
	Factor         float64
	LowFreqFactor  float64 // turns; 0: 1
	HighFreqFactor float64 // turns; 0: 4
	OriginalLength int     // trained length
}

// Name returns "llama3".
func (Llama3) Name() string { return "llama3" }

// Rotation does not depend on length.
func (m Llama3) Rotation(length int) (kernel.Rotation, error) {
	c := m.validate(m.Name(), length)
	c.positive("Factor", m.Factor)
	c.tokens("OriginalLength", m.OriginalLength)
	c.notNegative("LowFreqFactor", m.LowFreqFactor)
	c.notNegative("HighFreqFactor", m.HighFreqFactor)
	low, high := orDefault(m.LowFreqFactor, 1), orDefault(m.HighFreqFactor, 4)
	if !(low < high) {
		c.fail("HighFreqFactor", high, "above LowFreqFactor")
	}
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	f := frequencies(m.dim(), m.theta())
	n := float64(m.OriginalLength)
	for i, x := range f {
		switch wave := 2 * math.Pi / x; {
		case wave > n/low:
			f[i] = x / m.Factor
		case wave >= n/high:
			f[i] = blend(x/m.Factor, x, (n/wave-low)/(high-low))
		}
	}
	return m.lower(m.Name(), f, 1)
}
