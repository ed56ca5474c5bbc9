package kvcache

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Cache holds the keys and values of all layers of a model. See the package
// comment for what may be called at the same time.
type Cache struct {
	config  Config // Pages under mu
	backend kernel.Backend
	plain   atomic.Pointer[tensors] // Grow makes others
	coded   []codedLayer            // [Layers], with a Coding

	appends sync.Pool // of *kernel.AppendArgs: through an interface a local one would move to the heap

	mu        sync.Mutex // of all below
	bytes     int64
	holdCount int64 // of pages, by holders that are no sequences
	pool      pool  // of plain pages
	codes     codes
	sequences map[ID]*sequence
	moving    map[ID]*sequence // tables of pages that a SwapSpace copies; no method finds them
	tokens    int64            // Σ lengths, of moving ones as well
	reserved  int              // Σ reserved
	extension extension
}

// tensors are the plain pages of all layers.
type tensors struct {
	keys   []tensor.View // [Layers] of [Pages, PageSize, KVHeads, HeadDim]
	values []tensor.View // [Layers] of [Pages, PageSize, KVHeads, ValueDim]
}

// New allocates a cache of empty pages on b: for each layer one tensor of keys
// and one of values, and with a Coding those of
// coded pages (kernel.CodedPages). It returns a *ValueError for a bad Config, and the
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
	c.LayerCoding, c.Levels = slices.Clone(c.LayerCoding), slices.Clone(c.Levels)
	cache := &Cache{config: c, bytes: bytes, backend: b, sequences: map[ID]*sequence{}, moving: map[ID]*sequence{}}
	cache.appends.New = func() any { return new(kernel.AppendArgs) }
	plain := new(tensors)
	cache.plain.Store(plain)
	for layer := range c.Layers {
		if err := cache.allocLayer(layer, plain); err != nil {
			return nil, errors.Join(err, cache.Close())
		}
	}
	cache.pool = newPool(c.Pages)
	cache.codes = newCodes(&c)
	return cache, nil
}

func (c *Cache) allocLayer(layer int, to *tensors) error {
	f := &c.config
	if err := c.allocCoded(layer); err != nil {
		return err
	}
	key, err := f.alloc(c.backend, f.HeadDim)
	if err != nil {
		return fmt.Errorf("kvcache: keys of layer %d of %d: %w", layer, f.Layers, err)
	}
	to.keys = append(to.keys, key)
	value, err := f.alloc(c.backend, f.ValueDim)
	if err != nil {
		return fmt.Errorf("kvcache: values of layer %d of %d: %w", layer, f.Layers, err)
	}
	to.values = append(to.values, value)
	return nil
}

// Close gives the memory back where the backend's buffers have a method Close, as
// on a device and with MaxPages; elsewhere the garbage collector does. No other
// method may be called afterwards, nor anything use a view of the cache.
func (c *Cache) Close() error {
	var errs []error
	plain := c.plain.Load()
	for _, list := range [][]tensor.View{plain.keys, plain.values, c.codedTensors()} {
		for i := range list {
			if b, ok := list[i].Buf.(io.Closer); ok {
				errs = append(errs, b.Close())
			}
		}
	}
	return errors.Join(errs...)
}

func (c *Config) alloc(b kernel.Backend, dim int) (tensor.View, error) {
	shape := []int64{int64(c.Pages), int64(c.PageSize), int64(c.KVHeads), int64(dim)}
	if c.maxPages() == c.Pages {
		return alloc(b, c.DType, shape...)
	}
	return c.allocGrowing(b, shape)
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
	return lay(buffer, d, shape...)
}

func lay(buffer tensor.Buffer, d tensor.DType, shape ...int64) (tensor.View, error) {
	if len(shape) == 4 { // the rows of a head lie together, so that it can be read alone
		shape[1], shape[2] = shape[2], shape[1]
		v := tensor.Of(buffer, d, shape...).Swap(1, 2)
		return v, v.Check()
	}
	v := tensor.Of(buffer, d, shape...)
	return v, v.Check()
}

// Config returns what New was given, with the Pages that Grow has reached.
func (c *Cache) Config() Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config
}

// KeyView is the keys of a layer, [Pages, PageSize, KVHeads, HeadDim]; no
// tensor for a layer that is not there. In memory a page holds all rows of one
// head, then those of the next. Rows outside the tables of LowerKV hold
// anything.
func (c *Cache) KeyView(layer int) tensor.View { return viewOf(c.plain.Load().keys, layer) }

// ValueView is the values of a layer, [Pages, PageSize, KVHeads, ValueDim], as
// KeyView.
func (c *Cache) ValueView(layer int) tensor.View { return viewOf(c.plain.Load().values, layer) }

// Bind sets the fields of a that hold keys and values to those of a layer: Key
// and Value, their scales, and the coded pages. It returns a *ValueError for a
// layer that is not there.
func (c *Cache) Bind(layer int, a *kernel.Args) error {
	if err := c.checkLayer(layer); err != nil {
		return err
	}
	plain := c.plain.Load()
	a.Key, a.Value = plain.keys[layer], plain.values[layer]
	a.KeyScale, a.ValueScale = c.scales(layer)
	a.CodedKey, a.CodedValue = kernel.CodedPages{}, kernel.CodedPages{}
	if c.config.Coded() {
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
