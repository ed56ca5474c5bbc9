package kvcache

import (
	"math"
	"math/bits"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Config says what a Cache holds. Every field but KeyStorage is required.
type Config struct {
	Layers   int
	Pages    int // of each layer; Pages·PageSize < 2³¹
	PageSize int // tokens a page
	KVHeads  int
	HeadDim  int // features of a key
	ValueDim int // features of a value

	DType      tensor.DType      // of the stored keys and values
	KeyStorage kernel.KeyStorage // whether the keys to be stored are rotated; attention compares it with its plan
}

// Bytes is the memory that New asks of the backend,
//
//	Layers·Pages·PageSize·KVHeads·(HeadDim+ValueDim)·DType.Size().
//
// Tables are beside it: 8 bytes a page, 4 bytes for each page of a sequence
// and 4 for each of its tokens whose position is not its ordinal. A Config
// that New would refuse gives a *ValueError.
func Bytes(c Config) (int64, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	n, _ := c.bytes()
	return n, nil
}

func (c *Config) bytes() (n int64, ok bool) {
	return product(int64(c.Layers), int64(c.Pages), int64(c.PageSize), int64(c.KVHeads),
		int64(c.HeadDim)+int64(c.ValueDim), c.DType.Size())
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
	if n := int64(c.Pages) * int64(c.PageSize); n > math.MaxInt32 {
		return valueError("Config.Pages·PageSize", n, "at most 2³¹−1: a slot is an int32")
	}
	if !c.DType.Valid() {
		return valueError("Config.DType", c.DType, "f32, f16 or bf16")
	}
	if c.KeyStorage > kernel.PostRoPE {
		return valueError("Config.KeyStorage", c.KeyStorage, "%v or %v", kernel.PreRoPE, kernel.PostRoPE)
	}
	if _, ok := c.bytes(); !ok {
		return valueError("Config", "above 2⁶³−1 bytes", "a size that int64 holds")
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
