//go:build !purego

package roof

// Every arm64 processor that Go runs on has NEON.
func supported(v Variant) bool { return v == Generic || v == NEON }

func loopsOf(v Variant) *loops {
	if v == NEON {
		return &neon
	}
	return &generic
}

var neon = loops{lanes: 24 * 4, fma: fmaNEON, read: readNEON}

//go:noescape
func fmaNEON(n int64, a, b float32, out *[maxLanes]float32)

//go:noescape
func readNEON(p *byte, n int64, out *[8]uint64)
