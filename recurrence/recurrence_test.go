package recurrence

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

func backend(t testing.TB) *cpu.Backend {
	b := cpu.New(cpu.Options{Workers: 2})
	t.Cleanup(b.Close)
	return b
}

// config is a small layer; KeyHeads where the technique shares keys.
func config(r Recurrence) Config {
	c := Config{Heads: 4, KeyHeads: 2, KeyDim: 8, ValueDim: 5}
	if len(r.problems(&c)) > 0 {
		c.KeyHeads = 4
	}
	return c
}

// made is a layer for a problem's shape.
func made(t *testing.T, r Recurrence, c Config) *Layer {
	l, err := New(backend(t), r, c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func near(t *testing.T, name string, got []float32, want []float64, part float64) {
	t.Helper()
	most := 0.0
	for _, x := range want {
		most = max(most, math.Abs(x))
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d elements, want %d", name, len(got), len(want))
	}
	for i, x := range want {
		if !(math.Abs(float64(got[i])-x) <= part*most) {
			t.Fatalf("%s: element %d is %v, want %v", name, i, got[i], x)
		}
	}
}

var lens = []int{130, 0, 1, 67, 64}

// TestChunks: many tokens at a time are the rule of the paper, token by token,
// and in 16 bits nearly.
func TestChunks(t *testing.T) {
	for _, p := range papers {
		l := made(t, p.rec, config(p.rec))
		x := newProblem(p.rec, l.Config(), lens, 1)
		want := x.run(func(h int) func(token) []float64 { return p.rule(&x.c, h) })
		for _, d := range []struct {
			dtype tensor.DType
			part  float64
		}{{tensor.F32, p.part()}, {tensor.F16, 3e3 * p.part()}, {tensor.BF16, 25e3 * p.part()}} {
			s := x.whole(d.dtype)
			if err := l.Run(s); err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprint(p.name, " ", d.dtype), dense(&s.Out), want, d.part)
		}
	}
}

// TestSplits: sequences that come in several calls, a token at a time included,
// with their states kept, give what one call gives; bit for bit where they are cut
// between chunks.
func TestSplits(t *testing.T) {
	const n = 200
	for _, p := range papers {
		l := made(t, p.rec, config(p.rec))
		x := newProblem(p.rec, l.Config(), []int{n}, 2)
		want := x.run(func(h int) func(token) []float64 { return p.rule(&x.c, h) })
		one := x.whole(tensor.F32)
		if err := l.Run(one); err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{1, 63, 64, 70, 128} {
			states, err := l.NewStates(2)
			if err != nil {
				t.Fatal(err)
			}
			slot, _ := states.Alloc()
			var out []float32
			for lo := 0; lo < n; lo += size {
				hi := min(lo+size, n)
				s := x.step(tensor.F32, lo, hi, []int32{0, int32(hi - lo)})
				s.States, s.Slots = states, []int32{slot}
				if err := l.Run(s); err != nil {
					t.Fatal(err)
				}
				out = append(out, s.Out.F32s()...)
			}
			near(t, fmt.Sprintf("%s, %d tokens a call", p.name, size), out, want, p.part())
			if size%kernel.TileSize == 0 && !slices.Equal(out, one.Out.F32s()) {
				t.Errorf("%s, %d tokens a call: the bits are not those of one call", p.name, size)
			}
		}
	}
}

// TestRagged: a sequence of a batch gets the bits that it gets alone.
func TestRagged(t *testing.T) {
	for _, p := range papers {
		l := made(t, p.rec, config(p.rec))
		x := newProblem(p.rec, l.Config(), lens, 3)
		all := x.whole(tensor.F32)
		if err := l.Run(all); err != nil {
			t.Fatal(err)
		}
		for i, n := range lens {
			lo, row := int(x.start[i]), x.c.Heads*x.c.ValueDim
			s := x.step(tensor.F32, lo, lo+n, []int32{0, int32(n)})
			if err := l.Run(s); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(s.Out.F32s(), all.Out.F32s()[lo*row:(lo+n)*row]) {
				t.Errorf("%s: sequence %d alone differs", p.name, i)
			}
		}
	}
}

// TestRaggedStates: sequences of a batch that go on from their states get the bits
// that each gets alone, in whatever order their slots are.
func TestRaggedStates(t *testing.T) {
	for _, p := range papers {
		l := made(t, p.rec, config(p.rec))
		states, err := l.NewStates(4)
		if err != nil {
			t.Fatal(err)
		}
		var slots []int32
		for range 4 {
			slot, err := states.Alloc()
			if err != nil {
				t.Fatal(err)
			}
			slots = append(slots, slot)
		}
		for i, lens := range [][]int{{50, 64}, {30, 1}, {65, 3}} {
			x := newProblem(p.rec, l.Config(), lens, uint64(20+i))
			both := x.whole(tensor.F32)
			both.States, both.Slots = states, []int32{slots[2], slots[1]}
			if err := l.Run(both); err != nil {
				t.Fatal(err)
			}
			for k, n := range lens {
				lo, row := int(x.start[k]), x.c.Heads*x.c.ValueDim
				s := x.step(tensor.F32, lo, lo+n, []int32{0, int32(n)})
				s.States, s.Slots = states, []int32{[]int32{slots[0], slots[3]}[k]}
				if err := l.Run(s); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(s.Out.F32s(), both.Out.F32s()[lo*row:(lo+n)*row]) {
					t.Errorf("%s: sequence %d alone differs at call %d", p.name, k, i)
				}
			}
		}
	}
}

// TestGradients: gradients are the slopes of the rule of the paper, with a state
// to start from too.
func TestGradients(t *testing.T) {
	for _, p := range papers {
		l := made(t, p.rec, config(p.rec))
		x := newProblem(p.rec, l.Config(), []int{9, 66}, 4)
		s := x.whole(tensor.F32)
		g := x.gradients(s)
		if err := l.Backward(s, g); err != nil {
			t.Fatal(err)
		}
		loss := func() (sum float64) {
			for i, y := range x.run(func(h int) func(token) []float64 { return p.rule(&x.c, h) }) {
				sum += y * x.dout[i]
			}
			return sum
		}
		for _, v := range x.slopes(g) {
			var got []float32
			var want []float64
			for n := range 40 { // some elements
				i := n * 7919 % len(v.x)
				y := v.x[i]
				const step = 1e-5
				v.x[i] = y + step
				up := loss()
				v.x[i] = y - step
				want = append(want, (up-loss())/(2*step))
				v.x[i] = y
				got = append(got, dense(v.d)[i])
			}
			near(t, p.name+": gradient of "+v.name, got, want, 1e-4)
		}
	}
}

// gradients are empty ones for a step.
func (p *problem) gradients(s *Step) *Gradients {
	g := &Gradients{DOut: view(p.dout, tensor.F32, int(s.Out.Shape[0]), p.c.Heads, p.c.ValueDim)}
	for _, v := range [][2]*tensor.View{{&g.DQuery, &s.Query}, {&g.DKey, &s.Key}, {&g.DValue, &s.Value}, {&g.DGate, &s.Gate}, {&g.DBeta, &s.Beta}, {&g.DInput, &s.Input}, {&g.DDelta, &s.Delta}, {&g.DBonus, &s.Bonus}} {
		if !v[1].IsZero() {
			*v[0] = like(v[1])
		}
	}
	return g
}

type slope struct {
	name string
	x    []float64
	d    *tensor.View
}

func (p *problem) slopes(g *Gradients) (out []slope) {
	for _, s := range []slope{
		{"Query", p.q, &g.DQuery}, {"Key", p.k, &g.DKey}, {"Value", p.v, &g.DValue}, {"Gate", p.gate, &g.DGate},
		{"Beta", p.beta, &g.DBeta}, {"Input", p.input, &g.DInput}, {"Delta", p.delta, &g.DDelta}, {"Bonus", p.bonus, &g.DBonus},
	} {
		if !s.d.IsZero() {
			out = append(out, s)
		}
	}
	return out
}

// TestBackwardFromStates: the gradient of the second part of a sequence, with the
// state that the first left, is that of the whole where only the second is asked.
func TestBackwardFromStates(t *testing.T) {
	const n, cut = 90, 64
	for _, p := range papers {
		l := made(t, p.rec, config(p.rec))
		x := newProblem(p.rec, l.Config(), []int{n}, 5)
		clear(x.dout[:cut*x.c.Heads*x.c.ValueDim])
		whole := x.whole(tensor.F32)
		want := x.gradients(whole)
		if err := l.Backward(whole, want); err != nil {
			t.Fatal(err)
		}
		states, err := l.NewStates(1)
		if err != nil {
			t.Fatal(err)
		}
		slot, _ := states.Alloc()
		first := x.step(tensor.F32, 0, cut, []int32{0, cut})
		first.States, first.Slots = states, []int32{slot}
		if err := l.Run(first); err != nil {
			t.Fatal(err)
		}
		second := x.step(tensor.F32, cut, n, []int32{0, n - cut})
		second.States, second.Slots = states, []int32{slot}
		y := *x
		y.dout = x.dout[cut*x.c.Heads*x.c.ValueDim:]
		got := y.gradients(second)
		if err := l.Backward(second, got); err != nil {
			t.Fatal(err)
		}
		all, some := dense(&want.DValue), dense(&got.DValue)
		if !slices.Equal(all[len(all)-len(some):], some) {
			t.Errorf("%s: DValue differs", p.name)
		}
	}
}

// TestForks: a fork goes its own way, a snapshot can be come back to, and a slot
// that is released and taken again starts from zero.
func TestForks(t *testing.T) {
	for _, p := range papers {
		l := made(t, p.rec, config(p.rec))
		x := newProblem(p.rec, l.Config(), []int{100}, 6)
		states, err := l.NewStates(3)
		if err != nil {
			t.Fatal(err)
		}
		run := func(slot int32, lo, hi int) []float32 {
			s := x.step(tensor.F32, lo, hi, []int32{0, int32(hi - lo)})
			s.States, s.Slots = states, []int32{slot}
			if err := l.Run(s); err != nil {
				t.Fatal(err)
			}
			return s.Out.F32s()
		}
		a, _ := states.Alloc()
		run(a, 0, 40)
		b, err := states.Fork(a)
		if err != nil {
			t.Fatal(err)
		}
		want := run(a, 40, 100)
		run(b, 50, 60)
		c, err := states.Fork(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := states.Fork(b); !errors.Is(err, ErrNoSlot) {
			t.Errorf("a fourth slot: %v, want ErrNoSlot", err)
		}
		if err := states.Release(a); err != nil {
			t.Fatal(err)
		}
		a, _ = states.Alloc()
		if err := states.Copy(b, a); err != nil { // of a state that nothing has written yet
			t.Fatal(err)
		}
		if x, y := run(a, 0, 40), run(b, 0, 40); !slices.Equal(x, y) {
			t.Errorf("%s: a copy of a new state is not zero", p.name)
		}
		if err := states.Copy(c, a); err != nil {
			t.Fatal(err)
		}
		if got := run(c, 40, 100); !slices.Equal(got, want) {
			t.Errorf("%s: a copied state goes another way", p.name)
		}
	}
}

// TestParallel: with all of a sequence at once, scores of pairs times what is left
// of the keys: the parallel form.
func TestParallel(t *testing.T) {
	const n = 150
	for _, r := range []Recurrence{Linear{}, RetNet{}, SimpleGLA{}, GLA{}} {
		l := made(t, r, config(r))
		x := newProblem(r, l.Config(), []int{n}, 7)
		s := x.whole(tensor.F32)
		if err := l.Run(s); err != nil {
			t.Fatal(err)
		}
		c := x.c
		want := make([]float64, len(x.v))
		for h := range c.Heads {
			gate := func(t, d int) float64 {
				switch {
				case x.gates > 0:
					return x.gate[(t*c.Heads+h)*x.gates+min(d, x.gates-1)]
				case r.Info().Name == "retnet":
					return math.Log(1 - math.Pow(2, -5-float64(h)))
				}
				return 0
			}
			at := func(t int) int { return (t*c.KeyHeads + h/(c.Heads/c.KeyHeads)) * c.KeyDim }
			for i := range n {
				left := make([]float64, c.KeyDim)
				for j := i; j >= 0; j-- {
					score := 0.0
					for d := range left {
						score += c.Scale * x.q[at(i)+d] * x.k[at(j)+d] * math.Exp(left[d])
						left[d] += gate(j, d)
					}
					for e := range c.ValueDim {
						want[(i*c.Heads+h)*c.ValueDim+e] += score * x.v[(j*c.Heads+h)*c.ValueDim+e]
					}
				}
			}
		}
		near(t, r.Info().Name, s.Out.F32s(), want, 3e-6)
	}
}

// TestLargeInputGates: mLSTM's exponential gates need not fit into float32.
func TestLargeInputGates(t *testing.T) {
	l := made(t, MLSTM{}, config(MLSTM{}))
	x := newProblem(MLSTM{}, l.Config(), []int{100}, 8)
	for i := range x.input {
		x.input[i] = float64(i%7)*40 - 120
	}
	x.input[0], x.gate[0] = math.Inf(-1), math.Inf(-1)
	rule := papers[slices.IndexFunc(papers, func(p paper) bool { return p.name == "mlstm" })].rule
	want := x.run(func(h int) func(token) []float64 { return rule(&x.c, h) })
	s := x.whole(tensor.F32)
	if err := l.Run(s); err != nil {
		t.Fatal(err)
	}
	near(t, "mlstm", s.Out.F32s(), want, 1e-4)
}

// TestRefused: what cannot be right is an error that says so.
func TestRefused(t *testing.T) {
	b := backend(t)
	for _, f := range []struct {
		name string
		rec  Recurrence
		c    Config
	}{
		{"no heads", GLA{}, Config{KeyDim: 4}},
		{"key heads", GLA{}, Config{Heads: 4, KeyHeads: 3, KeyDim: 4}},
		{"key dim", GLA{}, Config{Heads: 4}},
		{"value dim", GLA{}, Config{Heads: 4, KeyDim: 4, ValueDim: -1}},
		{"scale", GLA{}, Config{Heads: 4, KeyDim: 4, Scale: math.Inf(1)}},
		{"policy", GLA{}, Config{Heads: 4, KeyDim: 4, Policy: 7}},
		{"gammas", RetNet{Gammas: []float64{1, 2}}, Config{Heads: 2, KeyDim: 4}},
		{"gammas short", RetNet{Gammas: []float64{1}}, Config{Heads: 2, KeyDim: 4}},
		{"layers", Lightning{}, Config{Heads: 2, KeyDim: 4}},
		{"slopes", Lightning{Slopes: []float64{1, math.NaN()}}, Config{Heads: 2, KeyDim: 4}},
		{"slots", GSA{}, Config{Heads: 2, KeyDim: 4}},
		{"shared keys", HGRN2{}, Config{Heads: 2, KeyHeads: 1, KeyDim: 4}},
		{"a", Mamba2{A: []float32{1}}, Config{Heads: 1, KeyDim: 4}},
		{"d", Mamba2{D: []float32{1}}, Config{Heads: 2, KeyDim: 4}},
		{"no room", MLSTM{}, Config{Heads: 1, KeyDim: 4, ValueDim: kernel.MaxStateDim}},
	} {
		var want *ConfigError
		if _, err := New(b, f.rec, f.c); !errors.As(err, &want) {
			t.Errorf("%s: error %v, want a ConfigError", f.name, err)
		}
	}
	if _, err := New(nil, GLA{}, Config{Heads: 1, KeyDim: 4}); err == nil {
		t.Error("no backend: no error")
	}
	var refused *kernel.UnsupportedError
	if _, err := New(plain{b}, GLA{}, Config{Heads: 1, KeyDim: 4}); !errors.As(err, &refused) {
		t.Errorf("a backend without recurrences: %v, want an UnsupportedError", err)
	}
	for _, p := range papers {
		l := made(t, p.rec, config(p.rec))
		x := newProblem(p.rec, l.Config(), []int{3, 2}, 9)
		other, _ := made(t, p.rec, config(p.rec)).NewStates(1)
		own, _ := l.NewStates(2)
		slot, _ := own.Alloc()
		for i, spoil := range []func(s *Step){
			func(s *Step) { s.Query = tensor.View{} },
			func(s *Step) { s.Out = tensor.New(tensor.F32, 5, 4, 4) },
			func(s *Step) { s.Value.Rank = 2 },
			func(s *Step) { s.QueryStart = []int32{0, 3} },
			func(s *Step) { s.QueryStart = []int32{0, 6, 5} },
			func(s *Step) { s.QueryStart = nil },
			func(s *Step) { s.Slots = []int32{0, 1} },
			func(s *Step) { s.States, s.Slots = other, []int32{-1, -1} },
			func(s *Step) { s.States, s.Slots = own, []int32{slot, 1} },
			func(s *Step) { s.States, s.Slots = own, []int32{slot, slot} },
			func(s *Step) { s.States, s.Slots = own, []int32{slot} },
			func(s *Step) {
				if s.Gate.IsZero() {
					s.Gate = tensor.New(tensor.F32, 5, 4)
				} else {
					s.Gate = tensor.View{}
				}
			},
			func(s *Step) {
				s.Query = tensor.FromBytes(tensor.U8, make([]byte, s.Query.Len()), s.Query.Shape[:3]...)
			},
		} {
			s := x.whole(tensor.F32)
			spoil(s)
			if err := l.Run(s); err == nil {
				t.Errorf("%s: spoiled step %d: no error", p.name, i)
			}
		}
		if l.Run(nil) == nil || l.Backward(x.whole(tensor.F32), nil) == nil {
			t.Errorf("%s: nil: no error", p.name)
		}
		s := x.whole(tensor.F32)
		g := x.gradients(s)
		g.DValue = tensor.View{}
		if l.Backward(s, g) == nil {
			t.Errorf("%s: no DValue: no error", p.name)
		}
	}
	states, _ := made(t, GLA{}, config(GLA{})).NewStates(1)
	for _, err := range []error{states.Release(0), states.Copy(0, 0), states.Release(-1), states.Release(9)} {
		if err == nil {
			t.Error("a slot that is not allocated: no error")
		}
	}
}

// TestNames: an unknown name is an error, and inputs are listed.
func TestNames(t *testing.T) {
	if _, err := Find("rwkv"); err == nil {
		t.Error("an unknown name: no error")
	}
	if got, want := (GatedDeltaNet{}).Info().Reads.String(), "Key, Gate, Beta"; got != want {
		t.Errorf("Reads is %q, want %q", got, want)
	}
}

// plain is a Backend that is no Scanner.
type plain struct{ kernel.Backend }

// TestAll: every technique has a name of its own, a paper and a test.
func TestAll(t *testing.T) {
	names := map[string]bool{}
	for _, r := range All() {
		i := r.Info()
		if names[i.Name] || i.Paper == "" {
			t.Errorf("%s: a name of its own and a paper are wanted", i.Name)
		}
		names[i.Name] = true
		if found, err := Find(i.Name); err != nil || found.Info().Name != i.Name || i.Claim != "weak" && i.Claim != "none" {
			t.Errorf("%s: found %v, %v; claim %q", i.Name, found, err, i.Claim)
		}
		if !slices.ContainsFunc(papers, func(p paper) bool { return p.rec.Info().Name == i.Name }) {
			t.Errorf("%s has no rule to be tested against", i.Name)
		}
	}
}
