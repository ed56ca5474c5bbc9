package vec

import (
	"math"
	"math/rand/v2"
	"testing"
)

// MinMax is Go's min and max, whatever the bits.
func TestMinMax(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	special := []float32{0, float32(math.Copysign(0, -1)), 1, -1, float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()), float32(math.Copysign(math.NaN(), -1)), 0x1p-149, -0x1p-149}
	for trial := range 20000 {
		dim, n := 1+r.IntN(5), r.IntN(6)
		ld := dim + r.IntN(3)
		draw := func() float32 {
			switch trial % 3 {
			case 0:
				return math.Float32frombits(r.Uint32())
			case 1:
				return special[r.IntN(len(special))]
			}
			return special[r.IntN(6)]
		}
		x := make([]float32, max(n-1, 0)*ld+dim)
		for i := range x {
			x[i] = draw()
		}
		for k := range n - 1 {
			for d := dim; d < ld; d++ {
				x[k*ld+d] = float32(math.NaN()) // between rows
			}
		}
		lo, hi := make([]float32, dim), make([]float32, dim)
		want := make([][2]float32, dim)
		for d := range dim {
			if lo[d], hi[d] = draw(), draw(); lo[d] != lo[d] || hi[d] != hi[d] {
				lo[d], hi[d] = float32(math.NaN()), float32(math.NaN())
			}
			want[d] = [2]float32{lo[d], hi[d]}
			for k := range n {
				v := x[k*ld+d]
				want[d] = [2]float32{min(want[d][0], v), max(want[d][1], v)}
			}
			if w := want[d]; n > 0 && (w[0] != w[0] || w[1] != w[1]) {
				want[d] = [2]float32{float32(math.NaN()), float32(math.NaN())}
			}
		}
		MinMax(lo, hi, x, ld, n)
		for d := range dim {
			for k, got := range []float32{lo[d], hi[d]} {
				if w := want[d][k]; math.Float32bits(got) != math.Float32bits(w) && (got == got || w == w) {
					t.Fatalf("trial %d: %v of feature %d, want %v", trial, got, d, w)
				}
			}
		}
	}
}
