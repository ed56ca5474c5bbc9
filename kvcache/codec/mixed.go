package codec

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// Mixed keeps the pages of important tokens plain and codes the others:
// kvcache.Cache.KeepPlain of the pages that Salient names. The papers choose single
// tokens; here the unit is a page, whose tokens are held alike.
//
//   - Yang et al., "No Token Left Behind: Reliable KV Cache Compression via
//     Importance-Aware Mixed Precision Quantization" (MiKV),
//     https://arxiv.org/abs/2402.18096: important are the tokens that H2O keeps, by the
//     sum of their weights; what H2O evicts is held in 2 bits.
//   - He et al., "ZipCache: Accurate and Efficient KV Cache Quantization with Salient
//     Token Identification", https://arxiv.org/abs/2405.14256: by the sum over the
//     number of queries that see the token. The paper has 4 bits for the important
//     ones; here they are FP8, the narrowest of plain pages.
type Mixed struct {
	Plain tensor.DType // of important tokens
	Codec kernel.Codec // of the others
	Part  float64      // of the pages that are important, 0 to 1
	Mean  bool         // by the mean weight of the queries that see a token, not the sum
}

// Apply gives the cache its two widths.
func (m Mixed) Apply(c *kvcache.Config) {
	coded(m.Codec, 0)(c)
	c.DType = m.Plain
}

// Salient lists the pages that stay plain: of the full ones, Part of them, rounded
// up, by the weights of their keys, [n], and the number of queries that see each.
func (m Mixed) Salient(weights, queries []float32, pageSize int) ([]int, error) {
	if pageSize < 1 || len(queries) != len(weights) {
		return nil, &ValueError{"queries", fmt.Sprintf("of %d keys, pages of %d", len(queries), pageSize), fmt.Sprintf("one for each of %d weights, pages of 1 or more", len(weights))}
	}
	worth := make([]float64, len(weights)/pageSize)
	pages := make([]int, len(worth))
	for p := range worth {
		pages[p] = p
		for j := p * pageSize; j < (p+1)*pageSize; j++ {
			w := float64(weights[j])
			if m.Mean {
				w /= math.Max(float64(queries[j]), 1)
			}
			worth[p] += w
		}
	}
	slices.SortStableFunc(pages, func(a, b int) int {
		if worth[a] > worth[b] {
			return -1
		} else if worth[a] < worth[b] {
			return 1
		}
		return 0
	})
	pages = pages[:share(m.Part, len(pages))]
	slices.Sort(pages)
	return pages, nil
}
