package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// compare applies the tolerance rule to one output: the number of elements
// beyond the bound, and what is to be said of it. The bound is
//
//	factor·max|naive − want| + one rounding unit of the type + one of float32, at max|want| + slack·max|want|
//
// the first maximum over all elements and naive programs. The unit of float32
// is for the exponential: a kernel's is good to 2^−22.8, the naive one exact.
// What is not finite must be so in both.
func compare(name string, got *words, want []float64, naive [][]float64, factor, slack float64, exact bool) (bad int, detail string) {
	if len(got.bits) != len(want) {
		return 1, fmt.Sprintf("%s has %d elements, want %d", name, len(got.bits), len(want))
	}
	largest, naiveErr := 0.0, 0.0
	for i, w := range want {
		if finite(w) {
			largest = max(largest, math.Abs(w))
			for _, n := range naive {
				if finite(n[i]) {
					naiveErr = max(naiveErr, math.Abs(n[i]-w))
				}
			}
		}
	}
	bound := factor*naiveErr + unit(got.dtype, largest) + unit(tensor.F32, largest) + slack*largest
	worst, at := 0.0, -1
	for i, w := range want {
		v := got.value(i)
		ok, err := same(v, w, name == "LSE", exact), 0.0
		if finite(w) {
			err = math.Abs(v - w)
			ok = err <= bound
			if err != err {
				err = math.Inf(1)
			}
		}
		if !ok {
			bad++
		}
		if !ok && at < 0 || err > worst {
			worst, at = max(worst, err), i
		}
	}
	if bad > 0 {
		detail = fmt.Sprintf("%s: %d of %d elements are off; element %d is %v, want %v, error %.3g, bound %.3g (naive error %.3g)",
			name, bad, len(want), at, got.value(at), want[at], worst, bound, naiveErr)
	}
	return bad, detail
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// same judges an element for which the oracle is not finite. Infinite sums may
// be NaN where their order is free, but an LSE of −Inf says that a row is
// empty, and that is never free.
func same(got, want float64, lse, exact bool) bool {
	switch {
	case math.IsNaN(want):
		return math.IsNaN(got) || !exact && math.IsInf(got, 0)
	case lse && math.IsInf(want, -1):
		return got == want
	}
	return got == want || math.IsNaN(got)
}

// relativeL2 is |got − want|/|want| over finite elements.
func relativeL2(got *words, want []float64) float64 {
	diff, norm := 0.0, 0.0
	for i, w := range want {
		if finite(w) {
			e := got.value(i) - w
			diff, norm = diff+e*e, norm+w*w
		}
	}
	if norm == 0 {
		return math.Sqrt(diff)
	}
	return math.Sqrt(diff / norm)
}

// differ is the number of elements whose bits differ, NaNs being alike, and
// where the first one is.
func differ(name string, got, want *words) (bad int, detail string) {
	if got.dtype != want.dtype || len(got.bits) != len(want.bits) {
		return 1, fmt.Sprintf("%s is %d of %v, want %d of %v", name, len(got.bits), got.dtype, len(want.bits), want.dtype)
	}
	for i := range got.bits {
		if got.canonical(i) != want.canonical(i) {
			if bad == 0 {
				detail = fmt.Sprintf("element %d is %v (%#x), want %v (%#x)", i, got.value(i), got.bits[i], want.value(i), want.bits[i])
			}
			bad++
		}
	}
	if bad > 0 {
		detail = fmt.Sprintf("%s: %d of %d elements differ in their bits; %s", name, bad, len(got.bits), detail)
	}
	return bad, detail
}

// fields are the tensors of a reference, as those of an answer.
func (r *reference) fields() map[string][]float64 {
	return map[string][]float64{"Out": r.out, "LSE": r.lse, "DQuery": r.dquery, "DKey": r.dkey, "DValue": r.dvalue, "ColumnStats": r.stats}
}

// judge compares an answer with the oracle by the rule of its policy.
func judge(p *Problem, a *answer, ref *reference, naive []*reference, policy kernel.Policy) (bad int, detail string) {
	factor := 2.0
	if p.Config.Score.SoftCap != 0 {
		factor = 3
	}
	if p.Drawn {
		factor = 16
	}
	exact := policy == kernel.Exact
	for _, f := range a.fields() {
		var errs [][]float64
		for _, n := range naive {
			errs = append(errs, n.fields()[f.name])
		}
		slack := 0.0
		if f.name == "ColumnStats" {
			slack = weightSlack(p, ref)
		}
		n, say := compare(f.name, f.words, ref.fields()[f.name], errs, factor, slack, exact)
		bad, detail = bad+n, join(detail, say)
	}
	if exact && !p.Wild && !p.Drawn && p.Config.DType == tensor.F32 {
		// the error of a chain of n additions grows as its length's root
		bound := 1e-6 * max(1, math.Sqrt(float64(p.Config.HeadDim)/128))
		if e := relativeL2(&a.out, ref.out); !(e <= bound) {
			bad, detail = bad+1, join(detail, fmt.Sprintf("Out: relative L2 error %.3g, want at most %.3g", e, bound))
		}
	}
	return bad, detail
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
