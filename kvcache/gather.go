package kvcache

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/tensor"
)

// Gather copies the keys [Len, KVHeads, HeadDim] and values [Len, KVHeads,
// ValueDim] of a sequence in one layer to dense tensors, for tests and
// debugging. It returns errors.ErrUnsupported, wrapped, if the cache is not in
// host memory.
func (c *Cache) Gather(layer int, id ID) (key, value tensor.View, err error) {
	if err := c.checkLayer(layer); err != nil {
		return tensor.View{}, tensor.View{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return tensor.View{}, tensor.View{}, err
	}
	if key, err = c.gather(s, &c.keys[layer]); err != nil {
		return tensor.View{}, tensor.View{}, err
	}
	value, err = c.gather(s, &c.values[layer])
	return key, value, err
}

func (c *Cache) gather(s *sequence, from *tensor.View) (tensor.View, error) {
	src := from.Bytes()
	if src == nil {
		return tensor.View{}, fmt.Errorf("kvcache: Gather of memory on %s, want the host's: %w", from.Buf.Device(), errors.ErrUnsupported)
	}
	dense := tensor.New(from.DType, int64(s.len()), from.Shape[2], from.Shape[3])
	dst := dense.Bytes()
	page := from.Stride[0] * from.DType.Size()
	for _, p := range s.pages {
		n := copy(dst, src[int64(p)*page:][:page])
		dst = dst[n:]
	}
	return dense, nil
}
