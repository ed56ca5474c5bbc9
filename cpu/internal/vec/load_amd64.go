//go:build amd64 && !purego

package vec

import (
	"unsafe"

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

// rows calls the function of the variant in use, directly, so that no operand
// escapes. Those of AVX-512 want rows of 16 elements at least, those of AVX2
// of 8.
func rows(t element, dst []float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int) bool {
	tier := active
	if tier == AVX512 && dim < 16 {
		tier = AVX2
	}
	if tier < AVX2 || dim < 8 {
		return false
	}
	switch to := p(dst); {
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
// escapes. Those of AVX-512 want rows of 16 elements at least, those of AVX2
// of 8.
func columns(t element, dst []float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int) bool {
	tier := active
	if tier == AVX512 && dim < 16 {
		tier = AVX2
	}
	if tier < AVX2 || dim < 8 {
		return false
	}
	switch to := p(dst); {
	case tier == AVX512 && t == f32:
		columnsF32AVX512(to, ld, src, stride, n, dim, ahead)
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
