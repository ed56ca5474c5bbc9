package recurrence

import (
	"math"

	"github.com/longctx/longctx/tensor"
)

// What a technique does beside its recurrence is done here, on rows of float32 in
// the memory of the host.

// zeros is a new F32 tensor.
func zeros(shape ...int64) tensor.View { return tensor.New(tensor.F32, shape...) }

// like is a new F32 tensor of the shape of v.
func like(v *tensor.View) tensor.View { return zeros(v.Shape[:v.Rank]...) }

// dense is a copy of a tensor, widened, row-major.
func dense(v *tensor.View) []float32 {
	out := make([]float32, 0, v.Len())
	each(v, func(at int64) {
		switch v.DType {
		case tensor.F32:
			out = append(out, v.F32s()[at])
		default:
			out = append(out, v.DType.ToF32(v.Bits()[at]))
		}
	})
	return out
}

// spread writes numbers, row-major, to a tensor, rounded to its type.
func spread(v *tensor.View, x []float32) {
	i := 0
	each(v, func(at int64) {
		switch v.DType {
		case tensor.F32:
			v.F32s()[at] = x[i]
		default:
			v.Bits()[at] = v.DType.FromF32(x[i])
		}
		i++
	})
}

// each calls f with the place of every element, row-major.
func each(v *tensor.View, f func(at int64)) {
	shape, stride := [3]int64{1, 1, 1}, [3]int64{}
	for d := range v.Rank {
		shape[3-v.Rank+d], stride[3-v.Rank+d] = v.Shape[d], v.Stride[d]
	}
	for i := range shape[0] {
		for j := range shape[1] {
			at := v.Offset + i*stride[0] + j*stride[1]
			for range shape[2] {
				f(at)
				at += stride[2]
			}
		}
	}
}

// of is a view of numbers.
func of(x []float32, shape ...int64) tensor.View { return tensor.FromF32(x, shape...) }

// constant is gates [tokens, heads] that are the same for all tokens.
func constant(perHead []float32, tokens int64) tensor.View {
	v := of(perHead, 1, int64(len(perHead)))
	v.Shape[0], v.Stride[0] = tokens, 0
	return v
}

// withOnes is rows of dim features with one more, which is 1.
func withOnes(x []float32, dim int) []float32 {
	out := make([]float32, 0, len(x)/dim*(dim+1))
	for i := 0; i < len(x); i += dim {
		out = append(append(out, x[i:i+dim]...), 1)
	}
	return out
}

// normalized is rows of dim features divided by their length, and the inverse
// lengths.
func normalized(x []float32, dim int) (y, inverse []float32) {
	y, inverse = make([]float32, len(x)), make([]float32, len(x)/dim)
	for r := range inverse {
		sum := 1e-6
		for _, v := range x[r*dim:][:dim] {
			sum += float64(v) * float64(v)
		}
		f := 1 / math.Sqrt(sum)
		inverse[r] = float32(f)
		for i, v := range x[r*dim:][:dim] {
			y[r*dim+i] = float32(float64(v) * f)
		}
	}
	return y, inverse
}

// denormalize turns gradients of normalized rows y into those of the rows.
func denormalize(d, y, inverse []float32, dim int) {
	for r, f := range inverse {
		d, y := d[r*dim:][:dim], y[r*dim:][:dim]
		dot := 0.0
		for i := range d {
			dot += float64(d[i]) * float64(y[i])
		}
		for i := range d {
			d[i] = float32((float64(d[i]) - float64(y[i])*dot) * float64(f))
		}
	}
}

func exp(x float32) float32 { return float32(math.Exp(float64(x))) }

// written is 1 − e^g: what a gate that keeps e^g lets in.
func written(g []float32) []float32 {
	out := make([]float32, len(g))
	for i, x := range g {
		out[i] = float32(-math.Expm1(float64(min(x, 0))))
	}
	return out
}
