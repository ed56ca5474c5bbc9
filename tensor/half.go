package tensor

import "math"

// ToF32 widens the bits of an element of 16 bits, or of 8 in the low byte,
// exactly. Of a NaN the sign and the payload are kept.
func (d DType) ToF32(bits uint16) float32 {
	switch d {
	case BF16:
		return BF16ToF32(bits)
	case F8E4M3:
		return F8E4M3ToF32(uint8(bits))
	case F8E5M2:
		return F16ToF32(bits << 8)
	case U8:
		return float32(uint8(bits))
	}
	return F16ToF32(bits)
}

// FromF32 rounds x to a type of 16 or 8 bits, to nearest, ties to even. What
// is out of range becomes an infinity in F16 and BF16, and the largest number
// of its sign in FP8; see F32ToF8E4M3. To U8 it clamps to 0 to 255, and makes
// NaN 0.
func (d DType) FromF32(x float32) uint16 {
	switch d {
	case BF16:
		return F32ToBF16(x)
	case F8E4M3:
		return uint16(F32ToF8E4M3(x))
	case F8E5M2:
		return uint16(F32ToF8E5M2(x))
	case U8:
		if !(x > 0) {
			return 0
		}
		return uint16(math.RoundToEven(float64(min(x, 255))))
	}
	return F32ToF16(x)
}

// BF16ToF32 widens a bfloat16.
func BF16ToF32(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// F32ToBF16 rounds to nearest even. A NaN stays a NaN, made quiet.
func F32ToBF16(x float32) uint16 {
	u := math.Float32bits(x)
	if x != x {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

// F16ToF32 widens a binary16, subnormals included.
func F16ToF32(h uint16) float32 {
	sign, exp, frac := uint32(h&0x8000)<<16, uint32(h>>10&0x1f), uint32(h&0x3ff)
	switch exp {
	case 0: // zero or subnormal: frac·2⁻²⁴, exact in binary32
		return math.Float32frombits(math.Float32bits(float32(frac)*0x1p-24) | sign)
	case 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+127-15)<<23 | frac<<13)
}

// F32ToF16 rounds to nearest even: above 65519.99 to infinity, below 2⁻²⁴/2
// to zero. A NaN stays a NaN, made quiet.
func F32ToF16(x float32) uint16 {
	u := math.Float32bits(x)
	sign := uint16(u >> 16 & 0x8000)
	u &= 0x7fffffff
	switch {
	case u > 0x7f800000: // NaN
		return sign | 0x7e00 | uint16(u>>13&0x3ff)
	case u >= 0x47800000: // 2¹⁶ and more
		return sign | 0x7c00
	case u < 0x38800000: // below 2⁻¹⁴: the result is subnormal, a multiple of 2⁻²⁴
		// Adding 0.5 puts the last bit kept at 2⁻²⁴, so that the addition
		// itself rounds, to nearest even.
		r := math.Float32frombits(u) + 0.5
		return sign | uint16(math.Float32bits(r)-math.Float32bits(0.5))
	}
	u += 0xfff + u>>13&1 // a carry may reach the exponent, and infinity: both right
	return sign | uint16((u-(127-15)<<23)>>13)
}

// ToF32s widens src into dst, which must be as long.
func (d DType) ToF32s(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	if d == BF16 {
		for i, h := range src {
			dst[i] = BF16ToF32(h)
		}
		return
	}
	for i, h := range src {
		dst[i] = F16ToF32(h)
	}
}

// FromF32s rounds src into dst, which must be as long.
func (d DType) FromF32s(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	if d == BF16 {
		for i, x := range src {
			dst[i] = F32ToBF16(x)
		}
		return
	}
	for i, x := range src {
		dst[i] = F32ToF16(x)
	}
}
