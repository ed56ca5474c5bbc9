package kernel

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// triples makes operands that reach every path of FMA: random bits, ties,
// tails far below the last bit, cancellation, subnormal results, specials.
func triple(r *rand.Rand, mode int) (a, b, c float32) {
	f := math.Float32frombits
	u, v := r.Uint64(), r.Uint64()
	switch mode {
	case 0:
		return f(uint32(u)), f(uint32(u >> 32)), f(uint32(v))
	case 1: // few bits: exact ties
		return f(uint32(u)&0x80000000 | 127<<23 | uint32(u>>8)&0x7ff<<12),
			f(uint32(u>>32)&0x80000000 | 127<<23 | uint32(u>>40)&0x7ff<<12),
			f(uint32(v)&0x80000000 | uint32(127-40+(v>>40)%80)<<23 | uint32(v>>3)&7)
	case 2: // a product just off half a unit of c
		k := uint32(u>>3) & 0xfff
		return f((127-12)<<23 | k), f(((127-12)<<23 - 2*k) | uint32(u>>63)<<31), f(uint32(v)&0x7fffff | 127<<23 | uint32(v>>63)<<31)
	case 3: // cancellation
		a, b = f(uint32(u)&0x807fffff|127<<23), f(uint32(u>>32)&0x807fffff|127<<23)
		return a, b, f(math.Float32bits(-float32(a*b)) + uint32(v&1))
	case 4: // subnormal results and near ties among them
		x := uint32(u>>3) & 0xfff
		return f((127-75)<<23 | x), f(((127-75)<<23 - 2*x) | uint32(u>>63)<<31), f(uint32(v) & 0x80ffffff)
	}
	special := []float32{0, f(1 << 31), 1, -1, math.MaxFloat32, math.SmallestNonzeroFloat32, 0x1p-126, f(0x007fffff), 0x1.000002p0, 0x1p127, float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN())}
	return special[u%13], special[u>>16%13], special[v%13]
}

// exactFMA rounds the exact a·b + c once.
func exactFMA(a, b, c float32) float32 {
	s := new(big.Float).SetPrec(2000).Mul(big.NewFloat(float64(a)).SetPrec(2000), big.NewFloat(float64(b)))
	s.Add(s, big.NewFloat(float64(c)))
	if s.Sign() == 0 { // big has no rule for the sign of an exact zero
		return a*b + c
	}
	x, _ := s.Float32()
	return x
}

func TestFMAIsRoundedOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	wrong := 0
	for n := range 300_000 {
		a, b, c := triple(r, n%6)
		got := FMA(a, b, c)
		if odd := fmaOdd(float64(a)*float64(b), float64(c), float64(float64(a)*float64(b))+float64(c)); math.Float32bits(odd) != math.Float32bits(got) && got == got {
			t.Fatalf("FMA(%x, %x, %x) = %x, by rounding to odd %x", a, b, c, got, odd)
		}
		p := float64(a) * float64(b)
		if p != p || math.IsInf(p, 0) || c != c || math.IsInf(float64(c), 0) {
			want := float32(p + float64(c))
			if (want != want) != (got != got) || want == want && want != got {
				t.Fatalf("FMA(%x, %x, %x) = %x, want %x", a, b, c, got, want)
			}
			continue
		}
		want := exactFMA(a, b, c)
		if math.Float32bits(got) != math.Float32bits(want) {
			t.Fatalf("FMA(%x, %x, %x) = %x, want %x", a, b, c, got, want)
		}
		if naive := float32(float64(float64(a)*float64(b)) + float64(c)); naive != want {
			wrong++
		}
	}
	if wrong == 0 {
		t.Error("no triple told FMA from float64 arithmetic: the test does not reach what it is for")
	}
}

func TestExp2Accuracy(t *testing.T) {
	if Exp2(0) != 1 {
		t.Errorf("Exp2(0) = %v, want exactly 1", Exp2(0))
	}
	worst := 0.0
	for x := float32(0); x >= -125; x -= 0.000717 {
		worst = max(worst, math.Abs(float64(Exp2(x))/math.Exp2(float64(x))-1))
	}
	if worst > math.Exp2(-22.5) {
		t.Errorf("relative error 2^%.2f, want below 2^-22.5", math.Log2(worst))
	}
	for x, want := range map[float32]float32{-125.001: 0, float32(math.Inf(-1)): 0, -1e30: 0, -125: 0x1p-125} {
		if got := Exp2(x); got != want {
			t.Errorf("Exp2(%v) = %v, want %v", x, got, want)
		}
	}
	if x := Exp2(math.Float32frombits(0x7fc001ff)); x == x {
		t.Errorf("Exp2(NaN) = %v", x)
	}
}

func TestLog2Accuracy(t *testing.T) {
	worst := 0.0
	for x := 1e-30; x < 1e30; x *= 1.00371 {
		want := math.Log2(float64(float32(x)))
		worst = max(worst, math.Abs(float64(Log2(float32(x)))-want)/max(1, math.Abs(want)))
	}
	if worst > 0x1p-22 {
		t.Errorf("error 2^%.2f, want at most 2^-22", math.Log2(worst))
	}
	if Log2(1) != 0 || Log2(8) != 3 {
		t.Errorf("Log2(1), Log2(8) = %v, %v", Log2(1), Log2(8))
	}
}

func TestTanhAccuracy(t *testing.T) {
	worst := 0.0
	for x := 1e-6; x < 60; x *= 1.0007 {
		f := float32(x)
		worst = max(worst, math.Abs(float64(Tanh(f))/math.Tanh(float64(f))-1))
		if Tanh(-f) != -Tanh(f) {
			t.Fatalf("Tanh(−%v) is not −Tanh(%v)", f, f)
		}
	}
	if worst > 0x1p-22 {
		t.Errorf("relative error 2^%.2f, want at most 2^-22", math.Log2(worst))
	}
	if Tanh(0) != 0 || Tanh(float32(math.Inf(1))) != 1 {
		t.Errorf("Tanh(0), Tanh(Inf) = %v, %v", Tanh(0), Tanh(float32(math.Inf(1))))
	}
}
