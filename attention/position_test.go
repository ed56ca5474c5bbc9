package attention_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

func termsOf(t testing.TB, p attention.Position, length int) []attention.Term {
	t.Helper()
	terms, err := p.Terms(length)
	if err != nil {
		t.Fatalf("%#v: %v", p, err)
	}
	return terms
}

// distance is PosQ(i) − PosK(j) of the Term that has the pair; it fails where
// two have it.
func distance(t testing.TB, terms []attention.Term, i, j int64) (d float64, seen bool) {
	t.Helper()
	for k := range terms {
		if !terms[k].Region.Contains(i, j, 0) {
			continue
		}
		if seen {
			t.Fatalf("pair (%d, %d) is in two terms", i, j)
		}
		d, seen = terms[k].PosQ.At(i)-terms[k].PosK.At(j), true
	}
	return d, seen
}

// row writes the distances of query i from keys 0 to i, "." where unseen.
func row(t testing.TB, p attention.Position, i int64) string {
	terms := termsOf(t, p, int(i)+1)
	var out []string
	for j := range i + 1 {
		if d, seen := distance(t, terms, i, j); seen {
			out = append(out, fmt.Sprintf("%g", d))
		} else {
			out = append(out, ".")
		}
	}
	return strings.Join(out, " ")
}

// The rows come from an independent script that follows the published code of
// each method pair by pair.
func TestPositionGoldenDistances(t *testing.T) {
	for _, c := range []struct {
		position attention.Position
		i        int64
		want     string
	}{
		{attention.Absolute{}, 5, "5 4 3 2 1 0"},
		{attention.NoPE{}, 5, "0 0 0 0 0 0"},
		{attention.ReRoPE{Window: 4}, 15, "4 4 4 4 4 4 4 4 4 4 4 4 3 2 1 0"},
		{attention.ReRoPE{Window: 4}, 9, "4 4 4 4 4 4 3 2 1 0"},
		{attention.LeakyReRoPE{Window: 4, Factor: 2}, 15, "9.5 9 8.5 8 7.5 7 6.5 6 5.5 5 4.5 4 3 2 1 0"},
		{attention.LeakyReRoPE{Window: 4, Factor: 2}, 9, "6.5 6 5.5 5 4.5 4 3 2 1 0"},
		{attention.SelfExtend{Group: 2, Window: 4}, 15, "9 9 8 8 7 7 6 6 5 5 4 4 3 2 1 0"},
		{attention.SelfExtend{Group: 2, Window: 4}, 9, "6 6 5 5 4 4 3 2 1 0"},
		{attention.DCA{Chunk: 6, Local: 2}, 15, "6 5 4 3 6 5 4 3 6 5 4 3 3 2 1 0"},
		{attention.DCA{Chunk: 6, Local: 2}, 9, "6 5 4 3 5 4 3 2 1 0"},
		{attention.LMInfinite{Global: 2, Window: 5}, 15, "5 5 . . . . . . . . . 4 3 2 1 0"},
		{attention.LMInfinite{Global: 2, Window: 5}, 9, "5 5 . . . 4 3 2 1 0"},
		{attention.StreamingLLM{Sinks: 2, Recent: 4}, 3, "3 2 1 0"},
		{attention.StreamingLLM{Sinks: 2, Recent: 4}, 9, "5 4 . . . . 3 2 1 0"},
		{attention.StreamingLLM{Sinks: 2, Recent: 4}, 15, "5 4 . . . . . . . . . . 3 2 1 0"},
		// figure 5 of the paper: 9 positions, offset 3; then with W = 2
		{attention.STRING{Shift: 3, Window: 0}, 8, "5 4 3 2 1 0 2 1 0"},
		{attention.STRING{Shift: 3, Window: 2}, 8, "7 6 5 4 3 2 2 1 0"},
	} {
		if got := row(t, c.position, c.i); got != c.want {
			t.Errorf("%#v i=%d: distances\n%s, want\n%s", c.position, c.i, got, c.want)
		}
	}
}

// declared is which pairs a module's Terms cover.
func declared(p attention.Position, i, j int64) bool {
	switch m := p.(type) {
	case attention.LMInfinite:
		return i-j < int64(m.Window) || j < int64(m.Global)
	case attention.StreamingLLM:
		return i-j < int64(m.Recent) || j < int64(m.Sinks)
	case attention.DCA:
		s := int64(m.Chunk - m.Local)
		return math.Floor(float64(i)/float64(s)) >= math.Floor(float64(j)/float64(s))
	}
	return true
}

func TestPositionTermsPartitionTheDeclaredPairs(t *testing.T) {
	for _, p := range modules() {
		terms := termsOf(t, p, 40)
		for i := int64(-10); i < 100; i++ {
			for j := range int64(100) {
				if _, seen := distance(t, terms, i, j); seen != declared(p, i, j) {
					t.Fatalf("%#v: pair (%d, %d) is in a term: %v, want %v", p, i, j, seen, !seen)
				}
			}
		}
	}
}

// Every method keeps the distances of the nearest keys.
func TestPositionKeepsNearDistances(t *testing.T) {
	for _, p := range modules() {
		keeps := int64(2)
		switch m := p.(type) {
		case attention.NoPE:
			continue
		case attention.DCA:
			keeps = int64(min(m.Local, m.Chunk-m.Local))
		case attention.ReRoPE:
			keeps = int64(m.Window)
		}
		terms := termsOf(t, p, 200)
		for i := range int64(200) {
			for j := max(0, i-keeps); j <= i; j++ {
				if d, seen := distance(t, terms, i, j); seen && d != float64(i-j) {
					t.Fatalf("%#v: distance of (%d, %d) is %v", p, i, j, d)
				}
			}
		}
	}
}

// A rotated distance is never negative under a causal mask, and never larger
// than the true one.
func TestPositionDistancesDoNotGrow(t *testing.T) {
	for _, p := range modules() {
		terms := termsOf(t, p, 150)
		for i := range int64(150) {
			for j := range i + 1 {
				if d, seen := distance(t, terms, i, j); seen && (d < 0 || d > float64(i-j)+1e-9) {
					t.Fatalf("%#v: distance of (%d, %d) is %v", p, i, j, d)
				}
			}
		}
	}
}

// longest is the part of a module that LongestLength documents.
type longest interface {
	attention.Position
	LongestLength(trained int) int
}

// At LongestLength no distance passes the trained ones, and one token later
// one does, unless there is no limit.
func TestPositionLongestLength(t *testing.T) {
	largest := func(p attention.Position, n int64) (most float64) {
		terms := termsOf(t, p, int(n))
		for i := range n {
			for j := range i + 1 {
				if d, seen := distance(t, terms, i, j); seen {
					most = max(most, d)
				}
			}
		}
		return most
	}
	for _, p := range modules() {
		m, ok := p.(longest)
		if !ok {
			continue
		}
		for _, trained := range []int{2, 3, 5, 6, 7, 8, 9, 10, 16, 33} {
			n := m.LongestLength(trained)
			if n == attention.NoLimit {
				if most := largest(p, 160); most > float64(trained-1) {
					t.Errorf("%#v: no limit for a trained length of %d, but distance %v at length 160", p, trained, most)
				}
				continue
			}
			const rounding = 1e-9 // of Leaky ReRoPE's division
			if most := largest(p, int64(n)); most > float64(trained-1)+rounding {
				t.Errorf("%#v: longest length %d for a trained length of %d has distance %v", p, n, trained, most)
			}
			if most := largest(p, int64(n)+1); most <= float64(trained-1)+rounding {
				t.Errorf("%#v: longest length %d for a trained length of %d, but %d has only distance %v", p, n, trained, n+1, most)
			}
		}
	}
}

func TestPositionLongestLengthOfPublishedSettings(t *testing.T) {
	for _, c := range []struct {
		position longest
		trained  int
		want     int
	}{
		{attention.SelfExtend{Group: 8, Window: 1024}, 4096, (4096-1024)*8 + 1024},
		{attention.DCAFor(4096), 4096, attention.NoLimit},
		{attention.STRINGFor(131072), 131072, 131072 + 43690 - 128},
		{attention.ReRoPE{Window: 1024}, 4096, attention.NoLimit},
		{attention.StreamingLLM{Sinks: 4, Recent: 4092}, 4096, attention.NoLimit},
		{attention.StreamingLLM{Sinks: 4, Recent: 4093}, 4096, 4096},
		{attention.SelfExtend{Group: 1 << 20, Window: 1 << 20}, 1 << 30, attention.NoLimit},
	} {
		if got := c.position.LongestLength(c.trained); got != c.want {
			t.Errorf("%#v: longest length %d for a trained length of %d, want %d", c.position, got, c.trained, c.want)
		}
	}
	if got, want := attention.DCAFor(4096), (attention.DCA{Chunk: 3072, Local: 512}); got != want {
		t.Errorf("DCAFor(4096) is %+v, want %+v", got, want)
	}
}

// degenerate are settings that make a module plain RoPE for n tokens.
func degenerate(n int) []attention.Position {
	return []attention.Position{
		attention.ReRoPE{Window: n},
		attention.LeakyReRoPE{Window: n, Factor: 8},
		attention.LeakyReRoPE{Window: 3, Factor: 1},
		attention.SelfExtend{Group: 1, Window: 4},
		attention.SelfExtend{Group: 2, Window: n + n%2},
		attention.DCA{Chunk: n + 7, Local: 7},
		attention.STRING{Shift: n, Window: 1},
		attention.STRING{Shift: 5, Window: 5},
		attention.LMInfinite{Global: 2, Window: n},
		attention.StreamingLLM{Sinks: n - 4, Recent: 4},
		attention.StreamingLLM{Sinks: 4, Recent: n - 4},
		attention.StreamingLLM{Recent: n},
	}
}

func TestPositionDegenerateDistancesAreRoPE(t *testing.T) {
	const n = 41
	for _, p := range degenerate(n) {
		terms := termsOf(t, p, n)
		for i := range int64(n) {
			for j := range i + 1 {
				if d, seen := distance(t, terms, i, j); !seen || d != float64(i-j) {
					t.Fatalf("%#v: distance of (%d, %d) is %v, in a term: %v; want %d", p, i, j, d, seen, i-j)
				}
			}
		}
	}
}

// causal is a small input for a position module: two sequences, the second
// with keys before its queries.
func causal(p attention.Position, r *rand.Rand, queries ...int) input {
	in := input{
		config: attention.Config{Heads: 4, KVHeads: 2, HeadDim: 16, Mask: attention.Causal(), Position: p, Rotary: plain{dim: 12}},
		step:   attention.Step{QueryLens: queries, KeyLens: queries},
	}
	in.fill(r)
	return in
}

func TestPositionDegenerateBitsAreRoPE(t *testing.T) {
	const n = 530 // past the first chunk of the Exact policy
	b := backend(t, 2)
	want := run(t, b, causal(attention.Absolute{}, rand.New(rand.NewPCG(2, 1)), n, 70))
	for _, p := range degenerate(n) {
		sameBits(t, fmt.Sprintf("%#v", p), run(t, b, causal(p, rand.New(rand.NewPCG(2, 1)), n, 70)), want)
	}
}

// A row of a prefill is the decode step at its token: no module's rule may
// depend on how many queries came with a query, or on keys that follow.
func TestPositionPrefillRowIsDecodeStep(t *testing.T) {
	const n = 150
	b := backend(t, 2)
	for _, p := range modules() {
		in := causal(p, rand.New(rand.NewPCG(2, 2)), n)
		want := run(t, b, in)
		for _, i := range []int{0, 1, 4, 5, 9, 63, 64, 70, 100, n - 1} {
			step := in.clone()
			step.query = in.query.Slice(0, int64(i), int64(i+1))
			step.step = attention.Step{QueryLens: []int{1}, KeyLens: []int{i + 1}}
			sameBits(t, fmt.Sprintf("%#v, token %d", p, i), run(t, b, step), want.rows(i, i+1))
		}
	}
}

// The Terms of StreamingLLM give what a cache gives that drops the keys out of
// sight and counts positions by rank. The rotations differ by a common shift,
// so only rounding may.
func TestStreamingLLMIsEviction(t *testing.T) {
	const n = 300
	b := backend(t, 1)
	for _, m := range []attention.StreamingLLM{{Sinks: 2, Recent: 4}, {Sinks: 4, Recent: 60}, {Recent: 5}} {
		in := causal(m, rand.New(rand.NewPCG(2, 3)), n)
		all := run(t, b, in)
		for _, i := range []int{0, 3, m.Sinks + m.Recent - 1, m.Sinks + m.Recent, 100, n - 1} {
			var kept []int64
			for j := range int64(i + 1) {
				if j < int64(m.Sinks) || int64(i)-j < int64(m.Recent) {
					kept = append(kept, j)
				}
			}
			cache := in.clone()
			cache.config.Position = attention.Absolute{}
			cache.step = attention.Step{QueryLens: []int{1}, KeyLens: []int{len(kept)}}
			cache.query = in.query.Slice(0, int64(i), int64(i+1))
			cache.key = tensor.New(tensor.F32, int64(len(kept)), in.key.Shape[1], in.key.Shape[2])
			cache.value = tensor.New(tensor.F32, int64(len(kept)), in.value.Shape[1], in.value.Shape[2])
			for rank, j := range kept {
				copyRow(cache.key, int64(rank), in.key, j)
				copyRow(cache.value, int64(rank), in.value, j)
			}
			what := fmt.Sprintf("%+v, token %d", m, i)
			if len(kept) == i+1 {
				sameBits(t, what, run(t, b, cache), all.rows(i, i+1))
			} else {
				near(t, what, run(t, b, cache), all.rows(i, i+1), 3e-6)
			}
		}
	}
}

// The same with a cache that does drop keys, token by token: pages of one token,
// and positions by rank.
func TestStreamingLLMIsACacheThatDrops(t *testing.T) {
	const n = 90
	b := backend(t, 1)
	m := attention.StreamingLLM{Sinks: 3, Recent: 20}
	in := causal(m, rand.New(rand.NewPCG(2, 4)), n)
	all := run(t, b, in)
	cache, err := kvcache.New(b, kvcache.Config{Layers: 1, Pages: m.Sinks + m.Recent + 1, PageSize: 1,
		KVHeads: in.config.KVHeads, HeadDim: in.config.HeadDim, ValueDim: in.config.HeadDim, DType: tensor.F32})
	if err != nil {
		t.Fatal(err)
	}
	id := cache.NewSequence()
	for i := range n {
		slots, err := cache.Extend([]kvcache.ID{id}, []int{1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		at := int64(i)
		if err := cache.Append(0, slots, in.key.Slice(0, at, at+1), in.value.Slice(0, at, at+1)); err != nil {
			t.Fatal(err)
		}
		if i >= m.Sinks+m.Recent {
			if err := cache.Drop(id, m.Sinks, m.Sinks+1); err != nil {
				t.Fatal(err)
			}
		}
		step := in.clone()
		step.config.Position, step.config.PageSize = attention.Absolute{}, 1
		step.step = attention.Step{QueryLens: []int{1}, KV: cache.Sequences(id), ByRank: true}
		step.query, step.key, step.value = in.query.Slice(0, at, at+1), cache.KeyView(0), cache.ValueView(0)
		near(t, fmt.Sprintf("token %d", i), run(t, b, step), all.rows(i, i+1), 3e-6)
	}
}

// What a module says of KeyStorage is what New accepts.
func TestPositionKeyStorage(t *testing.T) {
	b := backend(t, 1)
	for _, p := range modules() {
		post := false
		switch p.(type) {
		case attention.Absolute, attention.NoPE, attention.DCA, attention.STRING, attention.StreamingLLM:
			post = true
		}
		c := attention.Config{Heads: 1, KVHeads: 1, HeadDim: 4, Mask: attention.Causal(), Position: p, Rotary: plain{dim: 4}, KeyStorage: kernel.PostRoPE}
		a, err := attention.New(b, c)
		if (err == nil) != post {
			t.Errorf("%#v: post-RoPE keys: %v, want accepted: %v", p, err, post)
		}
		if err == nil {
			a.Close()
		}
	}
}

// The lowered rows of the rotation table are the positions the module names.
func TestPositionLowersToItsRows(t *testing.T) {
	b := backend(t, 1)
	rotation, _ := plain{dim: 6, factor: 1.25}.Rotation(1)
	for _, p := range modules() {
		c := attention.Config{Heads: 1, KVHeads: 1, HeadDim: 8, Mask: attention.Bidirectional(), Position: p, Rotary: plain{dim: 6, factor: 1.25}}
		a, err := attention.New(b, c)
		if err != nil {
			t.Fatal(err)
		}
		// a growing sequence, as in decoding, then a shorter one, and queries
		// before the first key
		for _, s := range []attention.Step{
			{QueryLens: []int{3}, KeyLens: []int{3}}, {QueryLens: []int{1}, KeyLens: []int{90}},
			{QueryLens: []int{1}, KeyLens: []int{400}}, {QueryLens: []int{9}, KeyLens: []int{4}},
		} {
			if err := a.Plan(s); err != nil {
				t.Fatal(err)
			}
			batch := a.Batch()
			k := 0
			for _, term := range termsOf(t, p, s.KeyLens[0]) {
				if term.Region.Empty() {
					continue // not lowered
				}
				low := &batch.Terms[k]
				k++
				for i := batch.QueryIndex(0); i < int64(s.KeyLens[0]); i++ {
					checkRow(t, batch, &rotation, low.RowQ.Row(i), term.PosQ.At(i), kernel.QuerySide)
				}
				for j := range int64(s.KeyLens[0]) {
					checkRow(t, batch, &rotation, low.RowK.Row(j), term.PosK.At(j), kernel.KeySide)
				}
			}
			if k != len(batch.Terms) {
				t.Errorf("%#v: %d terms in the batch, want %d", p, len(batch.Terms), k)
			}
		}
		a.Close()
	}
}

func checkRow(t testing.TB, b *kernel.Batch, r *kernel.Rotation, row int64, position float64, side kernel.Side) {
	t.Helper()
	half := int64(r.Dim / 2)
	cos, sin := make([]float32, half), make([]float32, half)
	r.Fill(cos, sin, [3]float64{position}, side)
	for k := range half {
		if b.Rotary.Cos[row*half+k] != cos[k] || b.Rotary.Sin[row*half+k] != sin[k] {
			t.Fatalf("row %d of the table is not position %v", row, position)
		}
	}
}

func TestPositionParametersAreChecked(t *testing.T) {
	for _, c := range []struct {
		position attention.Position
		want     string
	}{
		{attention.ReRoPE{}, "Window is 0, want 1"},
		{attention.ReRoPE{Window: math.MaxInt32}, "want 1 to 2³¹−2"},
		{attention.LeakyReRoPE{Window: 4, Factor: 0.5}, "Factor is 0.5, want finite and at least 1"},
		{attention.LeakyReRoPE{Window: 4, Factor: math.NaN()}, "Factor is NaN"},
		{attention.LeakyReRoPE{Window: 4, Factor: math.Inf(1)}, "Factor is +Inf"},
		{attention.LeakyReRoPE{Window: -1, Factor: 2}, "Window is -1"},
		{attention.SelfExtend{Group: 0, Window: 4}, "Group is 0"},
		{attention.SelfExtend{Group: 4, Window: 6}, "Window is 6, want a multiple of Group 4"},
		{attention.SelfExtend{Group: 4}, "Window is 0"},
		{attention.DCA{}, "Chunk is 0"},
		{attention.DCA{Chunk: 4, Local: 4}, "Local is 4, want 0 to Chunk−1 = 3"},
		{attention.DCA{Chunk: 4, Local: -1}, "Local is -1"},
		{attention.DCA{Chunk: 4, MScale: -1}, "MScale is -1"},
		{attention.STRING{Shift: 0}, "Shift is 0"},
		{attention.STRING{Shift: 4, Window: 5}, "Window is 5, want 0 to Shift 4"},
		{attention.LMInfinite{Global: -1, Window: 4}, "Global is -1"},
		{attention.LMInfinite{Global: 1}, "Window is 0"},
		{attention.StreamingLLM{Sinks: -1, Recent: 4}, "Sinks is -1"},
		{attention.StreamingLLM{Sinks: 1}, "Recent is 0"},
		{attention.StreamingLLM{Sinks: 1 << 30, Recent: 1 << 30}, "Sinks+Recent is 2147483648"},
	} {
		terms, err := c.position.Terms(8)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%#v: error %v, want one with %q", c.position, err, c.want)
		}
		if terms != nil {
			t.Errorf("%#v: terms beside an error", c.position)
		}
	}
}

// The published code multiplies queries and keys by 0.05·ln(n/L) + 1 each, so
// scores by its square, from length L on.
func TestDCAScale(t *testing.T) {
	m := attention.DCA{Chunk: 6, Local: 2, MScale: 8}
	for _, c := range []struct {
		length int
		want   float64
	}{{1, 1}, {8, 1}, {16, 1.0705159}, {800, 1.5135360}} {
		for _, term := range termsOf(t, m, c.length) {
			if math.Abs(term.Scale-c.want) > 1e-6 {
				t.Errorf("scale at length %d is %v, want %v", c.length, term.Scale, c.want)
			}
		}
	}
}

func TestPositionNamesDiffer(t *testing.T) {
	seen := map[string]string{}
	for _, p := range modules() {
		kind := fmt.Sprintf("%T", p)
		if other, ok := seen[p.Name()]; ok && other != kind {
			t.Errorf("%s and %s are both named %q", kind, other, p.Name())
		}
		seen[p.Name()] = kind
	}
}
