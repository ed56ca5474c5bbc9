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

func TestPCWPositionsAndMasks(t *testing.T) {
	m := attention.PCW{Prefix: 2, Contexts: []int{3, 4, 1}}
	positions, err := m.Positions(13)
	if got, want := fmt.Sprint(positions), "[0 1 2 3 4 2 3 4 5 2 6 7 8]"; err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	if short, err := m.Positions(4); err != nil || len(short) != 4 {
		t.Errorf("4 tokens: %v, %v", short, err)
	}
	starts := []int{2, 5, 9, 10}
	for k := range m.Contexts {
		mask := mustMask(t)(m.Mask(k))
		for i := starts[k]; i < starts[k+1]; i++ {
			for j := range 13 {
				got := false
				for _, r := range mask.Regions {
					got = got || r.Contains(int64(i), int64(j), 0)
				}
				if want := j <= i && (j < 2 || j >= starts[k]); got != want {
					t.Errorf("context %d: i=%d sees j=%d: %v", k, i, j, got)
				}
			}
		}
	}
	for _, bad := range []attention.PCW{{}, {Prefix: -1, Contexts: []int{1}}, {Contexts: []int{2, 0}}, {Contexts: []int{1 << 30, 1 << 30, 1 << 30}}} {
		_, err := bad.Positions(3)
		refused(t, fmt.Sprintf("%+v", bad), err)
		_, err = bad.Mask(0)
		refused(t, fmt.Sprintf("%+v", bad), err)
	}
	_, err = m.Positions(-1)
	refused(t, "−1 tokens", err)
	for _, k := range []int{-1, 3} {
		_, err = m.Mask(k)
		refused(t, fmt.Sprint("context ", k), err)
	}
}

// A context of a sequence has the outputs it has after the prefix alone.
func TestPCWContextIsAlone(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(1, 1))
	for _, prefix := range []int{0, 70} {
		m := attention.PCW{Prefix: prefix, Contexts: []int{90, 40, 66}}
		n, at := prefix+196, prefix
		all := causal(nil, r, n)
		positions, err := m.Positions(n)
		if err != nil {
			t.Fatal(err)
		}
		for k, c := range m.Contexts {
			one := all // in the sequence
			one.config.Mask = mustMask(t)(m.Mask(k))
			one.step = attention.Step{QueryLens: []int{c}, KeyLens: []int{at + c}, KeyPos: positions[:at+c]}
			one.query = packed(all.query, at, at+c)
			alone := all // after the prefix
			alone.step = attention.Step{QueryLens: []int{c}, KeyLens: []int{prefix + c}}
			alone.query = one.query
			alone.key, alone.value = joined(all.key, prefix, at, c), joined(all.value, prefix, at, c)
			near(t, fmt.Sprint("context ", k), run(t, b, one), run(t, b, alone), 2e-5)
			at += c
		}
	}
}

// joined is the first rows of v and n rows from some row on.
func joined(v tensor.View, first, from, n int) tensor.View {
	out := tensor.New(v.DType, int64(first+n), v.Shape[1], v.Shape[2])
	for i := range first + n {
		row := i
		if i >= first {
			row = from + i - first
		}
		copyRow(out, int64(i), v, int64(row))
	}
	return out
}

// asked is the tokens after the contexts of m, over contiguous keys or pages.
func asked(t *testing.T, b kernel.Backend, m attention.APE, in input, withLSE bool) (result, tensor.View) {
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
	if err := a.Plan(in.step); err != nil {
		t.Fatal(err)
	}
	q, h, d := int64(sum(in.step.QueryLens)), int64(in.config.Heads), int64(in.config.HeadDim)
	out, lse := tensor.New(tensor.F32, q, h, d), tensor.New(tensor.F32, q, h)
	poison(out)
	args := kernel.Args{Query: in.query, Key: in.key, Value: in.value, Out: out}
	if withLSE {
		poison(lse)
		args.LSE = lse
	}
	if err := a.Run(&args); err != nil {
		t.Fatal(err)
	}
	return result{widen(out), widen(lse), int(h), int(d)}, out
}

func TestAPEWeighsContexts(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(2, 2))
	for _, c := range []struct{ prefix, heads, page int }{{5, 4, 0}, {0, 3, 0}, {70, 4, 16}, {1, 1, 0}} {
		m := attention.APE{PCW: attention.PCW{Prefix: c.prefix, Contexts: []int{40, 30}}, Temperature: 0.8, Gain: 0.9}
		end := c.prefix + 70
		for _, q := range []int{1, 5} {
			n := end + 9
			in := input{config: attention.Config{Heads: c.heads, KVHeads: 1, HeadDim: 8, Rotary: plain{dim: 8}, PageSize: c.page}, step: attention.Step{QueryLens: []int{q}, KeyLens: []int{n}}}
			in.fill(r)
			positions, err := m.Positions(n)
			if err != nil {
				t.Fatal(err)
			}
			in.step.KeyPos = positions
			got, _ := asked(t, b, m, in, true)
			bare, _ := asked(t, b, m, in, false)
			bare.lse = got.lse
			sameBits(t, "without LSE", bare, got)
			in.config.Mask = attention.Causal()
			ref := newReference(t, in)
			for row := range q {
				i := n - q + row
				for h := range c.heads {
					var scores [2][]float64
					var values [2][][]float64
					for j := range i + 1 {
						s, _ := ref.score(0, row, 0, i, j, h, 0)
						part := 0
						if j >= c.prefix && j < end {
							part, s = 1, s/m.Temperature
						}
						scores[part], values[part] = append(scores[part], s), append(values[part], feature(in.value, int64(j), 0))
					}
					others, l0 := softmaxRow(scores[0], values[0], 8)
					contexts, l1 := softmaxRow(scores[1], values[1], 8)
					want, lse := softmaxRow([]float64{l0, l1 * m.Gain * m.Temperature}, [][]float64{others, contexts}, 8)
					at := row*c.heads + h
					if math.Abs(float64(got.lse[at])-lse) > 2e-5*(1+math.Abs(lse)) {
						t.Fatalf("%+v: LSE is %v, want %v", c, got.lse[at], lse)
					}
					for d, w := range want {
						if g := float64(got.out[at*8+d]); math.Abs(g-w) > 2e-5*(1+math.Abs(w)) {
							t.Fatalf("%+v, row %d, head %d: Out[%d] is %v, want %v", c, row, h, d, g, w)
						}
					}
				}
			}
		}
	}
}

// With Temperature and Gain 1 it is one causal pass, PCW.
func TestAPEOfOneIsPCW(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(3, 3))
	m := attention.APE{PCW: attention.PCW{Prefix: 4, Contexts: []int{30, 50}}, Temperature: 1, Gain: 1}
	in := causal(nil, r, 100)
	in.config.HeadDim, in.config.Rotary = 16, plain{dim: 12}
	in.step.QueryLens = []int{10}
	in.query = packed(in.query, 90, 100)
	var err error
	if in.step.KeyPos, err = m.Positions(100); err != nil {
		t.Fatal(err)
	}
	want := run(t, b, in)
	in.config.Mask = attention.Mask{}
	got, _ := asked(t, b, m, in, true)
	near(t, "APE(1, 1)", got, want, 1e-5)
}

func TestAPERefuses(t *testing.T) {
	b := backend(t, 1)
	config := attention.Config{Heads: 2, KVHeads: 1, HeadDim: 4}
	pcw := attention.PCW{Prefix: 1, Contexts: []int{3}}
	for _, m := range []attention.APE{{PCW: pcw}, {PCW: pcw, Temperature: 1}, {PCW: pcw, Temperature: -1, Gain: 1}, {PCW: pcw, Temperature: 1, Gain: math.NaN()}, {PCW: pcw, Temperature: math.Inf(1), Gain: 1}, {Temperature: 1, Gain: 1}} {
		_, err := m.New(b, config)
		refused(t, fmt.Sprintf("%+v", m), err)
	}
	m := attention.APE{PCW: pcw, Temperature: 1, Gain: 1}
	for name, spoil := range map[string]func(*attention.Config){
		"mask": func(c *attention.Config) { c.Mask = attention.Causal() }, "sink": func(c *attention.Config) { c.Score.SinkLogit = true }, "dimension": func(c *attention.Config) { c.HeadDim = 0 },
	} {
		c := config
		spoil(&c)
		_, err := m.New(b, c)
		refused(t, name, err)
	}
	a, err := m.New(b, config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Run(&kernel.Args{}); !errors.Is(err, kernel.ErrNoPlan) {
		t.Errorf("before Plan: %v", err)
	}
	refused(t, "a query within the contexts", a.Plan(attention.Step{QueryLens: []int{3}, KeyLens: []int{6}}))
	if err := a.Plan(attention.Step{QueryLens: []int{2}, KeyLens: []int{6}}); err != nil {
		t.Fatal(err)
	}
	refused(t, "no tensors", a.Run(&kernel.Args{}))
	refused(t, "nil", a.Run(nil))
}
