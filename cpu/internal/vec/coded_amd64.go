//go:build amd64 && !purego

package vec

import (
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// codeWords is the number of 32-bit words of a row of codes.
func codeWords(codec kernel.Codec, dim int) int { return codec.RowBytes(dim) / 4 }

func multipliesCodes(codec kernel.Codec, dim, group int, levels bool) bool {
	if active != AVX512 || dim%64 != 0 || group%16 != 0 || group > 0 && dim/group > maxGroups {
		return false
	}
	words := codeWords(codec, dim)
	return words%16 == 0 && !(levels && codec == kernel.Int8) || codec != kernel.Int8 && (words == 8 || words == 4)
}

// wanted is n bytes of next, or, if they are not all there, of x: what is
// fetched must be memory.
func wanted(x, next []uint8, n int) []uint8 {
	if len(next) >= n {
		return next
	}
	return x
}

func channelProduct(c, a *Matrix, x *Codes, rows, n, dim int, w *CodeScratch) bool {
	if n%16 != 0 || n > Stride || !multipliesCodes(x.Codec, dim, 0, x.Levels != nil) {
		return false
	}
	words := codeWords(x.Codec, dim)
	next, later := wanted(x.X, x.Next, n*words*4), wanted(x.X, x.Later, n*words*4)
	turnWordsAVX512(&w.words[0], n, p(x.X), x.Row, n, words, p(next), p(later))
	Rows16(w.scale[:dim], 0, x.Scale, tensor.F16, 0, 1, dim, x.AheadScale)
	Rows16(w.zero[:dim], 0, x.Zero, tensor.F16, 0, 1, dim, x.AheadZero)
	if x.Codec == kernel.Int8 {
		channelProductInt8AVX512(p(c.X), c.Row, p(a.X), a.Row, &w.words[0], n, &w.scale[0], &w.zero[0], rows, words, n, p(next))
		return true
	}
	bits := x.Codec.Bits()
	codeTablesAVX512(&w.table[0], repeated(x.Codec, x.Levels, &w.levels), &w.scale[0], &w.zero[0], dim)
	channelProductFewAVX512(p(c.X), c.Row, p(a.X), a.Row, &w.words[0], n, &w.table[0], bits, n*bits/8, rows, words, n, p(next))
	return true
}

// channelGroups is channelProduct for keys whose groups of features have scales.
func channelGroups(c, a *Matrix, x *Codes, rows, n, dim int, w *CodeScratch) bool {
	if n%16 != 0 || n > Stride || x.Codec == kernel.Int8 || !multipliesCodes(x.Codec, dim, x.Group, x.Levels != nil) {
		return false
	}
	groups, words, bits := dim/x.Group, codeWords(x.Codec, dim), x.Codec.Bits()
	next, later := wanted(x.X, x.Next, n*words*4), wanted(x.X, x.Later, n*words*4)
	turnWordsAVX512(&w.words[0], n, p(x.X), x.Row, n, words, p(next), p(later))
	widenGroups(w.scale[:], x.Scale, x.ScaleRow, n, groups, x.AheadScale)
	widenGroups(w.zero[:], x.Zero, x.ZeroRow, n, groups, x.AheadZero)
	scale, zero := w.table[:groups*n], w.table[Stride*maxGroups:][:groups*n]
	ColumnsF32(scale, n, w.scale[:], groups, n, groups, 0)
	ColumnsF32(zero, n, w.zero[:], groups, n, groups, 0)
	for r := range rows {
		clear(c.X[r*c.Row:][:n])
	}
	levels, step := repeated(x.Codec, x.Levels, &w.levels), n*bits/8
	for d := 0; d < dim; {
		run := min(words-d%words, x.Group-d%x.Group)
		at := d / x.Group * n
		channelRunAVX512(&c.X[0], c.Row, &a.X[d], a.Row, &w.words[d%words*n], n, levels, d/words*bits, &scale[at], &zero[at], rows, run, n, &next[d*step], step)
		d += run
	}
	return true
}

func tokenProduct(c, a *Matrix, x *Codes, rows, n, dim int, w *CodeScratch) bool {
	if n > Stride || !multipliesCodes(x.Codec, dim, x.Group, x.Levels != nil) {
		return false
	}
	groups, words, bits := dim/x.Group, codeWords(x.Codec, dim), x.Codec.Bits()
	widenGroups(w.scale[:], x.Scale, x.ScaleRow, n, groups, x.AheadScale)
	widenGroups(w.zero[:], x.Zero, x.ZeroRow, n, groups, x.AheadZero)
	next, step := wanted(x.X, x.Next, n*words*4), 8*bits // a share of the lines for each pass over the keys
	var offset [4]int
	if x.Codec == kernel.Int8 {
		for d := 0; d < dim; d += 64 {
			for i := range offset {
				offset[i] = (d + 16*i) / x.Group * 4
			}
			tokenProductInt8AVX512(&c.X[d], c.Row, 16, p(a.X), a.Row, &x.X[d], x.Row, &w.scale[0], groups*4, &offset[0], nil, rows, n, &next[n*d/64*step], step)
		}
		return true
	}
	codeTablesAVX512(&w.table[0], repeated(x.Codec, x.Levels, &w.levels), &w.scale[0], &w.zero[0], n*groups)
	product, codes, apart := tokenProductFew16AVX512, 16, words
	switch words {
	case 8:
		product, codes, apart = tokenProductFew8AVX512, 8, 16
	case 4:
		product, codes, apart = tokenProductFew4AVX512, 4, 16
	}
	for pass := range dim / 64 { // four vectors of features each, apart
		first, word := 64*pass, 0
		if codes == 16 {
			word = pass % (words / 16) * 16
			first = pass/(words/16)*4*words + word
		}
		var shift [4]uint32
		for i := range offset {
			d := first + i*apart
			shift[i], offset[i] = uint32(d/words*bits), d/x.Group*64
		}
		product(&c.X[first], c.Row, apart, p(a.X), a.Row, &x.X[4*word], x.Row, &w.table[0], groups*64, &offset[0], &shift[0], &laneShifts[x.Codec][codes][0], rows, n, &next[n*pass*step], step)
	}
	return true
}

// The assembly finds a zero at this distance from its scale.
const _ = uint(unsafe.Offsetof(CodeScratch{}.zero)-unsafe.Offsetof(CodeScratch{}.scale)) - 8192
