package vec

import (
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/longctx/longctx/tensor"
)

// regionSize is more than any operand of a trial needs.
const regionSize = 512 << 10

// margin is what is watched on both sides of an operand, in bytes.
const margin = 256

// memory gives the operands of one trial. Each lies in a region of its own,
// at its end or its start: where there are guard pages, a read or write
// beyond is a fault; what is written into the margins shows in snapshot.
type memory struct {
	t       testing.TB
	r       *rand.Rand
	regions [][]byte
	used    []operand
}

type operand struct {
	region []byte // with the margins
	dtype  tensor.DType
}

func newMemory(t testing.TB) *memory { return &memory{t: t} }

// reset starts a trial. All that follows is a function of the seed.
func (m *memory) reset(seed uint64) {
	m.r, m.used = rand.New(rand.NewPCG(seed, 7)), m.used[:0]
}

// floats is n floats with random values.
func (m *memory) floats(n int, v values) []float32 {
	x := place[float32](m, tensor.F32, n)
	v.fill(m.r, x)
	return x
}

// halves is n elements of a 16-bit type.
func (m *memory) halves(n int, v values, dtype tensor.DType) []uint16 {
	x, wide := place[uint16](m, dtype, n), make([]float32, n)
	v.fill(m.r, wide)
	dtype.FromF32s(x, wide)
	return x
}

// anyBits is the type of operands that are not floating point.
const anyBits tensor.DType = 255

// binary64 is the type of operands that no tensor has.
const binary64 tensor.DType = 254

// place is n elements, at one end of the next region. Of those of a floating
// point dtype all NaN count as the same.
func place[T float32 | float64 | uint8 | uint16 | uint32 | uint64](m *memory, dtype tensor.DType, n int) []T {
	var zero T
	size := n * int(unsafe.Sizeof(zero))
	if len(m.used) == len(m.regions) {
		b, err := guarded(m.t, regionSize)
		if err != nil {
			m.t.Fatal(err)
		}
		m.regions = append(m.regions, b)
	}
	all := m.regions[len(m.used)]
	if size > len(all) {
		m.t.Fatalf("operand of %d bytes, have %d", size, len(all))
	}
	at := 0
	if m.r.Uint32()&1 == 0 {
		at = len(all) - size
	}
	lo, hi := max(at-margin, 0), min(at+size+margin, len(all))
	m.used = append(m.used, operand{all[lo:hi], dtype})
	for i := range all[lo:hi] {
		all[lo+i] = byte(0x55 + i)
	}
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&all[at])), n)
}

// snapshot is a copy of all operands and their margins.
func (m *memory) snapshot() [][]byte {
	var s [][]byte
	for _, o := range m.used {
		s = append(s, append([]byte(nil), o.region...))
	}
	return s
}

// differ compares a snapshot with the operands as they are now: the number of
// the operand and of its element, margin included, that is not the same.
func (m *memory) differ(s [][]byte) (operand, element int, got, want uint64, differ bool) {
	for k, o := range m.used {
		size := 4
		switch o.dtype {
		case tensor.F16, tensor.BF16:
			size = 2
		case anyBits:
			size = 1
		case binary64:
			size = 8
		}
		for i := 0; i+size <= len(o.region); i += size {
			g, w := word(o.region[i:][:size]), word(s[k][i:][:size])
			if g != w && !(isNaN(g, o.dtype) && isNaN(w, o.dtype)) {
				return k, i / size, g, w, true
			}
		}
	}
	return 0, 0, 0, 0, false
}

func word(b []byte) uint64 {
	u := uint64(0)
	for i, x := range b {
		u |= uint64(x) << (8 * i)
	}
	return u
}

func isNaN(u uint64, dtype tensor.DType) bool {
	switch dtype {
	case binary64:
		return u<<1 > 0x7ff<<53
	case tensor.F32:
		return uint32(u)<<1 > 0xff<<24
	case tensor.F16, tensor.BF16:
		x := dtype.ToF32(uint16(u))
		return x != x
	}
	return false
}

// values is a way to draw floats.
type values uint8

const (
	normal  values = iota
	ties           // as widened from BF16: exact ties are common
	wide           // wide exponents
	small          // zeros of both signs and subnormals
	special        // normal, NaN and Inf between
	halves         // near multiples of ½ from −130 to 2: where E rounds, and where it ends
	valueModes
)

func (v values) fill(r *rand.Rand, x []float32) {
	for i := range x {
		u := r.Uint32()
		switch v {
		case normal:
			x[i] = float32(r.NormFloat64())
		case ties:
			x[i] = math.Float32frombits(u&0x80ff0000 | 120<<23 | u&0x03000000)
		case wide:
			x[i] = math.Float32frombits(u&0x80ffffff | (u>>24%40+100)<<23)
		case small:
			x[i] = math.Float32frombits(u & 0x807fffff)
			if u%3 == 0 {
				x[i] = math.Float32frombits(u & (1 << 31))
			}
		case special:
			x[i] = float32(r.NormFloat64())
			if u%16 == 0 {
				bits := [5]uint32{0x7fc00000, 0x7f800001, 0xff800000, 0x7f800000, 1 << 31}
				x[i] = math.Float32frombits(bits[u>>8%5])
			}
		case halves:
			x[i] = float32(u%265)/2 - 130
			x[i] = math.Float32frombits(math.Float32bits(x[i]) + u>>16%3 - 1)
		}
	}
}
