//go:build amd64 && !purego

package vec

import (
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// element is the type of what is loaded.
type element uint8

const (
	f32 element = iota
	f16
	bf16
	e4m3
	e5m2
	noElement
)

func elementOf(dtype tensor.DType) element {
	switch dtype {
	case tensor.F32:
		return f32
	case tensor.F16:
		return f16
	case tensor.BF16:
		return bf16
	case tensor.F8E4M3:
		return e4m3
	case tensor.F8E5M2:
		return e5m2
	}
	return noElement
}

// tierFor is the variant for vectors of so many elements, or Generic: those of
// AVX-512 want 16 at least, those of AVX2 want 8.
func tierFor(n int) Variant {
	switch {
	case active == AVX512 && n >= 16:
		return AVX512
	case active >= AVX2 && n >= 8:
		return AVX2
	}
	return Generic
}

// rows calls the function of the variant in use, directly, so that no operand
// escapes.
func rows(t element, dst []float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int) bool {
	switch to, tier := p(dst), tierFor(dim); {
	case tier == AVX512 && t == f32:
		rowsF32AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX512 && t == f16:
		rowsF16AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX512 && t == bf16:
		rowsBF16AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX512 && t == e4m3:
		rowsE4M3AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX512 && t == e5m2:
		rowsE5M2AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX2 && t == f32:
		rowsF32AVX2(to, ld, src, stride, n, dim, ahead)
	case tier == AVX2 && t == f16:
		rowsF16AVX2(to, ld, src, stride, n, dim, ahead)
	case tier == AVX2 && t == bf16:
		rowsBF16AVX2(to, ld, src, stride, n, dim, ahead)
	case tier == AVX2 && t == e4m3:
		rowsE4M3AVX2(to, ld, src, stride, n, dim, ahead)
	case tier == AVX2 && t == e5m2:
		rowsE5M2AVX2(to, ld, src, stride, n, dim, ahead)
	default:
		return false
	}
	return true
}

// columns calls the function of the variant in use, directly, so that no operand
// escapes.
func columns(t element, dst []float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int) bool {
	switch to, tier := p(dst), tierFor(dim); {
	case tier == AVX512 && t == f32:
		columnsF32AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX512 && t == f16 && dim >= 32:
		columnPairsF16AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX512 && t == bf16 && dim >= 32:
		columnPairsBF16AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX512 && t == f16:
		columnsF16AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX512 && t == bf16:
		columnsBF16AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX512 && t == e4m3:
		columnsE4M3AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX512 && t == e5m2:
		columnsE5M2AVX512(to, ld, src, stride, n, dim, ahead)
	case tier == AVX2 && t == f32:
		columnsF32AVX2(to, ld, src, stride, n, dim, ahead)
	case tier == AVX2 && t == f16:
		columnsF16AVX2(to, ld, src, stride, n, dim, ahead)
	case tier == AVX2 && t == bf16:
		columnsBF16AVX2(to, ld, src, stride, n, dim, ahead)
	case tier == AVX2 && t == e4m3:
		columnsE4M3AVX2(to, ld, src, stride, n, dim, ahead)
	case tier == AVX2 && t == e5m2:
		columnsE5M2AVX2(to, ld, src, stride, n, dim, ahead)
	default:
		return false
	}
	return true
}

func rowsF32(dst []float32, ld int, src []float32, stride, n, dim, ahead int) bool {
	return rows(f32, dst, ld, unsafe.Pointer(p(src)), stride, n, dim, ahead)
}

func columnsF32(dst []float32, ld int, src []float32, stride, n, dim, ahead int) bool {
	return columns(f32, dst, ld, unsafe.Pointer(p(src)), stride, n, dim, ahead)
}

func rows16(dst []float32, ld int, src []uint16, dtype tensor.DType, stride, n, dim, ahead int) bool {
	return rows(elementOf(dtype), dst, ld, unsafe.Pointer(p(src)), stride, n, dim, ahead)
}

func columns16(dst []float32, ld int, src []uint16, dtype tensor.DType, stride, n, dim, ahead int) bool {
	return columns(elementOf(dtype), dst, ld, unsafe.Pointer(p(src)), stride, n, dim, ahead)
}

func rows8(dst []float32, ld int, src []uint8, dtype tensor.DType, stride, n, dim, ahead int) bool {
	return rows(elementOf(dtype), dst, ld, unsafe.Pointer(p(src)), stride, n, dim, ahead)
}

func columns8(dst []float32, ld int, src []uint8, dtype tensor.DType, stride, n, dim, ahead int) bool {
	return columns(elementOf(dtype), dst, ld, unsafe.Pointer(p(src)), stride, n, dim, ahead)
}

func turn16(dst []uint16, ld int, src []uint16, stride, n, dim, ahead int, next, later []uint16) bool {
	if len(next) == 0 {
		next = nil
	}
	if len(later) == 0 {
		later = next
	}
	switch {
	case active == AVX512 && n%16 == 0 && dim%32 == 0:
		turn16AVX512(p(dst), ld, p(src), stride, n, dim, ahead, p(next), p(later))
	case active != Generic && n%8 == 0 && dim%16 == 0:
		turn16AVX2(p(dst), ld, p(src), stride, n, dim, ahead, p(next), p(later))
	default:
		return false
	}
	return true
}

func narrow16(dst []uint16, src []float32, dtype tensor.DType) int {
	n, tier, t := len(src), tierFor(len(src)), elementOf(dtype)
	switch {
	case tier == AVX512 && t == f16:
		narrowF16AVX512(p(dst), p(src), n)
	case tier == AVX512 && t == bf16:
		narrowBF16AVX512(p(dst), p(src), n)
	case tier == AVX2 && t == f16:
		narrowF16AVX2(p(dst), p(src), n)
	case tier == AVX2 && t == bf16:
		narrowBF16AVX2(p(dst), p(src), n)
	default:
		return 0
	}
	return n
}

// width is the number of codes, or of words of codes, in a row.
func width(codec kernel.Codec, dim int) int {
	if codec == kernel.Int4 {
		return dim / 8
	}
	return dim
}

func channels(dst []float32, ld int, columns bool, codes []uint8, codec kernel.Codec, stride, n, dim int, scale, zero []uint16, levels []float32) bool {
	w := width(codec, dim)
	tier := tierFor(w)
	if columns && codec != kernel.Int4 {
		tier = tierFor(w / 4) // bytes are turned as words
	}
	few := levels != nil || codec > kernel.Int4
	f, ok := fewFor(codec, dim, 0)
	if few && (columns || !ok) || !few && tier == Generic || dim > kernel.MaxHeadDim {
		return false
	}
	var s, z [kernel.MaxHeadDim]float32
	Rows16(s[:dim], 0, scale, tensor.F16, 0, 1, dim, 0)
	Rows16(z[:dim], 0, zero, tensor.F16, 0, 1, dim, 0)
	to, from := p(dst), p(codes)
	switch int4 := codec == kernel.Int4; {
	case few:
		var memory [16]float32
		table, lanes := repeated(codec, levels, &memory), &laneShifts[codec][f.words][0]
		switch {
		case f.tier == AVX512 && f.words == 16:
			channelsFew16AVX512(to, ld, from, stride, n, f.width, f.step, lanes, table, &s[0], &z[0])
		case f.tier == AVX512 && f.words == 8:
			channelsFew8AVX512(to, ld, from, stride, n, f.width, f.step, lanes, table, &s[0], &z[0])
		case f.tier == AVX512:
			channelsFew4AVX512(to, ld, from, stride, n, f.width, f.step, lanes, table, &s[0], &z[0])
		case f.words == 8:
			channelsFew8AVX2(to, ld, from, stride, n, f.width, f.step, lanes, table, &s[0], &z[0])
		default:
			channelsFew4AVX2(to, ld, from, stride, n, f.width, f.step, lanes, table, &s[0], &z[0])
		}
	case tier == AVX512 && columns && int4:
		channelColumnsInt4AVX512(to, ld, from, stride, n, w, &s[0], &z[0])
	case tier == AVX512 && columns:
		channelColumnsInt8AVX512(to, ld, from, stride, n, w, &s[0], &z[0])
	case tier == AVX512 && int4:
		channelsInt4AVX512(to, ld, from, stride, n, w, &s[0], &z[0])
	case tier == AVX512:
		channelsInt8AVX512(to, ld, from, stride, n, w, &s[0], &z[0])
	case columns && int4:
		channelColumnsInt4AVX2(to, ld, from, stride, n, w, &s[0], &z[0])
	case columns:
		channelColumnsInt8AVX2(to, ld, from, stride, n, w, &s[0], &z[0])
	case int4:
		channelsInt4AVX2(to, ld, from, stride, n, w, &s[0], &z[0])
	default:
		channelsInt8AVX2(to, ld, from, stride, n, w, &s[0], &z[0])
	}
	return true
}

func tokens(dst []float32, ld int, codes []uint8, codec kernel.Codec, stride, n, dim, group int, scale []uint16, scaleStride int, zero []uint16, zeroStride int, levels []float32) bool {
	if levels != nil || codec > kernel.Int4 {
		return tokensFew(dst, ld, codes, codec, stride, n, dim, group, scale, scaleStride, zero, zeroStride, levels)
	}
	w, tier := width(codec, dim), Generic
	switch { // whole registers of one group
	case active == AVX512 && w%16 == 0 && group%16 == 0 && dim/group <= 16:
		tier = AVX512
	case active >= AVX2 && w%8 == 0 && group%8 == 0:
		tier = AVX2
	default:
		return false
	}
	to, from, s, z := p(dst), p(codes), p(scale), p(zero)
	switch int4 := codec == kernel.Int4; {
	case tier == AVX512 && int4:
		tokensInt4AVX512(to, ld, from, stride, n, w, group, dim/group, s, scaleStride, z, zeroStride)
	case tier == AVX512:
		tokensInt8AVX512(to, ld, from, stride, n, w, group, dim/group, s, scaleStride, z, zeroStride)
	case int4:
		tokensInt4AVX2(to, ld, from, stride, n, w, group, dim/group, s, scaleStride, z, zeroStride)
	default:
		tokensInt8AVX2(to, ld, from, stride, n, w, group, dim/group, s, scaleStride, z, zeroStride)
	}
	return true
}
