package tensor

import "math"

// FP8 as in "OCP 8-bit Floating Point Specification (OFP8)", revision 1.0, with
// its saturating conversion: the one that NVIDIA's cvt.rn.satfinite and ONNX's
// Cast with saturate compute. A finite number above the largest becomes the
// largest of its sign, and so does an infinity; a NaN stays a NaN.

// F8E4M3ToF32 widens an E4M3: 4 bits of exponent of bias 7, 3 of fraction. All
// exponents are numbers but for the one code of NaN.
func F8E4M3ToF32(b uint8) float32 {
	sign, exp, frac := uint32(b&0x80)<<24, uint32(b>>3&0xf), uint32(b&7)
	switch {
	case exp == 0: // zero or subnormal: frac·2⁻⁹
		return math.Float32frombits(math.Float32bits(float32(frac)*0x1p-9) | sign)
	case b&0x7f == 0x7f:
		return math.Float32frombits(sign | 0x7fc00000)
	}
	return math.Float32frombits(sign | (exp+127-7)<<23 | frac<<20)
}

// F8E5M2ToF32 widens an E5M2: 5 bits of exponent of bias 15, 2 of fraction,
// with infinities and NaNs as in IEEE 754.
func F8E5M2ToF32(b uint8) float32 { return F16ToF32(uint16(b) << 8) }

// F32ToF8E4M3 rounds to nearest even and saturates: above 448, infinity
// included, to 448; below 2⁻¹⁰ to zero. A NaN stays a NaN.
func F32ToF8E4M3(x float32) uint8 { return toF8(x, 3, 7, 0x7e) }

// F32ToF8E5M2 rounds to nearest even and saturates: above 57344, infinity
// included, to 57344; below 2⁻¹⁷ to zero. A NaN stays a NaN.
func F32ToF8E5M2(x float32) uint8 { return toF8(x, 2, 15, 0x7b) }

// toF8 rounds to a type of frac fraction bits, an exponent of the given bias
// and the code largest for its largest number.
func toF8(x float32, frac, bias uint32, largest uint8) uint8 {
	u := math.Float32bits(x)
	sign := uint8(u >> 24 & 0x80)
	u &= 0x7fffffff
	if u > 0x7f800000 {
		return sign | 0x7f // a NaN of either type
	}
	if u < (127-bias+1)<<23 {
		// The result is subnormal, a multiple of 2^(1−bias−frac). Adding a
		// number whose last bit is that one makes the addition round.
		add := math.Float32frombits((127 + 23 + 1 - bias - frac) << 23)
		return sign | uint8(math.Float32bits(math.Float32frombits(u)+add)-math.Float32bits(add))
	}
	drop := 23 - frac
	u += 1<<(drop-1) - 1 + u>>drop&1 // a carry may reach the exponent: right
	u -= (127 - bias) << 23
	return sign | uint8(min(u>>drop, uint32(largest)))
}

// Widen8 widens src into dst, which must be as long: ToF32s for a type of 8
// bits.
func (d DType) Widen8(dst []float32, src []uint8) {
	dst = dst[:len(src)]
	switch d {
	case F8E4M3:
		for i, b := range src {
			dst[i] = F8E4M3ToF32(b)
		}
	case F8E5M2:
		for i, b := range src {
			dst[i] = F8E5M2ToF32(b)
		}
	default:
		for i, b := range src {
			dst[i] = float32(b)
		}
	}
}
