package vec

import (
	"math"

	"github.com/longctx/longctx/kernel"
)

// DotFast sets s[r,j] = Σ_d k[j,d]·q[r,d] for rows × keys.
//
// Two rows by four keys are kept in registers: 8 sums for 6 loads.
func DotFast(s, q, k []float32, rows, keys, dim int) {
	r := 0
	for ; r+2 <= rows; r += 2 {
		q0, q1 := q[r*dim:][:dim], q[(r+1)*dim:][:dim]
		j := 0
		for ; j+4 <= keys; j += 4 {
			k0, k1, k2, k3 := k[j*dim:][:dim], k[(j+1)*dim:][:dim], k[(j+2)*dim:][:dim], k[(j+3)*dim:][:dim]
			var a0, a1, a2, a3, b0, b1, b2, b3 float32
			for d := range dim {
				x, y := q0[d], q1[d]
				z := k0[d]
				a0 += float32(z * x)
				b0 += float32(z * y)
				z = k1[d]
				a1 += float32(z * x)
				b1 += float32(z * y)
				z = k2[d]
				a2 += float32(z * x)
				b2 += float32(z * y)
				z = k3[d]
				a3 += float32(z * x)
				b3 += float32(z * y)
			}
			t := s[r*Stride+j:][:4]
			t[0], t[1], t[2], t[3] = a0, a1, a2, a3
			t = s[(r+1)*Stride+j:][:4]
			t[0], t[1], t[2], t[3] = b0, b1, b2, b3
		}
		for ; j < keys; j++ {
			kj := k[j*dim:][:dim]
			var a, b float32
			for d, z := range kj {
				a += float32(z * q0[d])
				b += float32(z * q1[d])
			}
			s[r*Stride+j], s[(r+1)*Stride+j] = a, b
		}
	}
	if r < rows {
		dotRowFast(s[r*Stride:], q[r*dim:][:dim], k, keys, dim)
	}
}

func dotRowFast(s, q, k []float32, keys, dim int) {
	j := 0
	for ; j+4 <= keys; j += 4 {
		k0, k1, k2, k3 := k[j*dim:][:dim], k[(j+1)*dim:][:dim], k[(j+2)*dim:][:dim], k[(j+3)*dim:][:dim]
		var a0, a1, a2, a3 float32
		for d := range dim {
			x := q[d]
			a0 += float32(k0[d] * x)
			a1 += float32(k1[d] * x)
			a2 += float32(k2[d] * x)
			a3 += float32(k3[d] * x)
		}
		s[j], s[j+1], s[j+2], s[j+3] = a0, a1, a2, a3
	}
	for ; j < keys; j++ {
		var a float32
		for d, z := range k[j*dim:][:dim] {
			a += float32(z * q[d])
		}
		s[j] = a
	}
}

// AddPVFast adds o[r,d] += v[j,d]·p[r,j] for keys ascending.
func AddPVFast(o, p, v []float32, rows, keys, dim int) {
	r := 0
	for ; r+2 <= rows; r += 2 {
		o0, o1 := o[r*dim:][:dim], o[(r+1)*dim:][:dim]
		p0, p1 := p[r*Stride:][:keys], p[(r+1)*Stride:][:keys]
		d := 0
		for ; d+4 <= dim; d += 4 {
			a0, a1, a2, a3 := o0[d], o0[d+1], o0[d+2], o0[d+3]
			b0, b1, b2, b3 := o1[d], o1[d+1], o1[d+2], o1[d+3]
			for j, x := range p0 {
				y := p1[j]
				w := v[j*dim+d:][:4]
				z := w[0]
				a0 += float32(z * x)
				b0 += float32(z * y)
				z = w[1]
				a1 += float32(z * x)
				b1 += float32(z * y)
				z = w[2]
				a2 += float32(z * x)
				b2 += float32(z * y)
				z = w[3]
				a3 += float32(z * x)
				b3 += float32(z * y)
			}
			o0[d], o0[d+1], o0[d+2], o0[d+3] = a0, a1, a2, a3
			o1[d], o1[d+1], o1[d+2], o1[d+3] = b0, b1, b2, b3
		}
		for ; d < dim; d++ {
			a, b := o0[d], o1[d]
			for j, x := range p0 {
				a += float32(v[j*dim+d] * x)
				b += float32(v[j*dim+d] * p1[j])
			}
			o0[d], o1[d] = a, b
		}
	}
	for ; r < rows; r++ {
		for j, x := range p[r*Stride:][:keys] {
			AxpyFast(o[r*dim:][:dim], v[j*dim:][:dim], x)
		}
	}
}

// AxpyFast adds y[d] += x[d]·a.
func AxpyFast(y, x []float32, a float32) {
	y = y[:len(x)]
	for d, z := range x {
		y[d] += float32(z * a)
	}
}

// ExpFast replaces t[j] by E(t[j] − m) and returns l plus their sum.
func ExpFast(t []float32, m, l float32) float32 {
	for j, x := range t {
		p := Exp2Fast(x - m)
		t[j] = p
		l += p
	}
	return l
}

// Exp2Fast is kernel.Exp2 without fused operations.
func Exp2Fast(x float32) float32 {
	if !(x >= -125) {
		if x < -125 {
			return 0
		}
		return x
	}
	const shift float32 = 12582912
	c := &kernel.Exp2Coef
	z := x + shift
	r := x - (z - shift)
	q := float32(c[0]*r) + c[1]
	q = float32(q*r) + c[2]
	q = float32(q*r) + c[3]
	q = float32(q*r) + c[4]
	q = float32(q*r) + c[5]
	return math.Float32frombits(math.Float32bits(q) + math.Float32bits(z)<<23)
}
