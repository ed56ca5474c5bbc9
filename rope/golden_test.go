package rope_test

import (
	"math"
	"testing"

	"github.com/longctx/longctx/rope"
)

// near allows half a unit of the tenth digit, to which the numbers here are
// printed.
func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if want == 0 {
		if got != 0 {
			t.Errorf("%s is %v, want 0", what, got)
		}
		return
	}
	unit := math.Pow(10, math.Floor(math.Log10(math.Abs(want)))-9)
	if !(math.Abs(got-want) <= unit/2*1.001) {
		t.Errorf("%s is %.12g, want %.10g", what, got, want)
	}
}

// The numbers come from a float64 script that computes the published formulas
// apart from this package; those of gpt-oss's ramp are also quoted in vLLM
// #27722.
func TestGoldenFrequencies(t *testing.T) {
	b := rope.Base{HeadDim: 128, Theta: 1e4}
	oss := rope.YaRN{Base: rope.Base{HeadDim: 64, Theta: 150000}, Factor: 32, OriginalLength: 4096, NoTruncate: true}
	ossWhole := oss
	ossWhole.NoTruncate = false
	deepseek := rope.YaRN{Base: rope.Base{HeadDim: 64, Theta: 1e4}, Factor: 40, OriginalLength: 4096, MScale: 1, MScaleAllDim: 1, ScaleScores: true}
	for _, c := range []struct {
		name       string
		m          rope.Method
		length     int
		at         map[int]float64
		sum, a, ss float64
	}{
		{"default", rope.Default{Base: b}, 0,
			map[int]float64{0: 1, 1: 0.8659643234, 16: 0.1, 24: 0.0316227766, 32: 0.01, 48: 0.001, 63: 0.0001154781985}, 7.459954134, 1, 1},
		{"linear ×8", rope.Linear{Base: b, Factor: 8}, 0,
			map[int]float64{0: 0.125, 1: 0.1082455404, 16: 0.0125, 24: 0.003952847075, 32: 0.00125, 48: 0.000125, 63: 1.443477481e-05}, 0.9324942667, 1, 1},
		{"NTK s=4", rope.NTK{Base: b, Factor: 4}, 0,
			map[int]float64{0: 1, 1: 0.8471171852, 16: 0.07032275479, 24: 0.01864849605, 32: 0.004945289841, 48: 0.0003477664048, 63: 2.886954962e-05}, 6.540797572, 1, 1},
		{"NTK-alpha 1000", rope.NTKAlpha{Base: b, Alpha: 1000}, 0,
			map[int]float64{0: 1, 1: 0.776034363, 16: 0.01730195739, 24: 0.002275845926, 32: 0.0002993577295, 48: 5.179474679e-06, 63: 1.154781985e-07}, 4.46497027, 1, 1},
		{"dynamic s=2 L=4096 n=8192", rope.DynamicNTK{Base: b, Factor: 2, MaxLength: 4096}, 8192,
			map[int]float64{0: 1, 1: 0.8509942913, 16: 0.0756530337, 24: 0.02080843997, 32: 0.005723381508, 48: 0.0004329911741, 63: 3.849273282e-05}, 6.710932433, 1, 1},
		{"NTK fixed s=4", rope.NTKFixed{Base: b, Factor: 4}, 0,
			map[int]float64{0: 0.9785720621, 1: 0.829250277, 16: 0.0691954941, 24: 0.01840010562, 32: 0.00489286031, 48: 0.0003459774705, 63: 2.886954962e-05}, 6.412857576, 1, 1},
		{"NTK mixed s=4", rope.NTKMixed{Base: b, Factor: 4, Exponent: .625}, 0,
			map[int]float64{0: 0.9020936451, 1: 0.738734819, 16: 0.05458703972, 24: 0.01463618358, 32: 0.003999739294, 48: 0.000309380813, 63: 2.886954962e-05}, 5.449201618, 1, 1},
		{"NTK by parts s=4 L=2048", rope.NTKByParts{Base: b, Factor: 4, OriginalLength: 2048}, 0,
			map[int]float64{0: 1, 1: 0.8659643234, 16: 0.1, 24: 0.02837920646, 32: 0.006208967381, 40: 0.001103075935, 44: 0.0004445698525, 48: 0.00025, 63: 2.886954962e-05}, 7.382052587, 1, 1},
		{"YaRN Llama 2", rope.YaRN{Base: b, Factor: 16, OriginalLength: 4096}, 0,
			map[int]float64{0: 1, 1: 0.8659643234, 16: 0.1, 24: 0.02706179921, 32: 0.005673076923, 48: 6.25e-05, 63: 7.217387404e-06}, 7.365234701, 1.2772588722, 1},
		{"YaRN Qwen2.5", rope.YaRN{Base: rope.Base{HeadDim: 128, Theta: 1e6}, Factor: 4, OriginalLength: 32768}, 0,
			map[int]float64{0: 1, 1: 0.8058421878, 16: 0.0316227766, 24: 0.005375321491, 32: 0.0006029411765, 48: 7.90569415e-06, 63: 3.102344402e-07}, 5.144034722, 1.1386294361, 1},
		{"YaRN gpt-oss", oss, 0,
			map[int]float64{0: 1, 1: 0.6890443059, 8: 0.05081327482, 12: 0.00679495949, 16: 0.0004564839192, 24: 4.099978482e-06, 31: 3.023511428e-07}, 3.180438277, 1.3465735903, 1},
		{"YaRN gpt-oss truncated", ossWhole, 0,
			map[int]float64{0: 1, 1: 0.6890443059, 8: 0.05081327482, 12: 0.007015713911, 16: 0.0005809475019, 24: 4.099978482e-06, 31: 3.023511428e-07}, 3.181659492, 1.3465735903, 1},
		{"YaRN DeepSeek-V3", deepseek, 0,
			map[int]float64{0: 1, 1: 0.7498942093, 8: 0.1, 12: 0.02687936011, 16: 0.0055, 24: 2.5e-05, 31: 3.33380358e-06}, 3.948936274, 1, 1.8738542071},
		{"dynamic YaRN n=2.5·L", rope.DynamicYaRN{Base: b, OriginalLength: 4096}, 10240,
			map[int]float64{0: 1, 1: 0.8659643234, 16: 0.1, 24: 0.02870375107, 32: 0.007230769231, 48: 0.0004, 63: 4.619127939e-05}, 7.399333697, 1.0916290732, 1},
		{"Llama 3.1", rope.Llama3{Base: rope.Base{HeadDim: 128, Theta: 5e5}, Factor: 8, OriginalLength: 8192}, 0,
			map[int]float64{0: 1, 1: 0.8146172339, 16: 0.03760603093, 24: 0.007292664737, 28: 0.003211445995, 29: 0.002166570764, 30: 0.001371893568,
				31: 0.0008567514129, 32: 0.000524846161, 33: 0.0003126937504, 34: 0.0001785078128, 35: 9.556212354e-05, 36: 7.784655274e-05, 48: 6.647869871e-06, 63: 3.068925989e-07}, 5.386058201, 1, 1},
		{"proportional", rope.Proportional{Base: rope.Base{HeadDim: 512, Theta: 1e6, Partial: .25}}, 0,
			map[int]float64{0: 1, 1: 0.9474635257, 16: 0.4216965034, 32: 0.177827941, 63: 0.03337624694, 64: 0, 255: 0}, 18.43247449, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := lower(t, c.m, c.length)
			sum := 0.0
			for i, f := range r.InvFreq {
				sum += f
				if want, ok := c.at[i]; ok {
					near(t, "frequency", f, want)
				}
			}
			near(t, "sum", sum, c.sum)
			near(t, "attention factor", r.Factor, c.a)
			near(t, "score scale", r.ScoreScale, c.ss)
		})
	}
}

func TestGoldenAttentionFactors(t *testing.T) {
	b := rope.Base{HeadDim: 64}
	phi := rope.LongRoPE{Base: b, Short: ones(32), Long: ones(32), OriginalLength: 4096, MaxLength: 131072}
	near(t, "Phi-3", lower(t, phi, 1).Factor, 1.190238071)
	far := rope.LongRoPE{Base: b, Short: ones(32), Long: ones(32), OriginalLength: 8192, Factor: 256}
	near(t, "LongRoPE 2M", lower(t, far, 1).Factor, 1.270977819)
	lite := rope.YaRN{Base: b, Factor: 40, OriginalLength: 4096, MScale: .707, MScaleAllDim: .707, ScaleScores: true}
	r := lower(t, lite, 0)
	near(t, "DeepSeek-V2-Lite scores", r.ScoreScale, 1.589626165)
	near(t, "DeepSeek-V2-Lite", r.Factor, 1)
}

func TestGoldenXPosDecay(t *testing.T) {
	r := lower(t, rope.XPos{Base: rope.Base{HeadDim: 128}}, 0)
	sum := 0.0
	for _, z := range r.Zeta {
		sum += z
	}
	for i, want := range map[int]float64{0: 0.2857142857, 1: 0.296875, 16: 0.4642857143, 32: 0.6428571429, 63: 0.9888392857} {
		near(t, "zeta", r.Zeta[i], want)
	}
	near(t, "sum", sum, 40.78571429)
}

// Liu et al. 2023: the rows of (trained length, base) with what follows.
func TestScalingLaw(t *testing.T) {
	for _, c := range []struct {
		train     int
		base      float64
		dim       int
		own, at1M float64    // critical length with the same base, and with 1e6
		bases     [3]float64 // for 32k, 128k, 1M; four digits
	}{
		{2048, 1e4, 82, 2294, 43846, [3]float64{6.347e5, 5.525e6, 1.419e8}},
		{4096, 1e4, 92, 4712, 129027, [3]float64{1.485e5, 1.022e6, 1.845e7}},
		{8192, 1e4, 100, 8379, 305971, [3]float64{5.729e4, 3.379e5, 4.838e6}},
		{8192, 5e5, 70, 8219, 12007, [3]float64{6.27e6, 7.91e7, 3.545e9}},
		{32768, 1e6, 80, 35333, 35333, [3]float64{8.864e5, 8.146e6, 2.269e8}},
	} {
		dim, err := rope.CriticalDim(128, c.train, c.base)
		if err != nil || dim != c.dim {
			t.Errorf("CriticalDim(128, %d, %v) = %d, %v, want %d", c.train, c.base, dim, err, c.dim)
		}
		for base, want := range map[float64]float64{c.base: c.own, 1e6: c.at1M} {
			if got, err := rope.CriticalLength(128, c.train, c.base, base); err != nil || math.Round(got) != want {
				t.Errorf("CriticalLength(128, %d, %v, %v) = %v, %v, want %v", c.train, c.base, base, got, err, want)
			}
		}
		for i, target := range []int{32768, 131072, 1048576} {
			got, err := rope.BaseFor(128, c.train, c.base, target)
			want := max(c.bases[i], c.base) // the law is not for smaller bases
			if err != nil || math.Abs(got/want-1) > 5e-4 {
				t.Errorf("BaseFor(128, %d, %v, %d) = %v, %v, want %v", c.train, c.base, target, got, err, want)
			}
			if length, _ := rope.CriticalLength(128, c.train, c.base, got); want > c.base && math.Abs(length/float64(target)-1) > 1e-9 {
				t.Errorf("the base for %d has critical length %v", target, length)
			}
		}
	}
}

func TestScalingLawRefusesBadArguments(t *testing.T) {
	for _, f := range []func() error{
		func() error { _, err := rope.CriticalDim(127, 2048, 1e4); return err },
		func() error { _, err := rope.CriticalDim(128, 6, 1e4); return err },
		func() error { _, err := rope.CriticalDim(128, 2048, 1); return err },
		func() error { _, err := rope.CriticalDim(128, 2048, math.NaN()); return err },
		func() error { _, err := rope.CriticalLength(128, 2048, 1e4, 500); return err },
		func() error { _, err := rope.BaseFor(128, 2048, 1e4, 0); return err },
	} {
		if f() == nil {
			t.Error("no error")
		}
	}
	// a small base: every pair completes a turn, and no more than all
	if d, err := rope.CriticalDim(128, 1<<20, 1.001); err != nil || d != 128 {
		t.Errorf("CriticalDim is %d, %v, want 128", d, err)
	}
}
