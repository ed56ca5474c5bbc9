package kernel

import "math"

// The Exact policy, operation by operation, in scalar Go. A backend's kernels
// must give these bits; they need not call these functions.

// Sizes of the groups in which keys are taken, by ordinal in the sequence.
const (
	TileSize  = 64  // keys that share one update of the running maximum
	ChunkSize = 512 // keys whose state starts anew; a multiple of TileSize
)

// MaxStart is the running maximum before the first key of a chunk. It is
// finite, so that m − m' is never Inf − Inf; scores below it count as unseen.
const MaxStart float32 = -1e30

// Log2E and Ln2 are the constants of the score, rounded once.
const (
	Log2E float32 = math.Log2E
	Ln2   float32 = math.Ln2
)

// FMA is a·b + c with one rounding. The float64 product is exact, the float64
// sum nearly so: only where it lies on a boundary of float32 rounding, or is
// so small that float32 is subnormal, can the second rounding be wrong. There
// the sum is made round-to-odd from its exact error first (Boldo and
// Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms
// using rounding to odd", 2008).
func FMA(a, b, c float32) float32 {
	p, z := float64(a)*float64(b), float64(c)
	s := p + z
	if u := math.Float64bits(s); u&0x1fffffff != 0x10000000 && u<<1 >= 898<<53 {
		return float32(s)
	}
	return fmaOdd(p, z, s)
}

// fmaOdd finishes an FMA from its exact product p and the float64 sum s of p
// and z. It is right for every s, and slower.
//
//go:noinline
func fmaOdd(p, z, s float64) float32 {
	b := s - p
	e := (p - (s - b)) + (z - b) // s + e = p + z exactly (Knuth's TwoSum)
	u := math.Float64bits(s)
	if (e > 0 || e < 0) && u&1 == 0 { // not e != 0: NaN stays as it is
		if (e > 0) == (s > 0) {
			u++
		} else {
			u--
		}
	}
	return float32(math.Float64frombits(u))
}

// Exp2 is E(x) ≈ 2ˣ for x <= 0: +0 below −125, NaN for NaN. The relative
// error, rounding included, is below 2^−22.5, and E(0) = 1.
func Exp2(x float32) float32 {
	if !(x >= -125) {
		if x < -125 {
			return 0
		}
		return x
	}
	z := x + Exp2Shift // the low bits of z are the integer nearest x, plus 127
	r := x - (z - Exp2Shift)
	q := FMA(Exp2Coef[0], r, Exp2Coef[1])
	q = FMA(q, r, Exp2Coef[2])
	q = FMA(q, r, Exp2Coef[3])
	q = FMA(q, r, Exp2Coef[4])
	q = FMA(q, r, Exp2Coef[5])
	return q * math.Float32frombits(math.Float32bits(z)<<23) // exact: times a power of two
}

// Exp2Shift is 1.5·2²³ + 127: adding it rounds to an integer, and leaves in the
// low bits what shifted by 23 is the power of two.
const Exp2Shift float32 = 12582912 + 127

// Exp2Coef are the coefficients of E, highest power first.
var Exp2Coef = [6]float32{
	math.Float32frombits(0x3AADDD00), math.Float32frombits(0x3C1E7545), math.Float32frombits(0x3D635BAA),
	math.Float32frombits(0x3E75FCDE), math.Float32frombits(0x3F317215), 1,
}

// Log2 is L(x) ≈ log₂x for normal x > 0, by the series of the inverse
// hyperbolic tangent.
func Log2(x float32) float32 {
	u := math.Float32bits(x)
	k := int32(u>>23) - 127
	f := math.Float32frombits(u&0x7fffff | 127<<23)
	if f > math.Sqrt2 {
		f, k = f*0.5, k+1
	}
	s := (f - 1) / (f + 1)
	z := s * s
	p := FMA(z, 2*math.Log2E/9, 2*math.Log2E/7)
	p = FMA(p, z, 2*math.Log2E/5)
	p = FMA(p, z, 2*math.Log2E/3)
	p = FMA(p, z, 2*math.Log2E)
	return FMA(s, p, float32(k))
}

// LSE is the natural logarithm of 2^m·l: the value exported for a row of
// maximum m and denominator l > 0.
func LSE(m, l float32) float32 {
	if l != l {
		return l
	}
	return (m + Log2(l)) * Ln2
}

// Tanh is T(x) ≈ tanh x: an odd polynomial where 1 − e^(−2x) would cancel,
// elsewhere by E.
func Tanh(x float32) float32 {
	a := float32(math.Abs(float64(x)))
	if a < 0.625 {
		z := x * x
		p := TanhCoef[0]
		for _, c := range TanhCoef[1:] {
			p = FMA(p, z, c)
		}
		return FMA(float32(x*z), p, x)
	}
	e := Exp2(float32(a * (-2 * math.Log2E)))
	t := (1 - e) / (1 + e)
	return float32(math.Copysign(float64(t), float64(x)))
}

// TanhCoef are the coefficients of (T(x) − x)/x³ in x², highest power first: a
// Chebyshev fit on x² <= 0.4, relative error 5e-9 before rounding.
var TanhCoef = [6]float32{0.00227270485, -0.00832640193, 0.0217636339, -0.0539586246, 0.133333012, -0.333333343}
