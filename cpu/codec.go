package cpu

import (
	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// FP8 with scales, and coded pages: rules 2 and 12 to 14 of package kernel.

// grid is where a row of a head of a page begins.
type grid struct{ offset, page, slot, head int64 }

func (g *grid) at(page, slot int64, head int) int64 {
	return g.offset + page*g.page + slot*g.slot + int64(head)*g.head
}

// gridOf is the grid of [pages, slots, heads, n], or of [pages, heads, n],
// where all slots share a row.
func gridOf(v *tensor.View) grid {
	if v.Rank == 3 {
		return grid{v.Offset, v.Stride[0], 0, v.Stride[1]}
	}
	return grid{v.Offset, v.Stride[0], v.Stride[1], v.Stride[2]}
}

// codedPages is kernel.CodedPages made ready to read and to write.
type codedPages struct {
	codec kernel.Codec
	dim   int // features
	group int // of values: features that share a scale; of keys 0

	codes                    []uint8
	scale, zero              []uint16
	inCodes, inScale, inZero grid
}

func readCoded(p *kernel.CodedPages, dim int) codedPages {
	c := codedPages{codec: kernel.Int8, dim: dim, codes: p.Codes.Bits8(), scale: p.Scale.Bits(), zero: p.Zero.Bits(),
		inCodes: gridOf(&p.Codes), inScale: gridOf(&p.Scale), inZero: gridOf(&p.Zero)}
	if p.Codes.Shape[3] != int64(dim) { // the checks leave one other
		c.codec = kernel.Int4
	}
	if p.Scale.Rank == 4 {
		c.group = dim / int(p.Scale.Shape[3])
	}
	return c
}

// readKeys prepares keys or values: the plain rows, their scales if there are
// any, and the coded pages.
func readKeys(v, scale *tensor.View, coded *kernel.CodedPages) reader {
	r := read(v)
	if !scale.IsZero() {
		r.scale = readScalars(scale)
	}
	if !coded.Codes.IsZero() {
		r.coded = readCoded(coded, r.n)
	}
	return r
}

// load decodes n rows of a page to rows of dst that are ld apart, or to
// columns, which values have no use for.
func (c *codedPages) load(dst []float32, ld int, columns bool, page, slot int64, n, head int) {
	codes := c.codes[c.inCodes.at(page, slot, head):]
	scale, zero := c.scale[c.inScale.at(page, slot, head):], c.zero[c.inZero.at(page, slot, head):]
	if c.group == 0 {
		vec.Channels(dst, ld, columns, codes, c.codec, int(c.inCodes.slot), n, c.dim, scale, zero)
	} else {
		vec.Tokens(dst, ld, codes, c.codec, int(c.inCodes.slot), n, c.dim, c.group, scale, int(c.inScale.slot), zero, int(c.inZero.slot))
	}
}

// quantize stores a row of a head as FP8: each element times 1/scale, rounded.
func quantize(dst *reader, to int64, src *reader, from, head int64) {
	inv := float32(1)
	if dst.scale.x != nil {
		inv = 1 / *dst.scale.at(head, 0)
	}
	for range src.n {
		dst.b8[to] = uint8(dst.dtype.FromF32(src.at(from) * inv))
		to, from = to+dst.dim, from+src.dim
	}
}

// EncodePages codes plain pages.
func (*Backend) EncodePages(a *kernel.EncodeArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Key, &a.Value, &a.KeyScale, &a.ValueScale, &a.CodedKey.Codes, &a.CodedKey.Scale, &a.CodedKey.Zero,
		&a.CodedValue.Codes, &a.CodedValue.Scale, &a.CodedValue.Zero); err != nil {
		return err
	}
	key, value := readKeys(&a.Key, &a.KeyScale, &a.CodedKey), readKeys(&a.Value, &a.ValueScale, &a.CodedValue)
	size, heads := a.Key.Shape[1], int(a.Key.Shape[2])
	for i := range a.Src {
		src, dst := int64(a.Src[i]), int64(a.Dst[i])
		ok := true
		for h := 0; h < heads && ok; h++ {
			ok = key.encodeChannels(src, dst, size, h) && value.encodeTokens(src, dst, size, h)
		}
		a.Encoded[i] = ok
	}
	return nil
}

// encodeChannels codes a head of a page of keys. It reports whether every
// group can be coded.
func (r *reader) encodeChannels(src, dst, size int64, head int) bool {
	var lo, hi, row, scale, zero [kernel.MaxHeadDim]float32
	c, dim := &r.coded, r.n
	at := r.offset + src*r.row + int64(head)*r.head
	for slot := range size {
		r.loadKey(row[:], at+slot*r.slot, head)
		for d, x := range row[:dim] {
			if slot == 0 {
				lo[d], hi[d] = x, x
			} else {
				lo[d], hi[d] = min(lo[d], x), max(hi[d], x) // NaN stays
			}
		}
	}
	scales, zeros := c.scale[c.inScale.at(dst, 0, head):], c.zero[c.inZero.at(dst, 0, head):]
	for d := range dim {
		var ok bool
		if scales[d], zeros[d], ok = c.codec.Group(lo[d], hi[d]); !ok {
			return false
		}
	}
	tensor.F16.ToF32s(scale[:dim], scales[:dim])
	tensor.F16.ToF32s(zero[:dim], zeros[:dim])
	for slot := range size {
		r.loadKey(row[:], at+slot*r.slot, head)
		codes := c.codes[c.inCodes.at(dst, slot, head):]
		for d, x := range row[:dim] {
			c.codec.Put(codes, dim, d, c.codec.Encode(x, scale[d], zero[d]))
		}
	}
	return true
}

// encodeTokens codes a head of a page of values, as encodeChannels does.
func (r *reader) encodeTokens(src, dst, size int64, head int) bool {
	var row [kernel.MaxHeadDim]float32
	c, dim := &r.coded, r.n
	at := r.offset + src*r.row + int64(head)*r.head
	for slot := range size {
		r.loadKey(row[:], at+slot*r.slot, head)
		codes := c.codes[c.inCodes.at(dst, slot, head):]
		scales, zeros := c.scale[c.inScale.at(dst, slot, head):], c.zero[c.inZero.at(dst, slot, head):]
		for g := range dim / c.group {
			part := row[g*c.group:][:c.group]
			lo, hi := part[0], part[0]
			for _, x := range part[1:] {
				lo, hi = min(lo, x), max(hi, x)
			}
			var ok bool
			if scales[g], zeros[g], ok = c.codec.Group(lo, hi); !ok {
				return false
			}
			s, z := tensor.F16ToF32(scales[g]), tensor.F16ToF32(zeros[g])
			for d, x := range part {
				c.codec.Put(codes, dim, g*c.group+d, c.codec.Encode(x, s, z))
			}
		}
	}
	return true
}
