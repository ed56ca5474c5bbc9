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
// Codec of F32, as attention reads them. It returns errors.ErrUnsupported, wrapped, if the cache is not in
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
	plain := c.plain.Load()
	if c.config.Codec != kernel.NoCodec {
		keyScale, valueScale := c.scales(layer)
		if key, err = c.gatherCoded(s, &plain.keys[layer], &keyScale, &c.coded[layer].key); err != nil {
			return tensor.View{}, tensor.View{}, err
		}
		value, err = c.gatherCoded(s, &plain.values[layer], &valueScale, &c.coded[layer].value)
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

// gatherCoded is gather element by element, of plain and coded pages.
func (c *Cache) gatherCoded(s *sequence, from, scale *tensor.View, coded *kernel.CodedPages) (tensor.View, error) {
	for _, v := range []*tensor.View{from, scale, &coded.Codes, &coded.Scale, &coded.Zero} {
		if v.IsZero() { // no scale
			continue
		}
		if err := onHost(v); err != nil {
			return tensor.View{}, err
		}
	}
	size, heads, dim := int64(c.config.PageSize), from.Shape[2], from.Shape[3]
	dense := tensor.New(tensor.F32, int64(s.len()), heads, dim)
	for j := range dense.Shape[0] {
		page, slot := int64(s.pages[j/size]), j%size
		for h := range heads {
			for d := range dim {
				var x float32
				if page < 0 {
					x = c.decode(coded, ^page, slot, h, d, dim)
				} else if x = from.At(page, slot, h, d); !scale.IsZero() {
					x *= scale.At(h)
				}
				dense.Set(x, j, h, d)
			}
		}
	}
	return dense, nil
}

// decode is feature d of dim of a row in a coded page.
func (c *Cache) decode(p *kernel.CodedPages, page, slot, head, d, dim int64) float32 {
	codes := &p.Codes
	at := codes.Offset + page*codes.Stride[0] + slot*codes.Stride[1] + head*codes.Stride[2]
	code := c.config.Codec.At(codes.Bits8()[at:], int(dim), int(d))
	if p.Scale.Rank == 3 {
		return kernel.Decode(code, p.Scale.At(page, head, d), p.Zero.At(page, head, d))
	}
	g := d / (dim / p.Scale.Shape[3])
	return kernel.Decode(code, p.Scale.At(page, slot, head, g), p.Zero.At(page, slot, head, g))
}
