package kernel

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/tensor"
)

// TestDecodeFused: multiplying and adding gives the bits of a fused
// multiply-add, for every code and scale, with zeros of all magnitudes.
func TestDecodeFused(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for code := range 256 {
		for s := range uint16(0x7c00) {
			if testing.Short() && s%7 != 0 {
				continue
			}
			scale, zero := tensor.F16ToF32(s), tensor.F16ToF32(uint16(rng.Uint32())&0xfbff)
			if got, want := Decode(uint8(code), scale, zero), FMA(float32(code), scale, zero); math.Float32bits(got) != math.Float32bits(want) && got == got {
				t.Fatalf("%d·%v + %v is %v, fused %v", code, scale, zero, got, want)
			}
		}
	}
}

// TestRowOrder: rows of few bits are little-endian words whose code k holds
// feature k·words + word, and a Put changes one code only.
func TestRowOrder(t *testing.T) {
	for _, codec := range []Codec{Int4, Int2, Int1} {
		for words := range 5 {
			bits, dim := codec.Bits(), (words+1)*codec.Multiple()
			row, want := make([]byte, codec.RowBytes(dim)), make([]uint8, dim)
			rng := rand.New(rand.NewPCG(uint64(dim), 2))
			for range 10 * dim {
				d, code := rng.IntN(dim), uint8(rng.IntN(int(codec.MaxCode())+1))
				want[d] = code
				codec.Put(row, dim, d, code)
				for d, c := range want {
					if codec.At(row, dim, d) != c {
						t.Fatalf("%v dim %d: feature %d is %d, want %d", codec, dim, d, codec.At(row, dim, d), c)
					}
					if packed := make([]byte, len(row)); d == 0 {
						if codec.Pack(packed, want); !bytes.Equal(packed, row) {
							t.Fatalf("%v dim %d: packed %x, put %x", codec, dim, packed, row)
						}
					}
					word := binary.LittleEndian.Uint32(row[4*(d%(words+1)):])
					if got := word >> (bits * (d / (words + 1))) & (1<<bits - 1); got != uint32(c) {
						t.Fatalf("%v dim %d: feature %d is %d in its word, want %d", codec, dim, d, got, c)
					}
				}
			}
		}
	}
	row := make([]byte, Int8.RowBytes(3))
	Int8.Put(row, 3, 1, 200)
	if len(row) != 3 || row[1] != 200 || Int8.At(row, 3, 1) != 200 {
		t.Errorf("int8 row %v", row)
	}
}

// TestEncodeLevel: with the codes for levels it is Encode, ties included, and
// else the level nearest.
func TestEncodeLevel(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	for _, codec := range []Codec{Int8, Int4, Int2, Int1} {
		straight, other := make([]float32, int(codec.MaxCode())+1), make([]float32, int(codec.MaxCode())+1)
		for i := range straight {
			straight[i], other[i] = float32(i), float32(i)+0.8*rng.Float32()
		}
		for range 5000 {
			x, scale, zero := float32(rng.IntN(600))/2, float32(rng.IntN(3)), float32(rng.IntN(40)-20)
			if got, want := EncodeLevel(straight, x, scale, zero), codec.Encode(x, scale, zero); got != want {
				t.Fatalf("%v: %v under %v and %v is code %d by levels, %d without", codec, x, scale, zero, got, want)
			}
			x = rng.Float32() * float32(codec.MaxCode()+1)
			code := EncodeLevel(other, x, 1, 0)
			for c, level := range other {
				if math.Abs(float64(level-x)) < math.Abs(float64(other[code]-x))-1e-4 {
					t.Fatalf("%v: %v has code %d (%v), nearer is %d (%v)", codec, x, code, other[code], c, level)
				}
			}
		}
	}
}

// TestGroup: what has a place in F16 and what has not.
func TestGroup(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	zero := float32(math.Copysign(0, -1))
	for _, c := range []struct {
		lo, hi      float32
		ok          bool
		scale, zero float32
	}{
		{1, 256, true, 1, 1},
		{-3, -3, true, 0, -3},
		{zero, zero, true, 0, 0},
		{0, zero, true, 0, 0},
		{-65504, 65504, true, 514, -65504}, // 131008/255 = 513.76, to a half
		{-65519, 0, true, 257, -65504},
		{-65520, 0, false, 0, 0}, // zero is infinite
		{0, 1.66e7, true, 65088, 0},
		{0, 1.68e7, false, 0, 0}, // scale is infinite
		{-3e38, 3e38, false, 0, 0},
		{0, 0x1p-30, true, 0, 0},           // too narrow for a scale
		{1, 1 + 0x1p-16, true, 0x1p-24, 1}, // the least scale
		{nan, nan, false, 0, 0}, {nan, 1, false, 0, 0}, {-inf, 1, false, 0, 0}, {1, inf, false, 0, 0}, {inf, inf, false, 0, 0},
	} {
		s, z, ok := Int8.Group(c.lo, c.hi)
		if ok != c.ok {
			t.Errorf("group from %v to %v is ok: %v", c.lo, c.hi, ok)
		} else if gs, gz := tensor.F16ToF32(s), tensor.F16ToF32(z); ok && (math.Float32bits(gs) != math.Float32bits(c.scale) || math.Float32bits(gz) != math.Float32bits(c.zero)) {
			t.Errorf("group from %v to %v has scale %v and zero %v, want %v and %v", c.lo, c.hi, gs, gz, c.scale, c.zero)
		}
	}
}

// checkGroup: codes are in range, the ends map to the ends, and a value comes
// back within half a step, what rounding scale and zero to F16 costs, and one
// rounding of float32.
func checkGroup(t *testing.T, c Codec, values []float32) {
	lo, hi := values[0], values[0]
	for _, x := range values {
		lo, hi = min(lo, x), max(hi, x)
	}
	s, z, ok := c.Group(lo, hi)
	if !ok {
		return
	}
	scale, zero, n := tensor.F16ToF32(s), tensor.F16ToF32(z), float64(c.MaxCode())
	step := (float64(hi) - float64(lo)) / n
	bound := math.Abs(float64(zero)-float64(lo)) + math.Abs(float64(scale)-step)*n + step/2 + math.Max(math.Abs(float64(hi)), math.Abs(float64(lo)))*0x1p-20
	for _, x := range values {
		code := c.Encode(x, scale, zero)
		if code > c.MaxCode() {
			t.Fatalf("%v: code %d of %v", c, code, x)
		}
		if e := math.Abs(float64(Decode(code, scale, zero)) - float64(x)); !(e <= bound) {
			t.Fatalf("%v: %v of %v to %v comes back as %v, off by %v, want at most %v (scale %v, zero %v)", c, x, lo, hi, Decode(code, scale, zero), e, bound, scale, zero)
		}
	}
}

func TestEncodeError(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 3))
	for range 20000 {
		values := make([]float32, 1+rng.IntN(40))
		spread, mean := math.Exp(20*rng.Float64()-16), math.Exp(16*rng.Float64()-10)
		for i := range values {
			values[i] = float32(mean + spread*rng.NormFloat64())
		}
		for _, c := range []Codec{Int8, Int4, Int2, Int1} {
			checkGroup(t, c, values)
		}
	}
}

func FuzzEncode(f *testing.F) {
	f.Add(float32(1), float32(-2), float32(1.5))
	f.Add(float32(65504), float32(-65504), float32(0x1p-140))
	f.Fuzz(func(t *testing.T, a, b, c float32) {
		for _, codec := range []Codec{Int8, Int4, Int2, Int1} {
			checkGroup(t, codec, []float32{a, b, c})
		}
	})
}

// TestCodecProblems: what is wrong with few bits is said by name.
func TestCodecProblems(t *testing.T) {
	good := Spec{Heads: 1, KVHeads: 1, HeadDim: 16, ValueDim: 16, DType: tensor.F32, KVDType: tensor.F8E4M3, PageSize: 16, Terms: 1, Coding: Coding{Key: Quantizer{Codec: Int4}, Value: Quantizer{Codec: Int4, Group: 8}}}
	if p := good.Problems(); len(p) > 0 {
		t.Fatal(p)
	}
	for want, spoil := range map[string]func(*Spec){
		"Coding int4+int4/g8 of contiguous keys, want PageSize of at least 1: a page is a group":  func(s *Spec) { s.PageSize = 0 },
		"HeadDim 12 with Codec int4, want a multiple of 8":                                        func(s *Spec) { s.HeadDim = 12 },
		"ValueDim 24 with Codec int1, want a multiple of 32":                                      func(s *Spec) { s.Coding.Value.Codec, s.ValueDim = Int1, 24 },
		"Coding.Value.Group 5, want 0 or a divisor of ValueDim 16":                                func(s *Spec) { s.Coding.Value.Group = 5 },
		"Coding.Key.Codec none, want int8, int4, int2 or int1":                                    func(s *Spec) { s.Coding.Key = Quantizer{} },
		"Coding.Value.RMS without Levels, want both":                                              func(s *Spec) { s.Coding.Value.RMS = true },
		"Coding.Key.Rank 17, want 0 to 16":                                                        func(s *Spec) { s.Coding.Key.Rank = 17 },
		"Coding.Key.Outliers 257 of 16·16 entries, want 0, or at most that many of at most 65536": func(s *Spec) { s.Coding.Key.Outliers = 257 },
		"KVDType u8, want f32, f16, bf16, f8e4m3 or f8e5m2":                                       func(s *Spec) { s.KVDType = tensor.U8 },
		"DType f8e5m2, want f32, f16 or bf16":                                                     func(s *Spec) { s.DType = tensor.F8E5M2 },
	} {
		s := good
		spoil(&s)
		if p := s.Problems(); len(p) != 1 || p[0] != want {
			t.Errorf("problems %q, want %q", p, want)
		}
	}
}
