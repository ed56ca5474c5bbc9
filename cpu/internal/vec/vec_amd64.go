//go:build amd64 && !purego

package vec

import (
	"unsafe"

	"golang.org/x/sys/cpu"

	"github.com/longctx/longctx/kernel"
)

func supported(v Variant) bool {
	x := &cpu.X86
	switch v {
	case Generic:
		return true
	case AVX2:
		return x.HasAVX2 && x.HasFMA && x.HasF16C
	case AVX512:
		return x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && supported(AVX2)
	}
	return false
}

// p is the address of the first element, which need not exist.
func p[T any](x []T) *T { return unsafe.SliceData(x) }

func mulAdd(c, a, b *Matrix, rows, inner, cols int, start Start, f []float32) int {
	switch active {
	case AVX512:
		cols &^= 15
		mulAddAVX512(p(c.X), c.Row, p(a.X), a.Row, a.Col, p(b.X), b.Row, rows, inner, cols, int(start), p(f))
		return cols
	case AVX2:
		cols &^= 7
		mulAddAVX2(p(c.X), c.Row, p(a.X), a.Row, a.Col, p(b.X), b.Row, rows, inner, cols, int(start), p(f))
		return cols
	}
	return 0
}

func multiplies16() bool { return active != Generic }

func mulAdd16(c, a *Matrix, b *Matrix16, rows, inner, cols int, start Start, next Next) int {
	t := elementOf(b.DType)
	switch {
	case active == AVX512 && t == f16:
		cols &^= 15
		mulAddF16AVX512(p(c.X), c.Row, p(a.X), a.Row, a.Col, p(b.X), b.Row, rows, inner, cols, int(start), p(next.X), next.Row)
	case active == AVX512 && t == bf16:
		cols &^= 15
		mulAddBF16AVX512(p(c.X), c.Row, p(a.X), a.Row, a.Col, p(b.X), b.Row, rows, inner, cols, int(start), p(next.X), next.Row)
	case active == AVX2 && t == f16:
		cols &^= 7
		mulAddF16AVX2(p(c.X), c.Row, p(a.X), a.Row, a.Col, p(b.X), b.Row, rows, inner, cols, int(start), p(next.X), next.Row)
	case active == AVX2 && t == bf16:
		cols &^= 7
		mulAddBF16AVX2(p(c.X), c.Row, p(a.X), a.Row, a.Col, p(b.X), b.Row, rows, inner, cols, int(start), p(next.X), next.Row)
	default:
		return 0
	}
	return cols
}

func softmaxStrip(s []float32, keys int, scale []float32, visible []uint32, m, l, f []float32) bool {
	switch active {
	case AVX512:
		softmaxStripAVX512(p(s), keys, p(scale), p(visible), p(m), p(l), p(f))
	case AVX2:
		softmaxStripAVX2(p(s), keys, p(scale), p(visible), p(m), p(l), p(f))
	default:
		return false
	}
	return true
}

func softmaxRows(s []float32, rows int, scale []float32, visible []uint64, m, l, f []float32) bool {
	switch active {
	case AVX512:
		softmaxRowsAVX512(p(s), rows, p(scale), p(visible), p(m), p(l), p(f))
	case AVX2:
		softmaxRowsAVX2(p(s), rows, p(scale), p(visible), p(m), p(l), p(f))
	default:
		return false
	}
	return true
}

func take(s, raw []float32, keys int, scale []float32, visible []uint32) bool {
	switch active {
	case AVX512:
		takeAVX512(p(s), p(raw), keys, p(scale), p(visible))
	case AVX2:
		takeAVX2(p(s), p(raw), keys, p(scale), p(visible))
	default:
		return false
	}
	return true
}

func mergeStrip(m, l, o, pm, pl, po []float32, dim int) bool {
	switch active {
	case AVX512:
		mergeStripAVX512(p(m), p(l), p(o), p(pm), p(pl), p(po), dim)
	case AVX2:
		mergeStripAVX2(p(m), p(l), p(o), p(pm), p(pl), p(po), dim)
	default:
		return false
	}
	return true
}

func blend(y, x []float32, fa, fb float32) bool {
	switch active {
	case AVX512:
		blendAVX512(p(y), p(x), len(y), fa, fb)
	case AVX2:
		blendAVX2(p(y), p(x), len(y), fa, fb)
	default:
		return false
	}
	return true
}

func scaleRow(x []float32, f float32) bool {
	switch active {
	case AVX512:
		scaleRowAVX512(p(x), len(x), f)
	case AVX2:
		scaleRowAVX2(p(x), len(x), f)
	default:
		return false
	}
	return true
}

func finishStrip(o, l []float32, dim int) bool {
	switch active {
	case AVX512:
		finishStripAVX512(p(o), p(l), dim)
	case AVX2:
		finishStripAVX2(p(o), p(l), dim)
	default:
		return false
	}
	return true
}

func finishRow(o []float32, inv float32) bool {
	switch active {
	case AVX512:
		finishRowAVX512(p(o), len(o), inv)
	case AVX2:
		finishRowAVX2(p(o), len(o), inv)
	default:
		return false
	}
	return true
}

func finite(x []float32) (ok, done bool) {
	switch active {
	case AVX512:
		return finiteAVX512(p(x), len(x)) != 0, true
	case AVX2:
		return finiteAVX2(p(x), len(x)) != 0, true
	}
	return false, false
}

func softCap(x []float32, inv, limit float32) int {
	switch active {
	case AVX512:
		softCapAVX512(p(x), len(x), inv, limit)
	case AVX2:
		softCapAVX2(p(x), len(x), inv, limit)
	default:
		return 0
	}
	return len(x)
}

func addProduct(y, a, b []float32) int {
	switch active {
	case AVX512:
		addProductAVX512(p(y), p(a), p(b), len(y))
	case AVX2:
		addProductAVX2(p(y), p(a), p(b), len(y))
	default:
		return 0
	}
	return len(y)
}

func rotate(x, cos, sin []float32, layout kernel.RotaryLayout, inverse bool) int {
	n, back := len(cos), 0
	if inverse {
		back = 1
	}
	switch {
	case active != AVX512 && active != AVX2 || n == 0:
		return 0
	case layout != kernel.Interleaved:
		if active == AVX512 {
			rotateHalfAVX512(p(x), p(x[n:]), p(cos), p(sin), n, back)
		} else {
			rotateHalfAVX2(p(x), p(x[n:]), p(cos), p(sin), n, back)
		}
	case active == AVX512 && n >= 8:
		n &^= 7
		rotatePairsAVX512(p(x), p(cos), p(sin), n, back)
	case n >= 4: // on a machine with AVX-512 too
		n &^= 3
		rotatePairsAVX2(p(x), p(cos), p(sin), n, back)
	default:
		return 0
	}
	return n
}

func gradient(s, dp, g []float32, lse, delta float32, visible uint64) bool {
	switch active {
	case AVX512:
		gradientAVX512(p(s), p(dp), p(g), &visible, lse, delta)
	case AVX2:
		gradientAVX2(p(s), p(dp), p(g), &visible, lse, delta)
	default:
		return false
	}
	return true
}
