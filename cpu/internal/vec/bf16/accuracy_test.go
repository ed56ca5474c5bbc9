package bf16

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// The Fast policy's rule, for long rows: the error of a row in bfloat16 is at
// most twice that of a naive program in the same types and one rounding unit,
// of outputs and of the LSE. The naive program holds probabilities in
// bfloat16, as a matrix unit takes them, and the rest in float32.
//
//	go test -v -run Accuracy ./cpu/internal/vec/bf16
func TestAccuracyOfLongRows(t *testing.T) {
	lengths := []int{1 << 10, 1 << 12, 1 << 15}
	if testing.Short() {
		lengths = lengths[:2]
	}
	for _, n := range lengths {
		for _, parts := range [][2]int{{1, 1}, {1, Exact}, {Exact, Exact}} {
			long := newLongRows(n, 64, parts)
			long.solve()
			each(t, func(t *testing.T) {
				if active != Go || n == lengths[0] {
					out, lse := long.attend()
					t.Logf("%5d keys, %-18s %v", n, name(64, parts), long.judge(t, out, lse))
				}
			})
		}
	}
}

// longRows are Lanes rows that see n keys.
type longRows struct {
	n, dim  int
	parts   [2]int // of keys and of queries
	q, k, v []float32
	scale   float32

	out          [Lanes][]float64 // the oracle's
	lse          [Lanes]float64
	naive, large errors // of the naive programs, and magnitudes
}

func newLongRows(n, dim int, parts [2]int) *longRows {
	r := rand.New(rand.NewPCG(uint64(n), uint64(parts[0]+parts[1])))
	x := &longRows{n: n, dim: dim, parts: parts, scale: 2 / float32(math.Sqrt(float64(dim)))}
	x.q = floats(r, dim*Lanes, parts[1] == 1)
	x.k, x.v = floats(r, n*dim, parts[0] == 1), floats(r, n*dim, true)
	for i := range x.v { // a mean: without one sums cancel and errors grow
		x.v[i] = tensor.BF16ToF32(tensor.F32ToBF16(x.v[i] + 1))
	}
	return x
}

// attend goes over all tiles, as the loop of a block does.
func (x *longRows) attend() (out, lse []float32) {
	n, dim := x.n, x.dim
	p := &Tile{HeadDim: dim, ValueDim: dim, KeyParts: x.parts[0], QueryParts: x.parts[1]}
	p.Key, p.Value, p.Query = Uint16s(p.KeyParts*Keys*dim), Uint16s(Keys*dim), Uint16s(p.QueryParts*dim*Lanes)
	p.Scale, p.M, p.L, p.Out = make([]float32, Lanes), make([]float32, Lanes), make([]float32, Lanes), Float32s(dim*Lanes)
	for i := range Lanes {
		p.Scale[i], p.M[i] = x.scale*kernel.Log2E, kernel.MaxStart
	}
	PackPairs(p.Query, x.q, dim, p.QueryParts)
	k, v, sc := words(x.k), words(x.v), NewScratch()
	for at := 0; at < n*dim; at += Keys * dim {
		if p.KeyParts == 1 {
			PackKey(p.Key, k[at:], dim, dim)
		} else {
			PackKeyF32(p.Key, x.k[at:], dim, dim, p.KeyParts)
		}
		PackValue(p.Value, v[at:], dim, dim)
		p.Attend(sc, 1)
	}
	for i := range Lanes {
		for d := range dim {
			y := p.Out[d*Lanes+i] / p.L[i]
			out = append(out, tensor.BF16ToF32(tensor.F32ToBF16(y)))
		}
		lse = append(lse, kernel.LSE(p.M[i], p.L[i]))
	}
	return out, lse
}

// oracle is row i in float64.
func (x *longRows) oracle(i int) (out []float64, lse float64) {
	n, dim := x.n, x.dim
	out = make([]float64, dim)
	s, total, top := make([]float64, n), 0.0, math.Inf(-1)
	for j := range n {
		for d := range dim {
			s[j] += float64(x.k[j*dim+d]) * float64(x.q[d*Lanes+i])
		}
		s[j] *= float64(x.scale)
		top = max(top, s[j])
	}
	for j := range n {
		p := math.Exp(s[j] - top)
		total += p
		for d := range dim {
			out[d] += p * float64(x.v[j*dim+d])
		}
	}
	for d := range out {
		out[d] /= total
	}
	return out, top + math.Log(total)
}

// program is row i as a program without tiles computes it, from the first key or
// from the last.
func (x *longRows) program(i int, backwards bool) (out []float32, lse float32) {
	n, dim := x.n, x.dim
	out = make([]float32, dim)
	s, total, top := make([]float32, n), float32(0), float32(math.Inf(-1))
	order := func(j, n int) int {
		if backwards {
			return n - 1 - j
		}
		return j
	}
	for j := range n {
		for d := range dim {
			d = order(d, dim)
			s[j] += float32(x.k[j*dim+d] * x.q[d*Lanes+i])
		}
		s[j] *= x.scale
		top = max(top, s[j])
	}
	for j := range n {
		j = order(j, n)
		s[j] = float32(math.Exp(float64(s[j] - top)))
		total += s[j]
	}
	for j := range n {
		j = order(j, n)
		p := tensor.BF16ToF32(tensor.F32ToBF16(s[j] / total))
		for d := range dim {
			out[d] += float32(p * x.v[j*dim+d])
		}
	}
	for d := range out {
		out[d] = tensor.BF16ToF32(tensor.F32ToBF16(out[d]))
	}
	return out, top + float32(math.Log(float64(total)))
}

// errors are the largest of outputs and of the LSE.
type errors struct{ out, lse float64 }

// solve computes what results are judged by.
func (x *longRows) solve() {
	for i := range Lanes {
		want, wantLSE := x.oracle(i)
		x.out[i], x.lse[i] = want, wantLSE
		for _, backwards := range []bool{false, true} {
			out, lse := x.program(i, backwards)
			x.naive.add(out, lse, want, wantLSE)
		}
		x.large.add(make([]float32, len(want)), 0, want, wantLSE)
	}
}

func (e *errors) add(out []float32, lse float32, want []float64, wantLSE float64) {
	e.lse = max(e.lse, math.Abs(float64(lse)-wantLSE))
	for d := range want {
		e.out = max(e.out, math.Abs(float64(out[d])-want[d]))
	}
}

func (x *longRows) judge(t *testing.T, out, lse []float32) string {
	t.Helper()
	var got errors
	for i := range Lanes {
		got.add(out[i*x.dim:][:x.dim], lse[i], x.out[i], x.lse[i])
	}
	unit := func(x float64, digits int) float64 { return math.Ldexp(1, math.Ilogb(x)-digits+1) }
	bf16, f32 := 8, 24 // binary digits
	bound := errors{
		2*x.naive.out + unit(x.large.out, bf16) + unit(x.large.out, f32),
		2*x.naive.lse + 2*unit(x.large.lse, f32),
	}
	if !(got.out <= bound.out) || !(got.lse <= bound.lse) {
		t.Errorf("%d keys, parts %v: errors %.3g, bounds %.3g, naive %.3g", x.n, x.parts, got, bound, x.naive)
	}
	return fmt.Sprintf("output: error %.2g, naive %.2g; LSE: error %.2g, naive %.2g", got.out, x.naive.out, got.lse, x.naive.lse)
}
