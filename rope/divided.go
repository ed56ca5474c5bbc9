// Frequency factors: the tensor "rope_freqs.weight" of GGUF files, by which
// Llama 3.1 and later models carry their frequencies,
// https://github.com/ggml-org/llama.cpp.

package rope

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// Divided divides the frequency of pair i of another method by Factors[i].
type Divided struct {
	Method
	Factors []float64 // [RotaryDim/2], above 0
}

// Name is the other method's, with "/factors" appended.
func (m Divided) Name() string {
	if m.Method == nil {
		return "factors"
	}
	return m.Method.Name() + "/factors"
}

// Rotation depends on length as the other method does.
func (m Divided) Rotation(length int) (kernel.Rotation, error) {
	c := check{method: m.Name()}
	if m.Method == nil {
		c.fail("Method", nil, "a method")
		return kernel.Rotation{}, c.err
	}
	r, err := m.Method.Rotation(length)
	if err != nil {
		return r, err
	}
	if len(m.Factors) != len(r.InvFreq) {
		c.fail("len(Factors)", len(m.Factors), fmt.Sprintf("the number of pairs, %d", len(r.InvFreq)))
		return kernel.Rotation{}, c.err
	}
	f := make([]float64, len(r.InvFreq))
	for i, x := range m.Factors {
		c.positive(fmt.Sprintf("Factors[%d]", i), x)
		f[i] = r.InvFreq[i] / x
		c.notNegative(fmt.Sprintf("the frequency of pair %d", i), f[i])
	}
	if c.err != nil {
		return kernel.Rotation{}, c.err
	}
	r.InvFreq = f
	return r, nil
}
