package rope_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

func cpuBackend(t *testing.T) *cpu.Backend {
	b := cpu.New(cpu.Options{Workers: 1})
	t.Cleanup(b.Close)
	return b
}

func largest(x tensor.View) float64 {
	m := 1.0
	for _, v := range x.F32s() {
		m = max(m, math.Abs(float64(v)))
	}
	return m
}

// turned is Apply in float64 and without Table, so that no fault of a table is
// on both sides of a comparison.
func turned(x tensor.View, p rope.Positions, r *kernel.Rotation) tensor.View {
	y := clone(x)
	dim := int(x.Shape[2])
	for row := range len(x.F32s()) / dim {
		in := make([]float64, dim)
		for f, v := range x.F32s()[row*dim:][:dim] {
			in[f] = float64(v)
		}
		tok := row / int(x.Shape[1])
		pos := [3]float64{float64(p[0][tok]), float64(p[1][tok]), float64(p[2][tok])}
		for f, v := range turn(in, r, pos, kernel.KeySide) {
			y.F32s()[row*dim+f] = float32(v)
		}
	}
	return y
}

// On the CPU backend, Apply, Shift and Unapply agree with a rotation in
// float64 for every method, layout and axis, in heads wider than what rotates.
// One position comes twice, and each token has three.
func TestCPUBackendAgreesWithFloat64(t *testing.T) {
	ops := cpuBackend(t)
	rng := rand.New(rand.NewPCG(3, 1))
	old := rope.Positions{{0, 10, 10, 3000}, {7, 10, 9, 30}, {9, 10, 8, 31}}
	delta := rope.Positions{{5, -8, -8, 100}, {1, -2, 3, 4}, {5, 6, -7, 8}}
	var moved rope.Positions
	for a := range old {
		for i := range old[a] {
			moved[a] = append(moved[a], old[a][i]+delta[a][i])
		}
	}
	const dim = 72 // methods here rotate at most 64
	for _, m := range everyMethod() {
		r := lower(t, m, testLength)
		x := random(rng, 4, 2, dim)
		atOld, atMoved := turned(x, old, &r), turned(x, moved, &r)
		scale := max(largest(atOld), largest(atMoved))
		check := func(what string, got, want tensor.View, units float64) {
			t.Helper()
			if d := distance(got, want); !(d <= units*0x1p-24*scale) {
				t.Errorf("%s: %s is off by %v of %v", m.Name(), what, d, scale)
			}
			for i, v := range got.F32s() {
				if i%dim >= r.Dim && math.Float32bits(v) != math.Float32bits(x.F32s()[i]) {
					t.Fatalf("%s: %s changed feature %d, behind the %d rotated", m.Name(), what, i%dim, r.Dim)
				}
			}
		}
		y := clone(x)
		if err := rope.Apply(ops, y, old, r, kernel.KeySide); err != nil {
			t.Fatal(err)
		}
		check("Apply", y, atOld, 4)
		z := clone(y)
		if err := rope.Shift(ops, z, delta, r, kernel.KeySide); err != nil {
			t.Fatal(err)
		}
		check("Shift", z, atMoved, 8)
		if err := rope.Unapply(ops, y, old, r, kernel.KeySide); err != nil {
			t.Fatal(err)
		}
		check("Unapply", y, x, 16)
	}
}

// 16-bit keys turn in float32, by float32 tables, and are rounded once.
func TestCPUBackendRoundsHalfOnce(t *testing.T) {
	ops := cpuBackend(t)
	rng := rand.New(rand.NewPCG(3, 2))
	r := lower(t, rope.YaRN{Base: rope.Base{HeadDim: 128, Partial: .5}, Factor: 16, OriginalLength: 4096}, 0)
	p := rope.Text([]int32{4095, 131071, 1048577})
	for _, dtype := range []tensor.DType{tensor.F16, tensor.BF16} {
		bits, wide := make([]uint16, 3*128), make([]float32, 3*128)
		for i := range bits {
			bits[i] = dtype.FromF32(float32(rng.NormFloat64()))
		}
		dtype.ToF32s(wide, bits)
		half, full := tensor.FromBits(dtype, bits, 3, 1, 128), tensor.FromF32(wide, 3, 1, 128)
		for _, x := range []tensor.View{half, full} {
			if err := rope.Apply(ops, x, p, r, kernel.KeySide); err != nil {
				t.Fatal(err)
			}
		}
		for i, v := range wide {
			if want := dtype.FromF32(v); bits[i] != want {
				t.Fatalf("%v: feature %d is %#04x, want %#04x", dtype, i, bits[i], want)
			}
		}
	}
}

// Tokens that do not move keep their bits, so that shifting a whole cache
// costs sinks no precision.
func TestCPUBackendShiftByZeroChangesNoBit(t *testing.T) {
	ops := cpuBackend(t)
	rng := rand.New(rand.NewPCG(3, 3))
	for _, m := range everyMethod() {
		r := lower(t, m, testLength)
		x := random(rng, 3, 2, 64)
		y := clone(x)
		if err := rope.Shift(ops, y, rope.Text([]int32{0, -7, 0}), r, kernel.KeySide); err != nil {
			t.Fatal(err)
		}
		for i, v := range y.F32s() {
			moves := i/128 == 1
			if same := math.Float32bits(v) == math.Float32bits(x.F32s()[i]); !same && !moves {
				t.Fatalf("%s: feature %d of token %d changed", m.Name(), i%64, i/128)
			}
		}
		if distance(x, y) < 0.1 {
			t.Errorf("%s: a shift by -7 did nothing", m.Name())
		}
	}
}
