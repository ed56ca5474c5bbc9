package attention_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// closeTo fails unless x is y to float32, relatively.
func closeTo(t testing.TB, what string, x float32, y float64) {
	t.Helper()
	if !(math.Abs(float64(x)-y) <= 1e-6*(1+math.Abs(y))) {
		t.Fatalf("%s is %v, want %v", what, x, y)
	}
}

func TestKERPLEFollowsItsKernels(t *testing.T) {
	m := attention.KERPLE{A: []float64{0.5, 2, 0}, B: []float64{0.01, 1, 2}}
	for _, power := range []bool{false, true} {
		m.Power = power
		table, err := m.Table(200)
		if err != nil {
			t.Fatal(err)
		}
		for h := range m.A {
			for d := range 200 {
				want := -m.A[h] * math.Log1p(m.B[h]*float64(d))
				if power {
					want = -m.A[h] * math.Pow(float64(d), m.B[h])
					if d == 0 {
						want = 0
					}
				}
				closeTo(t, fmt.Sprintf("power %v, head %d, distance %d", power, h, d), table.At(int64(h), int64(d)), want)
			}
		}
	}
	for _, bad := range []attention.KERPLE{{}, {A: []float64{1}}, {A: []float64{-1}, B: []float64{1}}, {A: []float64{1}, B: []float64{-1}}, {A: []float64{math.NaN()}, B: []float64{1}}, {A: []float64{1}, B: []float64{math.Inf(1)}}, {A: []float64{1}, B: []float64{2.5}, Power: true}} {
		_, err := bad.Table(4)
		refused(t, fmt.Sprintf("%+v", bad), err)
	}
	for _, n := range []int{0, -1, math.MaxInt32} {
		_, err := m.Table(n)
		refused(t, fmt.Sprint(n, " distances"), err)
	}
}

// Power with exponent 1 is ALiBi.
func TestKERPLEOfPowerOneIsALiBi(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(1, 1))
	in := causal(nil, r, 70, 3)
	slopes := attention.ALiBiSlopes(in.config.Heads)
	m := attention.KERPLE{Power: true}
	for _, s := range slopes {
		m.A, m.B = append(m.A, float64(s)), append(m.B, 1)
	}
	in.config.Score.Slopes = true
	in.scores.Slopes = tensor.FromF32(slopes)
	want := run(t, b, in)
	in.config.Score = attention.Score{RelBias: true}
	var err error
	if in.scores.RelBias, err = m.Table(70); err != nil {
		t.Fatal(err)
	}
	near(t, "KERPLE", run(t, b, in), want, 1e-5)
}

// fire is a small FIRE of two heads.
func fire() attention.FIRE {
	return attention.FIRE{
		C: 0.3, Threshold: 20, In: []float64{1, -2, 3}, InBias: []float64{0.1, 1.5, -1},
		Out: [][]float64{{0.5, 1, -2}, {1, 0, 3}}, OutBias: []float64{0.2, -0.4},
	}
}

func fireBias(m attention.FIRE, h, i, j int) float64 {
	psi := func(x float64) float64 { return math.Log(m.C*x + 1) }
	x := psi(float64(i-j)) / psi(math.Max(m.Threshold, float64(i)))
	sum := m.OutBias[h]
	for k := range m.In {
		sum += m.Out[h][k] * math.Max(0, m.In[k]*x+m.InBias[k])
	}
	return sum
}

func TestFIREFollowsItsRule(t *testing.T) {
	m := fire()
	for _, i := range []int{0, 5, 20, 21, 60} {
		table, err := m.Table(i)
		if err != nil {
			t.Fatal(err)
		}
		if want := int64(max(i, 20) + 1); table.Shape[1] != want {
			t.Fatalf("query %d: %d distances, want %d", i, table.Shape[1], want)
		}
		for h := range 2 {
			for q := range i + 1 {
				if q < i && (!m.Shared(i) || !m.Shared(q)) {
					continue
				}
				for j := range q + 1 {
					closeTo(t, fmt.Sprintf("head %d, query %d by the table of %d, key %d", h, q, i, j), table.At(int64(h), int64(q-j)), fireBias(m, h, q, j))
				}
			}
		}
	}
	if !m.Shared(20) || m.Shared(21) {
		t.Error("the table is not shared up to the threshold")
	}
	for name, spoil := range map[string]func(*attention.FIRE){
		"C": func(m *attention.FIRE) { m.C = 0 }, "threshold": func(m *attention.FIRE) { m.Threshold = -1 }, "NaN": func(m *attention.FIRE) { m.C = math.NaN() },
		"hidden": func(m *attention.FIRE) { m.In = m.In[1:] }, "no heads": func(m *attention.FIRE) { m.Out, m.OutBias = nil, nil },
		"weights": func(m *attention.FIRE) { m.Out[1] = m.Out[1][1:] }, "bias": func(m *attention.FIRE) { m.OutBias = nil },
		"far": func(m *attention.FIRE) { m.Threshold = 1e30 },
	} {
		m := fire()
		spoil(&m)
		_, err := m.Table(3)
		refused(t, name, err)
	}
	_, err := m.Table(-1)
	refused(t, "query −1", err)
}

// A table a query, past the threshold, gives what the rule gives.
func TestFIREDecodes(t *testing.T) {
	b := backend(t, 1)
	r := rand.New(rand.NewPCG(2, 2))
	m := fire()
	for _, n := range []int{1, 15, 21, 80} {
		in := input{config: attention.Config{Heads: 2, KVHeads: 1, HeadDim: 8, Mask: attention.Causal(), Score: attention.Score{RelBias: true}}, step: attention.Step{QueryLens: []int{1}, KeyLens: []int{n}}}
		in.fill(r)
		var err error
		if in.scores.RelBias, err = m.Table(n - 1); err != nil {
			t.Fatal(err)
		}
		got := run(t, b, in)
		exact := tensor.New(tensor.F32, 2, int64(n))
		for h := range 2 {
			for d := range n {
				exact.Set(float32(fireBias(m, h, n-1, n-1-d)), int64(h), int64(d))
			}
		}
		in.scores.RelBias = exact
		newReference(t, in).check(t, got, 2e-5)
	}
}

func TestForgettingSumsItsGates(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(3, 3))
	m := attention.Forgetting{Heads: 4}
	lens := []int{50, 0, 7}
	in := input{config: attention.Config{Heads: 4, KVHeads: 2, HeadDim: 8, Mask: attention.Causal(), Score: attention.Score{PrefixBias: true}}, step: attention.Step{QueryLens: lens, KeyLens: lens}}
	in.fill(r)
	var all []float64
	var gates [][]float32
	for _, n := range lens {
		g := make([]float32, n*4)
		for i := range g {
			g[i] = -r.Float32()
		}
		gates = append(gates, g)
		var sums []float64
		var err error
		cut := n / 3 * 4 // in two goes
		if sums, err = m.Extend(sums, g[:cut]); err == nil {
			sums, err = m.Extend(sums, g[cut:])
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, sums...)
	}
	var err error
	if in.scores.PrefixBias, err = m.Bias(all); err != nil {
		t.Fatal(err)
	}
	got := run(t, b, in)
	// the reference adds the gates between a key and the query
	ref := newReference(t, in)
	row := 0
	for s, n := range lens {
		for i := range n {
			for h := range 4 {
				bias := tensor.New(tensor.F32, 4, int64(n))
				sum := 0.0
				for d := range i + 1 {
					bias.Set(float32(sum), int64(h), int64(d))
					sum += float64(gates[s][(i-d)*4+h])
				}
				ref.config.Score, ref.scores.RelBias = attention.Score{RelBias: true}, bias
				ref.checkRow(t, got, s, row, row, i, h, 2e-5)
			}
		}
		row += n
	}
	for _, bad := range [][]float32{{0.1, 0, 0, 0}, {0, 0, float32(math.NaN()), 0}, {float32(math.Inf(-1)), 0, 0, 0}, {0, 0}} {
		_, err := m.Extend(nil, bad)
		refused(t, fmt.Sprint(bad), err)
	}
	_, err = attention.Forgetting{}.Extend(nil, nil)
	refused(t, "no heads", err)
	_, err = attention.Forgetting{}.Bias(nil)
	refused(t, "no heads", err)
	_, err = m.Bias(make([]float64, 6))
	refused(t, "half a token", err)
}

func TestEntropyScale(t *testing.T) {
	m := attention.EntropyScale{Trained: 16, First: 2, Temper: 0.5}
	for layer := range 4 {
		c := attention.Config{HeadDim: 64}
		if err := m.Apply(&c, layer); err != nil {
			t.Fatal(err)
		}
		if on := layer >= 2; (c.Score.LogN == 16) != on || (c.Scale == 0.5/8) != on || !on && c.Scale != 0 {
			t.Errorf("layer %d: %+v", layer, c)
		}
	}
	b := backend(t, 1)
	r := rand.New(rand.NewPCG(4, 4))
	in := causal(nil, r, 90)
	want := run(t, b, in)
	off := in
	if err := (attention.EntropyScale{}).Apply(&off.config, 0); err != nil {
		t.Fatal(err)
	}
	sameBits(t, "no scaling", run(t, b, off), want)
	if err := m.Apply(&in.config, 5); err != nil {
		t.Fatal(err)
	}
	newReference(t, in).check(t, run(t, b, in), 2e-5)
	for _, bad := range []attention.EntropyScale{{Trained: 1}, {Trained: -1}, {First: -1}, {Temper: -1}, {Temper: math.NaN()}, {Temper: math.Inf(1)}} {
		refused(t, fmt.Sprintf("%+v", bad), bad.Apply(&attention.Config{HeadDim: 8}, 0))
	}
	refused(t, "layer −1", m.Apply(&attention.Config{HeadDim: 8}, -1))
}

func TestBiPELevels(t *testing.T) {
	segment, within, err := attention.BiPE{Ends: []int{3, 4, 9}}.Levels(11)
	if got, want := fmt.Sprint(segment, within), "[0 0 0 1 2 2 2 2 2 3 3] [0 1 2 0 0 1 2 3 4 0 1]"; err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	for _, ends := range [][]int{{0}, {3, 3}, {5, 2}} {
		_, _, err := attention.BiPE{Ends: ends}.Levels(4)
		refused(t, fmt.Sprint(ends), err)
	}
	_, _, err = attention.BiPE{}.Levels(-1)
	refused(t, "−1 tokens", err)
	_, err = attention.BiPE{}.Bias(3, nil)
	refused(t, "no slopes", err)
}

// BiPE-RoPE turns by the segment; BiPE-ALiBi goes by the distance of segments, and
// is ALiBi where each token is a segment.
func TestBiPEOnABackend(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(5, 5))
	in := causal(nil, r, 60)
	m := attention.BiPE{Ends: []int{7, 20, 33, 50}}
	segment, _, err := m.Levels(60)
	if err != nil {
		t.Fatal(err)
	}
	rotary := in
	rotary.step.KeyPos = segment
	newReference(t, rotary).check(t, run(t, b, rotary), 2e-5)

	slopes := attention.ALiBiSlopes(in.config.Heads)
	in.config.Score.Slopes, in.scores.Slopes = true, tensor.FromF32(slopes)
	alibi := run(t, b, in)
	var every []int
	for i := 1; i < 60; i++ {
		every = append(every, i)
	}
	in.config.Score = attention.Score{PrefixBias: true}
	if in.scores.PrefixBias, err = (attention.BiPE{Ends: every}).Bias(60, slopes); err != nil {
		t.Fatal(err)
	}
	near(t, "a token a segment", run(t, b, in), alibi, 1e-5)
	if in.scores.PrefixBias, err = m.Bias(60, slopes); err != nil {
		t.Fatal(err)
	}
	closeTo(t, "bias of token 40", in.scores.PrefixBias.At(40, 1), -3*float64(slopes[1]))
	newReference(t, in).check(t, run(t, b, in), 2e-5)
}

// The rotated product depends on the distance of tokens in the fast pairs and on
// that of segments in the slow ones; with all pairs fast it is RoPE.
func TestHiRoPE(t *testing.T) {
	b := backend(t, 1)
	r := rand.New(rand.NewPCG(6, 6))
	base, err := rope.Default{Base: rope.Base{HeadDim: 8, Theta: 10000}}.Rotation(1)
	if err != nil {
		t.Fatal(err)
	}
	const n = 30
	turn := func(m attention.HiRoPE, x tensor.View) tensor.View {
		rot, err := m.Rotation(base)
		if err != nil {
			t.Fatal(err)
		}
		p, err := m.Positions(n)
		if err != nil {
			t.Fatal(err)
		}
		y := tensor.New(tensor.F32, x.Shape[:3]...)
		copy(y.F32s(), x.F32s())
		if err := rope.Apply(b, y, p, rot, 0); err != nil {
			t.Fatal(err)
		}
		return y
	}
	in := input{config: attention.Config{Heads: 2, KVHeads: 1, HeadDim: 8, Mask: attention.Causal()}, step: attention.Step{QueryLens: []int{n}, KeyLens: []int{n}}}
	in.fill(r)
	with := func(m attention.HiRoPE) result {
		x := in
		x.query, x.key = turn(m, in.query), turn(m, in.key)
		return run(t, b, x)
	}
	rotated := in
	rotated.config.Rotary = plain{dim: 8}
	near(t, "all pairs by token", with(attention.HiRoPE{Split: 4}), run(t, b, rotated), 2e-5)
	m := attention.HiRoPE{BiPE: attention.BiPE{Ends: []int{4, 11, 20}}}
	segments := rotated
	if segments.step.KeyPos, _, err = m.BiPE.Levels(n); err != nil {
		t.Fatal(err)
	}
	near(t, "all pairs by segment", with(m), run(t, b, segments), 2e-5)

	m.Split = 2
	q, k := turn(m, in.query), turn(m, in.key)
	segment, _, _ := m.BiPE.Levels(n)
	for i := range int64(n) {
		for j := range int64(n) {
			got, want := 0.0, 0.0
			for d := range int64(8) {
				got += float64(q.At(i, 1, d)) * float64(k.At(j, 0, d))
			}
			for p := range int64(4) {
				at := float64(i - j)
				if p >= 2 {
					at = float64(segment[i] - segment[j])
				}
				sin, cos := math.Sincos(at * base.InvFreq[p])
				a, b := float64(in.query.At(i, 1, p)), float64(in.query.At(i, 1, p+4))
				c, d := float64(in.key.At(j, 0, p)), float64(in.key.At(j, 0, p+4))
				want += (a*c+b*d)*cos + (a*d-b*c)*sin
			}
			if math.Abs(got-want) > 1e-5 {
				t.Fatalf("pair (%d, %d): %v, want %v", i, j, got, want)
			}
		}
	}
	for _, split := range []int{-1, 5} {
		_, err := attention.HiRoPE{Split: split}.Rotation(base)
		refused(t, fmt.Sprint("split ", split), err)
	}
	base.Axis = []uint8{0, 0, 0, 0}
	_, err = attention.HiRoPE{}.Rotation(base)
	refused(t, "axes", err)
	_, err = attention.HiRoPE{BiPE: attention.BiPE{Ends: []int{0}}}.Positions(3)
	refused(t, "ends", err)
}
