package codec

import (
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
)

// Tao et al., "AsymKV: Enabling 1-Bit Quantization of KV Cache with Layer-Wise
// Asymmetric Quantization Configurations", https://arxiv.org/abs/2410.13212
//
// Keys tell more than values: the first layers hold keys, and fewer of them
// values, in 2 bits; the rest in 1. Limits: a large entry spoils a group of 1 bit,
// which has only its least and its largest value.
type AsymKV struct{ KeyLayers, ValueLayers int } // layers of 2 bits, from the first

// Apply gives each layer its coding.
func (a AsymKV) Apply(c *kvcache.Config) {
	coded(kernel.Int1, kiviResidual)(c)
	c.LayerCoding = make([]kernel.Coding, max(c.Layers, 0))
	for i := range c.LayerCoding {
		k := c.Coding
		if i < a.KeyLayers {
			k.Key.Codec = kernel.Int2
		}
		if i < a.ValueLayers {
			k.Value.Codec = kernel.Int2
		}
		c.LayerCoding[i] = k
	}
	c.Coding = kernel.Coding{}
}
