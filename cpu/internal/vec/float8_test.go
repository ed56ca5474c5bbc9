package vec

import (
	"testing"
	"unsafe"

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
