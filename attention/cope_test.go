package attention_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// cope computes a step of one sequence with CoPE.
func cope(t *testing.T, b kernel.Backend, m attention.CoPE, in input) result {
	t.Helper()
	a, err := m.New(b, in.config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if in.config.PageSize > 0 {
		store := newPages(in)
		in.step.KV, in.step.KeyLens = store, nil
		in.key, in.value = store.key, store.value
	}
	q, h := int64(in.step.QueryLens[0]), int64(in.config.Heads)
	out, lse := tensor.New(in.query.DType, q, h, int64(in.config.HeadDim)), tensor.New(tensor.F32, q, h)
	poison(out)
	poison(lse)
	if err := a.Plan(in.step); err != nil {
		t.Fatal(err)
	}
	if err := a.Run(&kernel.Args{Query: in.query, Key: in.key, Value: in.value, Out: out, LSE: lse, ScoreArgs: in.scores}); err != nil {
		t.Fatal(err)
	}
	return result{widen(out), widen(lse), int(h), in.config.HeadDim}
}

func TestCoPECountsByContent(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct {
		q, n, positions, page int
		dtype                 tensor.DType
		start                 []int
	}{
		{1, 1, 4, 0, tensor.F32, nil}, {6, 70, 16, 0, tensor.F32, nil}, {3, 50, 1, 16, tensor.F32, nil}, {5, 37, 64, 16, tensor.F32, nil}, {1, 33, 8, 7, tensor.BF16, nil},
		{2, 20, 8, 0, tensor.F32, []int{10}},
	} {
		in := input{config: attention.Config{Heads: 4, KVHeads: 2, HeadDim: 8, DType: c.dtype, PageSize: c.page}, step: attention.Step{QueryLens: []int{c.q}, KeyLens: []int{c.n + 10}}}
		in.fill(r)
		in.step.KeyLens = []int{c.n}
		in.step.KeyStarts = c.start
		m := attention.CoPE{Embedding: normal(r, tensor.F32, int64(c.positions), 8)}
		got := cope(t, b, m, in)
		first := 0
		if c.start != nil {
			first = c.start[0]
		}
		for row := range c.q {
			i := c.n - c.q + row
			for h := range 4 {
				query := feature(in.query, int64(row), int64(h))
				scores, values := make([]float64, i+1), make([][]float64, i+1)
				position := 0.0
				for j := i; j >= 0; j-- {
					s := dot(query, feature(in.key, int64(first+j), int64(h/2))) / math.Sqrt(8)
					position += 1 / (1 + math.Exp(-s))
					at := math.Min(position, float64(c.positions-1))
					embedded := func(p float64) float64 {
						x := 0.0
						for d := range query {
							x += query[d] * float64(m.Embedding.At(int64(p), int64(d)))
						}
						return x
					}
					w := at - math.Floor(at)
					scores[j] = s + (1-w)*embedded(math.Floor(at)) + w*embedded(math.Ceil(at))
					values[j] = feature(in.value, int64(first+j), int64(h/2))
				}
				want, lse := softmaxRow(scores, values, 8)
				at, tolerance := row*4+h, 3e-5
				if g := float64(got.lse[at]); math.Abs(g-lse) > tolerance*(1+math.Abs(lse)) {
					t.Fatalf("%+v, row %d, head %d: LSE is %v, want %v", c, row, h, g, lse)
				}
				if c.dtype == tensor.BF16 {
					tolerance = 1.0 / 128
				}
				for d, x := range want {
					if g := float64(got.out[at*8+d]); math.Abs(g-x) > tolerance*(1+math.Abs(x)) {
						t.Fatalf("%+v, row %d, head %d: Out[%d] is %v, want %v", c, row, h, d, g, x)
					}
				}
			}
		}
	}
}

// Embeddings of 0 are attention without positions; one embedding is the same for
// all keys, which a softmax does not see.
func TestCoPEDegenerates(t *testing.T) {
	b := backend(t, 1)
	r := rand.New(rand.NewPCG(2, 2))
	in := input{config: attention.Config{Heads: 2, KVHeads: 1, HeadDim: 8}, step: attention.Step{QueryLens: []int{40}, KeyLens: []int{40}}}
	in.fill(r)
	plain := in
	plain.config.Mask = attention.Causal()
	want := run(t, b, plain)
	sameBits(t, "zero", cope(t, b, attention.CoPE{Embedding: tensor.New(tensor.F32, 5, 8)}, in), want)
	one := cope(t, b, attention.CoPE{Embedding: normal(r, tensor.F32, 1, 8)}, in)
	one.lse = want.lse
	near(t, "one", one, want, 1e-5)
}

// A row of a prefill is a decode step, bit for bit, in pages as in rows.
func TestCoPEPrefillRowIsDecodeStep(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(3, 3))
	in := input{config: attention.Config{Heads: 4, KVHeads: 2, HeadDim: 8}, step: attention.Step{QueryLens: []int{80}, KeyLens: []int{80}}}
	in.fill(r)
	m := attention.CoPE{Embedding: normal(r, tensor.F32, 12, 8)}
	all := cope(t, b, m, in)
	for _, n := range []int{1, 2, 64, 65, 80} {
		for _, page := range []int{0, 16} {
			step := in
			step.config.PageSize = page
			step.step = attention.Step{QueryLens: []int{1}, KeyLens: []int{n}}
			step.query = packed(in.query, n-1, n)
			sameBits(t, fmt.Sprint(n, " keys"), cope(t, b, m, step), all.rows(n-1, n))
		}
	}
}

func TestCoPERefuses(t *testing.T) {
	b := backend(t, 1)
	m := attention.CoPE{Embedding: tensor.New(tensor.F32, 5, 8)}
	good := attention.Config{Heads: 2, KVHeads: 1, HeadDim: 8}
	for name, spoil := range map[string]func(*attention.CoPE, *attention.Config){
		"mask": func(_ *attention.CoPE, c *attention.Config) { c.Mask = attention.Causal() }, "rotary": func(_ *attention.CoPE, c *attention.Config) { c.Rotary = plain{dim: 8} },
		"bias": func(_ *attention.CoPE, c *attention.Config) { c.Score.RelBias = true }, "FP8": func(_ *attention.CoPE, c *attention.Config) { c.KVDType = tensor.F8E4M3 },
		"nothing": func(m *attention.CoPE, _ *attention.Config) { m.Embedding = tensor.View{} }, "width": func(m *attention.CoPE, _ *attention.Config) { m.Embedding = tensor.New(tensor.F32, 5, 4) },
		"none": func(m *attention.CoPE, _ *attention.Config) { m.Embedding = tensor.New(tensor.F32, 0, 8) }, "dimension": func(m *attention.CoPE, c *attention.Config) {
			c.HeadDim, m.Embedding = 1000, tensor.New(tensor.F32, 2, 1000)
		},
	} {
		m, c := m, good
		spoil(&m, &c)
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
	for name, step := range map[string]attention.Step{
		"two sequences": {QueryLens: []int{1, 1}}, "positions": {QueryLens: []int{2}, KeyPos: []int32{3, 4}}, "few keys": {QueryLens: []int{3}, KeyLens: []int{2}},
	} {
		refused(t, name, a.Plan(step))
	}
	if err := a.Run(&kernel.Args{}); !errors.Is(err, kernel.ErrNoPlan) {
		t.Errorf("after a Plan that failed: %v", err)
	}
	if err := a.Plan(attention.Step{QueryLens: []int{3}}); err != nil {
		t.Fatal(err)
	}
	x, kv := tensor.New(tensor.F32, 3, 2, 8), tensor.New(tensor.F32, 3, 1, 8)
	for name, args := range map[string]kernel.Args{
		"nothing": {}, "no out": {Query: x, Key: kv, Value: kv}, "no key": {Query: x, Out: x, Value: kv}, "no value": {Query: x, Out: x, Key: kv},
		"short key": {Query: x, Out: x, Key: kv.Slice(0, 0, 2), Value: kv}, "LSE": {Query: x, Out: x, Key: kv, Value: kv, LSE: tensor.New(tensor.F32, 2, 2)},
	} {
		refused(t, name, a.Run(&args))
	}
	refused(t, "nil", a.Run(nil))
}
