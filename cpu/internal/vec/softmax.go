package vec

import (
	"math"

	"github.com/longctx/longctx/kernel"
)

// Hidden is the score of a key that a row does not see: it leaves the maximum
// as it is and gets the weight +0.
var Hidden = float32(math.Inf(-1))

// SoftmaxStrip takes a tile of keys into the running softmax of a strip, rule
// 5 of package kernel. In: products s. For lane i and keys j ascending
//
//	t = s[j,i]·scale[i]             Hidden where bit i of visible[j] is 0
//	m' = max(m[i], t over j)        NaN skipped, −0 made +0
//	f[i] = E(m[i] − m'); l[i] = l[i]·f[i]; m[i] = m'
//	s[j,i] = E(t − m'); l[i] += s[j,i]
//
// visible nil: all keys are. m is not −Inf and l not below 0. Out: weights in s, and f to rescale the output by.
func SoftmaxStrip(p kernel.Policy, s []float32, keys int, scale []float32, visible []uint32, m, l, f []float32) {
	if keys <= 0 {
		return
	}
	s, scale, m, l, f = s[:keys*Lanes], scale[:Lanes], m[:Lanes], l[:Lanes], f[:Lanes]
	if visible != nil {
		visible = visible[:keys]
	}
	if softmaxStrip(s, keys, scale, visible, m, l, f) {
		return
	}
	for i := range Lanes {
		top := m[i]
		for j := range keys {
			t := s[j*Lanes+i] * scale[i]
			if visible != nil && visible[j]>>i&1 == 0 {
				t = Hidden
			}
			if t > top {
				top = t
			}
			s[j*Lanes+i] = t
		}
		top += 0 // whichever zero came first
		f[i] = Exp2(p, m[i]-top)
		m[i] = top
		sum := float32(l[i] * f[i])
		for j := range keys {
			e := Exp2(p, s[j*Lanes+i]-top)
			s[j*Lanes+i] = e
			sum += e
		}
		l[i] = sum
	}
}

// SoftmaxRows is SoftmaxStrip for rows: row r has the scores s[r·Stride+j],
// and bit j of visible[r] says whether it sees key j. All Stride weights of a
// row are written.
func SoftmaxRows(p kernel.Policy, s []float32, rows int, scale []float32, visible []uint64, m, l, f []float32) {
	if rows <= 0 {
		return
	}
	s, scale, visible, m, l, f = s[:rows*Stride], scale[:rows], visible[:rows], m[:rows], l[:rows], f[:rows]
	if softmaxRows(s, rows, scale, visible, m, l, f) {
		return
	}
	for r := range rows {
		t, top := s[r*Stride:][:Stride], m[r]
		for j := range t {
			if visible[r]>>j&1 == 0 {
				t[j] = Hidden
				continue
			}
			if t[j] *= scale[r]; t[j] > top {
				top = t[j]
			}
		}
		top += 0
		f[r] = Exp2(p, m[r]-top)
		m[r] = top
		sum := float32(l[r] * f[r])
		for j, x := range t {
			t[j] = 0
			if visible[r]>>j&1 != 0 {
				t[j] = Exp2(p, x-top)
				sum += t[j]
			}
		}
		l[r] = sum
	}
}

// Exp2 is kernel.Exp2, in the generic version under the Fast policy without
// fused operations.
func Exp2(p kernel.Policy, x float32) float32 {
	if fused(p) {
		return kernel.Exp2(x)
	}
	if !(x >= -125) {
		if x < -125 {
			return 0
		}
		return x
	}
	c := &kernel.Exp2Coef
	z := x + kernel.Exp2Shift
	r := x - (z - kernel.Exp2Shift)
	q := float32(c[0]*r) + c[1]
	q = float32(q*r) + c[2]
	q = float32(q*r) + c[3]
	q = float32(q*r) + c[4]
	q = float32(q*r) + c[5]
	return q * math.Float32frombits(math.Float32bits(z)<<23)
}

// Take sets s[j,i] = raw[j,i]·scale[i] where bit i of visible[j] is set.
func Take(s, raw []float32, keys int, scale []float32, visible []uint32) {
	if keys <= 0 {
		return
	}
	s, raw, scale, visible = s[:keys*Lanes], raw[:keys*Lanes], scale[:Lanes], visible[:keys]
	if take(s, raw, keys, scale, visible) {
		return
	}
	for j, w := range visible {
		for i := range Lanes {
			if w>>i&1 != 0 {
				s[j*Lanes+i] = raw[j*Lanes+i] * scale[i]
			}
		}
	}
}
