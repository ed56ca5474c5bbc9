package rope_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
)

const testLength = 6000 // beyond the trained length of the dynamic methods

// A rotation multiplies the norm of its features by the factor, and nothing
// else.
func TestRotationKeepsNorm(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, m := range everyMethod() {
		r := lower(t, m, testLength)
		if r.Zeta != nil {
			continue // xPos decays
		}
		for range 20 {
			x := vector(rng, r.Dim)
			y := turn(x, &r, [3]float64{rng.Float64() * 1e6, rng.Float64() * 1e6, rng.Float64() * 1e6}, kernel.QuerySide)
			if e := math.Abs(norm(y)/(r.Factor*norm(x)) - 1); e > 1e-12 {
				t.Errorf("%s: norm is off by %v", m.Name(), e)
			}
		}
	}
}

// A score depends on the distance of query and key alone.
func TestScoreDependsOnDistance(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, m := range everyMethod() {
		r := lower(t, m, testLength)
		q, k := vector(rng, r.Dim), vector(rng, r.Dim)
		for range 20 {
			i, j, by := float64(rng.IntN(4096)), float64(rng.IntN(4096)), float64(rng.IntN(4096))
			score := func(p, s float64) float64 {
				return dot(turn(q, &r, at(p), kernel.QuerySide), turn(k, &r, at(s), kernel.KeySide))
			}
			scale := norm(q) * norm(k) * r.Factor * r.Factor * max(1, math.Pow(0.2857, (i-j)/512))
			if a, b := score(i, j), score(i+by, j+by); math.Abs(a-b) > 2e-12*scale {
				t.Errorf("%s: score of %v and %v is %v, moved by %v it is %v", m.Name(), i, j, a, by, b)
			}
			if a, b := score(i, j), score(i+1, j); math.Abs(a-b) < 1e-9*scale {
				t.Errorf("%s: score does not depend on distance", m.Name())
			}
		}
	}
}

func TestUnapplyUndoesApply(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 3))
	p := rope.Positions{{0, 1, 77, 4095, -5}, {0, 3, 1, 9, 2}, {5, 1, 77, 0, 2}}
	for _, m := range everyMethod() {
		for _, compat := range []bool{false, true} {
			r := lower(t, m, testLength)
			if r.CompatF32 = compat; compat && r.Zeta != nil {
				continue
			}
			x := random(rng, 5, 2, int64(r.Dim))
			y := apply(t, x, p, r)
			if distance(x, y) < 0.1 {
				t.Errorf("%s: Apply did nothing", m.Name())
			}
			if err := rope.Unapply(reference{}, y, p, r, kernel.KeySide); err != nil {
				t.Fatal(err)
			}
			// xPos has multiplied the key at 4095 by up to 2.3e4
			if d := distance(x, y); d > 4e-6 {
				t.Errorf("%s: Unapply leaves %v", m.Name(), d)
			}
		}
	}
}

// R(b)·R(−a)·R(a) = R(b): moving a rotated key gives the key rotated afresh.
func TestShiftEqualsRotationAfresh(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 4))
	old := rope.Positions{{0, 10, 3000, 4095}, {7, 10, 20, 30}, {9, 10, 21, 31}}
	moved := rope.Positions{{5, 2, 17, 4000}, {1, 2, 3, 4}, {5, 6, 7, 8}}
	var delta rope.Positions
	for a := range delta {
		for i := range old[a] {
			delta[a] = append(delta[a], moved[a][i]-old[a][i])
		}
	}
	for _, m := range everyMethod() {
		r := lower(t, m, testLength)
		x := random(rng, 4, 2, int64(r.Dim))
		got, want := shift(t, apply(t, x, old, r), delta, r), apply(t, x, moved, r)
		scale := 1.0
		for _, v := range want.F32s() {
			scale = max(scale, math.Abs(float64(v)))
		}
		if d := distance(got, want); d > 4e-7*scale {
			t.Errorf("%s: moved keys are off by %v of %v", m.Name(), d, scale)
		}
	}
}

// The two layouts are one rotation under the permutation of features.
func TestLayoutsAgreeUnderPermutation(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 5))
	for _, m := range everyMethod() {
		r := lower(t, m, testLength)
		half, other := r, r
		half.Layout, other.Layout = kernel.HalfSplit, kernel.Interleaved
		x := random(rng, 3, 1, int64(r.Dim))
		y := clone(x)
		permute := func() {
			for tok := range int64(3) {
				for k := range r.Dim / 2 {
					y.Set(x.At(tok, 0, int64(k)), tok, 0, int64(2*k))
					y.Set(x.At(tok, 0, int64(k+r.Dim/2)), tok, 0, int64(2*k+1))
				}
			}
		}
		permute()
		p := rope.Text([]int32{1, 100, 4000})
		got := apply(t, y, p, other)
		x = apply(t, x, p, half)
		permute()
		if d := distance(got, y); d != 0 {
			t.Errorf("%s: layouts differ by %v", m.Name(), d)
		}
	}
}

// Features behind the rotated ones keep their bits.
func TestPartialRotationKeepsTail(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 6))
	for _, m := range []rope.Method{
		rope.YaRN{Base: rope.Base{HeadDim: 64, Partial: .25}, Factor: 4, OriginalLength: 1024},
		rope.Default{Base: rope.Base{HeadDim: 80, Partial: .4, Layout: kernel.Interleaved}},
		rope.Default{Base: rope.Base{HeadDim: 64, RotaryDim: 24}},
	} {
		r := lower(t, m, 0)
		x := random(rng, 4, 3, 80)
		y := apply(t, x, rope.Text(count(1000, 4)), r)
		for i, v := range y.F32s() {
			same := math.Float32bits(v) == math.Float32bits(x.F32s()[i])
			if behind := i%80 >= r.Dim; behind != same {
				t.Errorf("%s: feature %d of %d rotated: same bits %v", m.Name(), i%80, r.Dim, same)
			}
		}
	}
}

// Proportional rotation rotates the first pairs of the whole head and keeps
// the bits of all others.
func TestProportionalKeepsTail(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 7))
	r := lower(t, rope.Proportional{Base: rope.Base{HeadDim: 64, Partial: .25}}, 0)
	if r.Dim != 64 {
		t.Fatalf("Dim is %d, want 64", r.Dim)
	}
	x := random(rng, 4, 1, 64)
	y := apply(t, x, rope.Text(count(1000, 4)), r)
	for i, v := range y.F32s() {
		same := math.Float32bits(v) == math.Float32bits(x.F32s()[i])
		if rotated := i%32 < 8; rotated == same {
			t.Errorf("feature %d: same bits %v", i%64, same)
		}
	}
	byDim := rope.Proportional{Base: rope.Base{HeadDim: 64, RotaryDim: 16}}
	if other := lower(t, byDim, 0); !reflect.DeepEqual(other, r) {
		t.Error("RotaryDim 16 differs from Partial 0.25")
	}
}

// With equal positions on all axes, axes do not matter.
func TestMRoPEOfTextIsPlain(t *testing.T) {
	p := rope.Text(count(100, 50))
	for _, m := range []rope.MRoPE{
		{Sections: [3]int{16, 24, 24}}, {Sections: [3]int{24, 20, 20}, Interleaved: true}, {Sections: [3]int{64, 0, 0}},
	} {
		r := lower(t, rope.Default{Base: rope.Base{HeadDim: 128, MRoPE: m}}, 0)
		plain := lower(t, rope.Default{Base: rope.Base{HeadDim: 128}}, 0)
		a, err := rope.Table(r, p, kernel.QuerySide)
		b, err2 := rope.Table(plain, p, kernel.QuerySide)
		if err != nil || err2 != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("%v: tables differ (%v, %v)", m, err, err2)
		}
	}
}

// Pictures of the axes: chunked as Qwen2-VL, interleaved as Qwen3-VL and
// Qwen3.5; no axis gets a pair more or less than its section.
func TestMRoPEAxes(t *testing.T) {
	for _, c := range []struct {
		m    rope.MRoPE
		want string
	}{
		{rope.MRoPE{Sections: [3]int{2, 3, 3}}, "tthhhwww"},
		{rope.MRoPE{Sections: [3]int{4, 2, 2}, Interleaved: true}, "thwthwtt"},
		{rope.MRoPE{Sections: [3]int{3, 3, 2}, Interleaved: true}, "thwthwth"},
		{rope.MRoPE{Sections: [3]int{6, 1, 1}, Interleaved: true}, "thwttttt"},
	} {
		r := lower(t, rope.Default{Base: rope.Base{HeadDim: 16, MRoPE: c.m}}, 0)
		got := ""
		for _, a := range r.Axis {
			got += "thw"[a : a+1]
		}
		if got != c.want {
			t.Errorf("%v is %s, want %s", c.m, got, c.want)
		}
	}
	for _, m := range []rope.MRoPE{
		{Sections: [3]int{2, 3, 2}}, {Sections: [3]int{9, -1, 0}}, {Sections: [3]int{2, 4, 2}, Interleaved: true}, {Interleaved: true},
	} {
		if _, err := (rope.Default{Base: rope.Base{HeadDim: 16, MRoPE: m}}).Rotation(0); err == nil {
			t.Errorf("%v: no error", m)
		}
	}
}

// The table is within half a unit of float32 of the truth at any position.
func TestTableIsAccurateAtLongPositions(t *testing.T) {
	p := []int32{1, 4095, 131071, 1048575, 10000001, 1<<30 - 1, -1048575}
	for _, m := range everyMethod() {
		r := lower(t, m, testLength)
		if r.Zeta != nil {
			continue
		}
		table, err := rope.Table(r, rope.Text(p), kernel.QuerySide)
		if err != nil {
			t.Fatal(err)
		}
		for i, pos := range p {
			for k, f := range r.InvFreq {
				// p·f in float64 is off by 2⁻⁵³ of itself
				s, c := math.Sincos(float64(pos) * f)
				slack := (0x1p-25 + math.Abs(float64(pos))*0x1p-52) * 1.01 * r.Factor
				if r.Factor > 1 {
					slack *= 2 // a binade up
				}
				got := i*len(r.InvFreq) + k
				if d := max(math.Abs(float64(table.Cos[got])-r.Factor*c), math.Abs(float64(table.Sin[got])-r.Factor*s)); d > slack {
					t.Fatalf("%s: position %d pair %d is off by %v", m.Name(), pos, k, d)
				}
			}
		}
	}
}

// CompatF32 has the errors of an angle multiplied in float32: the largest of
// the cosines and its pair, from a separate script.
func TestCompatF32ReproducesFloat32Angles(t *testing.T) {
	for _, c := range []struct {
		p     int32
		theta float64
		worst float64
		pair  int
	}{
		{4095, 1e4, 0.000136, 2}, {4095, 5e5, 7.41e-05, 1}, {32767, 1e4, 0.000476, 9}, {32767, 5e5, 0.001, 2},
		{131071, 1e4, 0.00149, 10}, {131071, 5e5, 0.00191, 2}, {1048575, 1e4, 0.0251, 6}, {1048575, 5e5, 0.039, 2},
		{10000001, 1e4, 0.135, 7}, {10000001, 5e5, 0.149, 1},
	} {
		r := lower(t, rope.Default{Base: rope.Base{HeadDim: 128, Theta: c.theta, CompatF32: true}}, 0)
		table, err := rope.Table(r, rope.Text([]int32{c.p}), kernel.QuerySide)
		if err != nil {
			t.Fatal(err)
		}
		worst, pair := 0.0, 0
		for k, f := range r.InvFreq {
			if e := math.Abs(float64(table.Cos[k]) - math.Cos(float64(c.p)*f)); e > worst {
				worst, pair = e, k
			}
		}
		if pair != c.pair || math.Abs(worst/c.worst-1) > 0.006 {
			t.Errorf("position %d, θ %v: error %.3g at pair %d, want %.3g at %d", c.p, c.theta, worst, pair, c.worst, c.pair)
		}
	}
}

// One nonsense value in each field is refused by name and by type.
func TestMethodsRefuseBadFields(t *testing.T) {
	b := rope.Base{HeadDim: 64}
	nan, inf := math.NaN(), math.Inf(1)
	base := func(f func(*rope.Base)) rope.Method { c := b; f(&c); return rope.Default{Base: c} }
	good := rope.LongRoPE{Base: b, Short: ones(32), Long: ones(32), OriginalLength: 4096, MaxLength: 8192}
	long := func(f func(*rope.LongRoPE)) rope.Method { c := good; f(&c); return c }
	for i, m := range []rope.Method{
		rope.Default{}, base(func(b *rope.Base) { b.HeadDim = 1 << 30 }), base(func(b *rope.Base) { b.HeadDim = -2 }),
		base(func(b *rope.Base) { b.HeadDim = 63 }), base(func(b *rope.Base) { b.RotaryDim = 66 }),
		base(func(b *rope.Base) { b.RotaryDim = 33 }), base(func(b *rope.Base) { b.RotaryDim = -2 }),
		base(func(b *rope.Base) { b.RotaryDim, b.Partial = 32, .25 }), base(func(b *rope.Base) { b.Partial = 1.5 }),
		base(func(b *rope.Base) { b.Partial = nan }), base(func(b *rope.Base) { b.Theta = -1 }),
		base(func(b *rope.Base) { b.Theta = 1 }), base(func(b *rope.Base) { b.Theta = inf }), base(func(b *rope.Base) { b.Layout = 7 }),
		rope.Linear{Base: b}, rope.Linear{Base: b, Factor: nan}, rope.NTK{Base: b, Factor: -1}, rope.NTK{Base: rope.Base{HeadDim: 2}, Factor: 2},
		rope.NTKAlpha{Base: b}, rope.NTKFixed{Base: b, Factor: inf}, rope.NTKMixed{Base: b, Factor: 2, Exponent: -1},
		rope.DynamicNTK{Base: b, Factor: 2}, rope.DynamicNTK{Base: b, MaxLength: 10}, rope.NTKByParts{Base: b, Factor: 2},
		rope.NTK{Base: rope.Base{HeadDim: 64, Theta: 1e300}, Factor: 1e300},
		rope.YaRN{Base: b, Factor: 2}, rope.YaRN{Base: b, OriginalLength: 2}, rope.YaRN{Base: b, Factor: 2, OriginalLength: 10, BetaFast: 1, BetaSlow: 2},
		rope.YaRN{Base: b, Factor: 2, OriginalLength: 10, AttentionFactor: -1}, rope.YaRN{Base: b, Factor: 2, OriginalLength: 10, MScale: nan},
		rope.DynamicYaRN{Base: b}, rope.Llama3{Base: b, Factor: 8}, rope.Llama3{Base: b, OriginalLength: 8},
		rope.Llama3{Base: b, Factor: 8, OriginalLength: 8, LowFreqFactor: 4, HighFreqFactor: 4},
		rope.Proportional{Base: rope.Base{HeadDim: 64, Partial: 2}}, rope.Proportional{Base: b, Factor: -2},
		rope.XPos{Base: rope.Base{HeadDim: 64, CompatF32: true}}, rope.XPos{Base: b, ScaleBase: -1},
		rope.Divided{}, rope.Divided{Method: rope.Default{Base: b}}, rope.Divided{Method: rope.Default{Base: b}, Factors: make([]float64, 32)},
		long(func(m *rope.LongRoPE) { m.Short = nil }), long(func(m *rope.LongRoPE) { m.Long = make([]float64, 32) }),
		long(func(m *rope.LongRoPE) { m.OriginalLength = 0 }), long(func(m *rope.LongRoPE) { m.MaxLength = 0 }),
	} {
		_, err := m.Rotation(0)
		if _, ok := err.(*rope.ValueError); !ok {
			t.Errorf("case %d, %s: error is %v, want a *ValueError", i, m.Name(), err)
		}
	}
	for _, m := range everyMethod() {
		if _, err := m.Rotation(-1); err == nil {
			t.Errorf("%s: no error for a negative length", m.Name())
		}
	}
}

// Factors of 1 change nothing, exactly: extension is switched off by its
// parameters.
func TestFactorOneIsDefault(t *testing.T) {
	b := rope.Base{HeadDim: 64}
	want := lower(t, rope.Default{Base: b}, 0).InvFreq
	for _, m := range []rope.Method{
		rope.Linear{Base: b, Factor: 1}, rope.NTK{Base: b, Factor: 1}, rope.NTKFixed{Base: b, Factor: 1}, rope.NTKMixed{Base: b, Factor: 1},
		rope.DynamicNTK{Base: b, Factor: 8, MaxLength: testLength},
		rope.NTKByParts{Base: b, Factor: 1, OriginalLength: 2048}, rope.YaRN{Base: b, Factor: 1, OriginalLength: 2048},
		rope.DynamicYaRN{Base: b, OriginalLength: testLength}, rope.Llama3{Base: b, Factor: 1, OriginalLength: 8192}, rope.Proportional{Base: b},
	} {
		r := lower(t, m, testLength)
		if r.Factor != 1 || r.ScoreScale != 1 {
			t.Errorf("%s: factors are %v and %v, want 1", m.Name(), r.Factor, r.ScoreScale)
		}
		for i, f := range r.InvFreq {
			if math.Abs(f/want[i]-1) > 1e-15 {
				t.Errorf("%s: pair %d is %v, want %v", m.Name(), i, f, want[i])
			}
		}
	}
}

// A ramp whose ends meet is a step, not a division by 0.
func TestYaRNRampWithoutWidth(t *testing.T) {
	b := rope.Base{HeadDim: 128}
	r := lower(t, rope.YaRN{Base: b, Factor: 4, OriginalLength: 4096, BetaFast: 1, BetaSlow: 1, NoTruncate: true}, 0)
	plain := lower(t, rope.Default{Base: b}, 0)
	for i, f := range r.InvFreq {
		want := plain.InvFreq[i]
		if 4096*want < 2*math.Pi { // less than one turn
			want /= 4
		}
		if math.Abs(f/want-1) > 1e-15 {
			t.Errorf("pair %d is %v, want %v", i, f, want)
		}
	}
}

// Only methods that say so depend on length.
func TestDependsOnLength(t *testing.T) {
	for _, m := range everyMethod() {
		changes := false
		for _, n := range []int{1, 2048, 2049, 4097, 1 << 20} {
			a, b := lower(t, m, 0), lower(t, m, n)
			changes = changes || !reflect.DeepEqual(a, b)
		}
		if l, ok := m.(rope.LongRoPE); ok {
			l.Long = ones(33)[1:]
			changes = !reflect.DeepEqual(lower(t, l, 4096), lower(t, l, 4097))
		}
		if changes != m.DependsOnLength() {
			t.Errorf("%s (%T): changes with length %v, DependsOnLength %v", m.Name(), m, changes, m.DependsOnLength())
		}
	}
}

func TestTableAndApplyRefuseWhatDoesNotFit(t *testing.T) {
	r := lower(t, rope.Default{Base: rope.Base{HeadDim: 8}}, 0)
	axes := lower(t, rope.Default{Base: rope.Base{HeadDim: 8, MRoPE: rope.MRoPE{Sections: [3]int{2, 1, 1}}}}, 0)
	decay := lower(t, rope.XPos{Base: rope.Base{HeadDim: 8}}, 0)
	one := rope.Text([]int32{1})
	for i, c := range []struct {
		r kernel.Rotation
		p rope.Positions
	}{
		{kernel.Rotation{}, one},
		{kernel.Rotation{Dim: 8, InvFreq: r.InvFreq}, one}, // no factor
		{kernel.Rotation{Dim: 8, InvFreq: r.InvFreq[:3], Factor: 1}, one},
		{kernel.Rotation{Dim: 8, InvFreq: []float64{1, 1, 1, math.NaN()}, Factor: 1}, one},
		{kernel.Rotation{Dim: 8, InvFreq: r.InvFreq, Factor: 1, Axis: []uint8{0, 1, 2, 3}}, one},
		{kernel.Rotation{Dim: 8, InvFreq: r.InvFreq, Factor: 1, Zeta: []float64{1, 1, 1, 0}, ZetaBase: 1}, one},
		{kernel.Rotation{Dim: 8, InvFreq: r.InvFreq, Factor: 1, Zeta: []float64{1, 1, 1, 1}}, one},
		{axes, rope.Positions{{1, 2}}},
		{r, rope.Text([]int32{1 << 30})}, {r, rope.Text([]int32{math.MinInt32})},
		{decay, rope.Text([]int32{40000})}, {decay, rope.Text([]int32{-40000})},
	} {
		if _, err := rope.Table(c.r, c.p, kernel.QuerySide); err == nil {
			t.Errorf("case %d: no error", i)
		}
	}
	for _, shape := range [][]int64{{2, 1, 8}, {1, 1, 6}, {1, 8}} {
		n := int64(1)
		for _, s := range shape {
			n *= s
		}
		x := tensorOf(n, shape)
		if err := rope.Apply(reference{}, x, one, r, kernel.QuerySide); err == nil {
			t.Errorf("shape %v: no error", shape)
		}
	}
	x := tensorOf(8, []int64{1, 1, 8})
	if err := rope.Unapply(reference{}, x, rope.Text([]int32{math.MinInt32}), r, kernel.QuerySide); err == nil {
		t.Error("Unapply of the least position: no error")
	}
	// just inside, everything is finite
	table, err := rope.Table(decay, rope.Text([]int32{35000, -35000}), kernel.KeySide)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range append(table.Cos, table.Sin...) {
		if math.IsInf(float64(c), 0) || c != c {
			t.Errorf("the table holds %v", c)
		}
	}
}

// Text may leave out what is not read.
func TestTableWithoutAxesReadsOne(t *testing.T) {
	r := lower(t, rope.Default{Base: rope.Base{HeadDim: 8}}, 0)
	a, err := rope.Table(r, rope.Positions{{3, 4}}, kernel.QuerySide)
	b, err2 := rope.Table(r, rope.Text([]int32{3, 4}), kernel.QuerySide)
	if err != nil || err2 != nil || fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("tables differ (%v, %v)", err, err2)
	}
}
