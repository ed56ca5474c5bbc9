package policy

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// told is a sequence of n tokens of which everything is known, at random.
func told(rng *rand.Rand, layers, kvHeads, n, dim int) *Sequence {
	s := NewSequence(layers, kvHeads)
	s.Extend(n)
	for _, h := range s.Heads {
		tell(rng, h, dim)
	}
	return s
}

func tell(rng *rand.Rand, h *Head, dim int) {
	n := h.Len()
	column := func() []float32 {
		x := make([]float32, n)
		for j := range x {
			x[j] = float32(rng.ExpFloat64())
		}
		return x
	}
	h.Sum, h.Square, h.Low, h.Max, h.Recent, h.RecentQueries = column(), column(), column(), column(), column(), 4
	h.Projected, h.External, h.Prompt = column(), column(), h.Tokens*3/4
	h.Queries, h.Tags = make([]float32, n), make([]Tag, n)
	for j := range n {
		h.Queries[j], h.Tags[j] = float32(n-j), Tag(max(rng.IntN(12)-9, 0))
	}
	h.Key, h.Value = randomRows(rng, n, dim), randomRows(rng, n, dim+1)
	q := tensor.New(tensor.F32, 9, 2, int64(dim))
	for i := range q.F32s() {
		q.F32s()[i] = float32(rng.NormFloat64())
	}
	h.Moments = nil
	for g := range 2 {
		m, err := MomentsOf(q, g)
		if err != nil {
			panic(err)
		}
		h.Moments = append(h.Moments, m)
	}
}

func randomRows(rng *rand.Rand, n, dim int) tensor.View {
	v := tensor.New(tensor.F32, int64(n), int64(dim))
	for i := range v.F32s() {
		v.F32s()[i] = float32(rng.NormFloat64() + 0.3)
	}
	return v
}

// top are the ordinals of the n largest scores among from, ascending; of equal
// scores the later.
func top(score func(j int) float64, from []int, n int) []int {
	list := slices.Clone(from)
	sort.SliceStable(list, func(a, b int) bool {
		x, y := score(list[a]), score(list[b])
		return x > y || x == y && list[a] > list[b]
	})
	list = list[:min(n, len(list))]
	sort.Ints(list)
	return list
}

func between(lo, hi int) (out []int) {
	for j := lo; j < hi; j++ {
		out = append(out, j)
	}
	return out
}

// union is sorted and without repeats.
func union(sets ...[]int) []int {
	out := slices.Concat(sets...)
	sort.Ints(out)
	return slices.Compact(out)
}

func kept(p kvcache.Plan) []int {
	out := []int{}
	for _, j := range p.Keep {
		out = append(out, int(j))
	}
	return out
}

// TestPublishedRules: the keys that stay are those that the rule of the paper
// names, found here by sorting.
func TestPublishedRules(t *testing.T) {
	const n, dim, keys = 60, 6, 24
	rng := rand.New(rand.NewPCG(1, 1))
	s := told(rng, 2, 2, n, dim)
	of := func(x []float32) func(int) float64 { return func(j int) float64 { return float64(x[j]) } }
	norm := func(v *tensor.View, j int, p float64) float64 {
		sum := 0.0
		for d := range v.Shape[1] {
			sum += math.Pow(math.Abs(float64(v.At(int64(j), d))), p)
		}
		return math.Pow(sum, 1/p)
	}
	pooled := func(h *Head, window int) func(int) float64 {
		return func(j int) float64 {
			sum := 0.0
			for k := j - 2; k <= j+2; k++ {
				if k >= 0 && k < n-window {
					sum += float64(h.Recent[k])
				}
			}
			return sum / 5
		}
	}
	layerMean := func(layer int, x func(h *Head) []float32) func(int) float64 {
		return func(j int) float64 {
			return (float64(x(s.Head(layer, 0))[j]) + float64(x(s.Head(layer, 1))[j])) / 2
		}
	}
	for _, tt := range []struct {
		name string
		plan Planner
		want func(layer int, h *Head) []int
	}{
		{"streaming-llm", StreamingLLM(4), func(int, *Head) []int { return union(between(0, 4), between(n-20, n)) }},
		{"h2o", H2O(), func(_ int, h *Head) []int {
			return union(between(n-12, n), top(of(h.Sum), between(0, n-12), 12))
		}},
		{"scissorhands", Scissorhands(10), func(_ int, h *Head) []int {
			return union(between(n-10, n), top(func(j int) float64 { return -float64(h.Low[j]) }, between(0, n-10), 14))
		}},
		{"tova", TOVA(), func(layer int, _ *Head) []int {
			return top(layerMean(layer, func(h *Head) []float32 { return h.Recent }), between(0, n), keys)
		}},
		{"snapkv", SnapKV(8), func(_ int, h *Head) []int {
			return union(between(n-8, n), top(pooled(h, 8), between(0, n-8), 16))
		}},
		{"criticalkv", CriticalKV(8), func(_ int, h *Head) []int {
			first := top(pooled(h, 8), between(0, n-8), 8)
			rest := slices.DeleteFunc(between(0, n-8), func(j int) bool { return slices.Contains(first, j) })
			return union(between(n-8, n), first, top(func(j int) float64 { return (pooled(h, 8)(j) + 1e-4) * float64(h.Projected[j]) }, rest, 8))
		}},
		{"l2-norm", L2Norm(), func(_ int, h *Head) []int {
			return top(func(j int) float64 { return -norm(&h.Key, j, 2) }, between(0, n), keys)
		}},
		{"keydiff", KeyDiff(), func(_ int, h *Head) []int {
			return top(func(j int) float64 {
				sum := 0.0 // the cosine with the mean is a positive multiple of the sum of cosines
				for i := range n {
					for d := range int64(dim) {
						sum += float64(h.Key.At(int64(i), d)) / norm(&h.Key, i, 2) * float64(h.Key.At(int64(j), d)) / norm(&h.Key, j, 2)
					}
				}
				return -sum
			}, between(0, n), keys)
		}},
		{"vatp", VATP(3), func(_ int, h *Head) []int {
			return union(between(0, 3), between(n-12, n), top(func(j int) float64 { return float64(h.Sum[j]) * norm(&h.Value, j, 1) }, between(3, n-12), 9))
		}},
		{"roco", &Policy{Score: Robust{Part: 0.25}, Recent: 4}, func(_ int, h *Head) []int {
			mean := func(j int) float64 { return float64(h.Sum[j]) / float64(n-j) }
			deviation := func(j int) float64 {
				return math.Sqrt(max(float64(h.Square[j])/float64(n-j)-mean(j)*mean(j), 0))
			}
			first := top(deviation, between(0, n-4), 5)
			rest := slices.DeleteFunc(between(0, n-4), func(j int) bool { return slices.Contains(first, j) })
			return union(between(n-4, n), first, top(mean, rest, 15))
		}},
		{"expected-attention", ExpectedAttention(4), func(_ int, h *Head) []int {
			score := make([]float64, n)
			for _, m := range h.Moments {
				w, total := make([]float64, n), 0.0
				for j := range n {
					x := 0.0
					for a := range dim {
						ka := float64(h.Key.At(int64(j), int64(a)))
						x += m.Mean[a] * ka / math.Sqrt(dim)
						for b := range dim {
							x += ka * m.Covariance[a*dim+b] * float64(h.Key.At(int64(j), int64(b))) / 2 / dim
						}
					}
					w[j] = math.Exp(x)
					total += w[j]
				}
				for j := range n {
					score[j] += w[j] / total / 2
				}
			}
			return union(between(0, 4), top(func(j int) float64 { return (score[j] + 0.02) * norm(&h.Value, j, 2) }, between(4, n), keys-4))
		}},
		{"sirllm", SirLLM(2, 5), func(layer int, _ *Head) []int {
			return union(between(0, 2), between(n-5, n), top(layerMean(layer, func(h *Head) []float32 { return h.External }), between(2, n-5), 17))
		}},
		{"locret", Locret(6), func(_ int, h *Head) []int {
			return union(between(n-6, n), top(of(h.External), between(0, n-6), 18))
		}},
		{"duoattention", DuoAttention{Gates: []float32{0.9, 0.1, 0.5, 0.4}, Threshold: 0.5, Streaming: Window{Sinks: 2, Recent: 7}}, func(_ int, h *Head) []int {
			if h == s.Heads[0] || h == s.Heads[2] {
				return between(0, n)
			}
			return union(between(0, 2), between(n-7, n))
		}},
		{"scope", SCOPE{Prefill: &Policy{Score: LastQueries{}}, Decode: StreamingLLM(0), DecodeKeys: 4}, func(_ int, h *Head) []int {
			return union(top(of(h.Recent), between(0, n*3/4), keys), between(n-4, n))
		}},
	} {
		plans, err := tt.plan.Plan(s, keys)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		for i, p := range plans {
			if got, want := kept(p), tt.want(i/2, s.Heads[i]); !slices.Equal(got, want) {
				t.Errorf("%s: head %d keeps %v, want %v", tt.name, i, got, want)
			}
		}
	}
}

// TestLagKV: a token is scored by the chunk after its own, by hand.
func TestLagKV(t *testing.T) {
	h := &Head{}
	h.Extend(7) // a sink, chunks of two, and a rest
	h.Key, h.Value = tensor.New(tensor.F32, 7, 2), tensor.New(tensor.F32, 7, 2)
	for j, x := range [][2]float32{{9, 9}, {0, 0}, {0, 10}, {0, 5}, {10, 10}, {0, 0}, {1, 2}} {
		for d := range 2 {
			h.Key.Set(x[d], int64(j), int64(d))
		}
	}
	// chunk 1 (tokens 1, 2) is scaled by tokens 3 and 4: token 1 is (0, −1), token 2
	// (0, 1): deviations are alike. chunk 2 (3, 4) by tokens 5 and 6, (0, 0) and
	// (1, 2): token 3 is (0, 2.5), token 4 (10, 5): the later deviates more.
	dst := make([]float32, 7)
	if err := (Lag{Sinks: 1, Chunk: 2}).Score(h, dst); err != nil {
		t.Fatal(err)
	}
	if want := []float32{2, 0, 0.5, 0, 0.5, 7, 8}; !slices.Equal(dst, want) {
		t.Errorf("scores %v, want %v", dst, want)
	}
}

// TestSimLayerKV: a layer whose last queries look at sinks and recent keys is cut,
// another is not.
func TestSimLayerKV(t *testing.T) {
	s := NewSequence(2, 2)
	s.Extend(20)
	for i, h := range s.Heads {
		h.Recent = make([]float32, 20)
		for j := range h.Recent {
			h.Recent[j] = 0.01
		}
		h.Recent[0], h.Recent[10] = 0.5, []float32{0, 0.2, 0.3, 0.9}[i]
	}
	plans, err := SimLayerKV{Lazy: Window{Sinks: 1, Recent: 4}, Threshold: 0.65}.Plan(s, 0)
	if err != nil {
		t.Fatal(err)
	}
	// layer 0: 0.54/0.69 and 0.54/0.89, mean 0.69; layer 1: 0.54/0.99 and 0.54/1.59
	for i, want := range [][]int{union([]int{0}, between(16, 20)), union([]int{0}, between(16, 20)), between(0, 20), between(0, 20)} {
		if got := kept(plans[i]); !slices.Equal(got, want) {
			t.Errorf("head %d keeps %v, want %v", i, got, want)
		}
	}
}

// TestFastGen: each head takes the first mix that recovers enough.
func TestFastGen(t *testing.T) {
	s := NewSequence(1, 4)
	s.Extend(10)
	for i, h := range s.Heads {
		h.Recent, h.Tags = make([]float32, 10), make([]Tag, 10)
		h.Tags[0], h.Tags[4] = Special, Punctuation
		h.Recent[[]int{0, 4, 2, 7}[i]] = 0.9
		h.Recent[5], h.Recent[6] = 0.05, 0.05
	}
	s.Heads[3].Recent[5], s.Heads[3].Recent[3] = 0.5, 0.5 // one frequent key is not enough
	plans, err := FastGen{Recover: 0.85, Frequent: 0.1, Local: 0.5}.Plan(s, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]int{{0, 9}, {0, 4, 9}, {0, 2, 4, 9}, between(0, 10)} {
		if got := kept(plans[i]); !slices.Equal(got, want) {
			t.Errorf("head %d keeps %v, want %v", i, got, want)
		}
	}
}

// TestBudgets: budgets sum to the total, keep floors, and fall where they should.
func TestBudgets(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for range 300 {
		r := &Request{Layers: 1 + rng.IntN(6), KVHeads: 1 + rng.IntN(5)}
		quota, total, have := rng.IntN(50), 0, 0
		for range r.Layers * r.KVHeads {
			scores := make([]float32, rng.IntN(90))
			for j := range scores {
				scores[j] = float32(rng.IntN(20))
			}
			r.Have, r.Quota, r.Scores = append(r.Have, len(scores)), append(r.Quota, quota), append(r.Scores, scores)
			total, have = total+quota, have+len(scores)
		}
		curve := Curve{}
		for range r.Layers {
			curve.Weights = append(curve.Weights, 0.1+rng.Float64())
		}
		floor := rng.Float64()
		for _, b := range []Budget{curve, Pyramid{Beta: 1 + 20*rng.Float64()}, Adaptive{Floor: floor, Model: true, Layers: curve}, Adaptive{Floor: floor, Layers: curve}} {
			counts, err := b.Split(r)
			if err != nil {
				t.Fatal(err)
			}
			sum := 0
			for i, n := range counts {
				sum += n
				if n < 0 || n > r.Have[i] {
					t.Fatalf("%T gives %d of %d keys", b, n, r.Have[i])
				}
			}
			if sum != min(total, have) {
				t.Fatalf("%T gives %d keys of %v, want %d", b, sum, r, min(total, have))
			}
		}
		counts, err := Adaptive{Floor: floor}.Split(r)
		if err != nil {
			t.Fatal(err)
		}
		for layer := range r.Layers {
			lo, sum := layer*r.KVHeads, 0
			for _, n := range r.Have[lo : lo+r.KVHeads] {
				sum += min(n, quota)
			}
			for i := lo; i < lo+r.KVHeads; i++ {
				sum -= counts[i]
				if least := min(int(floor*float64(sumOf(r.Have[lo:lo+r.KVHeads], quota))/float64(r.KVHeads)), r.Have[i]); counts[i] < least {
					t.Fatalf("Adaptive gives %d keys, below the floor %d", counts[i], least)
				}
			}
			if sum != 0 {
				t.Fatalf("Adaptive gives a layer %d keys too few", sum)
			}
		}
	}
	r := &Request{Layers: 5, KVHeads: 1, Have: []int{999, 999, 999, 999, 999}, Quota: []int{100, 100, 100, 100, 100}, Scores: make([][]float32, 5)}
	if got, err := (Pyramid{Beta: 20}).Split(r); err != nil || !slices.Equal(got, []int{195, 148, 100, 52, 5}) && !slices.Equal(got, []int{195, 147, 100, 53, 5}) {
		t.Errorf("the pyramid is %v (%v), want the line from 195 to 5", got, err)
	}
	two := &Request{Layers: 1, KVHeads: 2, Have: []int{5, 5}, Quota: []int{3, 3}, Scores: [][]float32{{9, 8, 7, 6, 5}, {1, 2, 3, 4, 0}}}
	if got, err := (Adaptive{Floor: 0.34}).Split(two); err != nil || !slices.Equal(got, []int{5, 1}) {
		t.Errorf("adaptive budgets %v (%v), want 5 and the floor 1", got, err)
	}
}

func sumOf(have []int, quota int) (sum int) {
	for _, n := range have {
		sum += min(n, quota)
	}
	return sum
}

// TestObserve: what queries gave adds up, follows evictions and counts the queries
// that could see a key.
func TestObserve(t *testing.T) {
	s := NewSequence(1, 1)
	h := s.Heads[0]
	s.Extend(4)
	if err := h.Observe(Observation{Queries: 4, Sum: []float32{2, 1, 0.75, 0.25}, Recent: []float32{1, 0, 0.5, 0.5}, RecentQueries: 2}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(h.Queries, []float32{4, 3, 2, 1}) {
		t.Errorf("queries %v", h.Queries)
	}
	if err := s.Applied([]kvcache.Plan{{Keep: []int32{0, 3}}}); err != nil {
		t.Fatal(err)
	}
	s.Extend(1)
	if err := h.Observe(Observation{Queries: 1, Sum: []float32{0.5, 0.1875, 0.3125}}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(h.Sum, []float32{2.5, 0.4375, 0.3125}) || !slices.Equal(h.Queries, []float32{5, 2, 1}) || !slices.Equal(h.Low, []float32{0, 1, 1}) || !slices.Equal(h.Positions, []int32{0, 3, 4}) {
		t.Errorf("%+v", h)
	}
	c := s.Clone()
	s.Truncate(4)
	if !slices.Equal(h.Positions, []int32{0, 3}) || h.Tokens != 4 || len(h.Sum) != 2 || c.Heads[0].Len() != 3 {
		t.Errorf("after Truncate %+v", h)
	}
	var value *ValueError
	if err := h.Observe(Observation{Queries: 1, Sum: make([]float32, 3)}); !errors.As(err, &value) {
		t.Errorf("error %v of a short observation", err)
	}
}

// TestMomentsAhead: the moments turned ahead are those of queries turned to each of
// the positions, averaged before they are multiplied.
func TestMomentsAhead(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for _, layout := range []kernel.RotaryLayout{kernel.HalfSplit, kernel.Interleaved} {
		r := kernel.Rotation{Dim: 4, Layout: layout, InvFreq: []float64{1, 0.1}, Factor: 1}
		q := tensor.New(tensor.F32, 5, 1, 6)
		for i := range q.F32s() {
			q.F32s()[i] = float32(rng.NormFloat64())
		}
		m, err := MomentsOf(q, 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Ahead(&r, 7, 3)
		if err != nil {
			t.Fatal(err)
		}
		turned := tensor.New(tensor.F32, 5, 1, 6) // by the mean rotation
		for i := range int64(5) {
			for d := int64(4); d < 6; d++ {
				turned.Set(q.At(i, 0, d), i, 0, d)
			}
			for k := range int64(2) {
				a, b := k, k+2
				if layout == kernel.Interleaved {
					a, b = 2*k, 2*k+1
				}
				x, y := float64(q.At(i, 0, a)), float64(q.At(i, 0, b))
				u, v := 0.0, 0.0
				for p := 7.0; p < 10; p++ {
					sin, cos := math.Sincos(p * r.InvFreq[k])
					u, v = u+(x*cos-y*sin)/3, v+(y*cos+x*sin)/3
				}
				turned.Set(float32(u), i, 0, a)
				turned.Set(float32(v), i, 0, b)
			}
		}
		want, _ := MomentsOf(turned, 0)
		for i := range want.Covariance {
			if math.Abs(got.Covariance[i]-want.Covariance[i]) > 1e-5 || math.Abs(got.Mean[i%6]-want.Mean[i%6]) > 1e-5 {
				t.Fatalf("%v: moments %v, want %v", layout, got, want)
			}
		}
	}
}

// TestBlocks: keys stay by whole blocks of the best means, and sinks and recent keys
// take theirs along.
func TestBlocks(t *testing.T) {
	s := NewSequence(1, 1)
	s.Extend(18) // blocks of 4, and 2 more
	h := s.Heads[0]
	h.External = make([]float32, 18)
	h.External[5], h.External[9], h.External[10], h.External[14] = 3, 2, 2, 1
	for _, tt := range []struct {
		sinks, recent, keys int
		want                []int
	}{
		{0, 0, 9, between(4, 12)}, {0, 0, 7, between(8, 12)}, {0, 0, 12, between(4, 16)},
		{1, 0, 9, union(between(0, 4), between(8, 12))}, {0, 3, 6, between(12, 18)}, {0, 3, 11, union(between(8, 18))}, {0, 0, 99, between(0, 18)},
	} {
		plans, err := (&Policy{Score: Given{}, Sinks: tt.sinks, Recent: tt.recent, Block: 4}).Plan(s, tt.keys)
		if err != nil || !slices.Equal(kept(plans[0]), tt.want) {
			t.Errorf("%+v: %v (%v)", tt, plans, err)
		}
	}
}

// TestWindowBlocks: a window keeps the blocks of what it keeps.
func TestWindowBlocks(t *testing.T) {
	h := &Head{}
	h.Extend(18)
	for _, tt := range []struct {
		w    Window
		want []int
	}{
		{Window{Sinks: 2, Recent: 3}, union(between(0, 2), between(15, 18))},
		{Window{Sinks: 2, Recent: 3, Block: 4}, union(between(0, 4), between(12, 18))},
		{Window{Sinks: 5, Recent: 2, Block: 4}, union(between(0, 8), between(16, 18))},
	} {
		if got := kept(kvcache.Plan{Keep: tt.w.keep(h)}); !slices.Equal(got, tt.want) {
			t.Errorf("%+v keeps %v, want %v", tt.w, got, tt.want)
		}
	}
}

// TestCompetingHeads: of Ada-KV, KVzip and PyramidKV each head keeps its floor and
// what of the rest is among the best of all heads that compete.
func TestCompetingHeads(t *testing.T) {
	const n, keys, window = 60, 24, 8
	s := told(rand.New(rand.NewPCG(4, 4)), 3, 2, n, 4)
	votes := func(h *Head, j int) float64 {
		sum := 0.0
		for k := max(j-2, 0); k <= min(j+2, n-window-1); k++ {
			sum += float64(h.Recent[k])
		}
		return sum / 5
	}
	largest := func(h *Head, j int) float64 { return float64(h.Max[j]) }
	for _, tt := range []struct {
		name           string
		plan           Planner
		score          func(h *Head, j int) float64
		recent, floor  int
		group, perHead int
	}{
		{"ada-kv", AdaKV(window), votes, window, 3, 2, keys - window},
		{"kvzip", KVzip(), largest, 0, 0, 6, keys},
	} {
		plans, err := tt.plan.Plan(s, keys)
		if err != nil {
			t.Fatal(err)
		}
		for lo := 0; lo < len(s.Heads); lo += tt.group {
			want := make([][]int, tt.group)
			type rival struct {
				head, j int
				score   float64
			}
			var rivals []rival
			for g, h := range s.Heads[lo : lo+tt.group] {
				own := top(func(j int) float64 { return tt.score(h, j) }, between(0, n-tt.recent), tt.floor)
				want[g] = union(between(n-tt.recent, n), own)
				for j := range n - tt.recent {
					if !slices.Contains(own, j) {
						rivals = append(rivals, rival{g, j, tt.score(h, j)})
					}
				}
			}
			sort.Slice(rivals, func(a, b int) bool { return rivals[a].score > rivals[b].score })
			for _, r := range rivals[:tt.group*(tt.perHead-tt.floor)] {
				want[r.head] = union(want[r.head], []int{r.j})
			}
			for g := range want {
				if got := kept(plans[lo+g]); !slices.Equal(got, want[g]) {
					t.Errorf("%s: head %d keeps %v, want %v", tt.name, lo+g, got, want[g])
				}
			}
		}
	}
	plans, err := PyramidKV(window).Plan(s, keys)
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range s.Heads { // 16 in the mean, 0.8 in the last layer: 31.2, 16, 0.8
		free := []int{31, 31, 16, 16, 1, 1}[i]
		want := union(between(n-window, n), top(func(j int) float64 { return votes(h, j) }, between(0, n-window), free))
		if got := kept(plans[i]); !slices.Equal(got, want) {
			t.Errorf("pyramidkv: head %d keeps %v, want %v", i, got, want)
		}
	}
	blocks, err := KVCompress(6).Plan(s, keys)
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range s.Heads {
		got := kept(blocks[i])
		mean := func(b int) float64 {
			sum := 0.0
			for j := b * 6; j < b*6+6; j++ {
				sum += float64(h.Square[j])
			}
			return sum / 6
		}
		var want []int
		for _, b := range top(mean, between(0, n/6), len(got)/6) {
			want = append(want, between(b*6, b*6+6)...)
		}
		if len(got)%6 != 0 || !slices.Equal(got, append([]int{}, want...)) {
			t.Errorf("kv-compress: head %d keeps %v, want %v", i, got, want)
		}
	}
}
