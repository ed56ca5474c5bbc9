package kerneltest

import (
	"math"

	"github.com/longctx/longctx/tensor"
)

// The element types by arithmetic alone, apart from the bit tricks of package
// tensor that the kernels use.

// precision is the number of significant bits, and the exponent of the
// smallest normal number.
func precision(d tensor.DType) (digits, least int) {
	switch d {
	case tensor.F16:
		return 11, -14
	case tensor.BF16:
		return 8, -126
	case tensor.F8E4M3:
		return 4, -6
	case tensor.F8E5M2:
		return 3, -14
	}
	return 24, -126
}

// unit is the spacing of numbers of type d just above |x|, or more exactly one
// rounding unit at that magnitude.
func unit(d tensor.DType, x float64) float64 {
	digits, least := precision(d)
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return math.Ldexp(1, least-(digits-1))
	}
	_, e := math.Frexp(x) // |x| = [0.5, 1)·2^e
	return math.Ldexp(1, max(e-1, least)-(digits-1))
}

// largest is the largest number of type d.
func largest(d tensor.DType) float64 {
	return map[tensor.DType]float64{tensor.F16: 65504, tensor.BF16: 0x1.FEp127, tensor.F32: math.MaxFloat32, tensor.F8E4M3: 448, tensor.F8E5M2: 57344}[d]
}

// round rounds to type d, to nearest, ties to even. FP8 saturates.
func round(d tensor.DType, x float64) float64 {
	if d.Float8() && math.Abs(x) > largest(d) {
		return math.Copysign(largest(d), x)
	}
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return x
	}
	u := unit(d, x)
	y := math.RoundToEven(x/u) * u
	if math.Abs(y) > largest(d) {
		return math.Copysign(math.Inf(1), x)
	}
	return y
}

// encode is the bits of x, which is a number of type d already.
func encode(d tensor.DType, x float64) uint32 {
	f := math.Float32bits(float32(x))
	switch d {
	case tensor.BF16:
		return f >> 16
	case tensor.F16:
		sign := f >> 16 & 0x8000
		a := math.Abs(x)
		switch {
		case x != x:
			return sign | 0x7e00
		case a > 65504:
			return sign | 0x7c00
		case a < 0x1p-14:
			return sign | uint32(a*0x1p24)
		}
		m, e := math.Frexp(a)
		return sign | uint32(e-1+15)<<10 | uint32(m*0x1p11)&0x3ff
	case tensor.F8E4M3, tensor.F8E5M2:
		sign := f >> 24 & 0x80
		if x != x {
			return sign | 0x7f
		}
		a, u := math.Abs(x), unit(d, x)
		digits, least := precision(d)
		n := uint32(a / u) // units: below 2^digits
		if a < math.Ldexp(1, least) {
			return sign | n
		}
		_, e := math.Frexp(a)
		return sign | uint32(e-1-least)<<(digits-1) + n
	case tensor.U8: // a byte has no NaN, and Go's conversion of one is the machine's own
		if !(x > 0) {
			return 0
		}
		return uint32(min(x, 255))
	}
	return f
}

// decode is the value of bits of type d.
func decode(d tensor.DType, bits uint32) float64 {
	switch d {
	case tensor.BF16:
		return float64(math.Float32frombits(bits << 16))
	case tensor.F16:
		sign, e, m := 1-2*float64(bits>>15&1), int(bits>>10&0x1f), float64(bits&0x3ff)
		switch {
		case e == 31 && m != 0:
			return math.NaN()
		case e == 31:
			return math.Inf(int(sign))
		case e == 0:
			return sign * m * 0x1p-24
		}
		return sign * math.Ldexp(1024+m, e-25)
	case tensor.F8E4M3, tensor.F8E5M2:
		sign, a := 1-2*float64(bits>>7&1), bits&0x7f
		if nan := a == 0x7f || d == tensor.F8E5M2 && a > 0x7c; nan {
			return math.NaN()
		} else if d == tensor.F8E5M2 && a == 0x7c {
			return math.Inf(int(sign))
		}
		digits, least := precision(d)
		if a < 1<<(digits-1) {
			return sign * math.Ldexp(float64(a), least-(digits-1))
		}
		e := int(a >> (digits - 1))
		return sign * math.Ldexp(float64(a-uint32(e-1)<<(digits-1)), least-(digits-1)+e-1)
	case tensor.U8:
		return float64(bits)
	}
	return float64(math.Float32frombits(bits))
}

// words are elements of one type as bits, in logical order.
type words struct {
	dtype tensor.DType
	bits  []uint32
}

func (w *words) value(i int) float64 { return decode(w.dtype, w.bits[i]) }

// canonical is the bits of element i with every NaN alike: of a NaN only that
// it is one is promised.
func (w *words) canonical(i int) uint32 {
	if v := w.value(i); v != v {
		return map[tensor.DType]uint32{tensor.F32: 0x7fc00000, tensor.F16: 0x7e00, tensor.BF16: 0x7fc0, tensor.F8E4M3: 0x7f, tensor.F8E5M2: 0x7f}[w.dtype]
	}
	return w.bits[i]
}

func (w *words) slice(lo, hi int) words { return words{w.dtype, w.bits[lo:hi]} }
