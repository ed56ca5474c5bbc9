package kvcache

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Config says what a Cache holds. Layers to DType are required.
type Config struct {
	Layers   int
	Pages    int // of each layer; Pages·PageSize < 2³¹
	MaxPages int // that Cache.Grow can reach, on a backend that is a kernel.Grower; 0: Pages
	PageSize int // tokens a page
	KVHeads  int
	HeadDim  int // features of a key
	ValueDim int // features of a value

	DType      tensor.DType      // of the stored keys and values: F32, F16, BF16 or FP8
	KeyStorage kernel.KeyStorage // whether the keys to be stored are rotated; attention compares it with its plan
	Scales     []Scales          // of FP8: one for each layer; nil: 1

	// With Codec, pages that are full and older than the last Residual tokens
	// of their sequence are coded; see the package comment.
	Codec      kernel.Codec
	CodedPages int // coded pages of each layer, beside Pages
	ValueGroup int // features of a value that share a scale; 0: kernel.DefaultValueGroup
	Residual   int // tokens that stay plain, a multiple of PageSize; KIVI takes 128; 0: only a page that is not full
}

// Scales are the scales of the FP8 keys and values of a layer, [KVHeads] F32
// each; no tensor: 1. What is stored is rule 12 of package kernel.
type Scales struct{ Key, Value tensor.View }

// Bytes is the memory that New asks of the backend,
//
//	Layers·Pages·PageSize·KVHeads·(HeadDim+ValueDim)·DType.Size()
//
// and for coded pages, at 8 or 4 bits a code and 4 bytes a group of
// PageSize keys or ValueGroup features of a value,
//
//	Layers·CodedPages·KVHeads·(PageSize·(HeadDim+ValueDim)·bits/8 + 4·(HeadDim + PageSize·ValueDim/ValueGroup)).
//
// Tables are beside it: 12 bytes a page of either kind, 4 bytes for each page
// of a sequence and 4 for each of its tokens whose position is not its ordinal.
// A Config that New would refuse gives a *ValueError.
func Bytes(c Config) (int64, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	plain, coded, _ := c.pageBytes()
	return plain*int64(c.Pages) + coded*int64(c.CodedPages), nil
}

// pageBytes is the memory of a page of either kind in all layers; ok is false
// where int64 does not hold that of all pages.
func (c *Config) pageBytes() (plain, coded int64, ok bool) {
	layers, size, heads := int64(c.Layers), int64(c.PageSize), int64(c.KVHeads)
	key, value := int64(c.HeadDim), int64(c.ValueDim)
	plain, ok = product(layers, size, heads, key+value, c.DType.Size())
	if c.Codec != kernel.NoCodec {
		codes, ok1 := product(layers, heads, size, int64(c.Codec.RowBytes(c.HeadDim)+c.Codec.RowBytes(c.ValueDim)))
		keys, ok2 := product(layers, heads, key, 4)
		values, ok3 := product(layers, heads, size, value/int64(c.valueGroup()), 4)
		coded = codes + keys + values
		ok = ok && ok1 && ok2 && ok3 && codes < 1<<61 && keys < 1<<61 && values < 1<<61
	}
	_, okPlain := product(plain, int64(c.maxPages()), 2)
	_, okCoded := product(coded, int64(c.CodedPages), 2)
	return plain, coded, ok && okPlain && okCoded
}

func (c *Config) maxPages() int { return max(c.Pages, c.MaxPages) }

func (c *Config) valueGroup() int {
	if c.ValueGroup == 0 {
		return kernel.DefaultValueGroup(c.ValueDim)
	}
	return c.ValueGroup
}

func (c *Config) check() error {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"Config.Layers", c.Layers}, {"Config.Pages", c.Pages}, {"Config.PageSize", c.PageSize},
		{"Config.KVHeads", c.KVHeads}, {"Config.HeadDim", c.HeadDim}, {"Config.ValueDim", c.ValueDim},
	} {
		if f.value < 1 || f.value > math.MaxInt32 {
			return valueError(f.name, f.value, "1 to 2³¹−1")
		}
	}
	if c.MaxPages != 0 && (c.MaxPages < c.Pages || c.MaxPages > math.MaxInt32) {
		return valueError("Config.MaxPages", c.MaxPages, "0 or %d to 2³¹−1", c.Pages)
	}
	if n := int64(c.maxPages()) * int64(c.PageSize); n > math.MaxInt32 {
		return valueError("Config.Pages·PageSize", n, "at most 2³¹−1: a slot is an int32")
	}
	if !c.DType.Valid() || c.DType == tensor.U8 {
		return valueError("Config.DType", c.DType, "f32, f16, bf16, f8e4m3 or f8e5m2")
	}
	if c.KeyStorage > kernel.PostRoPE {
		return valueError("Config.KeyStorage", c.KeyStorage, "%v or %v", kernel.PreRoPE, kernel.PostRoPE)
	}
	if err := c.checkScales(); err != nil {
		return err
	}
	if err := c.checkCodec(); err != nil {
		return err
	}
	if _, _, ok := c.pageBytes(); !ok {
		return valueError("Config", "above 2⁶²−1 bytes", "a size that int64 holds")
	}
	return nil
}

func (c *Config) checkScales() error {
	if c.Scales == nil {
		return nil
	}
	if !c.DType.Float8() {
		return valueError("Config.Scales", fmt.Sprintf("of %v", c.DType), "nil: scales are for f8e4m3 and f8e5m2")
	}
	if len(c.Scales) != c.Layers {
		return valueError("Config.Scales", fmt.Sprintf("of %d layers", len(c.Scales)), "%d, one for each layer", c.Layers)
	}
	for i := range c.Scales {
		for _, v := range []*tensor.View{&c.Scales[i].Key, &c.Scales[i].Value} {
			if v.IsZero() {
				continue
			}
			if err := v.Check(); err != nil || v.DType != tensor.F32 || v.Rank != 1 || v.Shape[0] != int64(c.KVHeads) {
				return valueError(fmt.Sprintf("Config.Scales[%d]", i), v, "f32[%d], one for each KV head", c.KVHeads)
			}
		}
	}
	return nil
}

func (c *Config) checkCodec() error {
	if c.Codec == kernel.NoCodec {
		for _, f := range []struct {
			name  string
			value int
		}{{"Config.CodedPages", c.CodedPages}, {"Config.ValueGroup", c.ValueGroup}, {"Config.Residual", c.Residual}} {
			if f.value != 0 {
				return valueError(f.name, f.value, "0 without Codec")
			}
		}
		return nil
	}
	dims := 1
	if c.Codec == kernel.Int4 {
		dims = 8
	}
	switch {
	case c.Codec > kernel.Int4:
		return valueError("Config.Codec", c.Codec, "none, int8 or int4")
	case c.HeadDim%dims != 0 || c.HeadDim > kernel.MaxHeadDim:
		return valueError("Config.HeadDim", c.HeadDim, "a multiple of %d, at most %d, with Codec %v", dims, kernel.MaxHeadDim, c.Codec)
	case c.ValueDim%dims != 0 || c.ValueDim > kernel.MaxHeadDim:
		return valueError("Config.ValueDim", c.ValueDim, "a multiple of %d, at most %d, with Codec %v", dims, kernel.MaxHeadDim, c.Codec)
	case c.ValueGroup < 0 || c.ValueDim%c.valueGroup() != 0:
		return valueError("Config.ValueGroup", c.ValueGroup, "0 or a divisor of ValueDim %d", c.ValueDim)
	case c.CodedPages < 1 || c.CodedPages > math.MaxInt32:
		return valueError("Config.CodedPages", c.CodedPages, "1 to 2³¹−1 with Codec %v", c.Codec)
	case c.Residual < 0 || c.Residual%c.PageSize != 0:
		return valueError("Config.Residual", c.Residual, "0 or a multiple of PageSize %d", c.PageSize)
	}
	return nil
}

// product multiplies factors >= 0; ok is false where int64 overflows.
func product(factors ...int64) (n int64, ok bool) {
	n = 1
	for _, f := range factors {
		hi, lo := bits.Mul64(uint64(n), uint64(f))
		if hi != 0 || lo > math.MaxInt64 {
			return 0, false
		}
		n = int64(lo)
	}
	return n, true
}
