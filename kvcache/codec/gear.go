package codec

import (
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
)

// Kang et al., "GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless
// Generative Inference of LLM", https://arxiv.org/abs/2403.05527
//
// What coding loses is kept as a product of two thin matrices, and the largest
// entries beside the codes. It wraps any coding. The paper takes outliers of each
// vector; here they are of a head of a page.
type GEAR struct {
	Rank     int     // of a head of a page; smaller where its sides are; 4
	Outliers float64 // part of the entries of a head of a page, 0 to 1; 0.02
}

// Apply adds a low rank and outliers to the codings of a cache.
func (g GEAR) Apply(c *kvcache.Config) {
	add := func(q *kernel.Quantizer, dim int) {
		q.Rank = min(g.Rank, kernel.MaxRank, c.PageSize, dim)
		q.Outliers = share(g.Outliers, c.PageSize*dim)
	}
	each(c, func(k *kernel.Coding) { add(&k.Key, c.HeadDim); add(&k.Value, c.ValueDim) })
}

// each changes every coding of a cache, those of a caller's slice left alone.
func each(c *kvcache.Config, change func(*kernel.Coding)) {
	if c.LayerCoding == nil {
		change(&c.Coding)
		return
	}
	c.LayerCoding = append([]kernel.Coding(nil), c.LayerCoding...)
	for i := range c.LayerCoding {
		change(&c.LayerCoding[i])
	}
}

// share is a part of n entries, rounded up.
func share(part float64, n int) int { return int(math.Ceil(min(max(part, 0), 1) * float64(n))) }
