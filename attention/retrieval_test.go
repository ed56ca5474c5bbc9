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

// best are the k keys from sinks to end of the largest scores, ascending, in
// float64.
func (s *searching) best(token, head, k, sinks, end int) []int32 {
	g := int64(head * s.config.KVHeads / s.config.Heads)
	score, order := make([]float64, s.keys), []int32(nil)
	for j := sinks; j < end; j++ {
		for d := range int64(s.config.HeadDim) {
			score[j] += float64(s.query.At(int64(token), int64(head), d)) * float64(s.key.At(int64(j), g, d))
		}
		order = append(order, int32(j))
	}
	slices.SortStableFunc(order, func(a, b int32) int {
		if score[a] > score[b] {
			return -1
		} else if score[a] < score[b] {
			return 1
		}
		return 0
	})
	out := order[:min(k, len(order))]
	slices.Sort(out)
	return out
}

// A walk that keeps every key finds the best ones; with TopK all keys too it is
// dense attention.
func TestRetrievalOfAllKeysIsDense(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(31, 32))
	for range 30 {
		tokens, kvHeads := 1+r.IntN(3), 1+r.IntN(3)
		s := newSearching(r, tokens, tokens+r.IntN(200), kvHeads*(1+r.IntN(3)), kvHeads, 1+r.IntN(30), tensor.F32)
		m := attention.RetrievalAttention{TopK: 1000, Beam: 1000, Degree: 1 + r.IntN(4), Neighbours: 2 + r.IntN(5), Sinks: r.IntN(4), Window: 1 + r.IntN(20)}
		x, err := m.NewIndex(kvHeads, s.config.HeadDim)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Append(s.key); err != nil {
			t.Fatal(err)
		}
		if r.IntN(2) == 0 {
			if err := x.Learn(b, normal(r, tensor.F32, 9, int64(s.config.Heads), int64(s.config.HeadDim))); err != nil {
				t.Fatal(err)
			}
		}
		var found attention.Found
		if err := x.Search(s.query, s.keys, &found); err != nil {
			t.Fatal(err)
		}
		a, err := m.New(b, s.config)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "all keys", s.run(t, a, &found), s.dense(t, b), 2e-5)
		a.Close()

		m.TopK = 1 + r.IntN(9)
		if x, err = m.NewIndex(kvHeads, s.config.HeadDim); err == nil {
			err = x.Append(s.key)
		}
		found.Reset()
		if err != nil || x.Search(s.query, s.keys, &found) != nil {
			t.Fatal(err)
		}
		for row := range tokens * s.config.Heads {
			got := found.Indices[found.Indptr[row]:found.Indptr[row+1]]
			token := row / s.config.Heads
			if want := s.best(token, row%s.config.Heads, m.TopK, m.Sinks, s.keys-tokens+token+1-m.Window); !slices.Equal(got, want) {
				t.Fatalf("%+v: row %d of %d keys has %v, want %v", m, row, s.keys, got, want)
			}
		}
	}
}

// planted has keys of one distribution and queries of another: those of a head
// lie about a few directions, each of which some keys, far from one another, meet.
func planted(r *rand.Rand, keys, directions, needles int) (s *searching, learn tensor.View) {
	const heads, kvHeads, dim = 4, 2, 32
	s = newSearching(r, directions, keys, heads, kvHeads, dim, tensor.F32)
	learn = tensor.New(tensor.F32, int64(8*directions), heads, dim)
	unit := func() []float32 {
		v, n := make([]float32, dim), 0.0
		for d := range v {
			v[d] = float32(r.NormFloat64())
			n += float64(v[d] * v[d])
		}
		for d := range v {
			v[d] /= float32(math.Sqrt(n))
		}
		return v
	}
	for h := range int64(heads) {
		for c := range int64(directions) {
			u := unit()
			about := func(q tensor.View, t int64) {
				for d := range int64(dim) {
					q.Set(12*u[d]+float32(r.NormFloat64()), t, h, d)
				}
			}
			about(s.query, c)
			for i := range int64(8) {
				about(learn, c*8+i)
			}
			for range needles {
				j := r.Int64N(int64(keys - directions - 20))
				for d := range int64(dim) {
					s.key.Set(1.5*float32(r.NormFloat64())+4*u[d], j, h/2, d)
				}
			}
		}
	}
	return s, learn
}

// recall is the share of the best keys that a search finds.
func (s *searching) recall(t *testing.T, m attention.RetrievalAttention, x *attention.KeyGraph) float64 {
	t.Helper()
	var found attention.Found
	if err := x.Search(s.query, s.keys, &found); err != nil {
		t.Fatal(err)
	}
	have, all := 0, 0
	for row := range s.tokens * s.config.Heads {
		token := row / s.config.Heads
		for _, j := range s.best(token, row%s.config.Heads, m.TopK, m.Sinks, s.keys-s.tokens+token+1-m.Window) {
			all++
			if _, ok := slices.BinarySearch(found.Indices[found.Indptr[row]:found.Indptr[row+1]], j); ok {
				have++
			}
		}
	}
	return float64(have) / float64(all)
}

// Queries that are no keys' neighbours find their keys after others like them were
// learned, with a walk that keeps a hundredth of the keys.
func TestRetrievalFindsPlantedKeys(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(33, 34))
	s, learn := planted(r, 4000, 6, 10)
	m := attention.RetrievalAttention{TopK: 10, Beam: 40, Degree: 8, Neighbours: 24, Sinks: 2, Window: 8}
	x, err := m.NewIndex(2, 32)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Append(s.key); err != nil {
		t.Fatal(err)
	}
	before := s.recall(t, m, x)
	if err := x.Learn(b, learn); err != nil {
		t.Fatal(err)
	}
	after := s.recall(t, m, x)
	if after < 0.93 || before > 0.5 {
		t.Errorf("%.3f of the best keys found, %.3f before queries were learned, want at least 0.93 and at most half before", after, before)
	}
	t.Logf("recall %.3f, before learning %.3f", after, before)
}

// Keys may come in pieces, and some after queries were learned.
func TestRetrievalIncremental(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(35, 36))
	s, learn := planted(r, 1500, 3, 10)
	m := attention.RetrievalAttention{TopK: 10, Beam: 40, Degree: 8, Neighbours: 24, Sinks: 2, Window: 8}
	build := func(learnAt int64, cuts ...int64) (*attention.KeyGraph, attention.Found) {
		x, err := m.NewIndex(2, 32)
		if err != nil {
			t.Fatal(err)
		}
		from := int64(0)
		for _, to := range append(cuts, 1500) {
			if err := x.Append(s.key.Slice(0, from, to)); err != nil {
				t.Fatal(err)
			}
			if from = to; to == learnAt {
				if err := x.Learn(b, learn); err != nil {
					t.Fatal(err)
				}
			}
		}
		if x.Keys() != 1500 {
			t.Fatalf("%d keys", x.Keys())
		}
		var found attention.Found
		if err := x.Search(s.query, s.keys, &found); err != nil {
			t.Fatal(err)
		}
		return x, found
	}
	_, want := build(1500)
	if _, got := build(1500, 1, 2, 700, 701); !slices.Equal(got.Indices, want.Indices) || !slices.Equal(got.Indptr, want.Indptr) {
		t.Error("keys in pieces make another graph")
	}
	x, _ := build(1200, 1200)
	if recall := s.recall(t, m, x); recall < 0.9 {
		t.Errorf("%.3f of the best keys found where a fifth came after the queries learned, want 0.9", recall)
	}
}

// Equal keys are taken by lower index, whatever the number of workers.
func TestRetrievalIsDeterministic(t *testing.T) {
	s := newSearching(rand.New(rand.NewPCG(37, 38)), 1, 300, 2, 2, 8, tensor.F32)
	for i := range s.key.F32s() {
		s.key.F32s()[i] = float32(math.Round(float64(s.key.F32s()[i]))) / 2
		if i%8 >= 2 {
			s.key.F32s()[i] = 0 // many equal keys
		}
	}
	m := attention.RetrievalAttention{TopK: 12, Beam: 300, Degree: 4, Neighbours: 8, Window: 1}
	var first []int32
	for workers := 1; workers <= 3; workers++ {
		x, err := m.NewIndex(2, 8)
		if err != nil {
			t.Fatal(err)
		}
		var found attention.Found
		if err := x.Append(s.key); err != nil {
			t.Fatal(err)
		}
		if err := x.Learn(backend(t, workers), s.query); err != nil {
			t.Fatal(err)
		}
		if err := x.Search(s.query, s.keys, &found); err != nil {
			t.Fatal(err)
		}
		for h := range 2 {
			if got, want := found.Indices[found.Indptr[h]:found.Indptr[h+1]], s.best(0, h, 12, 0, 299); !slices.Equal(got, want) {
				t.Errorf("head %d: %v, want %v", h, got, want)
			}
		}
		if first == nil {
			first = found.Indices
		}
		if !slices.Equal(first, found.Indices) {
			t.Error("workers change what is found")
		}
	}
}

func TestRetrievalRefusesBadParameters(t *testing.T) {
	b := backend(t, 1)
	good := attention.RetrievalAttention{TopK: 4, Beam: 8, Degree: 4, Neighbours: 4, Window: 1}
	for what, spoil := range map[string]func(*attention.RetrievalAttention){
		"TopK is 0": func(m *attention.RetrievalAttention) { m.TopK = 0 }, "Beam 3": func(m *attention.RetrievalAttention) { m.Beam = 3 },
		"Degree is 0": func(m *attention.RetrievalAttention) { m.Degree = 0 }, "Neighbours 1": func(m *attention.RetrievalAttention) { m.Neighbours = 1 },
		"Sinks is -1": func(m *attention.RetrievalAttention) { m.Sinks = -1 }, "Window is 0": func(m *attention.RetrievalAttention) { m.Window = 0 },
	} {
		m := good
		spoil(&m)
		_, err := m.NewIndex(1, 8)
		wantError(t, what, err, "attention: retrieval: ", what)
		_, err = m.New(b, attention.Config{Heads: 1, KVHeads: 1, HeadDim: 8})
		wantError(t, what, err, "attention: retrieval: ", what)
	}
	_, err := good.New(b, attention.Config{Heads: 1, KVHeads: 1, HeadDim: 8, Mask: attention.Causal()})
	wantError(t, "mask", err, "retrieval", "Mask")
	_, err = good.NewIndex(1, kernel.MaxHeadDim+1)
	wantError(t, "dim", err, "retrieval", "577")
	x, err := good.NewIndex(1, 8)
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, "shape", x.Append(tensor.New(tensor.F32, 5, 2, 8)), "[keys, 1, 8]")
	if err := x.Append(tensor.New(tensor.F32, 5, 1, 8)); err != nil {
		t.Fatal(err)
	}
	wantError(t, "query", x.Learn(b, tensor.New(tensor.F32, 5, 1, 7)), "retrieval", "[tokens, a multiple of 1, 8]")
	var found attention.Found
	wantError(t, "keys", x.Search(tensor.New(tensor.F32, 1, 1, 8), 7, &found), "retrieval", "7 keys")
}
