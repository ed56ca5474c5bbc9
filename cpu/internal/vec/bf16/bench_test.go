package bf16

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// Rates of the kernels on operands in cache:
//
//	go test -run - -bench . ./cpu/internal/vec/bf16
func eachTier(b *testing.B, f func(b *testing.B)) {
	for _, tier := range Tiers()[1:] {
		b.Run(tier.String(), func(b *testing.B) {
			before, _ := Use(tier)
			defer Use(before)
			f(b)
		})
	}
}

// measure reports the rate of the best of many runs of some 50 µs: other loads
// of the machine and changes of its clock do not count.
func measure(b *testing.B, flop int, f func()) {
	f()
	start := time.Now()
	f()
	n := int(50*time.Microsecond/max(time.Since(start), time.Nanosecond)) + 1
	best := time.Duration(math.MaxInt64)
	for b.Loop() {
		start := time.Now()
		for range n {
			f()
		}
		best = min(best, time.Since(start))
	}
	each := float64(best.Nanoseconds()) / float64(n)
	b.ReportMetric(each, "best-ns")
	b.ReportMetric(float64(flop)/each, "GFLOP/s")
}

func BenchmarkScores(b *testing.B) {
	eachTier(b, func(b *testing.B) {
		const dim = 128
		c, x, y := Float32s(Keys*Lanes), Uint16s(Keys*dim), Uint16s(dim*Lanes)
		measure(b, 2*Keys*Lanes*dim, func() { Multiply(c, x, y, Keys, dim, 1, 1, false) })
	})
}

func BenchmarkValues(b *testing.B) {
	eachTier(b, func(b *testing.B) {
		const dim = 128
		c, x, y := Float32s(dim*Lanes), Uint16s(Keys*dim), Uint16s(Keys*Lanes)
		measure(b, 2*Keys*Lanes*dim, func() { Multiply(c, x, y, dim, Keys, 1, 1, true) })
	})
}

func BenchmarkPack(b *testing.B) {
	const dim = 128
	x, f, dst := Uint16s(Keys*dim), Float32s(Keys*dim), Uint16s(3*Keys*dim)
	for name, call := range map[string]func(){
		"key":     func() { PackKey(dst, x, dim, dim) },
		"value":   func() { PackValue(dst, x, dim, dim) },
		"keyF32":  func() { PackKeyF32(dst, f, dim, dim, Exact) },
		"queries": func() { PackPairs(dst, f, dim, 1) },
	} {
		b.Run(name, func(b *testing.B) { measure(b, 0, call) })
	}
}

// BenchmarkAttend is a block of 512 rows over a tile, with the packing of its
// keys and values: what a prefill does again and again.
func BenchmarkAttend(b *testing.B) {
	for _, dim := range []int{64, 128, 256} {
		for _, parts := range [][2]int{{1, 1}, {1, Exact}, {Exact, Exact}} {
			b.Run(name(dim, parts), func(b *testing.B) {
				eachTier(b, func(b *testing.B) { benchAttend(b, dim, parts, false, 1) })
			})
		}
	}
	b.Run("128 masked", func(b *testing.B) {
		eachTier(b, func(b *testing.B) { benchAttend(b, 128, [2]int{1, 1}, true, 1) })
	})
	b.Run("128 steep", func(b *testing.B) { // weights would be subnormal
		eachTier(b, func(b *testing.B) { benchAttend(b, 128, [2]int{1, 1}, false, 8) })
	})
}

func name(dim int, parts [2]int) string {
	n := map[[2]int]string{{1, 1}: "bf16", {1, Exact}: "turned queries", {Exact, Exact}: "turned keys"}[parts]
	return map[int]string{64: "64 ", 128: "128 ", 256: "256 "}[dim] + n
}

func benchAttend(b *testing.B, dim int, parts [2]int, masked bool, steep float32) {
	const strips = 16
	r := rand.New(rand.NewPCG(1, 1))
	p := newProblem(r, dim, dim, strips, parts[0], parts[1], masked)
	for i := range p.Scale {
		p.Scale[i] *= steep
	}
	tiles := 8
	k, v := words(floats(r, tiles*Keys*dim, true)), words(floats(r, tiles*Keys*dim, true))
	kf := floats(r, Keys*dim, false)
	sc := NewScratch()
	n := 0
	measure(b, 4*Keys*Lanes*dim*strips, func() {
		at := n % tiles * Keys * dim
		n++
		if parts[0] == 1 {
			PackKey(p.Key, k[at:], dim, dim)
		} else {
			PackKeyF32(p.Key, kf, dim, dim, Exact)
		}
		PackValue(p.Value, v[at:], dim, dim)
		p.Attend(sc, strips)
	})
}
