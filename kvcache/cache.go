package kvcache

import (
	"fmt"
	"slices"
	"sync"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Cache holds the keys and values of all layers of a model. See the package
// comment for what may be called at the same time.
type Cache struct {
	config  Config
	bytes   int64
	backend kernel.Backend
	keys    []tensor.View // [Layers] of [Pages, PageSize, KVHeads, HeadDim]
	values  []tensor.View // [Layers] of [Pages, PageSize, KVHeads, ValueDim]
	coded   []codedLayer  // [Layers], with Codec

	appends sync.Pool // of *kernel.AppendArgs: through an interface a local one would move to the heap

	mu        sync.Mutex // of all below
	holdCount int64      // of pages, by holders that are no sequences
	pool      pool       // of plain pages
	codes     codes
	sequences map[ID]*sequence
	moving    map[ID]*sequence // tables of pages that a SwapSpace copies; no method finds them
	tokens    int64            // Σ lengths, of moving ones as well
	reserved  int              // Σ reserved
	extension extension
}

// New allocates a cache of empty pages on b: for each layer one tensor of keys
// and one of values, and with a Codec six of coded pages. It returns a *ValueError for a bad Config, and the
// backend's error, wrapped, where memory is short.
func New(b kernel.Backend, c Config) (*Cache, error) {
	if b == nil {
		return nil, valueError("Backend", "nil", "a backend")
	}
	bytes, err := Bytes(c)
	if err != nil {
		return nil, err
	}
	c.Scales = slices.Clone(c.Scales)
	if c.Codec != kernel.NoCodec {
		c.ValueGroup = c.valueGroup()
	}
	cache := &Cache{config: c, bytes: bytes, backend: b, sequences: map[ID]*sequence{}, moving: map[ID]*sequence{}}
	cache.appends.New = func() any { return new(kernel.AppendArgs) }
	for layer := range c.Layers {
		if err := cache.allocCoded(layer); err != nil {
			return nil, err
		}
		key, err := c.alloc(b, c.HeadDim)
		if err != nil {
			return nil, fmt.Errorf("kvcache: keys of layer %d of %d: %w", layer, c.Layers, err)
		}
		value, err := c.alloc(b, c.ValueDim)
		if err != nil {
			return nil, fmt.Errorf("kvcache: values of layer %d of %d: %w", layer, c.Layers, err)
		}
		cache.keys, cache.values = append(cache.keys, key), append(cache.values, value)
	}
	cache.pool = newPool(c.Pages)
	cache.codes = newCodes(&c)
	return cache, nil
}

func (c *Config) alloc(b kernel.Backend, dim int) (tensor.View, error) {
	return alloc(b, c.DType, int64(c.Pages), int64(c.PageSize), int64(c.KVHeads), int64(dim))
}

func alloc(b kernel.Backend, d tensor.DType, shape ...int64) (tensor.View, error) {
	bytes := d.Size()
	for _, n := range shape {
		bytes *= n // a part of what Bytes checked
	}
	buffer, err := b.Alloc(bytes)
	if err != nil {
		return tensor.View{}, err
	}
	if len(shape) == 4 { // the rows of a head lie together, so that it can be read alone
		shape[1], shape[2] = shape[2], shape[1]
		v := tensor.Of(buffer, d, shape...).Swap(1, 2)
		return v, v.Check()
	}
	v := tensor.Of(buffer, d, shape...)
	return v, v.Check()
}

// Config returns what New was given, with ValueGroup filled in.
func (c *Cache) Config() Config { return c.config }

// KeyView is the keys of a layer, [Pages, PageSize, KVHeads, HeadDim]; no
// tensor for a layer that is not there. In memory a page holds all rows of one
// head, then those of the next. Rows outside the tables of LowerKV hold
// anything.
func (c *Cache) KeyView(layer int) tensor.View { return viewOf(c.keys, layer) }

// ValueView is the values of a layer, [Pages, PageSize, KVHeads, ValueDim], as
// KeyView.
func (c *Cache) ValueView(layer int) tensor.View { return viewOf(c.values, layer) }

// Bind sets the fields of a that hold keys and values to those of a layer: Key
// and Value, their scales, and the coded pages. It returns a *ValueError for a
// layer that is not there.
func (c *Cache) Bind(layer int, a *kernel.Args) error {
	if err := c.checkLayer(layer); err != nil {
		return err
	}
	a.Key, a.Value = c.keys[layer], c.values[layer]
	a.KeyScale, a.ValueScale = c.scales(layer)
	a.CodedKey, a.CodedValue = kernel.CodedPages{}, kernel.CodedPages{}
	if c.config.Codec != kernel.NoCodec {
		a.CodedKey, a.CodedValue = c.coded[layer].key, c.coded[layer].value
	}
	return nil
}

func (c *Cache) scales(layer int) (key, value tensor.View) {
	if c.config.Scales == nil {
		return key, value
	}
	return c.config.Scales[layer].Key, c.config.Scales[layer].Value
}

func viewOf(views []tensor.View, layer int) tensor.View {
	if layer < 0 || layer >= len(views) {
		return tensor.View{}
	}
	return views[layer]
}

func (c *Cache) checkLayer(layer int) error {
	if layer < 0 || layer >= c.config.Layers {
		return valueError("layer", layer, "0 to %d", c.config.Layers-1)
	}
	return nil
}

// pagesFor is the number of pages that n keys take. Written so that it does
// not overflow.
func (c *Cache) pagesFor(n int) int {
	pages := n / c.config.PageSize
	if n%c.config.PageSize > 0 {
		pages++
	}
	return pages
}
