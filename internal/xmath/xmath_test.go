package xmath

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

func ulps(got, want float64) float64 {
	if got == want {
		return 0
	}
	return math.Abs(got-want) / (math.Nextafter(math.Abs(want), math.Inf(1)) - math.Abs(want))
}

// The standard library is accurate to a unit or so; a wrong coefficient shows
// as thousands.
func TestAgainstStandardLibrary(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	worst := map[string]float64{}
	see := func(name string, got, want float64) { worst[name] = max(worst[name], ulps(got, want)) }
	for range 200000 {
		x := (r.Float64() - .5) * 100
		see("exp", Exp(x), math.Exp(x))
		y := math.Exp((r.Float64() - .5) * 60)
		see("log", Log(y), math.Log(y))
		a := (r.Float64() - .5) * 1000
		s, c := SinCos(a, 1)
		// near a zero the relative error of either library is its own; compare absolutely
		worst["sin"] = max(worst["sin"], math.Abs(s-math.Sin(a))*0x1p53)
		worst["cos"] = max(worst["cos"], math.Abs(c-math.Cos(a))*0x1p53)
	}
	for name, w := range worst {
		if w > 4 {
			t.Errorf("%s is %.1f units from the standard library's", name, w)
		}
	}
}

// A position of ten million times a frequency: the reduction must not lose
// what float64 products lose.
func TestSinCosLargeExactProduct(t *testing.T) {
	const p, f = 10000001, 0.8659643233600653
	// reduce p·f mod 2π with 200 bits
	pi, _, _ := big.ParseFloat("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899", 10, 300, big.ToNearestEven)
	x := new(big.Float).SetPrec(300).Mul(big.NewFloat(p).SetPrec(300), big.NewFloat(f))
	turn := new(big.Float).SetPrec(300).Mul(pi, big.NewFloat(2))
	q, _ := new(big.Float).Quo(x, turn).Int(nil)
	x.Sub(x, new(big.Float).SetPrec(300).Mul(turn, new(big.Float).SetInt(q)))
	a, _ := x.Float64()
	s, c := SinCos(p, f)
	if math.Abs(s-math.Sin(a)) > 1e-15 || math.Abs(c-math.Cos(a)) > 1e-15 {
		t.Errorf("SinCos(%d·%v) = %v, %v, want %v, %v", int(p), f, s, c, math.Sin(a), math.Cos(a))
	}
}

func TestSpecialValues(t *testing.T) {
	inf := math.Inf(1)
	for _, c := range []struct{ got, want float64 }{
		{Exp(0), 1}, {Exp(inf), inf}, {Exp(-inf), 0}, {Log(1), 0}, {Log(0), -inf}, {Log(inf), inf},
		{Pow(10000, 0), 1}, {Pow(10000, 1), 10000}, {Pow(2, -1), .5},
	} {
		if ulps(c.got, c.want) > 16 || math.IsNaN(c.got) {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
	for _, x := range []float64{Exp(math.NaN()), Log(math.NaN()), Log(-1)} {
		if !math.IsNaN(x) {
			t.Errorf("got %v, want NaN", x)
		}
	}
	if s, c := SinCos(0, 1); s != 0 || c != 1 {
		t.Errorf("SinCos(0) = %v, %v", s, c)
	}
}
