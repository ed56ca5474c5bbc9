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

	// Bases are what rows of so many features are multiplied by, nil where they are
	// held as they are. Apply may have given the cache other features.
	Bases func(headDim, valueDim int) Bases `json:"-"`

	// Mixed says which pages stay plain, nil for none of their own.
	Mixed *Mixed `json:"-"`
}

// Codecs lists all codecs.
func Codecs() []Entry {
	of := func(name, paper, needs string, apply func(*kvcache.Config)) Entry {
		return Entry{Name: name, Paper: paper, Needs: needs, Apply: apply}
	}
	based := func(e Entry, bases func(headDim, valueDim int) Bases) Entry {
		e.Bases = bases
		return e
	}
	mixed := func(name, paper string, m Mixed) Entry {
		e := of(name, paper, "sums of the weights of each key", m.Apply)
		e.Mixed = &m
		return e
	}
	qjl := QJL{Sketch: 4, Seed: 1}
	half := func(headDim, valueDim int) Palu { return Palu{max(headDim/2, 1), max(valueDim/2, 1)} }
	return []Entry{
		of("f16", "", "", plain(tensor.F16)),
		of("bf16", "", "", plain(tensor.BF16)),
		of("fp8", "", "Scales, unless 1", plain(tensor.F8E4M3)),
		of("int8", kiviPaper, "", coded(kernel.Int8, 0)),
		of("int4", kiviPaper, "", coded(kernel.Int4, 0)),
		of("kivi4", kiviPaper, "", coded(kernel.Int4, kiviResidual)),
		of("kivi2", kiviPaper, "", coded(kernel.Int2, kiviResidual)),
		of("kvquant", "https://arxiv.org/abs/2401.18079", "Levels, see NUQ; keys that are not rotated", KVQuant),
		based(of("hadamard", "https://arxiv.org/abs/2404.00456", "its Bases, or Hadamard; heads of a power of two", QuaRot), HadamardBases),
		of("gear", "https://arxiv.org/abs/2403.05527", "", func(c *kvcache.Config) {
			coded(kernel.Int4, kiviResidual)(c)
			GEAR{Rank: 4, Outliers: 0.02}.Apply(c)
		}),
		of("asymkv", "https://arxiv.org/abs/2410.13212", "", func(c *kvcache.Config) {
			AsymKV{KeyLayers: c.Layers / 2}.Apply(c)
		}),
		based(of("qjl", "https://arxiv.org/abs/2406.03482", "its Bases", qjl.Apply), qjl.Bases),
		based(of("palu", "https://arxiv.org/abs/2407.21118", "Bases of the model, see Principal", func(c *kvcache.Config) {
			half(c.HeadDim, c.ValueDim).Apply(c)
		}), func(headDim, valueDim int) Bases { return half(headDim, valueDim).Bases(headDim, valueDim) }),
		mixed("mikv", "https://arxiv.org/abs/2402.18096", Mixed{Plain: tensor.F16, Codec: kernel.Int2, Part: 0.25}),
		mixed("zipcache", "https://arxiv.org/abs/2405.14256", Mixed{Plain: tensor.F8E4M3, Codec: kernel.Int2, Part: 0.4, Mean: true}),
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
