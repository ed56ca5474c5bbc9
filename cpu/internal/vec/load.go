package vec

import "github.com/longctx/longctx/tensor"

// RowsF32 copies n rows of dim features: dst[r·ld+d] = src[r·stride+d].
// ahead is how many elements beyond each row lies the row that will be wanted
// one tile later; 0: not known. It is only a hint, and may point anywhere.
func RowsF32(dst []float32, ld int, src []float32, stride, n, dim, ahead int) {
	if n <= 0 || dim <= 0 {
		return
	}
	_, _ = dst[(n-1)*ld+dim-1], src[(n-1)*stride+dim-1]
	if rowsF32(dst, ld, src, stride, n, dim, ahead) {
		return
	}
	for r := range n {
		copy(dst[r*ld:][:dim], src[r*stride:])
	}
}

// Rows16 is RowsF32 for F16 and BF16 elements, which it widens.
func Rows16(dst []float32, ld int, src []uint16, dtype tensor.DType, stride, n, dim, ahead int) {
	if n <= 0 || dim <= 0 {
		return
	}
	_, _ = dst[(n-1)*ld+dim-1], src[(n-1)*stride+dim-1]
	if rows16(dst, ld, src, dtype, stride, n, dim, ahead) {
		return
	}
	for r := range n {
		dtype.ToF32s(dst[r*ld:][:dim], src[r*stride:][:dim])
	}
}

// ColumnsF32 copies n rows of dim features to columns:
// dst[d·ld+r] = src[r·stride+d].
func ColumnsF32(dst []float32, ld int, src []float32, stride, n, dim, ahead int) {
	if n <= 0 || dim <= 0 {
		return
	}
	_, _ = dst[(dim-1)*ld+n-1], src[(n-1)*stride+dim-1]
	if columnsF32(dst, ld, src, stride, n, dim, ahead) {
		return
	}
	for r := range n {
		for d, x := range src[r*stride:][:dim] {
			dst[d*ld+r] = x
		}
	}
}

// Columns16 is ColumnsF32 for F16 and BF16 elements, which it widens.
func Columns16(dst []float32, ld int, src []uint16, dtype tensor.DType, stride, n, dim, ahead int) {
	if n <= 0 || dim <= 0 {
		return
	}
	_, _ = dst[(dim-1)*ld+n-1], src[(n-1)*stride+dim-1]
	if columns16(dst, ld, src, dtype, stride, n, dim, ahead) {
		return
	}
	for r := range n {
		for d, x := range src[r*stride:][:dim] {
			dst[d*ld+r] = dtype.ToF32(x)
		}
	}
}

// Rows8 is RowsF32 for FP8 elements, which it widens.
func Rows8(dst []float32, ld int, src []uint8, dtype tensor.DType, stride, n, dim, ahead int) {
	if n <= 0 || dim <= 0 {
		return
	}
	_, _ = dst[(n-1)*ld+dim-1], src[(n-1)*stride+dim-1]
	if rows8(dst, ld, src, dtype, stride, n, dim, ahead) {
		return
	}
	for r := range n {
		dtype.Widen8(dst[r*ld:][:dim], src[r*stride:][:dim])
	}
}

// Columns8 is ColumnsF32 for FP8 elements, which it widens.
func Columns8(dst []float32, ld int, src []uint8, dtype tensor.DType, stride, n, dim, ahead int) {
	if n <= 0 || dim <= 0 {
		return
	}
	_, _ = dst[(dim-1)*ld+n-1], src[(n-1)*stride+dim-1]
	if columns8(dst, ld, src, dtype, stride, n, dim, ahead) {
		return
	}
	for r := range n {
		for d, x := range src[r*stride:][:dim] {
			dst[d*ld+r] = dtype.ToF32(uint16(x))
		}
	}
}

// Narrow16 rounds src to F16 or BF16, to nearest, ties to even.
func Narrow16(dst []uint16, src []float32, dtype tensor.DType) {
	dst = dst[:len(src)]
	done := narrow16(dst, src, dtype)
	dtype.FromF32s(dst[done:], src[done:])
}

// Turn16 copies n rows of dim elements of 16 bits to columns:
// dst[d·ld+r] = src[r·stride+d]. Meanwhile it fetches the rows that are ahead
// elements farther, or the first half of next, which is as large as what it
// turns, and finds the pages of both next and later.
func Turn16(dst []uint16, ld int, src []uint16, stride, n, dim, ahead int, next, later []uint16) {
	if n <= 0 || dim <= 0 {
		return
	}
	_, _ = dst[(dim-1)*ld+n-1], src[(n-1)*stride+dim-1]
	if turn16(dst, ld, src, stride, n, dim, ahead, next, later) {
		return
	}
	for r := range n {
		for d, x := range src[r*stride:][:dim] {
			dst[d*ld+r] = x
		}
	}
}
