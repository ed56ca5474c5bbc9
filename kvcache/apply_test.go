package kvcache_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// TestApplyReturnsPages: whole pages go without a copy, also shared ones; a hole
// in a page costs a copy of that page and of those after it, and what a fork
// reads does not change.
func TestApplyReturnsPages(t *testing.T) {
	m := fixed(t, kvcache.Config{Layers: 2, Pages: 12, PageSize: 4, KVHeads: 2, HeadDim: 3, ValueDim: 2, DType: tensor.F32})
	id := m.start(14)
	other := m.branch(id)
	was := m.pages(id)
	keep := func(id kvcache.ID, ordinals ...int32) {
		t.Helper()
		m.ok("Apply", m.cache.Apply([]kvcache.ID{id}, []kvcache.Plan{{Keep: ordinals}}))
		s := m.oracle[id]
		tokens := []token{}
		for _, j := range ordinals {
			tokens = append(tokens, s.tokens[j])
		}
		s.tokens = tokens
		m.check("Apply")
	}
	keep(id, 0, 1, 2, 3, 8, 9, 10, 11, 12, 13)
	if got, want := m.pages(id), []int32{was[0], was[2], was[3]}; !slices.Equal(got, want) || m.backend.gathered.Load() != 0 {
		t.Errorf("pages %v after %d copies, want %v and none", got, m.backend.gathered.Load(), want)
	}
	keep(id, 0, 1, 2, 3, 5, 6, 7, 8) // half of the last page goes, and one key before it
	if s := m.cache.Stats(); s.Used != 5 || m.backend.gathered.Load() != 4*4 || m.pages(id)[0] != was[0] {
		t.Errorf("%d pages used after %d copies, want 5 and 16", s.Used, m.backend.gathered.Load())
	}
	keep(other)
	if s := m.cache.Stats(); s.Used != 2 || s.Shared != 0 {
		t.Errorf("%d pages used, want 2", s.Used)
	}
	m.grow(id, 3)
	if p, _ := m.cache.Positions(id, nil); !slices.Equal(p, []int32{0, 1, 2, 3, 9, 10, 11, 12, 14, 15, 16}) {
		t.Errorf("positions %v", p)
	}
}

// TestApplyMerges: merged rows are the weighted sums, others the same bits; keys
// and values have weights of their own.
func TestApplyMerges(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16, tensor.F8E4M3} {
		c, err := kvcache.New(b, kvcache.Config{Layers: 2, Pages: 16, PageSize: 4, KVHeads: 2, HeadDim: 8, ValueDim: 5, DType: d})
		if err != nil {
			t.Fatal(err)
		}
		id := c.NewSequence()
		fillSequence(t, c, id, 23, rng)
		var before [2][2]tensor.View
		for layer := range before {
			before[layer][0], before[layer][1], err = c.Gather(layer, id)
			if err != nil {
				t.Fatal(err)
			}
		}
		plan := kvcache.Plan{Keep: []int32{0, 1, 2, 3, 6, 9, 10, 15, 22}, Merges: []kvcache.Merge{
			{Into: 2, From: 2, Key: 1, Value: 1}, {Into: 2, From: 4, Value: 0.5}, // values alone
			{Into: 10, From: 11, Key: 0.25, Value: 1}, {Into: 10, From: 10, Key: 0.75, Value: 0.125},
			{Into: 15, From: 8}, // nothing is left of it
		}}
		if err := c.Apply([]kvcache.ID{id}, []kvcache.Plan{plan}); err != nil {
			t.Fatal(err)
		}
		if err := c.CheckIntegrity(); err != nil {
			t.Fatal(err)
		}
		for layer := range before {
			key, value, err := c.Gather(layer, id)
			if err != nil {
				t.Fatal(err)
			}
			for side, got := range []tensor.View{key, value} {
				for i, j := range plan.Keep {
					for h := range got.Shape[1] {
						for f := range got.Shape[2] {
							want := mergedElement(&before[layer][side], &plan, j, side == 1, h, f)
							if x := got.At(int64(i), h, f); x != want {
								t.Fatalf("%v: layer %d key %d side %d: %v, want %v", d, layer, j, side, x, want)
							}
						}
					}
				}
			}
		}
	}
}

// mergedElement is an element of what ordinal j becomes.
func mergedElement(rows *tensor.View, p *kvcache.Plan, j int32, value bool, h, d int64) float32 {
	sum, any := float32(0), false
	for _, m := range p.Merges {
		if m.Into != j {
			continue
		}
		w := m.Key
		if value {
			w = m.Value
		}
		if any = true; w != 0 {
			sum = kernel.FMA(rows.At(int64(m.From), h, d), w, sum)
		}
	}
	if !any {
		return rows.At(int64(j), h, d)
	}
	if rows.DType == tensor.F32 {
		return sum
	}
	return rows.DType.ToF32(rows.DType.FromF32(sum))
}

// fillSequence adds n tokens of random rows.
func fillSequence(t testing.TB, c *kvcache.Cache, id kvcache.ID, n int, rng *rand.Rand) {
	t.Helper()
	slots, err := c.Extend([]kvcache.ID{id}, []int{n}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := c.Config()
	for layer := range f.Layers {
		key, value := normal(rng, n, f.KVHeads, f.HeadDim), normal(rng, n, f.KVHeads, f.ValueDim)
		if err := c.Append(layer, slots, key, value); err != nil {
			t.Fatal(err)
		}
	}
}

func normal(rng *rand.Rand, shape ...int) tensor.View {
	s := make([]int64, len(shape))
	for i, n := range shape {
		s[i] = int64(n)
	}
	v := tensor.New(tensor.F32, s...)
	for i := range v.F32s() {
		v.F32s()[i] = float32(rng.NormFloat64())
	}
	return v
}

// TestApplyThenAttend: attention after an Apply is attention over the rows that
// were kept.
func TestApplyThenAttend(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	const heads, kvHeads, dim = 4, 2, 16
	c, err := kvcache.New(b, kvcache.Config{Layers: 1, Pages: 64, PageSize: 16, KVHeads: kvHeads, HeadDim: dim, ValueDim: dim, DType: tensor.F32})
	if err != nil {
		t.Fatal(err)
	}
	a, err := attention.New(b, attention.Config{Heads: heads, KVHeads: kvHeads, HeadDim: dim, DType: tensor.F32, KVDType: tensor.F32, PageSize: 16, Mask: attention.Causal()})
	if err != nil {
		t.Fatal(err)
	}
	id := c.NewSequence()
	fillSequence(t, c, id, 300, rng)
	key, value, err := c.Gather(0, id)
	if err != nil {
		t.Fatal(err)
	}
	var plan kvcache.Plan
	for j := range int32(300) {
		if rng.IntN(3) == 0 || j == 299 {
			plan.Keep = append(plan.Keep, j)
		}
	}
	if err := c.Apply([]kvcache.ID{id}, []kvcache.Plan{plan}); err != nil {
		t.Fatal(err)
	}
	query, out := normal(rng, 1, heads, dim), tensor.New(tensor.F32, 1, heads, dim)
	if err := a.Plan(attention.Step{QueryLens: []int{1}, KV: c.Sequences(id)}); err != nil {
		t.Fatal(err)
	}
	args := kernel.Args{Query: query, Out: out}
	if err := c.Bind(0, &args); err != nil {
		t.Fatal(err)
	}
	if err := a.Run(&args); err != nil {
		t.Fatal(err)
	}
	for h := range int64(heads) {
		want := attend(&query, &key, &value, 0, h, h/(heads/kvHeads), plan.Keep, nil)
		for d, x := range want {
			if got := float64(out.At(0, h, int64(d))); math.Abs(got-x) > 1e-5 {
				t.Fatalf("head %d feature %d: %v, want %v", h, d, got, x)
			}
		}
	}
}

// attend is attention of one query over the listed keys, in float64. A key
// counts as often as count says; nil: once.
func attend(query, key, value *tensor.View, token, head, kvHead int64, keys []int32, count []float64) []float64 {
	out, total := make([]float64, value.Shape[2]), 0.0
	for i, j := range keys {
		s := 0.0
		for d := range key.Shape[2] {
			s += float64(query.At(token, head, d)) * float64(key.At(int64(j), kvHead, d))
		}
		w := math.Exp(s / math.Sqrt(float64(key.Shape[2])))
		if count != nil {
			w *= count[i]
		}
		total += w
		for d := range out {
			out[d] += w * float64(value.At(int64(j), kvHead, int64(d)))
		}
	}
	for d := range out {
		out[d] /= total
	}
	return out
}

// TestApplyRefuses: bad plans are typed errors, and change nothing.
func TestApplyRefuses(t *testing.T) {
	m := fixed(t, small())
	id, other := m.start(10), m.start(3)
	value, unknown, full := new(*kvcache.ValueError), new(*kvcache.UnknownSequenceError), new(*kvcache.OutOfPagesError)
	ids := func(x ...kvcache.ID) []kvcache.ID { return x }
	for i, tt := range []struct {
		ids    []kvcache.ID
		plans  []kvcache.Plan
		target any
	}{
		{ids(id), nil, value},
		{ids(id, id), make([]kvcache.Plan, 2), value},
		{ids(other, 0), make([]kvcache.Plan, 2), unknown},
		{ids(id), []kvcache.Plan{{Keep: []int32{10}}}, value},
		{ids(id), []kvcache.Plan{{Keep: []int32{-1}}}, value},
		{ids(id), []kvcache.Plan{{Keep: []int32{3, 3}}}, value},
		{ids(other, id), []kvcache.Plan{{}, {Keep: []int32{3, 2}}}, value},
		{ids(id), []kvcache.Plan{{Keep: []int32{1}, Merges: []kvcache.Merge{{Into: 0, From: 1}}}}, value},
		{ids(id), []kvcache.Plan{{Keep: []int32{1}, Merges: []kvcache.Merge{{Into: 2, From: 1}}}}, value},
		{ids(id), []kvcache.Plan{{Keep: []int32{1}, Merges: []kvcache.Merge{{Into: 1, From: 10}}}}, value},
		{ids(id), []kvcache.Plan{{Keep: []int32{1, 2}, Merges: []kvcache.Merge{{Into: 2, From: 1}, {Into: 1, From: 1}}}}, value},
		{ids(other, id), []kvcache.Plan{{}, {Keep: []int32{1, 2, 3, 4, 5, 6, 7, 8, 9}}}, full},
	} {
		before := m.snapshot()
		if err := m.cache.Apply(tt.ids, tt.plans); !errors.As(err, tt.target) {
			t.Errorf("case %d: error %v, want a %T", i, err, tt.target)
		}
		m.unchanged(fmt.Sprint("case ", i), before)
	}
}
