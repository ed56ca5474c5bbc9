package attention

import (
	"errors"
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// keyRows are the keys of an index, [n][KVHeads][dim].
type keyRows struct {
	x               []float32
	n, kvHeads, dim int
}

func checkKeyRows(kvHeads, dim int) error {
	if kvHeads < 1 || kvHeads > kernel.MaxHeads || dim < 1 || dim > kernel.MaxHeadDim {
		return fmt.Errorf("%d KV heads of %d features, want 1 to %d of 1 to %d", kvHeads, dim, kernel.MaxHeads, kernel.MaxHeadDim)
	}
	return nil
}

func (k *keyRows) row(j, g int) []float32 { return k.x[(j*k.kvHeads+g)*k.dim:][:k.dim] }

// append copies finite keys and returns the index of the first.
func (k *keyRows) append(v *tensor.View) (first int, err error) {
	if v.Rank != 3 || v.Shape[1] != int64(k.kvHeads) || v.Shape[2] != int64(k.dim) {
		return 0, fmt.Errorf("Key is %v, want [keys, %d, %d]", v, k.kvHeads, k.dim)
	}
	if int64(k.n)+v.Shape[0] >= kernel.MaxBound {
		return 0, fmt.Errorf("Key is %v after %d keys, want fewer than 2³¹−1", v, k.n)
	}
	first = k.n
	if k.x, err = hostRows(k.x, v); err == nil {
		for _, x := range k.x[first*k.kvHeads*k.dim:] {
			if !(math.Abs(float64(x)) <= math.MaxFloat32) {
				err = errors.New("Key has a NaN or an infinity, want finite numbers")
				break
			}
		}
	}
	k.n = first + int(v.Shape[0])
	if err != nil {
		k.truncate(first)
	}
	return first, err
}

func (k *keyRows) truncate(n int) { k.n, k.x = n, k.x[:n*k.kvHeads*k.dim] }

// queries copies the queries of the last tokens of a sequence of so many keys,
// checked against the index.
func (k *keyRows) queries(v *tensor.View, keys int, s static) ([]float32, error) {
	if v.Rank != 3 || v.Shape[1] < 1 || v.Shape[1]%int64(k.kvHeads) != 0 || v.Shape[2] != int64(k.dim) {
		return nil, fmt.Errorf("Query is %v, want [tokens, a multiple of %d, %d]", v, k.kvHeads, k.dim)
	}
	if int64(keys) < v.Shape[0] || keys-s.window > k.n {
		return nil, fmt.Errorf("%d keys with %d query tokens, want at least the tokens, and at most the %d of the index and the Window of %d", keys, v.Shape[0], k.n, s.window)
	}
	return hostRows(nil, v)
}

// hostRows appends the elements of v in order, widened.
func hostRows(dst []float32, v *tensor.View) ([]float32, error) {
	if err := v.Check(); err != nil {
		return dst, err
	}
	if v.DType != tensor.F32 && v.DType != tensor.F16 && v.DType != tensor.BF16 {
		return dst, fmt.Errorf("%v, want f32, f16 or bf16", v)
	}
	if v.Len() > 0 && v.Bytes() == nil {
		return dst, fmt.Errorf("%v is on %s, want host memory", v, v.Buf.Device())
	}
	at, n := len(dst), int(v.Shape[2])
	dst = append(dst, make([]float32, v.Len())...)
	for t := range v.Shape[0] {
		for h := range v.Shape[1] {
			from, row := v.Offset+t*v.Stride[0]+h*v.Stride[1], dst[at:][:n]
			at += n
			for d := range row {
				if v.DType == tensor.F32 {
					row[d] = v.F32s()[from+int64(d)*v.Stride[2]]
				} else {
					row[d] = v.DType.ToF32(v.Bits()[from+int64(d)*v.Stride[2]])
				}
			}
		}
	}
	return dst, nil
}

// columnMeans are the means of columns, summed in float64 from the first row on.
func columnMeans(x []float32, columns int) []float32 {
	sums, out := make([]float64, columns), make([]float32, columns)
	for i, v := range x {
		sums[i%columns] += float64(v)
	}
	for c, s := range sums {
		out[c] = float32(s / float64(len(x)/columns))
	}
	return out
}

// dot is a·b in four sums, the same on every architecture: products are rounded.
func dot(a, b []float32) float32 {
	b = b[:len(a)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(a); i += 4 {
		x, y := a[i:i+4:i+4], b[i:i+4:i+4]
		s0 += float32(x[0] * y[0])
		s1 += float32(x[1] * y[1])
		s2 += float32(x[2] * y[2])
		s3 += float32(x[3] * y[3])
	}
	for ; i < len(a); i++ {
		s0 += float32(a[i] * b[i])
	}
	return (s0 + s1) + (s2 + s3)
}

// norm is |a|.
func norm(a []float32) float32 {
	s := 0.0
	for _, x := range a {
		s = math.FMA(float64(x), float64(x), s)
	}
	return float32(math.Sqrt(s))
}
