package vec

import "github.com/longctx/longctx/kernel"

// MergeStrip adds the state (pm, pl, po) of keys that follow to the state
// (m, l, o) of a strip, rule 6 of package kernel, for each lane
//
//	M = max(m, pm); fa = E(m − M); fb = E(pm − M)
//	l = fma(pl, fb, l·fa); o[d] = fma(po[d], fb, o[d]·fa); m = M
func MergeStrip(p kernel.Policy, m, l, o, pm, pl, po []float32, dim int) {
	m, l, pm, pl = m[:Lanes], l[:Lanes], pm[:Lanes], pl[:Lanes]
	o, po = o[:dim*Lanes], po[:dim*Lanes]
	if mergeStrip(m, l, o, pm, pl, po, dim) {
		return
	}
	var fa, fb [Lanes]float32
	for i := range Lanes {
		fa[i], fb[i] = mergeFactors(p, &m[i], &l[i], pm[i], pl[i])
	}
	for at := 0; at < dim*Lanes; at += Lanes {
		for i := range Lanes {
			o[at+i] = FMA(p, po[at+i], fb[i], float32(o[at+i]*fa[i]))
		}
	}
}

// MergeRows is MergeStrip for rows with outputs o[r·ld+d].
func MergeRows(p kernel.Policy, m, l, o, pm, pl, po []float32, rows, ld, dim int) {
	for r := range rows {
		fa, fb := mergeFactors(p, &m[r], &l[r], pm[r], pl[r])
		Blend(p, o[r*ld:][:dim], po[r*ld:], fa, fb)
	}
}

func mergeFactors(p kernel.Policy, m, l *float32, pm, pl float32) (fa, fb float32) {
	top := max(*m, pm) // NaN if either is
	fa, fb = Exp2(p, *m-top), Exp2(p, pm-top)
	*m, *l = top, FMA(p, pl, fb, float32(*l*fa))
	return fa, fb
}

// ScaleRow multiplies x by f.
func ScaleRow(x []float32, f float32) {
	if f == 1 || scaleRow(x, f) {
		return
	}
	for d := range x {
		x[d] *= f
	}
}

// FinishStrip makes outputs of sums: o = o·(1/l) + 0, and 0 where l is 0.
func FinishStrip(o, l []float32, dim int) {
	o, l = o[:dim*Lanes], l[:Lanes]
	if finishStrip(o, l, dim) {
		return
	}
	for i, x := range l {
		inv := 1 / x
		for at := i; at < dim*Lanes; at += Lanes {
			if x == 0 {
				o[at] = 0
			} else {
				o[at] = float32(o[at]*inv) + 0
			}
		}
	}
}

// FinishRow is FinishStrip for one row.
func FinishRow(o []float32, l float32) {
	if l == 0 {
		clear(o)
		return
	}
	inv := 1 / l
	if finishRow(o, inv) {
		return
	}
	for d, x := range o {
		o[d] = float32(x*inv) + 0
	}
}

// Blend sets y = fma(x, fb, y·fa).
func Blend(p kernel.Policy, y, x []float32, fa, fb float32) {
	x = x[:len(y)]
	if blend(y, x, fa, fb) {
		return
	}
	for d, z := range x {
		y[d] = FMA(p, z, fb, float32(y[d]*fa))
	}
}

// Finite reports whether no element is NaN or Inf.
func Finite(x []float32) bool {
	if ok, done := finite(x); done {
		return ok
	}
	for _, y := range x {
		if y-y != 0 {
			return false
		}
	}
	return true
}
