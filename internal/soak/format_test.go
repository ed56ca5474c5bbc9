package soak

import (
	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// format is a way to keep rows. tolerance is the most by which a coded row may
// differ from what was stored, for elements of −2 to 2.
type format struct {
	codec     kernel.Codec
	outliers  bool // some entries of a page are kept beside the codes
	rank      int  // and some of what coding loses
	tolerance float64
}

// formats are all codecs that a cache can have: half a step of a group that spans
// all values, and the rounding of its scale and zero to F16. What a thin product
// adds to an element is no more than all errors of a row or column together.
var formats = []format{
	{kernel.NoCodec, false, 0, 0},
	{kernel.Int8, false, 0, 2.0/255 + 0.006},
	{kernel.Int4, false, 0, 2.0/15 + 0.006},
	{kernel.Int2, false, 0, 2.0/3 + 0.006},
	{kernel.Int1, false, 0, 2 + 0.006},
	{kernel.Int4, true, 0, 2.0/15 + 0.006},
	{kernel.Int2, true, 1, 4 * (2.0/3 + 0.006)},
}

func (f format) coded() bool { return f.codec != kernel.NoCodec }

// ofCache makes some pages of a cache coded.
func (f format) ofCache(c *kvcache.Config, in source) {
	if f.coded() {
		c.Coding = kernel.Coding{Key: kernel.Quantizer{Codec: f.codec}, Value: kernel.Quantizer{Codec: f.codec, Group: dim >> in.below(2)}}
		for _, q := range []*kernel.Quantizer{&c.Coding.Key, &c.Coding.Value} {
			if f.outliers {
				q.Outliers = 1 + in.below(c.PageSize)
			}
			q.Rank = min(f.rank, c.PageSize)
		}
		c.CodedPages = 1 + in.below(100)
		c.Residual = c.PageSize * in.below(3)
	}
}

// attention is the Config of attention over a cache.
func (f format) attention(c *kvcache.Config, heads, kvHeads int, mask attention.Mask) attention.Config {
	return attention.Config{Heads: heads, KVHeads: kvHeads, HeadDim: dim, KVDType: c.DType, DType: tensor.F32, PageSize: c.PageSize,
		Coding: c.Coding, Mask: mask}
}
