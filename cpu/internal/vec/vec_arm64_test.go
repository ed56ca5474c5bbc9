//go:build arm64 && !purego

package vec

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
)

func TestVariantsOfThisMachine(t *testing.T) {
	if got := Variants(); !slices.Equal(got, []Variant{Generic, NEON}) {
		t.Errorf("variants %v, want generic and neon", got)
	}
	before := Active()
	defer Use(before)
	x := make([]float32, 4096)
	c, b := Matrix{X: x[:1024], Row: 64}, Matrix{X: x[2048:], Row: 64}
	for _, c2 := range []struct {
		v          Variant
		row, col   int
		rows, want int
	}{
		{Generic, 16, 1, 3, 0},
		{NEON, 16, 1, 3, 60},
		{NEON, 1, 16, 3, 60},
		{NEON, 2, 16, 1, 60}, // the distance of rows plays no part
		{NEON, 2, 16, 3, 0},
	} {
		Use(c2.v)
		a := Matrix{X: x[1024:], Row: c2.row, Col: c2.col}
		if got := mulAdd(&c, &a, &b, c2.rows, 5, 63, Zero, nil); got != c2.want {
			t.Errorf("%+v: %d of 63 columns in assembly", c2, got)
		}
	}
}

// Where the greatest score of a row is a zero, and there are zeros of both
// signs, the first is the maximum.
func TestMaximumIsTheFirstZero(t *testing.T) {
	before := Active()
	defer Use(before)
	r := rand.New(rand.NewPCG(1, 2))
	zero := [2]float32{0, float32(math.Copysign(0, -1))}
	for range 2000 {
		s, visible, first := make([]float32, Stride), r.Uint64(), float32(-1)
		for j := range s {
			s[j] = []float32{zero[0], zero[1], -1, float32(math.NaN())}[r.IntN(4)]
			if r.IntN(8) > 0 {
				s[j] = -2
			}
			if s[j] == 0 && visible>>j&1 != 0 && first != 0 {
				first = s[j]
			}
		}
		if first != 0 {
			continue
		}
		start := []float32{-1, kernel.MaxStart, zero[0], zero[1]}[r.IntN(4)]
		if start == 0 {
			first = start
		}
		for _, v := range Variants() {
			Use(v)
			m, l, f := []float32{start}, []float32{0}, []float32{0}
			SoftmaxRows(kernel.Exact, slices.Clone(s), 1, []float32{1}, []uint64{visible}, m, l, f)
			if math.Float32bits(m[0]) != math.Float32bits(first) {
				t.Fatalf("%v: maximum %v, want %v, of %v and %v, visible %#x", v, m[0], first, start, s, visible)
			}
		}
	}
}
