package kvcache

import (
	"errors"
	"fmt"
	"io"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Grow gives the cache so many plain pages in all, Config.Pages to
// Config.MaxPages, where they are: tables, slots and captured graphs stay as they
// are, and nothing is copied. A cache never shrinks, and coded pages do not grow.
// New pages are taken last.
//
// Views of KeyView, ValueView and Bind from before serve the pages from before.
// What reads them, and a step that was planned, may go on meanwhile.
//
// Other numbers are a *ValueError. Where memory is short the error is a
// *kernel.OutOfMemoryError, wrapped, and the cache has the pages that it had; the
// memory that some layers already got stays with them for the next time.
func (c *Cache) Grow(pages int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &c.config
	if pages < f.Pages || pages > f.maxPages() {
		return valueError("Grow: pages", pages, "%d to %d", f.Pages, f.maxPages())
	}
	if pages == f.Pages {
		return nil
	}
	grower := c.backend.(kernel.Grower) // New saw it
	old, next := c.plain.Load(), new(tensors)
	for layer := range f.Layers {
		for _, t := range []struct {
			name string
			from tensor.View
			to   *[]tensor.View
		}{{"keys", old.keys[layer], &next.keys}, {"values", old.values[layer], &next.values}} {
			v := t.from
			v.Shape[0] = int64(pages)
			if err := growTo(grower, &v); err != nil {
				return fmt.Errorf("kvcache: %d pages of %s of layer %d of %d: %w", pages, t.name, layer, f.Layers, err)
			}
			*t.to = append(*t.to, v)
		}
	}
	plain, _, _ := f.pageBytes()
	c.bytes += plain * int64(pages-f.Pages)
	c.pool.grow(pages)
	c.codes.grow(pages)
	f.Pages = pages
	c.plain.Store(next)
	return nil
}

// growTo gives the buffer of a view the memory that it takes, if it has less: a
// Grow before may have failed at a later layer.
func growTo(g kernel.Grower, v *tensor.View) error {
	bytes := v.Len() * v.DType.Size()
	if v.Buf.Size() >= bytes {
		return nil
	}
	return g.Grow(v.Buf, bytes)
}

// allocGrowing is alloc with addresses for MaxPages.
func (c *Config) allocGrowing(b kernel.Backend, shape []int64) (tensor.View, error) {
	g, ok := b.(kernel.Grower)
	if !ok {
		return tensor.View{}, &kernel.UnsupportedError{Backend: b.Name(), Reasons: []string{"MaxPages above Pages: it is no kernel.Grower"}}
	}
	page := c.DType.Size() * shape[1] * shape[2] * shape[3]
	buffer, err := g.Reserve(int64(c.MaxPages) * page)
	if err != nil {
		return tensor.View{}, err
	}
	if err := g.Grow(buffer, shape[0]*page); err != nil {
		if b, ok := buffer.(io.Closer); ok {
			err = errors.Join(err, b.Close())
		}
		return tensor.View{}, err
	}
	return lay(buffer, c.DType, shape...)
}
