package tensor

import (
	"math"
	"testing"
)

// format8 is an FP8 type by its definition.
type format8 struct {
	dtype      DType
	frac, bias int
	largest    uint8                              // code of the largest number
	special    func(b uint8) (x float64, ok bool) // NaN and Inf by code
}

func formats8(t *testing.T, f func(t *testing.T, d format8)) {
	t.Run("f8e4m3", func(t *testing.T) {
		f(t, format8{F8E4M3, 3, 7, 0x7e, func(b uint8) (float64, bool) { return math.NaN(), b&0x7f == 0x7f }})
	})
	t.Run("f8e5m2", func(t *testing.T) {
		f(t, format8{F8E5M2, 2, 15, 0x7b, func(b uint8) (float64, bool) {
			if b&0x7f == 0x7c {
				return math.Inf(1 - int(b>>7)*2), true
			}
			return math.NaN(), b&0x7f > 0x7c
		}})
	})
}

// value is what the fields of b mean.
func (d *format8) value(b uint8) float64 {
	if x, ok := d.special(b); ok {
		return x
	}
	exp, frac := int(b&0x7f)>>d.frac, int(b)&(1<<d.frac-1)
	x := math.Ldexp(float64(frac), 1-d.bias-d.frac)
	if exp > 0 {
		x = math.Ldexp(float64(frac+1<<d.frac), exp-d.bias-d.frac)
	}
	return math.Copysign(x, 1-2*float64(b>>7))
}

// nearest is the code at the least distance of x, the even one of two.
func (d *format8) nearest(x float32) uint8 {
	a, best := math.Abs(float64(x)), uint8(0)
	for b := range d.largest + 1 {
		was, now := math.Abs(a-d.value(best)), math.Abs(a-d.value(b))
		if now < was || now == was && b&1 == 0 {
			best = b
		}
	}
	if math.IsInf(a, 1) {
		best = d.largest
	}
	return best | uint8(math.Float32bits(x)>>24&0x80)
}

// Every value widens to what its fields mean and comes back as itself, but for
// the infinities, which saturate.
func TestFloat8AllValues(t *testing.T) {
	formats8(t, func(t *testing.T, d format8) {
		for i := range 256 {
			b := uint8(i)
			want, got := d.value(b), d.dtype.ToF32(uint16(b))
			back := uint8(d.dtype.FromF32(got))
			switch {
			case want != want:
				if got == got || !math.IsNaN(d.value(back)) || back&0x80 != b&0x80 {
					t.Errorf("NaN %02x widens to %v and comes back as %02x", b, got, back)
				}
				continue
			case math.IsInf(want, 0):
				if back != b&0x80|d.largest {
					t.Errorf("Inf %02x comes back as %02x, want the largest number", b, back)
				}
			case back != b:
				t.Errorf("%02x comes back as %02x", b, back)
			}
			if math.Float64bits(float64(got)) != math.Float64bits(want) {
				t.Errorf("%02x widens to %v, want %v", b, got, want)
			}
		}
		for _, x := range []float32{math.MaxFloat32, float32(math.Inf(1))} {
			for _, s := range []float32{1, -1} {
				if got := uint8(d.dtype.FromF32(s * x)); got != d.nearest(s*d.dtype.ToF32(uint16(d.largest))) {
					t.Errorf("%v rounds to %02x, want the largest number", s*x, got)
				}
			}
		}
	})
	if got := F8E4M3.ToF32(0x7e); got != 448 {
		t.Errorf("the largest E4M3 is %v, want 448", got)
	}
	if got := F8E5M2.ToF32(0x7b); got != 57344 {
		t.Errorf("the largest E5M2 is %v, want 57344", got)
	}
}

// Rounding is tested at and beside every boundary between two neighbours, and
// past the largest number.
func TestFloat8RoundsToNearestEven(t *testing.T) {
	formats8(t, func(t *testing.T, d format8) {
		for b := uint8(0); b <= d.largest; b++ {
			lo := d.value(b)
			hi := d.value(b + 1)
			if b == d.largest {
				hi = lo + (lo - d.value(b-1))
			}
			mid := float32((lo + hi) / 2)
			for _, x := range []float32{mid, math.Nextafter32(mid, 0), math.Nextafter32(mid, 1e9), math.Nextafter32(float32(lo), 1e9), float32(lo), float32(hi)} {
				for _, s := range []float32{1, -1} {
					if got, want := uint8(d.dtype.FromF32(s*x)), d.nearest(s*x); got != want {
						t.Errorf("%v rounds to %02x, want %02x", s*x, got, want)
					}
				}
			}
		}
	})
}

func TestWiden8AgreesWithScalars(t *testing.T) {
	all := make([]uint8, 256)
	for i := range all {
		all[i] = uint8(i)
	}
	for _, d := range []DType{F8E4M3, F8E5M2, U8} {
		wide := make([]float32, 256)
		d.Widen8(wide, all)
		for i, x := range wide {
			if want := d.ToF32(uint16(i)); math.Float32bits(x) != math.Float32bits(want) {
				t.Errorf("%v: %02x widens to %v, want %v", d, i, x, want)
			}
		}
	}
}

// Codes round to nearest even and clamp.
func TestU8(t *testing.T) {
	v := New(U8, 8)
	for i, c := range []struct{ x, want float32 }{{0, 0}, {0.5, 0}, {1.5, 2}, {254.6, 255}, {1e9, 255}, {-3, 0}, {float32(math.NaN()), 0}, {float32(math.Inf(1)), 255}} {
		v.Set(c.x, int64(i))
		if got := v.At(int64(i)); got != c.want {
			t.Errorf("%v is stored as %v, want %v", c.x, got, c.want)
		}
	}
	for i := range 256 {
		if got := U8.FromF32(U8.ToF32(uint16(i))); got != uint16(i) {
			t.Errorf("%d comes back as %d", i, got)
		}
	}
}

func TestViewsOfBytes(t *testing.T) {
	data := []byte{0x38, 0xb8, 0x7e, 0x00, 0x30, 0xff}
	v := FromBytes(F8E4M3, data, 2, 3)
	if got := v.At(0, 2); got != 448 || v.At(0, 1) != -1 || v.String() != "f8e4m3[2,3]" || len(v.Bits8()) != 6 || v.Bits() != nil || v.F32s() != nil {
		t.Errorf("%v has %v at [0,2]", &v, got)
	}
	v.Set(-500, 1, 0)
	if data[3] != 0xfe {
		t.Errorf("−500 is stored as %02x, want fe", data[3])
	}
	if err := v.Check(); err != nil {
		t.Error(err)
	}
	w := New(F32, 2)
	if w.Bits8() != nil {
		t.Error("bytes of a view of f32")
	}
}

func FuzzFloat8(f *testing.F) {
	f.Add(uint32(0x3c800000))
	f.Add(uint32(0x43e80000)) // 464, between 448 and what would follow
	f.Fuzz(func(t *testing.T, u uint32) {
		x := math.Float32frombits(u)
		if x != x {
			return
		}
		formats8(t, func(t *testing.T, d format8) {
			if got, want := uint8(d.dtype.FromF32(x)), d.nearest(x); got != want {
				t.Errorf("%v (%08x) rounds to %02x, want %02x", x, u, got, want)
			}
		})
	})
}
