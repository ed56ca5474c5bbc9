package vec

import (
	"encoding/binary"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Channels decodes n rows of codes, stride bytes apart, whose features have a
// scale and a zero each (F16), rule 2 of package kernel: to rows of dst that
// are ld apart, or to columns, dst[d·ld+r]. With levels a code c stands for
// levels[c].
func Channels(dst []float32, ld int, columns bool, codes []uint8, codec kernel.Codec, stride, n, dim int, scale, zero []uint16, levels []float32) {
	if n <= 0 || dim <= 0 {
		return
	}
	_ = codes[(n-1)*stride+codec.RowBytes(dim)-1]
	scale, zero = scale[:dim], zero[:dim]
	if columns {
		_ = dst[(dim-1)*ld+n-1]
	} else {
		_ = dst[(n-1)*ld+dim-1]
	}
	if channels(dst, ld, columns, codes, codec, stride, n, dim, scale, zero, levels) {
		return
	}
	var s, z, memory [kernel.MaxHeadDim]float32
	tensor.F16.ToF32s(s[:dim], scale)
	tensor.F16.ToF32s(z[:dim], zero)
	for r := range n {
		row := memory[:dim]
		if !columns {
			row = dst[r*ld:][:dim]
		}
		widenCodes(row, codes[r*stride:], codec, levels)
		for d, x := range row {
			row[d] = decode(x, s[d], z[d], levels != nil)
		}
		if columns {
			for d, x := range row {
				dst[d*ld+r] = x
			}
		}
	}
}

// Tokens decodes n rows of codes, stride bytes apart, in which each group of
// features has a scale and a zero (F16), to rows of dst that are ld apart.
// Those of a row are scaleStride and zeroStride elements after those of the
// row before.
func Tokens(dst []float32, ld int, codes []uint8, codec kernel.Codec, stride, n, dim, group int, scale []uint16, scaleStride int, zero []uint16, zeroStride int, levels []float32) {
	if n <= 0 || dim <= 0 {
		return
	}
	_, _ = codes[(n-1)*stride+codec.RowBytes(dim)-1], dst[(n-1)*ld+dim-1]
	_, _ = scale[(n-1)*scaleStride+dim/group-1], zero[(n-1)*zeroStride+dim/group-1]
	if tokens(dst, ld, codes, codec, stride, n, dim, group, scale, scaleStride, zero, zeroStride, levels) {
		return
	}
	for r := range n {
		row := dst[r*ld:][:dim]
		widenCodes(row, codes[r*stride:], codec, levels)
		for g := range dim / group {
			s, z := tensor.F16ToF32(scale[r*scaleStride+g]), tensor.F16ToF32(zero[r*zeroStride+g])
			part := row[g*group:][:group]
			for d, x := range part {
				part[d] = decode(x, s, z, levels != nil)
			}
		}
	}
}

// decode is x·scale + zero, rounded once. The product is exact where x is a code.
func decode(x, scale, zero float32, level bool) float32 {
	if level {
		return kernel.FMA(x, scale, zero)
	}
	return float32(x*scale) + zero
}

// widenCodes widens the codes of a row of len(dst) features, or takes their
// levels. Code k of word w of a row, of less than 8 bits each, is feature
// k·words + w.
func widenCodes(dst []float32, row []uint8, codec kernel.Codec, levels []float32) {
	if codec == kernel.Int8 {
		for d, c := range row[:len(dst)] {
			dst[d] = float32(c)
		}
	} else {
		n, bits := codec.Multiple(), codec.Bits()
		words := len(dst) / n
		for w := range words {
			x := binary.LittleEndian.Uint32(row[4*w:])
			for k := range n {
				dst[k*words+w] = float32(x & (1<<bits - 1))
				x >>= bits
			}
		}
	}
	if levels != nil {
		for d, c := range dst {
			dst[d] = levels[int(c)]
		}
	}
}
