package vec

import "github.com/longctx/longctx/kernel"

// Rotate turns the pairs of x by the angles whose cosines and sines are given:
//
//	x' = fma(x, c, −(y·s))    y' = fma(y, c, x·s)
//
// and with inverse by the opposite angles. Features past the pairs stay.
func Rotate(x, cos, sin []float32, layout kernel.RotaryLayout, inverse bool, policy kernel.Policy) {
	x, sin = x[:2*len(cos)], sin[:len(cos)]
	done := rotate(x, cos, sin, layout, inverse)
	half, step, gap := len(cos), 1, len(cos)
	if layout == kernel.Interleaved {
		step, gap = 2, 1
	}
	for k := done; k < half; k++ {
		c, s := cos[k], sin[k]
		if inverse {
			s = -s
		}
		a, b := x[k*step], x[k*step+gap]
		x[k*step], x[k*step+gap] = FMA(policy, a, c, -float32(b*s)), FMA(policy, b, c, float32(a*s))
	}
}
