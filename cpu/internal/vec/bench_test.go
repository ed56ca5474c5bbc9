package vec

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// aligned is n random floats that begin a cache line, as scratch memory does.
func aligned(r *rand.Rand, n int) []float32 {
	x := make([]float32, n+16)
	for uintptr(unsafe.Pointer(&x[0]))%64 != 0 {
		x = x[1:]
	}
	normal.fill(r, x[:n])
	return x[:n]
}

// benchVariants times f with every variant; n is the work of one call, in the
// unit given times 10⁹ per second.
func benchVariants(b *testing.B, name string, n float64, unit string, f func()) {
	before := Active()
	defer Use(before)
	for _, v := range Variants() {
		b.Run(fmt.Sprintf("%s/%v", name, v), func(b *testing.B) {
			Use(v)
			for b.Loop() {
				f()
			}
			b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds()/1e9, unit)
		})
	}
}

// product times the product of such matrices.
func product(b *testing.B, r *rand.Rand, name string, rows, inner, cols int, a, m, c Matrix, start Start) {
	a.X, m.X, c.X = aligned(r, rows*a.Row+inner*a.Col), aligned(r, inner*m.Row+cols), aligned(r, rows*c.Row+cols)
	f := make([]float32, cols)
	for i := range f {
		f[i] = 0.5
	}
	benchVariants(b, fmt.Sprintf("%s/%dx%dx%d", name, rows, inner, cols), float64(2*rows*inner*cols), "GFLOP/s", func() {
		MulAdd(kernel.Exact, c, a, m, rows, inner, cols, start, f)
	})
}

// The products of attention: rows × inner × columns.
func BenchmarkMulAdd(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	product := func(name string, rows, inner, cols int, a, m, c Matrix, start Start) {
		product(b, r, name, rows, inner, cols, a, m, c, start)
	}
	for _, dim := range []int{64, 128, 256} {
		ld := Pad(dim)
		product("StripScores", 64, dim, Lanes, Matrix{Row: ld, Col: 1}, Matrix{Row: Lanes}, Matrix{Row: Lanes}, Zero)
		product("StripValues", dim, 64, Lanes, Matrix{Row: 1, Col: ld}, Matrix{Row: Lanes}, Matrix{Row: Lanes}, Scale)
	}
	for _, rows := range []int{1, 4, 8, 16} {
		product("RowScores", rows, 128, Stride, Matrix{Row: Pad(128), Col: 1}, Matrix{Row: Stride}, Matrix{Row: Stride}, Zero)
		product("RowValues", rows, 64, 128, Matrix{Row: Stride, Col: 1}, Matrix{Row: Pad(128)}, Matrix{Row: Pad(128)}, Keep)
	}
	product("Gradient", 128, 128, Stride, Matrix{Row: Pad(128), Col: 1}, Matrix{Row: Stride}, Matrix{Row: Stride}, Zero)
	product("GradientTransposed", 64, 128, 128, Matrix{Row: 1, Col: Stride}, Matrix{Row: Pad(128)}, Matrix{Row: Pad(128)}, Keep)
}

func BenchmarkSoftmax(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	s, x, scale, l, f := aligned(r, Stride*Lanes), aligned(r, Stride*Lanes), aligned(r, Lanes), aligned(r, Lanes), aligned(r, Lanes)
	m, visible, words := make([]float32, Lanes), make([]uint32, Stride), make([]uint64, Lanes)
	fillWords(r, visible)
	for i := range m {
		m[i], l[i], scale[i], words[i] = 4, 1, 0.5, ^uint64(0)
	}
	copy(x, s) // weights are scores too: the values do not matter
	strip := func(visible []uint32) func() {
		return func() { SoftmaxStrip(kernel.Exact, s, Stride, scale, visible, m, l, f) }
	}
	benchVariants(b, "Strip", Stride*Lanes, "Gelem/s", strip(nil))
	benchVariants(b, "StripMasked", Stride*Lanes, "Gelem/s", strip(visible))
	for _, rows := range []int{1, 4, 8, 16} {
		benchVariants(b, fmt.Sprintf("Rows/%d", rows), float64(rows*Stride), "Gelem/s", func() {
			SoftmaxRows(kernel.Exact, x, rows, scale, words, m, l, f)
		})
	}
	benchVariants(b, "Gradient", Stride, "Gelem/s", func() { Gradient(kernel.Exact, s[:Stride], s[Stride:], s[2*Stride:], 1, 0, ^uint64(0)) })
	benchVariants(b, "Merge/128", 128*Lanes, "Gelem/s", func() {
		MergeStrip(kernel.Exact, m, l, s[:32*Lanes], f, f, x[:32*Lanes], 32)
	})
}

// Tiles of 64 keys with 128 features, from the second-level cache: GB of
// elements as stored.
func BenchmarkLoad(b *testing.B) {
	const n, dim, tiles = 64, 128, 16
	r := rand.New(rand.NewPCG(1, 1))
	rows, columns := aligned(r, n*Pad(dim)), aligned(r, n*dim)
	wide := aligned(r, tiles*n*dim)
	half := make([]uint16, tiles*n*dim)
	tensor.F16.FromF32s(half, wide)
	k := 0
	next := func() int { k = (k + 1) % tiles; return k * n * dim }
	benchVariants(b, "RowsF32", n*dim*4, "GB/s", func() { RowsF32(rows, Pad(dim), wide[next():], dim, n, dim, 0) })
	benchVariants(b, "ColumnsF32", n*dim*4, "GB/s", func() { ColumnsF32(columns, n, wide[next():], dim, n, dim, 0) })
	for _, d := range []tensor.DType{tensor.F16, tensor.BF16} {
		benchVariants(b, fmt.Sprintf("Rows%v", d), n*dim*2, "GB/s", func() { Rows16(rows, Pad(dim), half[next():], d, dim, n, dim, 0) })
		benchVariants(b, fmt.Sprintf("Columns%v", d), n*dim*2, "GB/s", func() { Columns16(columns, n, half[next():], d, dim, n, dim, 0) })
	}
	codes, scale := make([]uint8, tiles*n*dim), make([]uint16, n*dim)
	tensor.F16.FromF32s(scale, wide[:n*dim])
	for i := range codes {
		codes[i] = uint8(r.Uint32())
	}
	for _, c := range []kernel.Codec{kernel.Int8, kernel.Int4} {
		w := c.RowBytes(dim)
		benchVariants(b, fmt.Sprintf("Channels%v", c), float64(n*w), "GB/s", func() {
			Channels(columns, n, true, codes[next():], c, w, n, dim, scale[:dim], scale[dim:], nil)
		})
		benchVariants(b, fmt.Sprintf("Tokens%v", c), float64(n*w), "GB/s", func() {
			Tokens(rows, Pad(dim), codes[next():], c, w, n, dim, 64, scale, 2, scale[2*n:], 2, nil)
		})
	}
}
