package kerneltest

import (
	"math"
	"testing"

	"github.com/longctx/longctx/tensor"
)

// TestScanGradients: the gradients of the oracle are the slopes of its outputs
// and states.
func TestScanGradients(t *testing.T) {
	for _, k := range scanKinds {
		c := &scanCase{lens: []int{4, 0, 3}, heads: 4, keyHeads: 2, keyDim: 3, valueDim: 2, dtype: tensor.F32, gate: k.gate, beta: k.beta, bonus: k.bonus}
		x, r := c.data(1), newRandom(3, 4)
		x.from, x.to = []int32{0, -1, 2}, []int32{3, 4, 5}
		dout, last := make([]float64, len(x.v)), make([]float64, len(c.lens)*c.stateLen())
		for _, y := range [][]float64{dout, last} {
			for i := range y {
				y[i] = r.normal()
			}
		}
		loss := func() (sum float64) {
			out, state := stepScan[float64](c, x)
			for i, y := range out {
				sum += y * dout[i]
			}
			for i, y := range last {
				sum += y * state[3*c.stateLen()+i]
			}
			return sum
		}
		g := stepScanBackward[float64](c, x, dout, last)
		var bonus []float64
		for i := range x.bonus {
			bonus = append(bonus, g.bonus[i]+g.bonus[len(x.bonus)+i]+g.bonus[2*len(x.bonus)+i])
		}
		for _, p := range []struct {
			name    string
			x, want []float64
		}{
			{"query", x.q, g.q}, {"key", x.k, g.k}, {"value", x.v, g.v}, {"gate", x.gate, g.gate}, {"beta", x.beta, g.beta}, {"bonus", x.bonus, bonus},
			{"first state", x.state[:c.stateLen()], g.first[:c.stateLen()]}, {"first state of the last", x.state[2*c.stateLen():][:c.stateLen()], g.first[2*c.stateLen():]},
		} {
			for i, y := range p.x {
				const step = 1e-5
				p.x[i] = y + step
				up := loss()
				p.x[i] = y - step
				got := (up - loss()) / (2 * step)
				p.x[i] = y
				if math.Abs(got-p.want[i]) > 1e-6*(1+math.Abs(got)) {
					t.Fatalf("%s: gradient %d of %s is %v, the slope %v", k.name, i, p.name, p.want[i], got)
				}
			}
		}
	}
}
