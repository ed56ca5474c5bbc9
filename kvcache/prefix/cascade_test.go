package prefix_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

const heads, kvHeads, headDim, pageSize = 4, 2, 16, 16

// model is one layer of attention over a cache of random rows.
type model struct {
	t       testing.TB
	backend kernel.Backend
	cache   *kvcache.Cache
	rng     *rand.Rand
}

func newModel(t testing.TB, c kvcache.Config) *model {
	t.Helper()
	c.Layers, c.Pages, c.PageSize, c.KVHeads, c.HeadDim, c.ValueDim = 1, 200, pageSize, kvHeads, headDim, headDim
	m := &model{t: t, backend: cpu.New(cpu.Options{Workers: 1}), rng: rand.New(rand.NewPCG(1, 2))}
	var err error
	if m.cache, err = kvcache.New(m.backend, c); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *model) random(d tensor.DType, shape ...int64) tensor.View {
	v := tensor.New(d, shape...)
	for i := range shape[0] {
		for j := range shape[1] {
			for k := range shape[2] {
				v.Set(float32(m.rng.NormFloat64()), i, j, k)
			}
		}
	}
	return v
}

func (m *model) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// grow adds n tokens of random rows.
func (m *model) grow(id kvcache.ID, n int) {
	m.t.Helper()
	slots, err := m.cache.Extend([]kvcache.ID{id}, []int{n}, nil)
	m.must(err)
	m.must(m.cache.Append(0, slots, m.random(tensor.F32, int64(n), kvHeads, headDim), m.random(tensor.F32, int64(n), kvHeads, headDim)))
}

func (m *model) start(n int) kvcache.ID {
	m.t.Helper()
	id := m.cache.NewSequence()
	m.grow(id, n)
	return id
}

func (m *model) fork(id kvcache.ID, n int) kvcache.ID {
	m.t.Helper()
	id, err := m.cache.Fork(id)
	m.must(err)
	m.grow(id, n)
	return id
}

// attend is attention of a step, with its LSE.
func (m *model) attend(mask attention.Mask, step attention.Step, query tensor.View) (out, lse tensor.View) {
	m.t.Helper()
	c := m.cache.Config()
	a, err := attention.New(m.backend, attention.Config{Heads: heads, KVHeads: kvHeads, HeadDim: headDim, KVDType: c.DType, PageSize: pageSize, Mask: mask,
		KeyStorage: c.KeyStorage, Coding: c.Coding, Rotary: rope.Default{Base: rope.Base{HeadDim: headDim, Theta: 1e4}}})
	m.must(err)
	defer a.Close()
	step.Length = 4096
	m.must(a.Plan(step))
	args := kernel.Args{Query: query, Out: tensor.New(tensor.F32, query.Shape[0], heads, headDim), LSE: tensor.New(tensor.F32, query.Shape[0], heads)}
	m.must(m.cache.Bind(0, &args))
	m.must(a.Run(&args))
	return args.Out, args.LSE
}

// cascade is attend in two passes.
func (m *model) cascade(ids []kvcache.ID, lens []int, query tensor.View) (out, lse tensor.View, c *prefix.Cascade) {
	m.t.Helper()
	c = prefix.NewCascade(m.cache.Sequences(ids...))
	m.must(c.Plan(lens))
	outA, lseA := m.attend(attention.Bidirectional(), attention.Step{KV: c.Shared(), QueryLens: c.SharedQueryLens(), QueryPos: c.QueryPos()}, query)
	outB, lseB := m.attend(attention.Causal(), attention.Step{KV: c.Tails(), QueryLens: lens, QueryPos: c.QueryPos()}, query)
	m.must(m.backend.Merge(&kernel.MergeArgs{OutA: outA, LSEA: lseA, OutB: outB, LSEB: lseB, Out: outA, LSE: lseA}))
	return outA, lseA, c
}

// TestCascade: two passes are one but for rounding, and the same bits whoever
// shares the prefix.
func TestCascade(t *testing.T) {
	for name, config := range map[string]kvcache.Config{
		"pre-RoPE": {DType: tensor.F32}, "post-RoPE": {DType: tensor.BF16, KeyStorage: kernel.PostRoPE},
		"coded": {DType: tensor.F16, Coding: kernel.KIVI(kernel.Int8, headDim), CodedPages: 64, Residual: 2 * pageSize},
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel(t, config)
			root := m.start(130) // 8 pages and a part of one, which is copied for each
			far := m.fork(root, 30)
			ids := []kvcache.ID{m.start(40), m.fork(root, 3), m.fork(root, 1), m.fork(root, 9), m.fork(far, 2), m.fork(far, 1), m.start(5)}
			lens := []int{2, 1, 1, 4, 1, 2, 5}
			tokens := 0
			for _, n := range lens {
				tokens += n
			}
			query := m.random(tensor.F32, int64(tokens), heads, headDim)
			wantOut, wantLSE := m.attend(attention.Causal(), attention.Step{KV: m.cache.Sequences(ids...), QueryLens: lens}, query)
			out, lse, c := m.cascade(ids, lens, query)
			near(t, "Out", out.F32s(), wantOut.F32s())
			near(t, "LSE", lse.F32s(), wantLSE.F32s())
			if c.Saved() < 300 {
				t.Errorf("%d keys saved in groups of %v query tokens", c.Saved(), c.SharedQueryLens())
			}
			row := heads * headDim
			for _, alone := range [][2]int{{0, 2}, {tokens - 5, tokens}} {
				if !slices.Equal(out.F32s()[alone[0]*row:alone[1]*row], wantOut.F32s()[alone[0]*row:alone[1]*row]) {
					t.Error("a sequence that shares nothing has other bits")
				}
			}
			if config.Coded() {
				return // how much of a table is coded goes by its length, and so does the cut
			}
			// Sequence 2 with itself: cut at the same key.
			twice := tensor.New(tensor.F32, 2, heads, headDim)
			copy(twice.F32s(), query.F32s()[3*row:4*row])
			copy(twice.F32s()[row:], query.F32s()[3*row:4*row])
			self, _, s := m.cascade([]kvcache.ID{ids[2], ids[2]}, []int{1, 1}, twice)
			if s.Saved() != 128 || !slices.Equal(self.F32s()[:row], out.F32s()[3*row:4*row]) || !slices.Equal(self.F32s()[row:], out.F32s()[3*row:4*row]) {
				t.Errorf("other bits with other sharers; %d keys saved", s.Saved())
			}
		})
	}
}

func near(t *testing.T, what string, got, want []float32) {
	t.Helper()
	for i := range want {
		if !(math.Abs(float64(got[i]-want[i])) <= 2e-6*(1+math.Abs(float64(want[i])))) {
			t.Fatalf("%s[%d] is %v, want %v", what, i, got[i], want[i])
		}
	}
}

// TestCascadeGroups: neighbours are grouped where that saves keys, and never
// past a query.
func TestCascadeGroups(t *testing.T) {
	m := newModel(t, kvcache.Config{DType: tensor.F32})
	root := m.start(2 * pageSize)
	a := m.fork(root, 8*pageSize)
	for _, tt := range []struct {
		name   string
		ids    []kvcache.ID
		lens   []int
		groups []int // query tokens
		saved  int64 // pages
	}{
		{"one prefix", []kvcache.ID{m.fork(root, 1), m.fork(root, 1), m.fork(root, 1)}, []int{1, 1, 1}, []int{3}, 4},
		{"a long one first", []kvcache.ID{m.fork(a, 1), m.fork(a, 1), m.fork(root, 1)}, []int{1, 1, 1}, []int{2, 1}, 10},
		{"not neighbours", []kvcache.ID{m.fork(root, 1), m.start(3), m.fork(root, 1)}, []int{1, 1, 1}, []int{1, 1, 1}, 0},
		{"a query in the prefix", []kvcache.ID{root, m.fork(root, 1)}, []int{1, 1}, []int{2}, 1},
		{"all of it queries", []kvcache.ID{root, m.fork(root, 1)}, []int{2 * pageSize, 1}, []int{2 * pageSize, 1}, 0},
		{"no queries", []kvcache.ID{root, m.fork(root, 1)}, []int{0, 1}, []int{1}, 2},
		{"nothing", nil, nil, nil, 0},
	} {
		c := prefix.NewCascade(m.cache.Sequences(tt.ids...))
		m.must(c.Plan(tt.lens))
		if !slices.Equal(c.SharedQueryLens(), tt.groups) || c.Saved() != tt.saved*pageSize {
			t.Errorf("%s: groups of %v query tokens save %d keys, want %v, %d", tt.name, c.SharedQueryLens(), c.Saved(), tt.groups, tt.saved*pageSize)
		}
	}
	c := prefix.NewCascade(m.cache.Sequences(root))
	for _, lens := range [][]int{{}, {-1}, {2*pageSize + 1}} {
		if err := c.Plan(lens); !errors.As(err, new(*prefix.ValueError)) {
			t.Errorf("query lengths %v: %v", lens, err)
		}
	}
	if err := c.Tails().LowerKV(nil); !errors.As(err, new(*prefix.ValueError)) {
		t.Errorf("LowerKV to nil: %v", err)
	}
	m.must(m.cache.Free(root))
	if err := c.Plan([]int{1}); !errors.As(err, new(*kvcache.UnknownSequenceError)) {
		t.Errorf("a freed sequence: %v", err)
	}
	// The same pages at other positions are another prefix.
	pages, err := m.cache.Hold(a, 0, pageSize, nil)
	m.must(err)
	moved := make([]int32, pageSize)
	for j := range moved {
		moved[j] = int32(j) + 7
	}
	b, err := m.cache.Start(pages, moved)
	m.must(err)
	m.grow(b, 1)
	c = prefix.NewCascade(m.cache.Sequences(a, b))
	m.must(c.Plan([]int{1, 1}))
	if c.Saved() != 0 {
		t.Error("keys at two positions were taken for one")
	}
}
