//go:build goexperiment.simd && amd64

package vec

import (
	"fmt"
	"math"
	"math/rand/v2"
	"simd/archsimd"
	"testing"
	"unsafe"

	"github.com/longctx/longctx/kernel"
)

// What Go's own vector package would give for the product of queries and keys,
// beside the variants in use:
//
//	GOEXPERIMENT=simd go test -run Archsimd -bench Archsimd ./cpu/internal/vec
//
// It has no embedded broadcast and no fused multiply-add in place, and its
// values live in 15 of the 32 registers, so that the largest tile that is not
// spilled is 4 keys by 32 lanes. RATIONALE.md says what was decided.

// dotArchsimd is MulAdd of a strip with keys, a multiple of n of them, n keys
// at a time.
func dotArchsimd4(s, q, k []float32, ld, keys, dim int) {
	at := func(x []float32, i int) *[16]float32 {
		return (*[16]float32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(x)), 4*i))
	}
	f := func(i int) float32 {
		return *(*float32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(k)), 4*i))
	}
	for j := 0; j < keys; j += 4 {
		var a0, a1, b0, b1, c0, c1, d0, d1 archsimd.Float32x16
		for d := range dim {
			x0, x1 := archsimd.LoadFloat32x16(at(q, d*Lanes)), archsimd.LoadFloat32x16(at(q, d*Lanes+16))
			y := archsimd.BroadcastFloat32x16(f(j*ld + d))
			a0, a1 = y.MulAdd(x0, a0), y.MulAdd(x1, a1)
			y = archsimd.BroadcastFloat32x16(f((j+1)*ld + d))
			b0, b1 = y.MulAdd(x0, b0), y.MulAdd(x1, b1)
			y = archsimd.BroadcastFloat32x16(f((j+2)*ld + d))
			c0, c1 = y.MulAdd(x0, c0), y.MulAdd(x1, c1)
			y = archsimd.BroadcastFloat32x16(f((j+3)*ld + d))
			d0, d1 = y.MulAdd(x0, d0), y.MulAdd(x1, d1)
		}
		for i, x := range [8]archsimd.Float32x16{a0, a1, b0, b1, c0, c1, d0, d1} {
			x.Store(at(s, (j+i/2)*Lanes+i%2*16))
		}
	}
	archsimd.ClearAVXUpperBits()
}

func archsimdTile() (s, q, k []float32) {
	r := rand.New(rand.NewPCG(1, 1))
	s, q, k = make([]float32, Stride*Lanes), make([]float32, 128*Lanes), make([]float32, Stride*128)
	for i := range q {
		q[i] = float32(r.NormFloat64())
	}
	for i := range k {
		k[i] = float32(r.NormFloat64())
	}
	return s, q, k
}

// The bits are those of every other variant.
func TestArchsimdIsAVariant(t *testing.T) {
	if !archsimd.X86.AVX512() {
		t.Skip("no AVX-512")
	}
	s, q, k := archsimdTile()
	want := make([]float32, len(s))
	mulAddGeneric(false, &Matrix{X: want, Row: Lanes}, &Matrix{X: k, Row: 128, Col: 1}, &Matrix{X: q, Row: Lanes}, Stride, 128, Lanes, Zero, nil)
	dotArchsimd4(s, q, k, 128, Stride, 128)
	for i := range s {
		if math.Float32bits(s[i]) != math.Float32bits(want[i]) {
			t.Fatalf("element %d is %x, want %x", i, s[i], want[i])
		}
	}
}

func BenchmarkArchsimd(b *testing.B) {
	s, q, k := archsimdTile()
	report := func(b *testing.B) {
		b.ReportMetric(2*Stride*Lanes*128*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
	}
	if archsimd.X86.AVX512() {
		b.Run("archsimd", func(b *testing.B) {
			for b.Loop() {
				dotArchsimd4(s, q, k, 128, Stride, 128)
			}
			report(b)
		})
	}
	before := Active()
	defer Use(before)
	for _, v := range Variants() {
		b.Run(fmt.Sprint(v), func(b *testing.B) {
			Use(v)
			for b.Loop() {
				MulAdd(kernel.Exact, Matrix{X: s, Row: Lanes}, Matrix{X: k, Row: 128, Col: 1}, Matrix{X: q, Row: Lanes}, Stride, 128, Lanes, Zero, nil)
			}
			report(b)
		})
	}
}
