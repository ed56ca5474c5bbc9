//go:build !(amd64 || arm64) || purego

package vec

import (
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// There is no assembly here: each function says that it did nothing.

func supported(v Variant) bool { return v == Generic }

func mulAdd(c, a, b *Matrix, rows, inner, cols int, start Start, f []float32) int { return 0 }

func softmaxStrip(s []float32, keys int, scale []float32, visible []uint32, m, l, f []float32) bool {
	return false
}

func softmaxRows(s []float32, rows int, scale []float32, visible []uint64, m, l, f []float32) bool {
	return false
}

func take(s, raw []float32, keys int, scale []float32, visible []uint32) bool { return false }

func mergeStrip(m, l, o, pm, pl, po []float32, dim int) bool { return false }

func blend(y, x []float32, fa, fb float32) bool { return false }

func scaleRow(x []float32, f float32) bool { return false }

func finishStrip(o, l []float32, dim int) bool { return false }

func finishRow(o []float32, inv float32) bool { return false }

func finite(x []float32) (ok, done bool) { return false, false }

func rowsF32(dst []float32, ld int, src []float32, stride, n, dim, ahead int) bool { return false }

func rows16(dst []float32, ld int, src []uint16, dtype tensor.DType, stride, n, dim, ahead int) bool {
	return false
}

func columnsF32(dst []float32, ld int, src []float32, stride, n, dim, ahead int) bool { return false }

func columns16(dst []float32, ld int, src []uint16, dtype tensor.DType, stride, n, dim, ahead int) bool {
	return false
}

func rows8(dst []float32, ld int, src []uint8, dtype tensor.DType, stride, n, dim, ahead int) bool {
	return false
}

func columns8(dst []float32, ld int, src []uint8, dtype tensor.DType, stride, n, dim, ahead int) bool {
	return false
}

func softCap(x []float32, inv, limit float32) int { return 0 }

func addProduct(y, a, b []float32) int { return 0 }

func channels(dst []float32, ld int, columns bool, codes []uint8, codec kernel.Codec, stride, n, dim int, scale, zero []uint16, levels []float32) bool {
	return false
}

func tokens(dst []float32, ld int, codes []uint8, codec kernel.Codec, stride, n, dim, group int, scale []uint16, scaleStride int, zero []uint16, zeroStride int, levels []float32) bool {
	return false
}

func narrow16(dst []uint16, src []float32, dtype tensor.DType) int { return 0 }

func rotate(x, cos, sin []float32, layout kernel.RotaryLayout, inverse bool) int { return 0 }

func gradient(s, dp, g []float32, lse, delta float32, visible uint64) bool { return false }

func mulAdd16(c, a *Matrix, b *Matrix16, rows, inner, cols int, start Start, next Next) int { return 0 }

func turn16(dst []uint16, ld int, src []uint16, stride, n, dim, ahead int, next, later []uint16) bool {
	return false
}

func multiplies16() bool { return false }

func multipliesCodes(codec kernel.Codec, dim, group int, levels bool) bool { return false }

func channelProduct(c, a *Matrix, x *Codes, rows, n, dim int, w *CodeScratch) bool { return false }

func channelGroups(c, a *Matrix, x *Codes, rows, n, dim int, w *CodeScratch) bool { return false }

func tokenProduct(c, a *Matrix, x *Codes, rows, n, dim int, w *CodeScratch) bool { return false }
