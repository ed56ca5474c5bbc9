package codec

import (
	"fmt"

	"github.com/longctx/longctx/tensor"
)

// Bases are what rows are multiplied by on their way: queries, keys and values
// before attention and the cache have them, and outputs after attention. Each is
// [heads, in, out] F32 in host memory, of heads 1, the KV heads or the query
// heads; no tensor: rows stay as they are. Queries and keys come after their rotary
// embedding. Attention keeps the Scale of the model's HeadDim.
type Bases struct{ Query, Key, Value, Out tensor.View }

// Project returns the rows x [tokens, heads, in] of F32, F16 or BF16 times a basis,
// [tokens, heads, out] F32, or x where there is no basis. Head h takes basis
// h·n/heads of n. A sum is float32, over in ascending, each product rounded: the
// same on every machine.
func Project(x, basis tensor.View) (tensor.View, error) {
	if basis.IsZero() {
		return x, nil
	}
	heads := basis.Shape[0]
	if x.Rank != 3 || basis.Rank != 3 || basis.DType != tensor.F32 || heads < 1 || x.Shape[1]%heads != 0 || basis.Shape[1] != x.Shape[2] {
		return x, &ValueError{"basis", basis.String(), fmt.Sprintf("[n, %d, …] F32, n a divisor of the heads of rows %v", x.Shape[2], &x)}
	}
	for _, v := range []*tensor.View{&x, &basis} {
		if err := v.Check(); err != nil {
			return x, &ValueError{"rows", v.String(), err.Error()}
		}
		if v.Bytes() == nil && v.Len() > 0 || v.DType > tensor.BF16 {
			return x, &ValueError{"rows", v.String(), "f32, f16 or bf16 in host memory"}
		}
	}
	in, width := int(x.Shape[2]), int(basis.Shape[2])
	out := tensor.New(tensor.F32, x.Shape[0], x.Shape[1], int64(width))
	to := out.F32s()
	for t := range x.Shape[0] {
		for h := range x.Shape[1] {
			sum := to[(t*x.Shape[1]+h)*int64(width):][:width]
			for i := range in {
				f := x.At(t, h, int64(i))
				from := basis.Offset + h*heads/x.Shape[1]*basis.Stride[0] + int64(i)*basis.Stride[1]
				for d := range sum {
					sum[d] += float32(f * basis.F32s()[from+int64(d)*basis.Stride[2]])
				}
			}
		}
	}
	return out, nil
}

// matrix is a basis of all heads.
func matrix(in, out int, at func(i, d int) float64) tensor.View {
	v := tensor.New(tensor.F32, 1, int64(in), int64(out))
	x := v.F32s()
	for i := range in {
		for d := range out {
			x[i*out+d] = float32(at(i, d))
		}
	}
	return v
}
