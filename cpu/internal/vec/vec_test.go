package vec

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/kernel"
)

// fill makes values that stress the emulated FMA: random mantissas, short
// mantissas (ties), wide exponents, zeros and subnormals.
func fill(r *rand.Rand, x []float32, mode int) {
	for i := range x {
		u := r.Uint32()
		switch mode {
		case 0:
			x[i] = float32(r.NormFloat64())
		case 1: // as widened from bf16: exact ties are common
			x[i] = math.Float32frombits(u&0x80ff0000 | 120<<23 | u&0x03000000)
		case 2:
			x[i] = math.Float32frombits(u&0x80ffffff | (u>>24%40+100)<<23)
		case 3:
			if u%3 == 0 {
				x[i] = 0
			} else {
				x[i] = math.Float32frombits(u & 0x807fffff)
			}
		}
	}
}

// Tiles are compared with chains of kernel.FMA. Sizes straddle the register
// tile of four.
func TestExactTilesAreChainsOfFMA(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for mode := range 4 {
		for _, n := range [][3]int{{1, 1, 1}, {2, 3, 5}, {3, 4, 4}, {5, 64, 26}, {4, 63, 7}, {2, 65 - 1, 128}} {
			rows, keys, dim := n[0], n[1], n[2]
			q, k, v := make([]float32, rows*dim), make([]float32, keys*dim), make([]float32, keys*dim)
			p, o := make([]float32, rows*Stride), make([]float32, rows*dim)
			for _, x := range [][]float32{q, k, v, p, o} {
				fill(r, x, mode)
			}
			s, got := make([]float32, rows*Stride), append([]float32(nil), o...)
			DotExact(s, q, k, rows, keys, dim)
			AddPVExact(got, p, v, rows, keys, dim)
			for row := range rows {
				for j := range keys {
					var a float32
					for d := range dim {
						a = kernel.FMA(k[j*dim+d], q[row*dim+d], a)
					}
					if math.Float32bits(a) != math.Float32bits(s[row*Stride+j]) {
						t.Fatalf("mode %d %v: score %d,%d is %x, want %x", mode, n, row, j, s[row*Stride+j], a)
					}
				}
				for d := range dim {
					a := o[row*dim+d]
					for j := range keys {
						a = kernel.FMA(v[j*dim+d], p[row*Stride+j], a)
					}
					if math.Float32bits(a) != math.Float32bits(got[row*dim+d]) {
						t.Fatalf("mode %d %v: output %d,%d is %x, want %x", mode, n, row, d, got[row*dim+d], a)
					}
				}
			}
		}
	}
}

func bench(b *testing.B, dim int, f func(s, q, k []float32, rows, keys, dim int)) {
	r := rand.New(rand.NewPCG(1, 1))
	q, k, s := make([]float32, 64*dim), make([]float32, 64*dim), make([]float32, 64*Stride)
	fill(r, q, 0)
	fill(r, k, 0)
	for b.Loop() {
		f(s, q, k, 64, 64, dim)
	}
	b.ReportMetric(float64(2*64*64*dim)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
}

func BenchmarkDot(b *testing.B) {
	b.Run("fast/d=32", func(b *testing.B) { bench(b, 32, DotFast) })
	b.Run("fast/d=128", func(b *testing.B) { bench(b, 128, DotFast) })
	b.Run("exact/d=32", func(b *testing.B) { bench(b, 32, DotExact) })
	b.Run("exact/d=128", func(b *testing.B) { bench(b, 128, DotExact) })
}

func BenchmarkAddPV(b *testing.B) {
	pv := func(f func(o, p, v []float32, rows, keys, dim int)) func(s, q, k []float32, rows, keys, dim int) {
		return func(s, q, k []float32, rows, keys, dim int) { clear(q); f(q, s, k, rows, keys, dim) }
	}
	b.Run("fast/d=32", func(b *testing.B) { bench(b, 32, pv(AddPVFast)) })
	b.Run("exact/d=32", func(b *testing.B) { bench(b, 32, pv(AddPVExact)) })
}
