package attention_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// softmaxRow is attention of one query in float64 over some keys: scores and
// values by the same order.
func softmaxRow(scores []float64, values [][]float64, dim int) (out []float64, lse float64) {
	out, most := make([]float64, dim), math.Inf(-1)
	for _, s := range scores {
		most = max(most, s)
	}
	if math.IsInf(most, -1) {
		return out, most
	}
	sum := 0.0
	for n, s := range scores {
		w := math.Exp(s - most)
		sum += w
		for d := range out {
			out[d] += w * values[n][d]
		}
	}
	for d := range out {
		out[d] /= sum
	}
	return out, most + math.Log(sum)
}

// feature widens a row.
func feature(v tensor.View, row, head int64) []float64 {
	x := make([]float64, v.Shape[2])
	for d := range x {
		x[d] = float64(v.At(row, head, int64(d)))
	}
	return x
}

func dot(a, b []float64) (x float64) {
	for i := range a {
		x += a[i] * b[i]
	}
	return x
}

// sameRow fails unless a row of a tensor is want.
func sameRow(t *testing.T, what string, v tensor.View, row, head int64, want []float64, tolerance float64) {
	t.Helper()
	for d, w := range want {
		if g := float64(v.At(row, head, int64(d))); !(math.Abs(g-w) <= tolerance*(1+math.Abs(w))) {
			t.Fatalf("%s: row %d, head %d: feature %d is %v, want %v", what, row, head, d, g, w)
		}
	}
}

func TestDiffIsADifference(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(1, 1))
	for _, lambda := range []float64{0, 0.37, -2} {
		const n, q, heads, kvHeads, dim = 90, 20, 4, 2, 8
		query, key := normal(r, tensor.F32, q, heads, 2*dim), normal(r, tensor.F32, n, kvHeads, 2*dim)
		value := normal(r, tensor.F32, n, kvHeads, 2*dim)
		out := tensor.New(tensor.F32, q, heads, 4*dim)
		poison(out)
		a, err := attention.New(b, attention.Config{Heads: heads, KVHeads: kvHeads, HeadDim: dim, ValueDim: 2 * dim, Mask: attention.Causal()})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if err := a.Plan(attention.Step{QueryLens: []int{q}, KeyLens: []int{n}}); err != nil {
			t.Fatal(err)
		}
		if err := (attention.Diff{Lambda: lambda}).Run(b, a, &kernel.Args{Query: query, Key: key, Value: value, Out: out}); err != nil {
			t.Fatal(err)
		}
		for row := range int64(q) {
			for h := range int64(heads) {
				var scores [2][]float64
				var values [][]float64
				x := feature(query, row, h)
				for j := range n - q + row + 1 {
					k := feature(key, j, h/2)
					for half := range 2 {
						scores[half] = append(scores[half], dot(x[half*dim:][:dim], k[half*dim:][:dim])/math.Sqrt(dim))
					}
					values = append(values, feature(value, j, h/2))
				}
				one, _ := softmaxRow(scores[0], values, 2*dim)
				two, _ := softmaxRow(scores[1], values, 2*dim)
				for d := range one {
					one[d] -= lambda * two[d]
				}
				sameRow(t, fmt.Sprint("lambda ", lambda), out, row, h, one, 1e-5)
			}
		}
	}
	closeTo(t, "λ_init of the first layer", float32(attention.DiffLambdaInit(0)), 0.2)
	closeTo(t, "λ", float32(attention.DiffLambda([]float64{1, 2}, []float64{0.5, 0.1}, []float64{1}, []float64{-1}, 0.3)), math.Exp(0.7)-math.Exp(-1)+0.3)
}

func TestDiffRefuses(t *testing.T) {
	b := backend(t, 1)
	config := attention.Config{Heads: 2, KVHeads: 1, HeadDim: 4, ValueDim: 8, Mask: attention.Causal()}
	for name, spoil := range map[string]func(*attention.Diff, *kernel.Args){
		"NaN":   func(m *attention.Diff, _ *kernel.Args) { m.Lambda = math.NaN() },
		"query": func(_ *attention.Diff, a *kernel.Args) { a.Query = tensor.New(tensor.F32, 3, 2, 4) },
		"key":   func(_ *attention.Diff, a *kernel.Args) { a.Key = tensor.New(tensor.F32, 3, 1, 4) },
		"out":   func(_ *attention.Diff, a *kernel.Args) { a.Out = tensor.New(tensor.F32, 3, 2, 8) },
		"LSE":   func(_ *attention.Diff, a *kernel.Args) { a.LSE = tensor.New(tensor.F32, 3, 2) },
		"rank":  func(_ *attention.Diff, a *kernel.Args) { a.Out = tensor.New(tensor.F32, 1, 3, 2, 16) },
		"none":  func(_ *attention.Diff, a *kernel.Args) { *a = kernel.Args{} },
		"value": func(_ *attention.Diff, a *kernel.Args) { a.Value = tensor.View{} },
	} {
		a, err := attention.New(b, config)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		m := attention.Diff{Lambda: 1}
		args := kernel.Args{Query: tensor.New(tensor.F32, 3, 2, 8), Key: tensor.New(tensor.F32, 3, 1, 8), Value: tensor.New(tensor.F32, 3, 1, 8), Out: tensor.New(tensor.F32, 3, 2, 16)}
		if err := m.Run(b, a, &args); !errors.Is(err, kernel.ErrNoPlan) {
			t.Errorf("before Plan: %v", err)
		}
		if err := a.Plan(attention.Step{QueryLens: []int{3}}); err != nil {
			t.Fatal(err)
		}
		spoil(&m, &args)
		refused(t, name, m.Run(b, a, &args))
		refused(t, "nil", m.Run(b, a, nil))
	}
}

// longnet computes patterns of a step on the backend.
func longnet(t *testing.T, b kernel.Backend, m attention.Dilated, in input, withLSE bool) (out, lse tensor.View) {
	t.Helper()
	a, err := m.New(b, in.config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	q, n := in.step.QueryLens[0], in.step.KeyLens[0]
	if err := a.Plan(q, n); err != nil {
		t.Fatal(err)
	}
	out = tensor.New(tensor.F32, int64(q), int64(in.config.Heads), int64(in.config.HeadDim))
	poison(out)
	args := kernel.Args{Query: in.query, Key: in.key, Value: in.value, Out: out}
	if withLSE {
		lse = tensor.New(tensor.F32, int64(q), int64(in.config.Heads))
		poison(lse)
		args.LSE = lse
	}
	if err := a.Run(&args); err != nil {
		t.Fatal(err)
	}
	return out, lse
}

func TestDilatedSumsItsPatterns(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(2, 1))
	m := attention.Dilated{Segments: []int{4, 12, 40}, Rates: []int{1, 3, 4}}
	for _, c := range [][2]int{{1, 1}, {50, 50}, {7, 50}, {1, 49}, {90, 90}} {
		q, n := c[0], c[1]
		for _, heads := range [][2]int{{4, 4}, {4, 2}, {2, 1}} {
			in := input{config: attention.Config{Heads: heads[0], KVHeads: heads[1], HeadDim: 8, Rotary: plain{dim: 8}}, step: attention.Step{QueryLens: []int{q}, KeyLens: []int{n}}}
			in.fill(r)
			out, lse := longnet(t, b, m, in, true)
			bare, _ := longnet(t, b, m, in, false)
			if !slices.Equal(out.F32s(), bare.F32s()) {
				t.Fatal("Out depends on whether LSE was asked for")
			}
			in.config.Mask = attention.Causal()
			ref := newReference(t, in)
			group := heads[0] / heads[1]
			for row := range q {
				i := n - q + row
				for h := range heads[0] {
					g := h / group
					var scores []float64
					var values [][]float64
					for k, rate := range m.Rates {
						for j := range i + 1 {
							if i/m.Segments[k] != j/m.Segments[k] || i%rate != g%rate || j%rate != g%rate {
								continue
							}
							s, _ := ref.score(0, row, 0, i, j, h, g)
							scores, values = append(scores, s), append(values, feature(in.value, int64(j), int64(g)))
						}
					}
					want, sum := softmaxRow(scores, values, 8)
					what := fmt.Sprintf("%d of %d tokens, heads %v", q, n, heads)
					sameRow(t, what, out, int64(row), int64(h), want, 2e-5)
					if got := float64(lse.At(int64(row), int64(h))); math.Abs(got-sum) > 2e-5*(1+math.Abs(sum)) {
						t.Fatalf("%s: LSE of row %d, head %d is %v, want %v", what, row, h, got, sum)
					}
				}
			}
		}
	}
}

// One segment without dilation is Causal; an Attention may be planned again.
func TestDilatedOfOneSegmentIsCausal(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(3, 1))
	in := causal(nil, r, 600)
	want := run(t, b, in)
	in.config.Mask = attention.Mask{}
	a, err := attention.Dilated{Segments: []int{600}, Rates: []int{1}}.New(b, in.config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for _, n := range []int{10, 600, 30, 600} {
		if err := a.Plan(n, n); err != nil {
			t.Fatal(err)
		}
		out := tensor.New(tensor.F32, int64(n), 4, 16)
		rows := int64(n)
		if err := a.Run(&kernel.Args{Query: in.query.Slice(0, 0, rows), Key: in.key.Slice(0, 0, rows), Value: in.value.Slice(0, 0, rows), Out: out}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(out.F32s(), want.out[:out.Len()]) {
			t.Fatalf("%d tokens: not the bits of Causal", n)
		}
	}
}

func TestDilatedRefuses(t *testing.T) {
	b := backend(t, 1)
	good := attention.Config{Heads: 2, KVHeads: 2, HeadDim: 4}
	for _, m := range []attention.Dilated{{}, {Segments: []int{4}}, {Segments: []int{4}, Rates: []int{2}}, {Segments: []int{4, 5}, Rates: []int{1, 2}}, {Segments: []int{4, 0}, Rates: []int{1, 1}}, {Segments: []int{4, 4}, Rates: []int{1, 0}}} {
		_, err := m.New(b, good)
		refused(t, fmt.Sprintf("%+v", m), err)
	}
	m := attention.Dilated{Segments: []int{4}, Rates: []int{1}}
	for name, spoil := range map[string]func(*attention.Config){
		"mask": func(c *attention.Config) { c.Mask = attention.Causal() }, "pages": func(c *attention.Config) { c.PageSize = 4 },
		"position": func(c *attention.Config) { c.Position = attention.NoPE{} }, "slopes": func(c *attention.Config) { c.Score.Slopes = true }, "log-n": func(c *attention.Config) { c.Score.LogN = 8 },
		"no KV heads": func(c *attention.Config) { c.KVHeads = 0 },
	} {
		c := good
		spoil(&c)
		_, err := m.New(b, c)
		refused(t, name, err)
	}
	a, err := m.New(b, good)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Run(&kernel.Args{}); !errors.Is(err, kernel.ErrNoPlan) {
		t.Errorf("before Plan: %v", err)
	}
	refused(t, "more queries than keys", a.Plan(4, 3))
	refused(t, "negative", a.Plan(-1, 3))
	if err := a.Plan(3, 3); err != nil {
		t.Fatal(err)
	}
	x := tensor.New(tensor.F32, 3, 2, 4)
	for name, args := range map[string]kernel.Args{
		"nothing": {}, "short": {Query: x, Key: x.Slice(0, 0, 2), Value: x, Out: x}, "LSE": {Query: x, Key: x, Value: x, Out: x, LSE: tensor.New(tensor.F32, 3, 3)},
		"scale": {Query: x, Key: x, Value: x, Out: x, KeyScale: tensor.New(tensor.F32, 1)},
	} {
		refused(t, name, a.Run(&args))
	}
	refused(t, "nil", a.Run(nil))
}
