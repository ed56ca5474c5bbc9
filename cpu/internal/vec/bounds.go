package vec

import "math"

// MinMax takes n rows of len(lo) features, ld apart, into the least and the
// largest value of each feature so far, lo and hi:
//
//	lo[d] = min(lo[d], x[r·ld+d] over r)    hi[d] = max(hi[d], x[r·ld+d] over r)
//
// −0 counts as below +0. Where a value is NaN both become NaN, and stay so.
func MinMax(lo, hi, x []float32, ld, n int) {
	if n <= 0 {
		return
	}
	hi, x = hi[:len(lo)], x[:(n-1)*ld+len(lo)]
	for d := range lo {
		least, most := order(lo[d]), order(hi[d])
		for at := d; at < len(x); at += ld {
			k := order(x[at])
			least, most = min(least, k), max(most, k)
		}
		lo[d], hi[d] = unorder(least), unorder(most)
		if lo[d] != lo[d] || hi[d] != hi[d] { // NaNs lie below −Inf or above +Inf, by their sign
			lo[d], hi[d] = float32(math.NaN()), float32(math.NaN())
		}
	}
}

// order maps floats to integers that are ordered alike.
func order(x float32) int32 {
	i := int32(math.Float32bits(x))
	return i ^ i>>31&math.MaxInt32
}

func unorder(i int32) float32 { return math.Float32frombits(uint32(i ^ i>>31&math.MaxInt32)) }
