package codec

import (
	"errors"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
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

// TestHadamardSpreads: rows with one large entry lose less in 4 bits when rotated.
func TestHadamardSpreads(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	plain, rotated := 0.0, 0.0
	for range 100 {
		x := make([]float32, 64)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		x[r.IntN(64)] = 20
		y := slices.Clone(x)
		if err := Hadamard(y, 64); err != nil {
			t.Fatal(err)
		}
		plain += coding4(t, x)
		rotated += coding4(t, y)
	}
	if rotated > plain/2 {
		t.Errorf("squared error %g rotated, %g plain", rotated, plain)
	}
}

// coding4 is the squared error of a row coded as one group of 4 bits.
func coding4(t *testing.T, x []float32) (sum float64) {
	s, z, ok := kernel.Int4.Group(slices.Min(x), slices.Max(x))
	if !ok {
		t.Fatal("a group that cannot be coded")
	}
	scale, zero := tensor.F16ToF32(s), tensor.F16ToF32(z)
	for _, v := range x {
		d := float64(v - kernel.Decode(kernel.Int4.Encode(v, scale, zero), scale, zero))
		sum += d * d
	}
	return sum
}
