package kvcache

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Gather copies the keys [Len, KVHeads, HeadDim] and values [Len, KVHeads,
// ValueDim] of a sequence in one layer to dense tensors, for tests and
// debugging: of Config.DType, FP8 as it is stored, before its scale; but with a
// Coding of F32, as attention reads them. It returns errors.ErrUnsupported,
// wrapped, if the cache is not in host memory.
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
	plain := c.plain.Load()
	if c.config.Coded() {
		keyScale, valueScale := c.scales(layer)
		coding, coded := c.config.CodingOf(layer), &c.coded[layer]
		if key, err = c.gatherCoded(s, &plain.keys[layer], &keyScale, &coded.key, &coding.Key); err != nil {
			return tensor.View{}, tensor.View{}, err
		}
		value, err = c.gatherCoded(s, &plain.values[layer], &valueScale, &coded.value, &coding.Value)
		return key, value, err
	}
	if key, err = c.gather(s, &plain.keys[layer]); err != nil {
		return tensor.View{}, tensor.View{}, err
	}
	value, err = c.gather(s, &plain.values[layer])
	return key, value, err
}

func onHost(v *tensor.View) error {
	if v.Bytes() == nil {
		return fmt.Errorf("kvcache: Gather of memory on %s, want the host's: %w", v.Buf.Device(), errors.ErrUnsupported)
	}
	return nil
}

func (c *Cache) gather(s *sequence, from *tensor.View) (tensor.View, error) {
	if err := onHost(from); err != nil {
		return tensor.View{}, err
	}
	src, size := from.Bytes(), from.DType.Size()
	dense := tensor.New(from.DType, int64(s.len()), from.Shape[2], from.Shape[3])
	dst, row := dense.Bytes(), from.Shape[3]*size
	for j := range int64(s.len()) {
		at := from.Offset + int64(s.pages[j/from.Shape[1]])*from.Stride[0] + j%from.Shape[1]*from.Stride[1]
		for h := range from.Shape[2] {
			n := copy(dst, src[(at+h*from.Stride[2])*size:][:row])
			dst = dst[n:]
		}
	}
	return dense, nil
}

// gatherCoded is gather of plain and coded pages, row by row.
func (c *Cache) gatherCoded(s *sequence, from, scale *tensor.View, coded *kernel.CodedPages, q *kernel.Quantizer) (tensor.View, error) {
	views := coded.Views()
	for _, v := range append(views[:], from, scale) {
		if v.IsZero() { // no scale
			continue
		}
		if err := onHost(v); err != nil {
			return tensor.View{}, err
		}
	}
	size, heads, dim := int64(c.config.PageSize), from.Shape[2], from.Shape[3]
	dense := tensor.New(tensor.F32, int64(s.len()), heads, dim)
	rows := dense.F32s()
	for j := range dense.Shape[0] {
		page, slot := int64(s.pages[j/size]), j%size
		for h := range heads {
			row := rows[(j*heads+h)*dim:][:dim]
			if page < 0 {
				coded.Row(q, row, ^page, slot, h)
				continue
			}
			for d := range row {
				if row[d] = from.At(page, slot, h, int64(d)); !scale.IsZero() {
					row[d] *= scale.At(h)
				}
			}
		}
	}
	return dense, nil
}
