package codec

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
)

// QuaRot gives pages the coding of Ashkboos et al., "QuaRot: Outlier-Free 4-Bit
// Inference in Rotated LLMs", https://arxiv.org/abs/2404.00456: 4 bits in groups of
// a token's head. The caller passes queries and keys, after their rotary
// embedding, and values through Hadamard, and so the output back.
func QuaRot(c *kvcache.Config) {
	coded(kernel.Int4, 0)(c)
	c.KeyStorage = kernel.PostRoPE
	c.Coding.Key.Group, c.Coding.Value.Group = c.HeadDim, c.ValueDim
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
