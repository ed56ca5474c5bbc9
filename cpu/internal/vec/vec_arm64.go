//go:build arm64 && !purego

package vec

import (
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

//go:generate go test ./asmgen/arm64 -update

// The NEON leaf loops. Advanced SIMD is part of every arm64 that Go runs on.
// They rely on what Go leaves FPCR at: round to nearest even, subnormals kept.

func supported(v Variant) bool { return v == Generic || v == NEON }

//go:noescape
func mulByRow(c, a, b, f *float32, lda, ldb, ldc, rows, inner, cols, start int)

//go:noescape
func mulByColumn(c, a, b, f *float32, lda, ldb, ldc, rows, inner, cols, start int)

func mulAdd(c, a, b *Matrix, rows, inner, cols int, start Start, f []float32) int {
	cols &^= 3
	if active != NEON || cols == 0 {
		return 0
	}
	pc, pa, pb, pf := unsafe.SliceData(c.X), unsafe.SliceData(a.X), unsafe.SliceData(b.X), unsafe.SliceData(f)
	switch {
	case a.Col == 1 || inner == 1:
		mulByRow(pc, pa, pb, pf, a.Row, b.Row, c.Row, rows, inner, cols, int(start))
	case a.Row == 1 || rows == 1:
		mulByColumn(pc, pa, pb, pf, a.Col, b.Row, c.Row, rows, inner, cols, int(start))
	default:
		return 0
	}
	return cols
}

//go:noescape
func softmaxStripNEON(s *float32, keys int, scale *float32, visible *uint32, m, l, f *float32)

func softmaxStrip(s []float32, keys int, scale []float32, visible []uint32, m, l, f []float32) bool {
	if active != NEON {
		return false
	}
	softmaxStripNEON(&s[0], keys, &scale[0], unsafe.SliceData(visible), &m[0], &l[0], &f[0])
	return true
}

//go:noescape
func softmaxRowsNEON(s *float32, rows int, scale *float32, visible *uint64, m, l, f *float32)

//go:noescape
func sumRowsNEON(s *float32, rows int, l *float32)

func softmaxRows(s []float32, rows int, scale []float32, visible []uint64, m, l, f []float32) bool {
	if active != NEON {
		return false
	}
	softmaxRowsNEON(&s[0], rows, &scale[0], &visible[0], &m[0], &l[0], &f[0])
	sumRowsNEON(&s[0], rows, &l[0])
	return true
}

//go:noescape
func takeNEON(s, raw *float32, keys int, scale *float32, visible *uint32)

func take(s, raw []float32, keys int, scale []float32, visible []uint32) bool {
	if active != NEON {
		return false
	}
	takeNEON(&s[0], &raw[0], keys, &scale[0], &visible[0])
	return true
}

//go:noescape
func mergeStripNEON(m, l, o, pm, pl, po *float32, dim int)

func mergeStrip(m, l, o, pm, pl, po []float32, dim int) bool {
	if active != NEON {
		return false
	}
	mergeStripNEON(&m[0], &l[0], unsafe.SliceData(o), &pm[0], &pl[0], unsafe.SliceData(po), dim)
	return true
}

//go:noescape
func blendNEON(y, x *float32, n int, fa, fb float32)

func blend(y, x []float32, fa, fb float32) bool {
	if active != NEON {
		return false
	}
	blendNEON(unsafe.SliceData(y), unsafe.SliceData(x), len(x), fa, fb)
	return true
}

//go:noescape
func scaleRowNEON(x *float32, factor float32, n int)

func scaleRow(x []float32, f float32) bool {
	if active != NEON {
		return false
	}
	scaleRowNEON(unsafe.SliceData(x), f, len(x))
	return true
}

//go:noescape
func finishStripNEON(o, l *float32, dim int)

func finishStrip(o, l []float32, dim int) bool {
	if active != NEON {
		return false
	}
	finishStripNEON(unsafe.SliceData(o), &l[0], dim)
	return true
}

//go:noescape
func finishRowNEON(o *float32, inv float32, n int)

func finishRow(o []float32, inv float32) bool {
	if active != NEON {
		return false
	}
	finishRowNEON(unsafe.SliceData(o), inv, len(o))
	return true
}

//go:noescape
func greatestNEON(x *float32, n int) uint32

func finite(x []float32) (ok, done bool) {
	n := len(x) &^ 15
	if active != NEON || n == 0 {
		return false, false
	}
	if greatestNEON(&x[0], n) >= 0xff<<24 {
		return false, true
	}
	for _, y := range x[n:] {
		if y-y != 0 {
			return false, true
		}
	}
	return true, true
}

//go:noescape
func rowsF32NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

//go:noescape
func rowsF16NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

//go:noescape
func rowsBF16NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

func rowsF32(dst []float32, ld int, src []float32, stride, n, dim, ahead int) bool {
	whole := dim &^ 7
	if active != NEON || whole == 0 {
		return false
	}
	rowsF32NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, n, whole, ahead)
	if whole < dim {
		for r := range n {
			copy(dst[r*ld+whole:r*ld+dim], src[r*stride+whole:])
		}
	}
	return true
}

func rows16(dst []float32, ld int, src []uint16, dtype tensor.DType, stride, n, dim, ahead int) bool {
	whole := dim &^ 7
	if active != NEON || whole == 0 {
		return false
	}
	if dtype == tensor.BF16 {
		rowsBF16NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, n, whole, ahead)
	} else {
		rowsF16NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, n, whole, ahead)
	}
	if whole < dim {
		for r := range n {
			dtype.ToF32s(dst[r*ld+whole:r*ld+dim], src[r*stride+whole:r*stride+dim])
		}
	}
	return true
}

//go:noescape
func columnsF32NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

//go:noescape
func columnsF16NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

//go:noescape
func columnsBF16NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

func columnsF32(dst []float32, ld int, src []float32, stride, n, dim, ahead int) bool {
	rows, whole := n&^3, dim&^7
	if active != NEON || rows == 0 || whole == 0 {
		return false
	}
	columnsF32NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, rows, whole, ahead)
	for r := range n {
		for d := edge(r, rows, whole); d < dim; d++ {
			dst[d*ld+r] = src[r*stride+d]
		}
	}
	return true
}

func columns16(dst []float32, ld int, src []uint16, dtype tensor.DType, stride, n, dim, ahead int) bool {
	rows, whole := n&^3, dim&^7
	if active != NEON || rows == 0 || whole == 0 {
		return false
	}
	if dtype == tensor.BF16 {
		columnsBF16NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, rows, whole, ahead)
	} else {
		columnsF16NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, rows, whole, ahead)
	}
	for r := range n {
		for d := edge(r, rows, whole); d < dim; d++ {
			dst[d*ld+r] = dtype.ToF32(src[r*stride+d])
		}
	}
	return true
}

//go:noescape
func rowsE4M3NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

//go:noescape
func rowsE5M2NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

//go:noescape
func rowsU8NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

//go:noescape
func columnsU8NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

//go:noescape
func columnsE4M3NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

//go:noescape
func columnsE5M2NEON(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)

func rows8(dst []float32, ld int, src []uint8, dtype tensor.DType, stride, n, dim, ahead int) bool {
	whole := dim &^ 15
	if active != NEON || whole == 0 {
		return false
	}
	switch dtype {
	case tensor.F8E4M3:
		rowsE4M3NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, n, whole, ahead)
	case tensor.F8E5M2:
		rowsE5M2NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, n, whole, ahead)
	case tensor.U8:
		rowsU8NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, n, whole, ahead)
	default:
		return false
	}
	if whole < dim {
		for r := range n {
			dtype.Widen8(dst[r*ld+whole:r*ld+dim], src[r*stride+whole:r*stride+dim])
		}
	}
	return true
}

func columns8(dst []float32, ld int, src []uint8, dtype tensor.DType, stride, n, dim, ahead int) bool {
	rows, whole := n&^3, dim&^15
	if active != NEON || rows == 0 || whole == 0 {
		return false
	}
	switch dtype {
	case tensor.F8E4M3:
		columnsE4M3NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, rows, whole, ahead)
	case tensor.F8E5M2:
		columnsE5M2NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, rows, whole, ahead)
	case tensor.U8:
		columnsU8NEON(&dst[0], ld, unsafe.Pointer(&src[0]), stride, rows, whole, ahead)
	default:
		return false
	}
	for r := range n {
		for d := edge(r, rows, whole); d < dim; d++ {
			dst[d*ld+r] = dtype.ToF32(uint16(src[r*stride+d]))
		}
	}
	return true
}

//go:noescape
func rowsU4NEON(dst *float32, ld int, src *uint8, stride, n, words int)

//go:noescape
func affineRowsNEON(x *float32, ld, n, dim int, scale, zero *float32)

//go:noescape
func affineGroupsNEON(x *float32, ld, n, groups, group int, scale *uint16, scaleStride int, zero *uint16, zeroStride int)

// wholeCodes reports whether rows of dim codes fill vector registers.
func wholeCodes(codec kernel.Codec, dim int) bool {
	return codec == kernel.Int8 && dim%16 == 0 || codec == kernel.Int4 && dim%32 == 0
}

// widenRows widens n rows of codes for which wholeCodes is true.
func widenRows(dst []float32, ld int, codes []uint8, codec kernel.Codec, stride, n, dim int) {
	if codec == kernel.Int8 {
		rowsU8NEON(&dst[0], ld, unsafe.Pointer(&codes[0]), stride, n, dim, 0)
	} else {
		rowsU4NEON(&dst[0], ld, &codes[0], stride, n, dim/8)
	}
}

func channels(dst []float32, ld int, columns bool, codes []uint8, codec kernel.Codec, stride, n, dim int, scale, zero []uint16, levels []float32) bool {
	if active != NEON || levels != nil || !wholeCodes(codec, dim) {
		return false
	}
	var s, z [kernel.MaxHeadDim]float32
	rowsF16NEON(&s[0], 0, unsafe.Pointer(&scale[0]), 0, 1, dim, 0)
	rowsF16NEON(&z[0], 0, unsafe.Pointer(&zero[0]), 0, 1, dim, 0)
	if !columns {
		widenRows(dst, ld, codes, codec, stride, n, dim)
		affineRowsNEON(&dst[0], ld, n, dim, &s[0], &z[0])
		return true
	}
	var four [4 * kernel.MaxHeadDim]float32
	for r := 0; r < n; r += 4 {
		rows := min(4, n-r)
		widenRows(four[:], dim, codes[r*stride:], codec, stride, rows, dim)
		affineRowsNEON(&four[0], dim, rows, dim, &s[0], &z[0])
		ColumnsF32(dst[r:], ld, four[:], dim, rows, dim, 0)
	}
	return true
}

func tokens(dst []float32, ld int, codes []uint8, codec kernel.Codec, stride, n, dim, group int, scale []uint16, scaleStride int, zero []uint16, zeroStride int, levels []float32) bool {
	if active != NEON || levels != nil || !wholeCodes(codec, dim) || group%4 != 0 {
		return false
	}
	widenRows(dst, ld, codes, codec, stride, n, dim)
	affineGroupsNEON(&dst[0], ld, n, dim/group, group, &scale[0], scaleStride, &zero[0], zeroStride)
	return true
}

//go:noescape
func softCapNEON(x *float32, n int, inv, limit float32)

func softCap(x []float32, inv, limit float32) int {
	n := len(x) &^ 3
	if active != NEON || n == 0 {
		return 0
	}
	softCapNEON(&x[0], n, inv, limit)
	return n
}

//go:noescape
func addProductNEON(y, a, b *float32, n int)

func addProduct(y, a, b []float32) int {
	n := len(y) &^ 7
	if active != NEON || n == 0 {
		return 0
	}
	addProductNEON(&y[0], &a[0], &b[0], n)
	return n
}

//go:noescape
func narrowF16NEON(dst *uint16, src *float32, n int)

//go:noescape
func narrowBF16NEON(dst *uint16, src *float32, n int)

func narrow16(dst []uint16, src []float32, dtype tensor.DType) int {
	n := len(src) &^ 7
	if active != NEON || n == 0 {
		return 0
	}
	switch dtype {
	case tensor.F16:
		narrowF16NEON(&dst[0], &src[0], n)
	case tensor.BF16:
		narrowBF16NEON(&dst[0], &src[0], n)
	default:
		return 0
	}
	return n
}

// edge is the first feature of row r that lies outside the whole blocks.
func edge(r, rows, whole int) int {
	if r < rows {
		return whole
	}
	return 0
}

//go:noescape
func rotateHalvesNEON(x, y, cos, sin *float32, n, flip int)

//go:noescape
func rotatePairsNEON(x, cos, sin *float32, n, flip int)

func rotate(x, cos, sin []float32, layout kernel.RotaryLayout, inverse bool) int {
	n, flip := len(cos)&^3, 0
	if active != NEON || n == 0 {
		return 0
	}
	if inverse {
		flip = 1 << 31
	}
	if layout == kernel.Interleaved {
		rotatePairsNEON(&x[0], &cos[0], &sin[0], n, flip)
	} else {
		rotateHalvesNEON(&x[0], &x[len(cos)], &cos[0], &sin[0], n, flip)
	}
	return n
}

//go:noescape
func gradientNEON(s, dp, grad *float32, lse, delta float32, visible uint64)

func gradient(s, dp, g []float32, lse, delta float32, visible uint64) bool {
	if active != NEON {
		return false
	}
	gradientNEON(&s[0], &dp[0], &g[0], lse, delta, visible)
	return true
}

func mulAdd16(c, a *Matrix, b *Matrix16, rows, inner, cols int, start Start, next Next) int { return 0 }

func turn16(dst []uint16, ld int, src []uint16, stride, n, dim, ahead int, next, later []uint16) bool {
	return false
}

func multiplies16() bool { return false }

func multipliesCodes(codec kernel.Codec, dim, group int, levels bool) bool { return false }

func channelProduct(c, a *Matrix, x *Codes, rows, n, dim int, w *CodeScratch) bool { return false }

func channelGroups(c, a *Matrix, x *Codes, rows, n, dim int, w *CodeScratch) bool { return false }

func tokenProduct(c, a *Matrix, x *Codes, rows, n, dim int, w *CodeScratch) bool { return false }
