package vec

import "github.com/longctx/longctx/kernel"

// Rotate turns the pairs of x by the angles whose cosines and sines are given:
//
//	x' = fma(x, c, −(y·s))    y' = fma(y, c, x·s)
//
// and with inverse by the opposite angles. Features past the pairs stay.
func Rotate(x, cos, sin []float32, layout kernel.RotaryLayout, inverse bool, policy kernel.Policy) {
	half, step, gap := len(cos), 1, len(cos)
	if layout == kernel.Interleaved {
		step, gap = 2, 1
	}
	x = x[:2*half]
	for k, c := range cos {
		s := sin[k]
		if inverse {
			s = -s
		}
		a, b := x[k*step], x[k*step+gap]
		if policy == kernel.Fast {
			x[k*step], x[k*step+gap] = float32(a*c)-float32(b*s), float32(b*c)+float32(a*s)
		} else {
			x[k*step], x[k*step+gap] = kernel.FMA(a, c, -float32(b*s)), kernel.FMA(b, c, float32(a*s))
		}
	}
}
