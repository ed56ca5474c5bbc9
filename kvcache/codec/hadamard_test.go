package codec

import (
	"errors"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
)

// TestHadamard: against the matrix, whose entry (i, j) has the sign of the parity
// of i and j, in float64; twice is nothing, and the product of two rows stays.
func TestHadamard(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, dim := range []int{1, 2, 8, 128} {
		x, y := make([]float32, 2*dim), make([]float32, 2*dim)
		for i := range x {
			x[i] = float32(r.NormFloat64())
			y[i] = x[i]
		}
		if err := Hadamard(y, dim); err != nil {
			t.Fatal(err)
		}
		var before, after float64
		for i := range dim {
			before += float64(x[i]) * float64(x[dim+i])
			after += float64(y[i]) * float64(y[dim+i])
			for row := range 2 {
				sum := 0.0
				for j := range dim {
					sign := float64(1 - 2*(bits.OnesCount(uint(i&j))&1))
					sum += sign * float64(x[row*dim+j])
				}
				if want := sum / math.Sqrt(float64(dim)); math.Abs(float64(y[row*dim+i])-want) > 1e-5 {
					t.Errorf("dim %d: feature %d of row %d is %g, want %g", dim, i, row, y[row*dim+i], want)
				}
			}
		}
		if math.Abs(before-after) > 1e-4 {
			t.Errorf("dim %d: product %g became %g", dim, before, after)
		}
		if err := Hadamard(y, dim); err != nil {
			t.Fatal(err)
		}
		for i := range x {
			if math.Abs(float64(x[i]-y[i])) > 1e-5 {
				t.Errorf("dim %d: twice gives %g of %g", dim, y[i], x[i])
			}
		}
	}
	var bad *ValueError
	for _, dim := range []int{-1, 0, 3} {
		if err := Hadamard(make([]float32, 12), dim); !errors.As(err, &bad) {
			t.Errorf("dim %d: %v", dim, err)
		}
	}
	if err := Hadamard(make([]float32, 12), 8); !errors.As(err, &bad) {
		t.Errorf("12 features of rows of 8: %v", err)
	}
}
