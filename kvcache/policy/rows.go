package policy

import (
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/tensor"
)

// row is row j of [n, dim] in host memory, of a stored type.
func row(v *tensor.View, j int) []float64 { return rowInto(make([]float64, v.Shape[1]), v, j) }

// rowInto is row in the memory of dst.
func rowInto(dst []float64, v *tensor.View, j int) []float64 {
	at, step := v.Offset+int64(j)*v.Stride[0], v.Stride[1]
	if x := v.F32s(); x != nil {
		for d := range dst {
			dst[d] = float64(x[at+int64(d)*step])
		}
		return dst
	}
	if x := v.Bits(); x != nil {
		for d := range dst {
			dst[d] = float64(v.DType.ToF32(x[at+int64(d)*step]))
		}
		return dst
	}
	x := v.Bits8()
	for d := range dst {
		dst[d] = float64(v.DType.ToF32(uint16(x[at+int64(d)*step])))
	}
	return dst
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

// tiny keeps the cosine of a row of zeros 0.
const tiny = 1e-150

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
