//go:build !purego

package roof

import "golang.org/x/sys/cpu"

func supported(v Variant) bool {
	switch v {
	case Generic:
		return true
	case AVX2:
		return cpu.X86.HasAVX2 && cpu.X86.HasFMA
	case AVX512:
		return cpu.X86.HasAVX512F
	}
	return false
}

func loopsOf(v Variant) *loops {
	switch v {
	case AVX2:
		return &avx2
	case AVX512:
		return &avx512
	}
	return &generic
}

var (
	avx2   = loops{lanes: 12 * 8, fma: fmaAVX2, read: readAVX2}
	avx512 = loops{lanes: 24 * 16, fma: fmaAVX512, read: readAVX512}
)

//go:noescape
func fmaAVX2(n int64, a, b float32, out *[maxLanes]float32)

//go:noescape
func fmaAVX512(n int64, a, b float32, out *[maxLanes]float32)

//go:noescape
func readAVX2(p *byte, n int64, out *[8]uint64)

//go:noescape
func readAVX512(p *byte, n int64, out *[8]uint64)
