package roof

import "unsafe"

var generic = loops{lanes: 8, fma: fmaGeneric, read: readGeneric}

// fmaGeneric keeps eight sums in registers. Whether the compiler fuses a·b + c
// is left to it: this is a measure of speed, not a result.
func fmaGeneric(n int64, a, b float32, out *[maxLanes]float32) {
	s0, s1, s2, s3, s4, s5, s6, s7 := out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7]
	for range n {
		s0 += a * b
		s1 += a * b
		s2 += a * b
		s3 += a * b
		s4 += a * b
		s5 += a * b
		s6 += a * b
		s7 += a * b
	}
	out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7] = s0, s1, s2, s3, s4, s5, s6, s7
}

func readGeneric(p *byte, n int64, out *[8]uint64) {
	words := unsafe.Slice((*uint64)(unsafe.Pointer(p)), n/8)
	x := *out
	for len(words) >= 8 {
		w := words[:8:8]
		x[0] ^= w[0]
		x[1] ^= w[1]
		x[2] ^= w[2]
		x[3] ^= w[3]
		x[4] ^= w[4]
		x[5] ^= w[5]
		x[6] ^= w[6]
		x[7] ^= w[7]
		words = words[8:]
	}
	*out = x
}
