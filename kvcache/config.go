package kvcache

import (
	"fmt"
	"math"
	"math/bits"
	"strings"

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

	// With a Coding, pages that are full and older than the last Residual tokens
	// of their sequence are coded; see the package comment.
	Coding      kernel.Coding
	LayerCoding []kernel.Coding // instead, of each layer, none of them zero, as AsymKV has it; nil: all alike
	Levels      []Levels        // of codings with levels: one for each layer
	CodedPages  int             // coded pages of each layer, beside Pages
	Residual    int             // tokens that stay plain, a multiple of PageSize; KIVI takes 128; 0: only a page that is not full
}

// Scales are the scales of the FP8 keys and values of a layer, [KVHeads] F32
// each; no tensor: 1. What is stored is rule 12 of package kernel.
type Scales struct{ Key, Value tensor.View }

// Levels are the tables of a layer's kernel.Quantizer.Levels, [KVHeads,
// MaxCode+1] F32 each; no tensor where the Quantizer has none.
type Levels struct{ Key, Value tensor.View }

// Coded reports whether there are coded pages.
func (c *Config) Coded() bool { return !c.Coding.IsZero() || c.LayerCoding != nil }

// CodingOf is the Coding of a layer.
func (c *Config) CodingOf(layer int) kernel.Coding {
	if c.LayerCoding != nil {
		return c.LayerCoding[layer]
	}
	return c.Coding
}

// Bytes is the memory that New asks of the backend,
//
//	Layers·Pages·PageSize·KVHeads·(HeadDim+ValueDim)·DType.Size()
//
// and for coded pages, of keys and of values of so many features, by
// kernel.Quantizer.PageBytes: so many bits a code, 4 bytes a group and an
// outlier, 2 bytes a number of a low rank,
//
//	CodedPages·KVHeads·(PageSize·features·bits/8 + 4·(groups + outliers) + 2·rank·(PageSize + features))
//
// of each layer.
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
	for layer := 0; c.Coded() && layer < c.Layers; layer++ {
		q, rest := c.CodingOf(layer), int64(1)
		if c.LayerCoding == nil {
			layer, rest = c.Layers-1, layers
		}
		n, okLayer := product(rest, heads, q.Key.PageBytes(c.PageSize, c.HeadDim)+q.Value.PageBytes(c.PageSize, c.ValueDim))
		coded += n
		ok = ok && okLayer && n < 1<<61 && coded < 1<<61
	}
	_, okPlain := product(plain, int64(c.maxPages()), 2)
	_, okCoded := product(coded, int64(c.CodedPages), 2)
	return plain, coded, ok && okPlain && okCoded
}

func (c *Config) maxPages() int { return max(c.Pages, c.MaxPages) }

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
	if err := c.checkCoding(); err != nil {
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

func (c *Config) checkCoding() error {
	if !c.Coded() {
		for _, f := range []struct {
			name  string
			value int
		}{{"Config.CodedPages", c.CodedPages}, {"Config.Levels", len(c.Levels)}, {"Config.Residual", c.Residual}} {
			if f.value != 0 {
				return valueError(f.name, f.value, "0 without Coding")
			}
		}
		return nil
	}
	switch {
	case c.LayerCoding != nil && len(c.LayerCoding) != c.Layers:
		return valueError("Config.LayerCoding", fmt.Sprintf("of %d layers", len(c.LayerCoding)), "%d, one for each layer", c.Layers)
	case c.LayerCoding != nil && !c.Coding.IsZero():
		return valueError("Config.Coding", c.Coding, "none with LayerCoding")
	case c.HeadDim > kernel.MaxHeadDim:
		return valueError("Config.HeadDim", c.HeadDim, "at most %d with Coding", kernel.MaxHeadDim)
	case c.ValueDim > kernel.MaxHeadDim:
		return valueError("Config.ValueDim", c.ValueDim, "at most %d with Coding", kernel.MaxHeadDim)
	case c.CodedPages < 1 || c.CodedPages > math.MaxInt32:
		return valueError("Config.CodedPages", c.CodedPages, "1 to 2³¹−1 with Coding")
	case c.Residual < 0 || c.Residual%c.PageSize != 0:
		return valueError("Config.Residual", c.Residual, "0 or a multiple of PageSize %d", c.PageSize)
	}
	levels := false
	for layer := range max(1, len(c.LayerCoding)) {
		q := c.CodingOf(layer)
		name := "Config.Coding"
		if c.LayerCoding != nil {
			name = fmt.Sprintf("Config.LayerCoding[%d]", layer)
		}
		if q.IsZero() {
			return valueError(name, q, "a Coding: a page is coded in all layers")
		}
		if p := q.Problems(c.PageSize, c.HeadDim, c.ValueDim); len(p) > 0 {
			return valueError(name, q, "one without this: %s", strings.Join(p, "; "))
		}
		levels = levels || q.Key.Levels || q.Value.Levels
	}
	return c.checkLevels(levels)
}

func (c *Config) checkLevels(wanted bool) error {
	want := 0
	if wanted {
		want = c.Layers
	}
	if len(c.Levels) != want {
		return valueError("Config.Levels", fmt.Sprintf("of %d layers", len(c.Levels)), "%d, one for each layer if a Coding has levels", want)
	}
	for i := range c.Levels {
		q := c.CodingOf(i)
		for _, s := range []struct {
			view *tensor.View
			q    *kernel.Quantizer
		}{{&c.Levels[i].Key, &q.Key}, {&c.Levels[i].Value, &q.Value}} {
			v, n := s.view, int64(s.q.Codec.MaxCode())+1
			if !s.q.Levels {
				continue
			}
			if err := v.Check(); err != nil || v.DType != tensor.F32 || v.Rank != 2 || v.Shape[0] != int64(c.KVHeads) || v.Shape[1] != n || v.Stride[1] != 1 {
				return valueError(fmt.Sprintf("Config.Levels[%d]", i), v, "f32[%d,%d], ascending levels of each KV head", c.KVHeads, n)
			}
		}
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
