package codec

import (
	"fmt"
	"strings"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// Entry describes a codec.
type Entry struct {
	Name  string `json:"name"`
	Paper string `json:"paper"` // address; "" for a number format
	Needs string `json:"needs"` // of the caller, beyond CodedPages

	// Apply changes how a cache holds keys and values, and nothing else of it:
	// the number of coded pages is the caller's.
	Apply func(*kvcache.Config) `json:"-"`
}

// Codecs lists all codecs.
func Codecs() []Entry {
	return []Entry{
		{"f16", "", "", plain(tensor.F16)},
		{"bf16", "", "", plain(tensor.BF16)},
		{"fp8", "", "Scales, unless 1", plain(tensor.F8E4M3)},
		{"int8", kiviPaper, "", coded(kernel.Int8, 0)},
		{"int4", kiviPaper, "", coded(kernel.Int4, 0)},
		{"kivi4", kiviPaper, "", coded(kernel.Int4, kiviResidual)},
		{"kivi2", kiviPaper, "", coded(kernel.Int2, kiviResidual)},
		{"kvquant", "https://arxiv.org/abs/2401.18079", "Levels, see NUQ; keys that are not rotated", KVQuant},
		{"hadamard", "https://arxiv.org/abs/2404.00456", "queries, keys, values and output through Hadamard", QuaRot},
		{"gear", "https://arxiv.org/abs/2403.05527", "", func(c *kvcache.Config) {
			coded(kernel.Int4, kiviResidual)(c)
			GEAR{Rank: 4, Outliers: 0.02}.Apply(c)
		}},
		{"asymkv", "https://arxiv.org/abs/2410.13212", "", func(c *kvcache.Config) {
			AsymKV{KeyLayers: c.Layers / 2}.Apply(c)
		}},
	}
}

// Find returns the codec of a name. The error names those there are.
func Find(name string) (Entry, error) {
	var names []string
	for _, e := range Codecs() {
		if e.Name == name {
			return e, nil
		}
		names = append(names, e.Name)
	}
	return Entry{}, &ValueError{"name", name, strings.Join(names, ", ")}
}

// ValueError reports an argument outside what is allowed.
type ValueError struct{ Name, Got, Want string }

func (e *ValueError) Error() string {
	return fmt.Sprintf("codec: %s is %s, want %s", e.Name, e.Got, e.Want)
}

func plain(d tensor.DType) func(*kvcache.Config) {
	return func(c *kvcache.Config) {
		c.DType, c.Coding, c.LayerCoding, c.Levels, c.CodedPages, c.Residual = d, kernel.Coding{}, nil, nil, 0, 0
	}
}

// coded gives pages coded as KIVI does. A residual is rounded up to whole pages.
func coded(k kernel.Codec, residual int) func(*kvcache.Config) {
	return func(c *kvcache.Config) {
		size := max(c.PageSize, 1)
		c.Coding, c.LayerCoding, c.Levels = kernel.KIVI(k, c.ValueDim), nil, nil
		c.Residual = (residual + size - 1) / size * size
	}
}

// Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache".
const (
	kiviPaper    = "https://arxiv.org/abs/2402.02750"
	kiviResidual = 128
)
