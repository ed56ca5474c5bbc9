package policy_test

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
	"github.com/longctx/longctx/kvcache/policy"
	"github.com/longctx/longctx/tensor"
)

const (
	layers, heads, kvHeads, dim, pageSize = 2, 4, 2, 8, 4
)

// rig is a cache, and sequences of it with what is known of them.
type rig struct {
	t      *testing.T
	rng    *rand.Rand
	cache  *kvcache.HeadCache
	attend *attention.Attention
	live   map[kvcache.ID]*policy.Sequence
	plant  map[int]int64 // the channel in which the key of a token is large
}

func newRig(t *testing.T, seed uint64, pages int, codec kernel.Codec) *rig {
	b := cpu.New(cpu.Options{Workers: 1})
	t.Cleanup(func() { b.Close() })
	config := kvcache.Config{Layers: layers, Pages: pages, PageSize: pageSize, KVHeads: kvHeads, HeadDim: dim, ValueDim: dim, DType: tensor.F32}
	if codec != kernel.NoCodec {
		config.Coding, config.CodedPages = kernel.KIVI(codec, dim), pages
	}
	c, err := kvcache.NewHeads(b, config)
	if err != nil {
		t.Fatal(err)
	}
	a, err := attention.New(b, attention.Config{Heads: heads / kvHeads, KVHeads: 1, HeadDim: dim, DType: tensor.F32, PageSize: pageSize, Coding: config.Coding,
		Mask: attention.Causal(), Score: attention.Score{PrefixBias: true}, ColumnStats: true})
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t: t, rng: rand.New(rand.NewPCG(seed, 7)), cache: c, attend: a, live: map[kvcache.ID]*policy.Sequence{}}
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) normal(shape ...int64) tensor.View {
	v := tensor.New(tensor.F32, shape...)
	for i := range v.F32s() {
		v.F32s()[i] = float32(r.rng.NormFloat64())
	}
	return v
}

func (r *rig) start() kvcache.ID {
	id := r.cache.NewSequence()
	r.live[id] = policy.NewSequence(layers, kvHeads)
	return id
}

// grow adds tokens to a sequence, attends and tells its heads what they may need. It
// reports whether there was room.
func (r *rig) grow(id kvcache.ID, tokens int) bool {
	r.t.Helper()
	s := r.live[id]
	slots, err := r.cache.Extend([]kvcache.ID{id}, []int{tokens}, nil)
	var full *kvcache.OutOfPagesError
	if errors.As(err, &full) {
		return false
	}
	r.ok(err)
	s.Extend(tokens)
	n := int64(tokens)
	for layer := range layers {
		key := r.normal(n, kvHeads, dim)
		for token, channel := range r.plant {
			for head := range int64(kvHeads) {
				key.Set(12, int64(token), head, channel)
			}
		}
		r.ok(r.cache.Append(layer, slots, key, r.normal(n, kvHeads, dim)))
		query := r.normal(n, heads, dim)
		for head := range kvHeads {
			r.observe(id, layer, head, query)
		}
	}
	return true
}

// step is the attention of one KV head of a layer, by the kernels: output and LSE,
// and then the statistics of it.
func (r *rig) step(id kvcache.ID, layer, head int, query tensor.View) (out tensor.View, stats func(power, window int) tensor.View) {
	r.t.Helper()
	lo, hi := int64(head*heads/kvHeads), int64((head+1)*heads/kvHeads)
	h := r.live[id].Head(layer, head)
	var v kvcache.View
	r.ok(r.cache.Head(&v, layer, head, id))
	r.ok(r.attend.Plan(attention.Step{QueryLens: []int{int(query.Shape[0])}, KV: &v}))
	out = tensor.New(tensor.F32, query.Shape[0], hi-lo, dim)
	args := kernel.Args{Query: query.Slice(1, lo, hi), Out: out, LSE: tensor.New(tensor.F32, query.Shape[0], hi-lo)}
	r.ok(r.cache.Bind(&args))
	args.PrefixBias = tensor.New(tensor.F32, int64(h.Len()), hi-lo)
	for j, x := range h.Bias(nil) {
		for g := range hi - lo {
			args.PrefixBias.Set(x, int64(j), g)
		}
	}
	r.ok(r.attend.Run(&args))
	return out, func(power, window int) tensor.View {
		sums := tensor.New(tensor.F32, int64(h.Len()), hi-lo)
		r.ok(r.attend.ColumnStats(&kernel.ColumnStatsArgs{Query: args.Query, Key: args.Key, CodedKey: args.CodedKey, LSE: args.LSE, ScoreArgs: args.ScoreArgs, Power: power, Window: window, Out: sums}))
		return sums
	}
}

func (r *rig) observe(id kvcache.ID, layer, head int, query tensor.View) {
	r.t.Helper()
	h, tokens := r.live[id].Head(layer, head), int(query.Shape[0])
	_, stats := r.step(id, layer, head, query)
	weights := func(power, window int) []float32 {
		w, err := policy.Weights(stats(power, window), 0, h.Len(), 0, heads/kvHeads)
		r.ok(err)
		return w
	}
	window := min(4, tokens)
	r.ok(h.Observe(policy.Observation{Queries: tokens, Sum: weights(1, 0), Square: weights(2, 0), Max: weights(1, 1), RecentQueries: window, Recent: weights(1, window)}))
	if h.External == nil {
		h.External, h.Tags = make([]float32, h.Len()), make([]policy.Tag, h.Len())
		h.Low = make([]float32, h.Len())
	}
	for j := h.Len() - tokens; j < h.Len(); j++ {
		h.External[j], h.Tags[j] = float32(r.rng.NormFloat64()), policy.Tag(max(r.rng.IntN(9)-6, 0))
	}
	h.Moments = nil
	for g := range heads / kvHeads {
		m, err := policy.MomentsOf(query, head*heads/kvHeads+g)
		r.ok(err)
		h.Moments = append(h.Moments, m)
	}
}

// apply makes a plan and carries it out. It reports whether there was room.
func (r *rig) apply(id kvcache.ID, p policy.Planner, keys int) bool {
	r.t.Helper()
	s := r.live[id]
	r.ok(s.Load(r.cache, id))
	for _, h := range s.Heads {
		h.Prompt, h.Projected = max(h.Tokens-5, 0), make([]float32, h.Len())
		for j := range h.Projected {
			h.Projected[j] = float32(r.rng.ExpFloat64())
		}
	}
	plans, err := p.Plan(s, keys)
	r.ok(err)
	again, err := p.Plan(s, keys)
	r.ok(err)
	for i := range plans {
		if !slices.Equal(plans[i].Keep, again[i].Keep) || !slices.Equal(plans[i].Merges, again[i].Merges) {
			r.t.Fatal("a second plan differs")
		}
	}
	var full *kvcache.OutOfPagesError
	if err := r.cache.Apply([]kvcache.ID{id}, plans); errors.As(err, &full) {
		return false
	} else {
		r.ok(err)
	}
	r.ok(s.Applied(plans))
	return true
}

// check compares what policies know with the cache.
func (r *rig) check(what string) {
	r.t.Helper()
	if err := r.cache.CheckIntegrity(); err != nil {
		r.t.Fatalf("after %s: %v", what, err)
	}
	for id, s := range r.live {
		for i, h := range s.Heads {
			got, err := r.cache.Positions(id, i/kvHeads, i%kvHeads, nil)
			if err != nil || !slices.Equal(got, h.Positions) {
				r.t.Fatalf("after %s: head %d has positions %v (%v), the policy thinks %v", what, i, got, err, h.Positions)
			}
		}
	}
}

// TestPoliciesOnACache: every policy works on a cache through prompts, steps, forks
// and roll-backs, keeps what it was asked to, and gives pages back.
func TestPoliciesOnACache(t *testing.T) {
	for _, e := range policy.Policies() {
		if e.Kind == "channels" || e.Kind == "layers" {
			continue
		}
		t.Run(e.Name, func(t *testing.T) {
			const keys = 12
			p, err := e.Planner(policy.Sizes{Layers: layers, KVHeads: kvHeads, HeadDim: dim, Keys: keys, PageSize: pageSize})
			if err != nil {
				t.Fatal(err)
			}
			r := newRig(t, 1, 400, kernel.NoCodec)
			id := r.start()
			r.grow(id, 50)
			used := r.cache.Stats().Used
			if !r.apply(id, p, keys) {
				t.Fatal("no room")
			}
			r.check("the prompt")
			now, most := r.cache.Stats(), int64(layers*kvHeads*keys)
			switch p := p.(type) {
			case *policy.Policy:
				if now.Tokens != most && p.Block <= 1 || now.Tokens > most || now.Tokens < most-layers*kvHeads*int64(p.Block) {
					t.Errorf("%d keys are left, want %d", now.Tokens, most)
				}
			case policy.SCOPE:
				if now.Tokens != most+layers*kvHeads*5 {
					t.Errorf("%d keys are left, want %d and 5 generated", now.Tokens, most)
				}
			case policy.DuoAttention, policy.RazorAttention:
				if now.Tokens > most+layers*kvHeads {
					t.Errorf("%d keys are left, want %d and one a head at most", now.Tokens, most)
				}
			default:
				_ = p
				most = math.MaxInt64
			}
			if most < math.MaxInt64 && now.Used > used/2 {
				t.Errorf("%d pages used of %d", now.Used, used)
			}
			r.walk(p, keys)
		})
	}
}

// walk does steps, forks and roll-backs at random.
func (r *rig) walk(p policy.Planner, keys int) {
	for range 25 {
		ids := make([]kvcache.ID, 0, len(r.live))
		for id := range r.live {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		id := ids[r.rng.IntN(len(ids))]
		s := r.live[id]
		what := ""
		switch op := r.rng.IntN(6); {
		case op == 0 && len(ids) < 3:
			other, err := r.cache.Fork(id)
			r.ok(err)
			r.live[other], what = s.Clone(), "Fork"
		case op == 1 && s.Heads[0].Tokens > 3:
			n := s.Heads[0].Tokens - r.rng.IntN(3)
			var cut *kvcache.CodedPageError
			if err := r.cache.Truncate(id, n); !errors.As(err, &cut) {
				r.ok(err)
				s.Truncate(n)
			}
			what = fmt.Sprint("Truncate to ", n)
		case op == 2:
			what = fmt.Sprint("Apply ", r.apply(id, p, keys))
		case op == 3 && len(ids) > 1:
			r.ok(r.cache.Free(id))
			delete(r.live, id)
			what = "Free"
		default:
			what = fmt.Sprint("grow ", r.grow(id, 1+r.rng.IntN(6)))
		}
		r.check(what)
	}
}

// TestPoliciesOnCodedPages: a policy that keeps whole blocks drops coded pages as
// well, and copies nothing; one that does not is refused, and changes nothing.
func TestPoliciesOnCodedPages(t *testing.T) {
	const keys = 16
	for _, codec := range []kernel.Codec{kernel.Int8, kernel.Int4} {
		for _, e := range policy.Policies() {
			planner, err := e.Planner(policy.Sizes{Layers: layers, KVHeads: kvHeads, HeadDim: dim, Keys: keys})
			p, ok := planner.(*policy.Policy)
			if err != nil || !ok || e.Kind != "evict" {
				continue
			}
			r := newRig(t, 6, 400, codec)
			id := r.start()
			r.grow(id, 50)
			r.grow(id, 3) // codes the pages of the prompt
			coded := r.cache.Stats().CodedUsed
			if coded == 0 {
				t.Fatal("no page is coded")
			}
			p.Block = pageSize
			r.apply(id, p, keys)
			r.check(e.Name)
			if s := r.cache.Stats(); s.CodedUsed >= coded || s.Tokens > layers*kvHeads*(keys+2*pageSize) {
				t.Errorf("%s: %d coded pages of %d and %d keys are left", e.Name, s.CodedUsed, coded, s.Tokens)
			}
			r.walk(p, keys)
		}
	}
	r := newRig(t, 6, 400, kernel.Int8)
	id := r.start()
	r.grow(id, 50)
	r.grow(id, 3)
	plans, err := policy.H2O().Plan(r.live[id], keys)
	r.ok(err)
	var rows *kvcache.CodedRowsError
	if err := r.cache.Apply([]kvcache.ID{id}, plans); !errors.As(err, &rows) {
		t.Errorf("error %v, want a CodedRowsError", err)
	}
	r.check("a plan that was refused")
}

// TestFullCache: a plan that finds no room for its copies changes nothing, and does
// its work after room was made.
func TestFullCache(t *testing.T) {
	r := newRig(t, 3, layers*kvHeads*8, kernel.NoCodec)
	id := r.start()
	if !r.grow(id, 8*pageSize) || r.cache.Stats().Free != 0 {
		t.Fatal("the cache is not full")
	}
	if r.grow(id, 1) {
		t.Fatal("a full cache took a token")
	}
	p := &policy.Policy{Score: policy.KeyNorm{}}
	if r.apply(id, p, 20) {
		t.Fatal("rows were copied to a full cache")
	}
	r.check("a plan that was refused")
	if !r.apply(id, policy.StreamingLLM(pageSize), 4*pageSize) { // whole pages: nothing is copied
		t.Fatal("pages were not let go of")
	}
	if !r.apply(id, p, 8) || !r.grow(id, 3) {
		t.Fatal("there is room now")
	}
	r.check("all")
}

// TestCompensationToken: with RazorAttention a head attends to one token that counts
// as often as the tokens it stands for.
func TestCompensationToken(t *testing.T) {
	r := newRig(t, 4, 200, kernel.NoCodec)
	id := r.start()
	r.grow(id, 30)
	p := policy.RazorAttention{Retrieval: []bool{true, false, false, true}, Streaming: policy.Window{Sinks: 2, Recent: 9}}
	r.apply(id, p, 0)
	r.grow(id, 4)
	r.apply(id, p, 0)
	query := r.normal(1, heads, dim)
	for layer := range layers {
		for head := range kvHeads {
			out, _ := r.step(id, layer, head, query)
			key, value, err := r.cache.Gather(id, layer, head)
			r.ok(err)
			h := r.live[id].Head(layer, head)
			if full := p.Retrieval[layer*kvHeads+head]; full != (h.Count == nil) || !full && h.Count[2] != 34-11 {
				t.Fatalf("layer %d head %d: counts %v", layer, head, h.Count)
			}
			for g := range int64(heads / kvHeads) {
				want, total := make([]float64, dim), 0.0
				for j := range key.Shape[0] {
					x := 0.0
					for d := range int64(dim) {
						x += float64(query.At(0, int64(head*heads/kvHeads)+g, d)) * float64(key.At(j, 0, d))
					}
					w := math.Exp(x / math.Sqrt(dim))
					if h.Count != nil {
						w *= float64(h.Count[j])
					}
					total += w
					for d := range want {
						want[d] += w * float64(value.At(j, 0, int64(d)))
					}
				}
				for d := range want {
					if got := float64(out.At(0, g, int64(d))); math.Abs(got-want[d]/total) > 1e-5 {
						t.Fatalf("layer %d head %d: %v, want %v", layer, head, got, want[d]/total)
					}
				}
			}
		}
	}
}

// TestPlantedKeys: policies that look at attention keep the keys that the last
// queries look for.
func TestPlantedKeys(t *testing.T) {
	for _, name := range []string{"snapkv", "pyramidkv", "ada-kv", "tova", "pyramidinfer"} {
		r := newRig(t, 5, 400, kernel.NoCodec)
		r.plant = map[int]int64{7: 0, 23: 1, 31: 2}
		id := r.start()
		r.grow(id, 60)
		query := tensor.New(tensor.F32, 4, heads, dim)
		for i := range int64(4) {
			for h := range int64(heads) {
				query.Set(4, i, h, i%3)
			}
		}
		for layer := range layers {
			for head := range kvHeads {
				r.observe(id, layer, head, query)
			}
		}
		e, err := policy.Find(name)
		r.ok(err)
		p, err := e.Planner(policy.Sizes{Layers: layers, KVHeads: kvHeads, HeadDim: dim, Keys: 36})
		r.ok(err)
		r.apply(id, p, 36)
		for i, h := range r.live[id].Heads {
			if name == "pyramidkv" && i >= kvHeads {
				continue // one key is left beside the window
			}
			for j := range r.plant {
				if !slices.Contains(h.Positions, int32(j)) {
					t.Errorf("%s: head %d has lost key %d: %v", name, i, j, h.Positions)
				}
			}
		}
	}
}

// TestRegistry: names are unique, and each entry says what it is.
func TestRegistry(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range policy.Policies() {
		if e.Name == "" || e.Paper == "" || e.Cost == "" || e.New == nil || seen[e.Name] {
			t.Errorf("entry %+v", e)
		}
		seen[e.Name] = true
		if f, err := policy.Find(e.Name); err != nil || f.Name != e.Name {
			t.Errorf("Find(%s): %v, %v", e.Name, f.Name, err)
		}
		_, err := e.Planner(policy.Sizes{Layers: 1, KVHeads: 1, HeadDim: 4, Keys: 8})
		if planner := e.Kind == "evict" || e.Kind == "merge"; planner != (err == nil) {
			t.Errorf("%s of kind %s: %v", e.Name, e.Kind, err)
		}
	}
	var value *policy.ValueError
	if _, err := policy.Find("none such"); !errors.As(err, &value) {
		t.Errorf("error %v", err)
	}
}
