//go:build amd64 && !purego

package vec

import "math/bits"

// decayRoles says of the tokens of a row which are queries and where their
// boundaries are, for registers of one width.
type decayRoles struct {
	index  [16]uint32 // of a boundary among the sums read for it
	groups [8]decayGroup
}

// decayGroup is a register of tokens, in two halves of binary64.
type decayGroup struct {
	base   [2]int64     // of the sums with the boundary, in bytes
	wide   [2][4]uint64 // queries, where masks are vectors
	narrow [8]uint32
	bits   uint64 // queries, where masks are bits
}

// roles by the base-2 logarithm of h, and one more; the first is h = 0.
var roles8, roles16 = makeRoles(8), makeRoles(16)

func makeRoles(lanes int) *[8]decayRoles {
	all, half := new([8]decayRoles), lanes/2
	for i := range all {
		h := 1 << i >> 1
		for r := range Stride {
			m := r&^(2*h-1) + h
			g := &all[i].groups[r/lanes]
			base := min(m, gateRow-half)
			if h < half && h > 0 {
				base = r &^ (half - 1)
			}
			g.base[r%lanes/half] = int64(8 * base)
			if x := r % half; half == 8 {
				all[i].index[2*x] = uint32(m - base) // the low word of 64 bits
			} else {
				all[i].index[2*x], all[i].index[2*x+1] = uint32(2*(m-base)), uint32(2*(m-base)+1)
			}
			if r < m {
				continue
			}
			g.bits |= 1 << (r % lanes)
			if lanes == 8 {
				g.wide[r%8/4][r%4], g.narrow[r%8] = ^uint64(0), ^uint32(0)
			}
		}
	}
	return all
}

func decays(w, e, q, k []float32, g []float64, rows, n, h, shift int) bool {
	switch i := bits.Len(uint(h)); active {
	case AVX512:
		decaysAVX512(p(w), p(e), p(q), p(k), p(g), rows, n/16, shift, &roles16[i])
	case AVX2:
		decaysAVX2(p(w), p(e), p(q), p(k), p(g), rows, n/8, shift, &roles8[i])
	default:
		return false
	}
	return true
}

func limitGates(x []float32) bool {
	switch active {
	case AVX512:
		limitGatesAVX512(p(x), len(x))
	case AVX2:
		limitGatesAVX2(p(x), len(x))
	default:
		return false
	}
	return true
}

func multiply(y, a, b []float32) bool {
	switch active {
	case AVX512:
		multiplyAVX512(p(y), p(a), p(b), len(y))
	case AVX2:
		multiplyAVX2(p(y), p(a), p(b), len(y))
	default:
		return false
	}
	return true
}
