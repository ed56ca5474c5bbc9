package tensor

import (
	"math"
	"strings"
	"testing"
)

// nearest16 rounds x to a 16-bit format by its definition: the representable
// value at the least distance, the even one of two.
func nearest16(x float32, widen func(uint16) float32, inf uint16) uint16 {
	if x != x {
		panic("NaN has no nearest value")
	}
	sign := uint16(0)
	if math.Signbit(float64(x)) {
		sign = 0x8000
	}
	a := math.Abs(float64(x))
	lo, hi := uint16(0), inf // widen is monotone on 0 … inf
	for hi-lo > 1 {
		if mid := lo + (hi-lo)/2; float64(widen(mid)) <= a {
			lo = mid
		} else {
			hi = mid
		}
	}
	if a >= float64(widen(hi)) {
		return sign | hi
	}
	below, above := float64(widen(lo)), float64(widen(hi))
	if hi == inf { // what would follow the largest value
		above = 2*below - float64(widen(lo-1))
	}
	if d := (a - below) - (above - a); d > 0 || d == 0 && lo&1 == 1 {
		return sign | hi
	}
	return sign | lo
}

func halves(t *testing.T, f func(t *testing.T, dtype DType, inf uint16)) {
	t.Run("f16", func(t *testing.T) { f(t, F16, 0x7c00) })
	t.Run("bf16", func(t *testing.T) { f(t, BF16, 0x7f80) })
}

// Every one of the 65,536 values widens to what its fields mean and comes back
// as itself.
func TestHalfAllValues(t *testing.T) {
	halves(t, func(t *testing.T, dtype DType, inf uint16) {
		fracBits, bias := 10, 15
		if dtype == BF16 {
			fracBits, bias = 7, 127
		}
		for i := range 1 << 16 {
			h := uint16(i)
			got := dtype.ToF32(h)
			exp, frac := int(h&0x7fff)>>fracBits, int(h)&(1<<fracBits-1)
			switch {
			case h&0x7fff > inf:
				if got == got {
					t.Fatalf("%04x widens to %v, want NaN", h, got)
				}
				if back := dtype.FromF32(got); back&0x7fff <= inf {
					t.Fatalf("NaN %04x comes back as %04x", h, back)
				}
				continue
			case h&0x7fff == inf:
				if !math.IsInf(float64(got), 0) {
					t.Fatalf("%04x widens to %v, want Inf", h, got)
				}
			default:
				want := math.Ldexp(float64(frac), 1-bias-fracBits)
				if exp > 0 {
					want = math.Ldexp(float64(frac+1<<fracBits), exp-bias-fracBits)
				}
				if h&0x8000 != 0 {
					want = math.Copysign(want, -1)
				}
				if math.Float64bits(float64(got)) != math.Float64bits(want) {
					t.Fatalf("%04x widens to %v, want %v", h, got, want)
				}
			}
			if back := dtype.FromF32(got); back != h {
				t.Fatalf("%04x comes back as %04x", h, back)
			}
		}
	})
}

// Rounding is tested at and beside every boundary between two neighbours.
func TestHalfRoundsToNearestEven(t *testing.T) {
	halves(t, func(t *testing.T, dtype DType, inf uint16) {
		widen := func(h uint16) float32 { return dtype.ToF32(h) }
		for h := uint16(0); h < inf; h++ {
			lo := widen(h)
			hi := widen(h + 1)
			if h+1 == inf {
				hi = lo + (lo - widen(h-1))
			}
			mid := float32((float64(lo) + float64(hi)) / 2)
			for _, x := range []float32{mid, math.Nextafter32(mid, 0), math.Nextafter32(mid, float32(math.Inf(1))), math.Nextafter32(lo, hi)} {
				for _, s := range []float32{1, -1} {
					if got, want := dtype.FromF32(s*x), nearest16(s*x, widen, inf); got != want {
						t.Fatalf("%v rounds to %04x, want %04x", s*x, got, want)
					}
				}
			}
		}
		for _, x := range []float32{math.MaxFloat32, float32(math.Inf(1))} {
			if got := dtype.FromF32(x); got != inf && dtype == F16 {
				t.Errorf("%v rounds to %04x, want %04x", x, got, inf)
			}
		}
	})
}

func TestHalfSlicesAgreeWithScalars(t *testing.T) {
	halves(t, func(t *testing.T, dtype DType, inf uint16) {
		bits := make([]uint16, 1<<16)
		for i := range bits {
			bits[i] = uint16(i)
		}
		wide, back := make([]float32, len(bits)), make([]uint16, len(bits))
		dtype.ToF32s(wide, bits)
		dtype.FromF32s(back, wide)
		for i, h := range bits {
			if math.Float32bits(wide[i]) != math.Float32bits(dtype.ToF32(h)) || back[i] != dtype.FromF32(wide[i]) {
				t.Fatalf("slice of %04x differs from the scalar", h)
			}
		}
	})
}

func TestViewIndexing(t *testing.T) {
	v := New(BF16, 2, 3, 4)
	for i := range int64(2) {
		for j := range int64(3) {
			for k := range int64(4) {
				v.Set(float32(100*i+10*j+k), i, j, k)
			}
		}
	}
	w := v.Slice(1, 1, 3).Swap(0, 2)
	if got := w.At(3, 1, 1); got != 123 { // element [1, 2, 3] of v
		t.Errorf("At = %v, want 123", got)
	}
	if w.Len() != 16 || w.String() != "bf16[4,2,2]" {
		t.Errorf("view is %v of %d elements", &w, w.Len())
	}
	if err := w.Check(); err != nil {
		t.Error(err)
	}
}

// Sizes past 2³¹, and products past 2⁶³, must be seen as too large and not wrap.
func TestCheckRefusesWhatLiesOutside(t *testing.T) {
	ok := New(F32, 4, 4)
	for name, bad := range map[string]func(v *View){
		"no buffer":       func(v *View) { v.Buf = nil },
		"element type":    func(v *View) { v.DType = 9 },
		"rank":            func(v *View) { v.Rank = 7 },
		"negative offset": func(v *View) { v.Offset = -1 },
		"too long":        func(v *View) { v.Shape[0] = 5 },
		"too wide stride": func(v *View) { v.Stride[0] = 1 << 33 },
		"negative stride": func(v *View) { v.Stride[1] = -1 },
		"overflow":        func(v *View) { v.Shape[0], v.Stride[0] = 1<<40, 1<<40 },
		"offset":          func(v *View) { v.Offset = 1 },
		"negative shape":  func(v *View) { v.Shape[1] = -4 },
	} {
		v := ok
		bad(&v)
		if err := v.Check(); err == nil || !strings.HasPrefix(err.Error(), "tensor: ") {
			t.Errorf("%s: Check = %v, want an error", name, err)
		}
	}
	if err := ok.Check(); err != nil {
		t.Error(err)
	}
	empty := New(F32, 0, 4)
	if err := empty.Check(); err != nil {
		t.Error(err)
	}
}

func FuzzF16(f *testing.F) {
	f.Add(uint32(0x38800000))
	f.Fuzz(func(t *testing.T, u uint32) {
		x := math.Float32frombits(u)
		if x != x {
			return
		}
		if got, want := F32ToF16(x), nearest16(x, F16ToF32, 0x7c00); got != want {
			t.Errorf("%v (%08x) rounds to %04x, want %04x", x, u, got, want)
		}
		if got, want := F32ToBF16(x), nearest16(x, BF16ToF32, 0x7f80); got != want {
			t.Errorf("%v (%08x) rounds to bf16 %04x, want %04x", x, u, got, want)
		}
	})
}
