package vec

import (
	"math"

	"github.com/longctx/longctx/kernel"
)

// The sums below stay in float64 registers but hold float32 values: each step
// is kernel.FMA, spelled out so that four or eight chains overlap. A step whose
// float64 sum may not be rounded directly (about one in 2²⁹ of random data)
// raises a flag, and the tile is computed again by kernel.FMA itself: a call in
// the loop would cost its registers.

// step is one fused multiply-add on a float64 that holds a float32, and
// whether the plain rounding was right.
func step(a, b, c float64) (float64, bool) {
	p := a * b // exact
	s := p + c
	u := math.Float64bits(s)
	ok := true
	if u&0x1fffffff == 0x10000000 {
		t := s - p // a true tie is rounded to even either way
		ok = (p-(s-t))+(c-t) == 0
	}
	if u<<1-1 < 898<<53-1 { // float32(s) would be subnormal; 0 wraps and passes
		ok = false
	}
	return float64(float32(s)), ok
}

// DotExact sets s[r,j] to the chain over d of fma(k[j,d], q[r,d], ·) from +0.
func DotExact(s, q, k []float32, rows, keys, dim int) {
	for r := range rows {
		qr, sr := q[r*dim:][:dim], s[r*Stride:][:keys]
		j := 0
		for ; j+4 <= keys; j += 4 {
			k0, k1, k2, k3 := k[j*dim:][:dim], k[(j+1)*dim:][:dim], k[(j+2)*dim:][:dim], k[(j+3)*dim:][:dim]
			var a0, a1, a2, a3 float64
			good := true
			for d, x := range qr {
				x := float64(x)
				var ok bool
				if a0, ok = step(float64(k0[d]), x, a0); !ok {
					good = false
				}
				if a1, ok = step(float64(k1[d]), x, a1); !ok {
					good = false
				}
				if a2, ok = step(float64(k2[d]), x, a2); !ok {
					good = false
				}
				if a3, ok = step(float64(k3[d]), x, a3); !ok {
					good = false
				}
			}
			if good {
				sr[j], sr[j+1], sr[j+2], sr[j+3] = float32(a0), float32(a1), float32(a2), float32(a3)
				continue
			}
			for i := j; i < j+4; i++ {
				sr[i] = dotExact(qr, k[i*dim:][:dim])
			}
		}
		for ; j < keys; j++ {
			sr[j] = dotExact(qr, k[j*dim:][:dim])
		}
	}
}

func dotExact(q, k []float32) float32 {
	var a float32
	for d, x := range k {
		a = kernel.FMA(x, q[d], a)
	}
	return a
}

// AddPVExact sets o[r,d] to the chain over keys of fma(v[j,d], p[r,j], ·).
func AddPVExact(o, p, v []float32, rows, keys, dim int) {
	for r := range rows {
		or, pr := o[r*dim:][:dim], p[r*Stride:][:keys]
		d := 0
		for ; d+4 <= dim; d += 4 {
			a0, a1, a2, a3 := float64(or[d]), float64(or[d+1]), float64(or[d+2]), float64(or[d+3])
			good := true
			for j, x := range pr {
				x := float64(x)
				w := v[j*dim+d:][:4]
				var ok bool
				if a0, ok = step(float64(w[0]), x, a0); !ok {
					good = false
				}
				if a1, ok = step(float64(w[1]), x, a1); !ok {
					good = false
				}
				if a2, ok = step(float64(w[2]), x, a2); !ok {
					good = false
				}
				if a3, ok = step(float64(w[3]), x, a3); !ok {
					good = false
				}
			}
			if good {
				or[d], or[d+1], or[d+2], or[d+3] = float32(a0), float32(a1), float32(a2), float32(a3)
				continue
			}
			for i := d; i < d+4; i++ {
				or[i] = pvExact(or[i], pr, v[i:], dim)
			}
		}
		for ; d < dim; d++ {
			or[d] = pvExact(or[d], pr, v[d:], dim)
		}
	}
}

func pvExact(o float32, p, v []float32, dim int) float32 {
	for j, x := range p {
		o = kernel.FMA(v[j*dim], x, o)
	}
	return o
}

// AxpyExact sets y[d] = fma(x[d], a, y[d]).
func AxpyExact(y, x []float32, a float32) {
	y = y[:len(x)]
	for d, z := range x {
		y[d] = kernel.FMA(z, a, y[d])
	}
}

// ExpExact replaces t[j] by E(t[j] − m) and returns l plus their sum, one
// after another.
func ExpExact(t []float32, m, l float32) float32 {
	for j, x := range t {
		p := kernel.Exp2(x - m)
		t[j] = p
		l += p
	}
	return l
}
