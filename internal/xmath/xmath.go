// Package xmath has the elementary functions of float64 with the same bits on
// every architecture. The standard library's have assembly on some, and its Go
// code is fused differently on others, so a rotation table rounded from them
// could differ in its last bit. Here every product that feeds a sum is an
// explicit math.FMA, which is exact everywhere.
//
// Errors are a few units in the last place: far below the half unit of
// float32 to which tables are rounded.
package xmath

import "math"

const (
	// ln 2 and π/2 in parts: products of the leading parts with the integers
	// used here are exact or corrected by FMA.
	ln2Hi  = 6.93147180369123816490e-01
	ln2Lo  = 1.90821492927058770002e-10
	halfPi = 1.57079632679489655800e+00 // the next float64s of π/2 − halfPi follow
	halfP2 = 6.12323399573676603587e-17
	halfP3 = -1.49738490485916983294e-33
)

// Exp returns eˣ.
func Exp(x float64) float64 {
	switch {
	case x != x:
		return x
	case x > 709.782712893384:
		return math.Inf(1)
	case x < -745.2:
		return 0
	}
	k := math.RoundToEven(x * math.Log2E)
	r := math.FMA(-k, ln2Hi, x)
	r = math.FMA(-k, ln2Lo, r)
	// eʳ by its Taylor series: |r| <= ln2/2, so 14 terms are 4e-18 from it
	s := 1.0 / 6227020800
	for _, c := range [...]float64{479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1} {
		s = math.FMA(s, r, 1/c)
	}
	return math.Ldexp(s, int(k))
}

// Log returns the natural logarithm of x.
func Log(x float64) float64 {
	switch {
	case x != x || x < 0:
		return math.NaN()
	case x == 0:
		return math.Inf(-1)
	case math.IsInf(x, 1):
		return x
	}
	f, k := math.Frexp(x)
	if f < math.Sqrt2/2 {
		f, k = 2*f, k-1
	}
	// ln f = 2·artanh(s), s = (f−1)/(f+1), |s| <= 0.172
	s := (f - 1) / (f + 1)
	z := s * s
	p := 1.0 / 23
	for _, c := range [...]float64{21, 19, 17, 15, 13, 11, 9, 7, 5, 3} {
		p = math.FMA(p, z, 1/c)
	}
	// 2s + 2s·z·p + k·ln2, the small parts first
	lo := math.FMA(float64(2*s)*z, p, float64(k)*ln2Lo)
	// 2s itself was rounded by the division: recover what it lost
	err := math.FMA(-s, f+1, f-1) / (f + 1)
	return math.FMA(float64(k), ln2Hi, 2*s) + (lo + 2*err)
}

// Pow returns xʸ for x > 0.
func Pow(x, y float64) float64 { return Exp(y * Log(x)) }

// SinCos returns the sine and cosine of a·b, the product taken exactly, for
// |a·b| < 2³⁰.
func SinCos(a, b float64) (sin, cos float64) {
	p := a * b
	e := math.FMA(a, b, -p) // a·b = p + e
	if math.IsNaN(p) || math.IsInf(p, 0) {
		return math.NaN(), math.NaN()
	}
	k := math.RoundToEven(p * (2 / math.Pi))
	r := math.FMA(-k, halfPi, p)
	e += math.FMA(-k, halfP2, 0) + math.FMA(-k, halfP3, 0)
	hi := r + e
	lo := (r - hi) + e
	z := hi * hi
	s := 1.0 / 355687428096000 // sin: 1/17!
	for _, c := range [...]float64{-1307674368000, 6227020800, -39916800, 362880, -5040, 120, -6} {
		s = math.FMA(s, z, 1/c)
	}
	c := 1.0 / 20922789888000 // cos: 1/16!
	for _, d := range [...]float64{-87178291200, 479001600, -3628800, 40320, -720, 24, -2} {
		c = math.FMA(c, z, 1/d)
	}
	c = math.FMA(c, z, 1)
	s = math.FMA(float64(s*z), hi, hi)
	s, c = math.FMA(lo, c, s), math.FMA(-lo, s, c)
	switch int64(k) & 3 {
	case 0:
		return s, c
	case 1:
		return c, -s
	case 2:
		return -s, -c
	}
	return -c, s
}
