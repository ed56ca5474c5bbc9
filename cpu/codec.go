package cpu

import (
	"sort"

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
	kernel.Quantizer
	dim int // features

	codes, outliers                              []uint8
	scale, zero, left, right                     []uint16
	inCodes, inScale, inZero, inOutliers, inLeft grid
	inRight                                      grid // its slots are the terms
	levels                                       scalars
}

func readCoded(p *kernel.CodedPages, q kernel.Quantizer, dim int) codedPages {
	c := codedPages{Quantizer: q, dim: dim, codes: p.Codes.Bits8(), scale: p.Scale.Bits(), zero: p.Zero.Bits(),
		inCodes: gridOf(&p.Codes), inScale: gridOf(&p.Scale), inZero: gridOf(&p.Zero)}
	if q.Levels {
		c.levels = readScalars(&p.Levels)
	}
	if q.Outliers > 0 {
		c.outliers, c.inOutliers = p.Outliers.Bits8(), gridOf(&p.Outliers)
	}
	if q.Rank > 0 {
		c.left, c.inLeft = p.Left.Bits(), gridOf(&p.Left)
		c.right, c.inRight = p.Right.Bits(), grid{p.Right.Offset, p.Right.Stride[0], p.Right.Stride[2], p.Right.Stride[1]}
	}
	return c
}

// readKeys prepares keys or values: the plain rows, their scales if there are
// any, and the pages coded by q.
func readKeys(v, scale *tensor.View, coded *kernel.CodedPages, q kernel.Quantizer) reader {
	r := read(v)
	if !scale.IsZero() {
		r.scale = readScalars(scale)
	}
	if q.Codec != kernel.NoCodec {
		r.coded = readCoded(coded, q, r.n)
	}
	return r
}

// inColumns reports whether load writes columns, and no slower than rows.
func (c *codedPages) inColumns() bool {
	return c.Group == 0 && c.Rank == 0 && !c.Levels && c.Codec <= kernel.Int4
}

// direct reports whether products can take the codes as they are.
func (c *codedPages) direct() bool { return c.codes != nil && c.Outliers == 0 && c.Rank == 0 }

// table is the levels of a head, or nil.
func (c *codedPages) table(head int) []float32 {
	if !c.Levels {
		return nil
	}
	at := c.levels.offset + int64(head)*c.levels.row
	return c.levels.x[at : at+c.levels.cols]
}

// codedScratch is the memory of one worker for coded pages.
type codedScratch struct {
	vec.CodeScratch
	left    [tile * rankTerms]float32
	right   [rankTerms * kernel.MaxHeadDim]float32
	values  [outliersAtOnce]float32
	bits    [outliersAtOnce]uint16
	indices [outliersAtOnce]int32
}

const (
	rankTerms      = 8 // terms of a low rank that are added at once
	outliersAtOnce = 64
)

// load decodes n rows of a page, a tile at most, to rows of dst that are ld
// apart, or to columns: rule 2.
func (c *codedPages) load(dst []float32, ld int, columns bool, page, slot int64, n, head int, w *codedScratch) {
	codes := c.codes[c.inCodes.at(page, slot, head):]
	scale, zero, levels := c.scale[c.inScale.at(page, slot, head):], c.zero[c.inZero.at(page, slot, head):], c.table(head)
	if c.Group == 0 {
		vec.Channels(dst, ld, columns, codes, c.Codec, int(c.inCodes.slot), n, c.dim, scale, zero, levels)
	} else {
		vec.Tokens(dst, ld, codes, c.Codec, int(c.inCodes.slot), n, c.dim, c.Group, scale, int(c.inScale.slot), zero, int(c.inZero.slot), levels)
	}
	if c.Rank > 0 {
		c.addLowRank(dst, ld, page, slot, n, head, w)
	}
	if c.Outliers > 0 {
		row, col := ld, 1
		if columns {
			row, col = 1, ld
		}
		c.placeOutliers(dst, row, col, page, slot, n, head, w)
	}
}

// addLowRank adds the approximation of what coding lost to n rows.
func (c *codedPages) addLowRank(dst []float32, ld int, page, slot int64, n, head int, w *codedScratch) {
	a, b := c.left[c.inLeft.at(page, slot, head):], c.right[c.inRight.at(page, 0, head):]
	for k := 0; k < c.Rank; k += rankTerms {
		m := min(rankTerms, c.Rank-k)
		if m == int(c.inLeft.slot) { // rows too short for assembly, one after another
			vec.Rows16(w.left[:], 0, a, tensor.F16, 0, 1, n*m, 0)
		} else {
			vec.Rows16(w.left[:], m, a[k:], tensor.F16, int(c.inLeft.slot), n, m, 0)
		}
		vec.Rows16(w.right[:], c.dim, b[k*int(c.inRight.slot):], tensor.F16, int(c.inRight.slot), m, c.dim, 0)
		vec.MulAdd(kernel.Exact, vec.Matrix{X: dst, Row: ld}, vec.Matrix{X: w.left[:], Row: m, Col: 1}, vec.Matrix{X: w.right[:], Row: c.dim}, n, m, c.dim, vec.Keep, nil)
	}
}

// placeOutliers puts those of n rows where they belong.
func (c *codedPages) placeOutliers(dst []float32, row, col int, page, slot int64, n, head int, w *codedScratch) {
	list := c.outliers[c.inOutliers.at(page, 0, head):]
	start, end := int(slot)*c.dim, (int(slot)+n)*c.dim // of these rows
	at := func(i int) int { index, _ := kernel.Outlier(list, i); return index }
	first := 0
	if start > 0 {
		first = sort.Search(c.Outliers, func(i int) bool { return at(i) >= start })
	}
	inverse := 1<<32/uint64(c.dim) + 1 // by which a number of 16 bits is divided, without a branch for each row
	for first < c.Outliers && at(first) < end {
		k := 0
		for ; k < outliersAtOnce && first < c.Outliers; k++ {
			index, bits := kernel.Outlier(list, first)
			if index >= end {
				break
			}
			j := int(uint64(index-start) * inverse >> 32)
			w.indices[k], w.bits[k] = int32(j*row+(index-start-j*c.dim)*col), bits
			first++
		}
		vec.Rows16(w.values[:], 0, w.bits[:], tensor.F16, 0, 1, k, 0)
		for i, to := range w.indices[:k] {
			dst[to] = w.values[i]
		}
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
