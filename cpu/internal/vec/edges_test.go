package vec

import (
	"math"
	"testing"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// FP8 rows and columns hold what their elements are, in every variant, and
// nothing beside them is written.
func TestFP8Widens(t *testing.T) {
	before := Active()
	defer Use(before)
	m := newMemory(t)
	for _, v := range Variants() {
		Use(v)
		for seed := range uint64(200) {
			m.reset(seed)
			columns := seed%2 == 0
			n, dim, stride, ld, ahead, size := shape(m.r, columns)
			dtype := [3]tensor.DType{tensor.F8E4M3, tensor.F8E5M2, tensor.U8}[m.r.IntN(3)]
			length := (n-1)*stride + dim
			words := place[uint32](m, anyBits, (length+3)/4)
			for i := range words {
				words[i] = m.r.Uint32()
			}
			src := unsafe.Slice((*uint8)(unsafe.Pointer(&words[0])), 4*len(words))
			dst := m.floats(size, normal)
			want := m.snapshot()
			out := unsafe.Slice((*float32)(unsafe.Pointer(&want[1][0])), len(want[1])/4)
			at := (uintptr(unsafe.Pointer(&dst[0])) - uintptr(unsafe.Pointer(&m.used[1].region[0]))) / 4
			for r := range n {
				for d := range dim {
					i := r*ld + d
					if columns {
						i = d*ld + r
					}
					out[int(at)+i] = dtype.ToF32(uint16(src[r*stride+d]))
				}
			}
			if columns {
				Columns8(dst, ld, src[:length], dtype, stride, n, dim, ahead)
			} else {
				Rows8(dst, ld, src[:length], dtype, stride, n, dim, ahead)
			}
			if operand, element, got, want, differ := m.differ(want); differ {
				t.Fatalf("%v, %v, columns %v, %d×%d, seed %d: operand %d element %d is %#x, want %#x", v, dtype, columns, n, dim, seed, operand, element, got, want)
			}
		}
	}
}

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
