package vec

import (
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Codes are rows of codes of one head of a page, with F16 scales and zeros: of
// each feature, or, with a Group, of that many features of each row.
type Codes struct {
	Codec  kernel.Codec
	X      []uint8
	Row    int       // bytes from one row to the next
	Levels []float32 // of the codes; nil: the codes themselves

	Group                 int
	Scale, Zero           []uint16
	ScaleRow, ZeroRow     int     // elements from one row to the next, with a Group
	Next, Later           []uint8 // codes that will be wanted soon, and others whose pages are to be found
	AheadScale, AheadZero int     // elements to the scales and zeros of Next
}

// CodeScratch is memory of ChannelProduct and TokenProduct.
type CodeScratch struct {
	words       [kernel.MaxHeadDim / 4 * Stride]uint32 // turned
	levels      [16]float32
	table       [max(kernel.MaxHeadDim, Stride*maxGroups) * 16]float32
	scale, zero [Stride * maxGroups]float32 // the assembly wants them side by side
}

// maxGroups is the most groups of a row that TokenProduct takes.
const maxGroups = 32

// MultipliesCodes reports whether ChannelProduct, or with a group TokenProduct,
// is assembly for rows of so many features. Otherwise it is faster to decode a
// tile first.
func MultipliesCodes(codec kernel.Codec, dim, group int, levels bool) bool {
	return multipliesCodes(codec, dim, group, levels)
}

// ChannelProduct sets C[r,j] to the sum over the features d, ascending, of
// fma(A[r,d], x[j,d], ·), where x are n rows of codes whose features have
// scales, or groups of their features. A.Col is 1.
func ChannelProduct(c, a Matrix, x *Codes, rows, n, dim int, w *CodeScratch) {
	if rows <= 0 || n <= 0 {
		return
	}
	_, _ = c.X[(rows-1)*c.Row+n-1], a.X[(rows-1)*a.Row+dim-1]
	if x.Group > 0 {
		groupProduct(c, a, x, rows, n, dim, w)
		return
	}
	_, _, _ = x.X[(n-1)*x.Row+x.Codec.RowBytes(dim)-1], x.Scale[dim-1], x.Zero[dim-1]
	if channelProduct(&c, &a, x, rows, n, dim, w) {
		return
	}
	columns := make([]float32, dim*n)
	Channels(columns, n, true, x.X, x.Codec, x.Row, n, dim, x.Scale, x.Zero, x.Levels)
	MulAdd(kernel.Exact, c, a, Matrix{X: columns, Row: n}, rows, dim, n, Zero, nil)
}

// groupProduct is ChannelProduct with a Group.
func groupProduct(c, a Matrix, x *Codes, rows, n, dim int, w *CodeScratch) {
	groups := dim / x.Group
	_, _, _ = x.X[(n-1)*x.Row+x.Codec.RowBytes(dim)-1], x.Scale[(n-1)*x.ScaleRow+groups-1], x.Zero[(n-1)*x.ZeroRow+groups-1]
	if channelGroups(&c, &a, x, rows, n, dim, w) {
		return
	}
	keys, columns := make([]float32, n*dim), make([]float32, dim*n)
	Tokens(keys, dim, x.X, x.Codec, x.Row, n, dim, x.Group, x.Scale, x.ScaleRow, x.Zero, x.ZeroRow, x.Levels)
	ColumnsF32(columns, n, keys, dim, n, dim, 0)
	MulAdd(kernel.Exact, c, a, Matrix{X: columns, Row: n}, rows, dim, n, Zero, nil)
}

// TokenProduct adds to C[r,d] the terms of n rows of codes, ascending:
// fma(A[r,j], x[j,d], ·), where groups of features have scales. A.Col is 1.
func TokenProduct(c, a Matrix, x *Codes, rows, n, dim int, w *CodeScratch) {
	if rows <= 0 || n <= 0 {
		return
	}
	groups := dim / x.Group
	_, _ = c.X[(rows-1)*c.Row+dim-1], a.X[(rows-1)*a.Row+n-1]
	_, _, _ = x.X[(n-1)*x.Row+x.Codec.RowBytes(dim)-1], x.Scale[(n-1)*x.ScaleRow+groups-1], x.Zero[(n-1)*x.ZeroRow+groups-1]
	if tokenProduct(&c, &a, x, rows, n, dim, w) {
		return
	}
	values := make([]float32, n*dim)
	Tokens(values, dim, x.X, x.Codec, x.Row, n, dim, x.Group, x.Scale, x.ScaleRow, x.Zero, x.ZeroRow, x.Levels)
	MulAdd(kernel.Exact, c, a, Matrix{X: values, Row: dim}, rows, n, dim, Keep, nil)
}

// widenGroups widens the scales or zeros of n rows, to rows that follow on
// another.
func widenGroups(dst []float32, src []uint16, row, n, groups, ahead int) {
	if row == groups {
		Rows16(dst, 0, src, tensor.F16, 0, 1, n*groups, ahead)
		return
	}
	Rows16(dst, groups, src, tensor.F16, row, n, groups, ahead)
}
