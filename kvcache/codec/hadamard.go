package codec

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// QuaRot gives pages the coding of Ashkboos et al., "QuaRot: Outlier-Free 4-Bit
// Inference in Rotated LLMs", https://arxiv.org/abs/2404.00456: 4 bits in groups of
// a token's head. The caller passes queries and keys, after their rotary
// embedding, and values through Hadamard, and so the output back: HadamardBases.
func QuaRot(c *kvcache.Config) {
	coded(kernel.Int4, 0)(c)
	c.KeyStorage = kernel.PostRoPE
	c.Coding.Key.Group, c.Coding.Value.Group = c.HeadDim, c.ValueDim
}

// HadamardBases are the matrix of Hadamard for all rows, the output's being its own
// inverse.
func HadamardBases(dim, valueDim int) Bases {
	of := func(n int) tensor.View {
		return matrix(n, n, func(i, d int) float64 { return float64(1-2*(bits.OnesCount(uint(i&d))%2)) / math.Sqrt(float64(n)) })
	}
	key, value := of(dim), of(valueDim)
	return Bases{key, key, value, value}
}

// Hadamard multiplies each row of dim features, in host memory, by the
// Walsh–Hadamard matrix over √dim, in place. It is its own inverse, keeps the
// product of two rows and spreads a large entry over all. dim is a power of two.
func Hadamard(rows []float32, dim int) error {
	if dim < 1 || dim&(dim-1) != 0 {
		return &ValueError{"dim", fmt.Sprint(dim), "a power of two"}
	}
	if len(rows)%dim != 0 {
		return &ValueError{"rows", fmt.Sprintf("of %d features", len(rows)), fmt.Sprintf("a multiple of %d", dim)}
	}
	scale := float32(1 / math.Sqrt(float64(dim)))
	for at := 0; at < len(rows); at += dim {
		row := rows[at : at+dim]
		for half := 1; half < dim; half *= 2 {
			for i := range row {
				if i&half == 0 {
					a, b := row[i], row[i+half]
					row[i], row[i+half] = a+b, a-b
				}
			}
		}
		for i := range row {
			row[i] *= scale
		}
	}
	return nil
}
