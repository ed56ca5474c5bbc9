package attention_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// searching is the last tokens of one sequence over contiguous keys.
type searching struct {
	config            attention.Config
	tokens, keys      int
	query, key, value tensor.View
}

func newSearching(r *rand.Rand, tokens, keys, heads, kvHeads, dim int, dtype tensor.DType) *searching {
	k := int64(keys)
	return &searching{
		attention.Config{Heads: heads, KVHeads: kvHeads, HeadDim: dim, ValueDim: dim + 3, DType: dtype}, tokens, keys,
		normal(r, dtype, int64(tokens), int64(heads), int64(dim)), normal(r, dtype, k, int64(kvHeads), int64(dim)), normal(r, dtype, k, int64(kvHeads), int64(dim+3)),
	}
}

func (s *searching) step() attention.Step {
	return attention.Step{QueryLens: []int{s.tokens}, KeyLens: []int{s.keys}}
}

func (s *searching) dense(t testing.TB, b kernel.Backend) result {
	in := input{config: s.config, step: s.step(), query: s.query, key: s.key, value: s.value}
	in.config.Mask = attention.Causal()
	return run(t, b, in)
}

// run is attention to what found has.
func (s *searching) run(t testing.TB, a *attention.SearchedAttention, found *attention.Found) result {
	t.Helper()
	if err := a.Plan(s.step()); err != nil {
		t.Fatal(err)
	}
	heads, dv := s.config.Heads, s.config.ValueDim
	out, lse := tensor.New(s.config.DType, int64(s.tokens), int64(heads), int64(dv)), tensor.New(tensor.F32, int64(s.tokens), int64(heads))
	poison(out)
	poison(lse)
	if err := a.Run(&kernel.Args{Query: s.query, Key: s.key, Value: s.value, Out: out, LSE: lse}, found); err != nil {
		t.Fatal(err)
	}
	return result{widen(out), widen(lse), heads, dv}
}

// allKeys are all that the first and last keys leave.
func (s *searching) allKeys(sinks, window int) *attention.Found {
	found := &attention.Found{Indptr: []int32{0}}
	for t := range s.tokens {
		for range s.config.Heads {
			for j := sinks; j <= s.keys-s.tokens+t-window; j++ {
				found.Indices = append(found.Indices, int32(j))
			}
			found.Indptr = append(found.Indptr, int32(len(found.Indices)))
		}
	}
	return found
}

func TestAllKeysFoundIsDense(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(11, 12))
	for range 40 {
		tokens, kvHeads := 1+r.IntN(3), 1+r.IntN(3)
		s := newSearching(r, tokens, tokens+r.IntN(200), kvHeads*(1+r.IntN(3)), kvHeads, 1+r.IntN(40), []tensor.DType{tensor.F32, tensor.BF16}[r.IntN(2)])
		if r.IntN(2) == 0 {
			s.config.Score.SoftCap = 5
		}
		m := attention.MagicPIG{Bits: 2, Tables: 2, Sinks: r.IntN(4), Window: 1 + r.IntN(20)}
		a, err := m.New(b, s.config)
		if err != nil {
			t.Fatal(err)
		}
		tolerance := 2e-5
		if s.config.DType != tensor.F32 {
			tolerance = 0.03
		}
		near(t, "all keys found", s.run(t, a, s.allKeys(m.Sinks, m.Window)), s.dense(t, b), tolerance)
		a.Close()
	}
}

// A log weight counts a key exp of it times: 0 with ln 2 is the key twice.
func TestWeightsOfKeysFound(t *testing.T) {
	b := backend(t, 1)
	r := rand.New(rand.NewPCG(13, 14))
	s := newSearching(r, 1, 50, 2, 1, 8, tensor.F32)
	a, err := attention.MagicPIG{Bits: 2, Tables: 2, Sinks: 1, Window: 3}.New(b, s.config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	found := s.allKeys(1, 3)
	for i := range found.Indices {
		found.LogWeight = append(found.LogWeight, float32(math.Log(1+float64(i%3))))
	}
	got := s.run(t, a, found)
	for h := range 2 {
		var sum float64
		out := make([]float64, s.config.ValueDim)
		for j := range s.keys {
			w := 1.0
			if j >= 1 && j <= s.keys-1-3 {
				w = 1 + float64((h*(s.keys-4)+j-1)%3)
			}
			x := 0.0
			for d := range int64(8) {
				x += float64(s.query.At(0, int64(h), d)) * float64(s.key.At(int64(j), 0, d))
			}
			e := w * math.Exp(x/math.Sqrt(8))
			sum += e
			for d := range out {
				out[d] += e * float64(s.value.At(int64(j), 0, int64(d)))
			}
		}
		if d := math.Abs(float64(got.lse[h]) - math.Log(sum)); d > 1e-5 {
			t.Errorf("head %d: LSE %v, want %v", h, got.lse[h], math.Log(sum))
		}
		for d, x := range out {
			if g := float64(got.out[h*len(out)+d]); math.Abs(g-x/sum) > 1e-5 {
				t.Errorf("head %d: Out[%d] %v, want %v", h, d, g, x/sum)
			}
		}
	}
}

// A page of one key is what the found keys are read by, from pages or rows alike.
func TestFoundKeysOfPages(t *testing.T) {
	b := backend(t, 1)
	r := rand.New(rand.NewPCG(15, 16))
	for _, size := range []int{1, 4, 16, 64} {
		s := newSearching(r, 2, 150, 4, 2, 16, tensor.F32)
		s.config.ValueDim = 16
		s.value = normal(r, tensor.F32, 150, 2, 16)
		m := attention.MagicPIG{Bits: 3, Tables: 8, Sinks: 2, Window: 5, Seed: 3}
		flat, err := m.New(b, s.config)
		if err != nil {
			t.Fatal(err)
		}
		defer flat.Close()
		x, err := m.NewIndex(2, 16)
		if err != nil {
			t.Fatal(err)
		}
		var found attention.Found
		if err := x.Append(b, s.key); err != nil {
			t.Fatal(err)
		}
		if err := x.Search(b, s.query, s.keys, &found); err != nil {
			t.Fatal(err)
		}
		want := s.run(t, flat, &found)

		in := input{config: s.config, step: s.step(), query: s.query, key: s.key, value: s.value}
		in.config.PageSize = size
		store := newPages(in)
		store.storage = kernel.PostRoPE
		paged, err := m.New(b, in.config)
		if err != nil {
			t.Fatal(err)
		}
		defer paged.Close()
		if err := paged.Plan(attention.Step{QueryLens: []int{2}, KV: store}); err != nil {
			t.Fatal(err)
		}
		out, lse := tensor.New(tensor.F32, 2, 4, 16), tensor.New(tensor.F32, 2, 4)
		if err := paged.Run(&kernel.Args{Query: s.query, Key: store.key, Value: store.value, Out: out, LSE: lse}, &found); err != nil {
			t.Fatal(err)
		}
		sameBits(t, "paged", result{widen(out), widen(lse), 4, 16}, want)
		// without LSE, and again with the memory of the first
		out2 := tensor.New(tensor.F32, 2, 4, 16)
		if err := paged.Run(&kernel.Args{Query: s.query, Key: store.key, Value: store.value, Out: out2}, &found); err != nil {
			t.Fatal(err)
		}
		sameBits(t, "without LSE", result{widen(out2), widen(lse), 4, 16}, want)
		// heads before slots, and every other page
		other := func(v tensor.View) tensor.View {
			w := tensor.New(tensor.F32, 2*v.Shape[0], v.Shape[2], v.Shape[1], v.Shape[3]).Swap(1, 2)
			poison(w)
			w.Shape[0], w.Stride[0] = v.Shape[0], 2*w.Stride[0]
			for p := range v.Shape[0] {
				for slot := range v.Shape[1] {
					for g := range v.Shape[2] {
						for d := range v.Shape[3] {
							w.Set(v.At(p, slot, g, d), p, slot, g, d)
						}
					}
				}
			}
			return w
		}
		out3 := tensor.New(tensor.F32, 2, 4, 16)
		if err := paged.Run(&kernel.Args{Query: s.query, Key: other(store.key), Value: other(store.value), Out: out3, LSE: lse}, &found); err != nil {
			t.Fatal(err)
		}
		sameBits(t, "heads first", result{widen(out3), widen(lse), 4, 16}, want)
		err = paged.Run(&kernel.Args{Query: s.query, Key: other(store.key), Value: store.value, Out: out3, LSE: lse}, &found)
		wantError(t, "unlike", err, "rows that lie alike")
	}
}

func TestFoundIsChecked(t *testing.T) {
	b := backend(t, 1)
	s := newSearching(rand.New(rand.NewPCG(17, 18)), 1, 20, 1, 1, 8, tensor.F32)
	a, err := attention.MagicPIG{Bits: 2, Tables: 2, Sinks: 2, Window: 3}.New(b, s.config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	args := &kernel.Args{Query: s.query, Key: s.key, Value: s.value, Out: tensor.New(tensor.F32, 1, 1, 11)}
	wantError(t, "no plan", a.Run(args, &attention.Found{Indptr: []int32{0, 0}}), "Run before Plan")
	if err := a.Plan(s.step()); err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]*attention.Found{
		"nil":        nil,
		"rows":       {Indptr: []int32{0}},
		"end":        {Indptr: []int32{0, 2}, Indices: []int32{5}},
		"descending": {Indptr: []int32{0, 2}, Indices: []int32{6, 5}},
		"twice":      {Indptr: []int32{0, 2}, Indices: []int32{5, 5}},
		"a sink":     {Indptr: []int32{0, 1}, Indices: []int32{1}},
		"the window": {Indptr: []int32{0, 1}, Indices: []int32{17}},
		"weights":    {Indptr: []int32{0, 1}, Indices: []int32{5}, LogWeight: []float32{1, 2}},
	} {
		if err := a.Run(args, f); err == nil {
			t.Errorf("%s: was taken", what)
		}
	}
	if err := a.Run(args, &attention.Found{Indptr: []int32{0, 1}, Indices: []int32{16}}); err != nil {
		t.Error(err)
	}
}

// hashed is the attention of MagicPIG with an index of all keys.
func (s *searching) hashed(t testing.TB, b kernel.Backend, a *attention.SearchedAttention, m attention.MagicPIG) (result, *attention.Found) {
	t.Helper()
	x, err := m.NewIndex(s.config.KVHeads, s.config.HeadDim)
	if err != nil {
		t.Fatal(err)
	}
	found := &attention.Found{}
	if err := x.Append(b, s.key); err != nil {
		t.Fatal(err)
	}
	if err := x.Search(b, s.query, s.keys, found); err != nil {
		t.Fatal(err)
	}
	return s.run(t, a, found), found
}

// The sums of weights and of weighted values have the mean of the sums over all
// keys: within 4.5 standard errors over 2000 seeds.
func TestMagicPIGSumsAreUnbiased(t *testing.T) {
	const seeds = 2000
	b := backend(t, 1)
	r := rand.New(rand.NewPCG(19, 20))
	s := newSearching(r, 1, 40, 1, 1, 6, tensor.F32)
	for i := range s.key.F32s() { // a mean to be subtracted
		s.key.F32s()[i] += 0.7
	}
	m := attention.MagicPIG{Bits: 2, Tables: 6, Sinks: 1, Window: 2}
	a, err := m.New(b, s.config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	sums := func(x result) []float64 {
		e := math.Exp(float64(x.lse[0]))
		out := []float64{e}
		for _, v := range x.out {
			out = append(out, e*float64(v))
		}
		return out
	}
	want := sums(s.dense(t, b))
	mean, square := make([]float64, len(want)), make([]float64, len(want))
	few := 0
	for seed := range seeds {
		m.Seed = uint64(seed)
		x, found := s.hashed(t, b, a, m)
		few += len(found.Indices)
		for i, v := range sums(x) {
			mean[i] += v / seeds
			square[i] += v * v / seeds
		}
	}
	if n := float64(few) / seeds; n < 5 || n > 32 {
		t.Errorf("%.1f of 37 keys taken: nothing is sampled", n)
	}
	for i := range want {
		deviation := math.Sqrt((square[i] - mean[i]*mean[i]) / seeds)
		if math.Abs(mean[i]-want[i]) > 4.5*deviation {
			t.Errorf("sum %d: mean %v ± %v, want %v", i, mean[i], deviation, want[i])
		}
	}
}

// How often a key at some angle is taken is Taken of its cosine.
func TestMagicPIGTakesAsOftenAsItSays(t *testing.T) {
	const seeds, dim = 3000, 5
	b := backend(t, 1)
	for _, m := range []attention.MagicPIG{{Bits: 3, Tables: 5, Window: 1}, {Bits: 1, Tables: 2, Window: 1}, {Bits: 5, Tables: 40, Window: 1}} {
		cosines := []float64{-1, -0.8, -0.3, 0, 0.4, 0.9, 0.99}
		query, key := tensor.New(tensor.F32, 1, 1, dim), tensor.New(tensor.F32, int64(2*len(cosines)), 1, dim)
		query.Set(2, 0, 0, 1)
		for i, c := range cosines { // and its opposite, so that the mean is 0
			for side, sign := range []float32{3, -3} {
				key.Set(sign*float32(c), int64(2*i+side), 0, 1)
				key.Set(sign*float32(math.Sqrt(1-c*c)), int64(2*i+side), 0, 3)
			}
		}
		taken := make([]int, key.Shape[0])
		for seed := range seeds {
			m.Seed = uint64(seed)
			x, err := m.NewIndex(1, dim)
			if err != nil {
				t.Fatal(err)
			}
			var found attention.Found
			if err := x.Append(b, key); err != nil {
				t.Fatal(err)
			}
			if err := x.Search(b, query, len(taken)+1, &found); err != nil {
				t.Fatal(err)
			}
			for _, j := range found.Indices {
				taken[j]++
			}
		}
		for j, n := range taken {
			c := cosines[j/2]
			if j%2 == 1 {
				c = -c
			}
			p := 1 - math.Acos(c)/math.Pi
			hit := math.Pow(p, float64(m.Bits))
			u := 1 - math.Pow(1-hit, float64(m.Tables)) - float64(m.Tables)*hit*math.Pow(1-hit, float64(m.Tables-1))
			if got := m.Taken(c); math.Abs(got-u) > 1e-6 {
				t.Errorf("%+v: Taken(%v) is %v, want %v", m, c, got, u)
			}
			if f := float64(n) / seeds; math.Abs(f-u) > 4.5*math.Sqrt(u*(1-u)/seeds)+1e-9 {
				t.Errorf("%+v: cosine %v taken in %v, want %v", m, c, f, u)
			}
		}
	}
}

// Small probabilities keep their digits: against a sum of all terms.
func TestMagicPIGSmallProbabilities(t *testing.T) {
	m := attention.MagicPIG{Bits: 10, Tables: 150}
	for _, c := range []float64{-0.999, -0.9, -0.5, -0.2, 0, 0.3, 0.6, 0.95} {
		hit := math.Pow(1-math.Acos(c)/math.Pi, 10)
		want, choose := 0.0, 150.0
		for k := 2; k <= 150; k++ {
			choose *= float64(151-k) / float64(k)
			want += choose * math.Pow(hit, float64(k)) * math.Pow(1-hit, float64(150-k))
		}
		if got := m.Taken(c); math.Abs(got/want-1) > 1e-5 {
			t.Errorf("Taken(%v) is %v, want %v", c, got, want)
		}
	}
}

// Keys that come one by one are found as keys that come at once, and each query
// of several alone as together.
func TestMagicPIGIncremental(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(21, 22))
	s := newSearching(r, 3, 300, 4, 2, 16, tensor.BF16)
	m := attention.MagicPIG{Bits: 4, Tables: 30, Sinks: 3, Window: 7, Seed: 9}
	search := func(cuts ...int64) attention.Found {
		x, err := m.NewIndex(2, 16)
		if err != nil {
			t.Fatal(err)
		}
		from := int64(0)
		for _, to := range append(cuts, 295) { // the last few are not needed
			if err := x.Append(b, s.key.Slice(0, from, to)); err != nil {
				t.Fatal(err)
			}
			from = to
		}
		if x.Keys() != 295 {
			t.Fatalf("%d keys", x.Keys())
		}
		var found attention.Found
		for k := range int64(3) {
			if err := x.Search(b, s.query.Slice(0, k, k+1), 298+int(k), &found); err != nil {
				t.Fatal(err)
			}
		}
		var together attention.Found
		if err := x.Search(b, s.query, 300, &together); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(found.Indices, together.Indices) || !slices.Equal(found.Indptr, together.Indptr) || !slices.Equal(found.LogWeight, together.LogWeight) {
			t.Error("queries are not searched alike alone and together")
		}
		return found
	}
	want, got := search(100), search(100, 101, 102, 230, 294)
	if !slices.Equal(want.Indices, got.Indices) || !slices.Equal(want.LogWeight, got.LogWeight) || len(want.Indices) == 0 {
		t.Errorf("%d keys in pieces, %d at once", len(got.Indices), len(want.Indices))
	}
	for row := range 12 {
		for _, j := range want.Indices[want.Indptr[row]:want.Indptr[row+1]] {
			if j < 3 || int(j) > 297+row/4-7 {
				t.Errorf("row %d has key %d, seen without search", row, j)
			}
		}
	}
}

func TestMagicPIGRefusesBadParameters(t *testing.T) {
	b := backend(t, 1)
	good := attention.MagicPIG{Bits: 4, Tables: 8, Window: 1}
	config := attention.Config{Heads: 2, KVHeads: 1, HeadDim: 8}
	for what, spoil := range map[string]func(*attention.MagicPIG){
		"Bits is 0": func(m *attention.MagicPIG) { m.Bits = 0 }, "Bits is 13": func(m *attention.MagicPIG) { m.Bits = 13 },
		"Tables 1": func(m *attention.MagicPIG) { m.Tables = 1 }, "Tables 256": func(m *attention.MagicPIG) { m.Tables = 256 },
		"Sinks is -1": func(m *attention.MagicPIG) { m.Sinks = -1 }, "Window is 0": func(m *attention.MagicPIG) { m.Window = 0 },
	} {
		m := good
		spoil(&m)
		_, err := m.NewIndex(1, 8)
		wantError(t, what, err, "attention: magicpig: ", what)
		_, err = m.New(b, config)
		wantError(t, what, err, "attention: magicpig: ", what)
	}
	for what, spoil := range map[string]func(*attention.Config){
		"mask":   func(c *attention.Config) { c.Mask = attention.Causal() },
		"rotary": func(c *attention.Config) { c.Rotary = plain{dim: 8} },
		"slopes": func(c *attention.Config) { c.Score.Slopes = true },
		"fp8":    func(c *attention.Config) { c.KVDType = tensor.F8E4M3 },
	} {
		c := config
		spoil(&c)
		_, err := good.New(b, c)
		wantError(t, what, err, "attention: magicpig: ", "SoftCap")
	}
	_, err := good.NewIndex(0, 8)
	wantError(t, "heads", err, "magicpig", "0 KV heads")
	_, err = attention.MagicPIG{Bits: 12, Tables: 255, Window: 1}.NewIndex(4096, 8)
	wantError(t, "lists", err, "magicpig", "at most 16777216 lists")
	x, err := good.NewIndex(1, 8)
	if err != nil {
		t.Fatal(err)
	}
	key := tensor.New(tensor.F32, 5, 1, 8)
	wantError(t, "shape", x.Append(b, tensor.New(tensor.F32, 5, 2, 8)), "[keys, 1, 8]")
	wantError(t, "type", x.Append(b, tensor.New(tensor.F8E4M3, 5, 1, 8)), "f32, f16 or bf16")
	nan := tensor.New(tensor.F32, 5, 1, 8)
	nan.Set(float32(math.NaN()), 3, 0, 2)
	wantError(t, "NaN", x.Append(b, nan), "finite")
	if x.Keys() != 0 {
		t.Errorf("%d keys after errors", x.Keys())
	}
	if err := x.Append(b, key); err != nil {
		t.Fatal(err)
	}
	var found attention.Found
	wantError(t, "heads", x.Search(b, tensor.New(tensor.F32, 1, 2, 7), 5, &found), "[tokens, a multiple of 1, 8]")
	wantError(t, "keys", x.Search(b, tensor.New(tensor.F32, 1, 2, 8), 7, &found), "7 keys")
	wantError(t, "tokens", x.Search(b, tensor.New(tensor.F32, 3, 2, 8), 2, &found), "3 query tokens")
}

// What all keys have in common is taken away first, as softmax does not see it.
func TestMagicPIGCentresKeys(t *testing.T) {
	b := backend(t, 1)
	r := rand.New(rand.NewPCG(23, 24))
	s := newSearching(r, 1, 64, 2, 1, 8, tensor.F32)
	for i, x := range s.key.F32s() { // numbers whose mean of 64 is exact, shifted too
		s.key.F32s()[i] = float32(math.Round(float64(x)*64)) / 64
	}
	m := attention.MagicPIG{Bits: 3, Tables: 12, Window: 1}
	a, err := m.New(b, s.config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, want := s.hashed(t, b, a, m)
	for i := range s.key.F32s() {
		s.key.F32s()[i] += float32(10 + i%8)
	}
	if _, got := s.hashed(t, b, a, m); !slices.Equal(got.Indices, want.Indices) || !slices.Equal(got.LogWeight, want.LogWeight) {
		t.Error("shifted keys are found otherwise")
	}
}

// Each sequence of a batch has an index, and the bits that it has alone.
func TestSearchesOfABatch(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(25, 26))
	m := attention.MagicPIG{Bits: 3, Tables: 10, Sinks: 1, Window: 4, Seed: 2}
	both := newSearching(r, 3, 190, 4, 2, 16, tensor.F32)
	a, err := m.New(b, both.config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var found attention.Found
	var want result
	for i, part := range [][4]int64{{0, 1, 0, 120}, {1, 3, 120, 190}} {
		s := *both
		s.tokens, s.keys = int(part[1]-part[0]), int(part[3]-part[2])
		s.query, s.key, s.value = both.query.Slice(0, part[0], part[1]), both.key.Slice(0, part[2], part[3]), both.value.Slice(0, part[2], part[3])
		alone, list := s.hashed(t, b, a, m)
		x, err := m.NewIndex(2, 16)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Append(b, s.key); err != nil {
			t.Fatal(err)
		}
		if err := x.Search(b, s.query, s.keys, &found); err != nil {
			t.Fatal(err)
		}
		if n := len(list.Indices); !slices.Equal(found.Indices[len(found.Indices)-n:], list.Indices) {
			t.Error("a second search finds other keys")
		}
		if i == 0 {
			want = alone
		} else {
			want = want.append(alone)
		}
	}
	if err := a.Plan(attention.Step{QueryLens: []int{1, 2}, KeyLens: []int{120, 70}}); err != nil {
		t.Fatal(err)
	}
	out, lse := tensor.New(tensor.F32, 3, 4, 19), tensor.New(tensor.F32, 3, 4)
	if err := a.Run(&kernel.Args{Query: both.query, Key: both.key, Value: both.value, Out: out, LSE: lse}, &found); err != nil {
		t.Fatal(err)
	}
	sameBits(t, "a batch", result{widen(out), widen(lse), 4, 19}, want)
}

// Of any sizes, keys that are equal or 0 too, what is found is taken by Run, and a
// weight counts a key at least once.
func TestSearchesOfAnySize(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(27, 28))
	for range 80 {
		tokens, kvHeads := r.IntN(4), 1+r.IntN(3)
		s := newSearching(r, tokens, tokens+r.IntN(150), kvHeads*(1+r.IntN(3)), kvHeads, 1+r.IntN(9), tensor.F32)
		for i := range s.key.F32s() {
			if r.IntN(3) == 0 {
				s.key.F32s()[i] = float32(r.IntN(2))
			}
		}
		if tokens > 0 && r.IntN(3) == 0 {
			clear(s.query.F32s()[:s.config.HeadDim])
			clear(s.key.F32s()[:min(len(s.key.F32s()), 7*s.config.HeadDim*kvHeads)])
		}
		pig := attention.MagicPIG{Bits: 1 + r.IntN(5), Tables: 2 + r.IntN(20), Sinks: r.IntN(4), Window: 1 + r.IntN(9), Seed: r.Uint64()}
		a, err := pig.New(b, s.config)
		if err != nil {
			t.Fatal(err)
		}
		_, found := s.hashed(t, b, a, pig)
		for i, w := range found.LogWeight {
			if !(w > -1e-6 && w < 100) {
				t.Errorf("%+v: key %d has the log weight %v", pig, found.Indices[i], w)
			}
		}
		a.Close()

		walk := attention.RetrievalAttention{TopK: 1 + r.IntN(5), Degree: 1 + r.IntN(3), Neighbours: 2 + r.IntN(3), Sinks: pig.Sinks, Window: pig.Window}
		walk.Beam = walk.TopK + r.IntN(9)
		if a, err = walk.New(b, s.config); err != nil {
			t.Fatal(err)
		}
		x, err := walk.NewIndex(kvHeads, s.config.HeadDim)
		if err != nil {
			t.Fatal(err)
		}
		found = &attention.Found{}
		for _, err := range []error{x.Learn(b, s.query), x.Append(s.key), x.Learn(b, s.query), x.Search(s.query, s.keys, found)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		s.run(t, a, found)
		a.Close()
	}
}
