package policy

import (
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/tensor"
)

// row is row j of [n, dim].
func row(v *tensor.View, j int) []float64 {
	out := make([]float64, v.Shape[1])
	for d := range out {
		out[d] = float64(v.At(int64(j), int64(d)))
	}
	return out
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for d, x := range a {
		sum += float64(x * b[d])
	}
	return sum
}

// unit is x of norm 1; a row of zeros stays.
func unit(x []float64) []float64 {
	norm := math.Sqrt(dot(x, x))
	if norm == 0 {
		return x
	}
	out := make([]float64, len(x))
	for d := range x {
		out[d] = x[d] / norm
	}
	return out
}

func cosine(a, b []float64) float64 { return dot(unit(a), unit(b)) }

// norm1 is Σ|x|.
func norm1(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += math.Abs(v)
	}
	return sum
}

// softmax replaces x by its softmax.
func softmax(x []float64) {
	most, sum := math.Inf(-1), 0.0
	for _, v := range x {
		most = max(most, v)
	}
	for i, v := range x {
		x[i] = xmath.Exp(v - most)
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
}

func norm2(x []float64) float64 { return math.Sqrt(dot(x, x)) }
