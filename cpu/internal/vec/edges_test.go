package vec

import (
	"math"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// One NaN or Inf is seen wherever it lies, and the largest number is none.
func TestFiniteSeesEachElement(t *testing.T) {
	before := Active()
	defer Use(before)
	for _, v := range Variants() {
		Use(v)
		for n := range 150 {
			x := make([]float32, n)
			for i := range x {
				x[i] = -math.MaxFloat32
			}
			if !Finite(x) {
				t.Fatalf("%v: %d finite elements: false", v, n)
			}
			for i := range x {
				for _, bits := range []uint32{0x7f800000, 0xff800000, 0x7f800001, 0xffffffff} {
					x[i] = math.Float32frombits(bits)
					if Finite(x) {
						t.Fatalf("%v: element %d of %d is %#x: true", v, i, n, bits)
					}
				}
				x[i] = 0
			}
		}
	}
}

// A NaN of any payload stays one in 16 bits.
func TestNarrowKeepsNaN(t *testing.T) {
	before := Active()
	defer Use(before)
	for _, v := range Variants() {
		Use(v)
		for _, dtype := range []tensor.DType{tensor.F16, tensor.BF16} {
			for bit := range 23 {
				src, dst := make([]float32, 40), make([]uint16, 40)
				for i := range src {
					src[i] = math.Float32frombits(0x7f800000 | uint32(i&1)<<31 | 1<<bit)
				}
				Narrow16(dst, src, dtype)
				for i, h := range dst {
					if x := dtype.ToF32(h); x == x {
						t.Fatalf("%v: %#x becomes %#x in %v, element %d", v, math.Float32bits(src[i]), h, dtype, i)
					}
				}
			}
		}
	}
}

// A hidden key of a row weighs +0 even where the maximum is NaN.
func TestHiddenKeysWeighNothing(t *testing.T) {
	before := Active()
	defer Use(before)
	for _, v := range Variants() {
		Use(v)
		for j := range Stride {
			s, one := make([]float32, Stride), []float32{1}
			m, l, f := []float32{float32(math.NaN())}, []float32{1}, []float32{0}
			SoftmaxRows(kernel.Exact, s, 1, one, []uint64{1 << j}, m, l, f)
			for k, w := range s {
				if hidden := k != j; hidden && math.Float32bits(w) != 0 || !hidden && w == w {
					t.Fatalf("%v: only key %d is seen: the weight of %d is %v", v, j, k, w)
				}
			}
		}
	}
}

// A maximum of zero is +0, whichever zeros are among the scores.
func TestMaximumOfZerosIsPositive(t *testing.T) {
	before := Active()
	defer Use(before)
	minus := float32(math.Copysign(0, -1))
	ones := make([]float32, Lanes)
	for i := range ones {
		ones[i] = 1
	}
	for _, v := range Variants() {
		Use(v)
		for at := range Stride {
			for _, start := range []float32{kernel.MaxStart, 0, minus} {
				s, strip := make([]float32, Stride), make([]float32, Stride*Lanes)
				for i := range strip {
					strip[i] = minus
				}
				copy(s, strip)
				s[at] = 0
				for i := range Lanes {
					strip[at*Lanes+i] = 0
				}
				var m, l, f [Lanes]float32
				m[0] = start
				SoftmaxRows(kernel.Exact, s, 1, ones[:1], []uint64{1<<at | 1<<(at^1)}, m[:1], l[:1], f[:1])
				if math.Float32bits(m[0]) != 0 {
					t.Fatalf("%v: rows, +0 at %d after %v: maximum %v", v, at, start, m[0])
				}
				for i := range m {
					m[i] = start
				}
				SoftmaxStrip(kernel.Exact, strip, Stride, ones, nil, m[:], l[:], f[:])
				for i, x := range m {
					if math.Float32bits(x) != 0 {
						t.Fatalf("%v: lane %d, +0 at %d after %v: maximum %v", v, i, at, start, x)
					}
				}
			}
		}
	}
}
