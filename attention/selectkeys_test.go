package attention_test

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// keySelector is a selector of single keys at a scene, and what it is to score by.
type keySelector struct {
	name   string
	choose func(keys, sinks, recent int) (*attention.Keys, error)
	shared bool                        // a row is that of a KV head
	score  func(t, row, j int) float64 // by the published rule
}

func (s *selecting) q(t, h, d int) float64 {
	return float64(s.in.Query.At(int64(t), int64(h), int64(d)))
}

func (s *selecting) k(j, g, d int) float64 {
	return float64(s.key.At(int64(s.pages[j/s.in.PageSize]), int64(j%s.in.PageSize), int64(g), int64(d)))
}

func (s *selecting) group() int { return int(s.in.Query.Shape[1]) / s.in.KVHeads }
func (s *selecting) dim() int   { return int(s.in.Query.Shape[2]) }

// keySelectors are all selectors of single keys, with settings drawn.
func keySelectors(t *testing.T, b kernel.Backend, r *rand.Rand, s *selecting) []keySelector {
	s.in.Scores = tensor.New(tensor.F32, s.in.Query.Shape[0], s.in.Query.Shape[1], int64(s.in.SeqLens[0]))
	return []keySelector{s.sparq(b, 1+r.IntN(s.dim())), s.loki(t, b, r), s.doubleSparse(t, b, r), s.pqCache(t, b, r)}
}

func (s *selecting) sparq(b kernel.Backend, rank int) keySelector {
	return keySelector{"sparq", func(keys, sinks, recent int) (*attention.Keys, error) {
		return attention.SparQ{Rank: rank, Keys: keys, Sinks: sinks, Recent: recent}.Select(b, &s.in, s.key)
	}, true, func(t, g, j int) float64 {
		size := make([]float64, s.dim())
		for d := range size {
			for h := range s.group() {
				size[d] += math.Abs(s.q(t, g*s.group()+h, d))
			}
		}
		largest := slices.Sorted(slices.Values(size))[s.dim()-rank]
		sum := 0.0
		for h := g * s.group(); h < (g+1)*s.group(); h++ {
			dot, part, all := 0.0, 0.0, 0.0
			for d := range size {
				all += math.Abs(s.q(t, h, d))
				if size[d] >= largest {
					part += math.Abs(s.q(t, h, d))
					dot += s.q(t, h, d) * s.k(j, g, d)
				}
			}
			sum += dot / math.Sqrt(float64(s.dim())*part/all)
		}
		return sum
	}}
}

func (s *selecting) loki(t *testing.T, b kernel.Backend, r *rand.Rand) keySelector {
	n := 1 + r.IntN(s.dim())
	basis := normal(r, tensor.F32, 1, int64(n), int64(s.in.KVHeads), int64(s.dim()))
	reduced := tensor.New(tensor.F32, int64(len(s.pages)), int64(s.in.PageSize), int64(s.in.KVHeads), int64(n))
	for p := range int64(len(s.pages)) {
		page := func(v tensor.View) tensor.View {
			return tensor.FromF32(v.F32s()[p*v.Stride[0]:][:v.Stride[0]], v.Shape[1], v.Shape[2], v.Shape[3])
		}
		if err := (attention.Loki{}).Project(b, page(s.key), basis, page(reduced)); err != nil {
			t.Fatal(err)
		}
	}
	in := s.in
	in.Query = tensor.New(tensor.F32, s.in.Query.Shape[0], s.in.Query.Shape[1], int64(n))
	if err := (attention.Loki{}).Project(b, s.in.Query, basis, in.Query); err != nil {
		t.Fatal(err)
	}
	return keySelector{"loki", func(keys, sinks, recent int) (*attention.Keys, error) {
		return attention.Loki{Keys: keys, Sinks: sinks, Recent: recent}.Select(b, &in, reduced)
	}, false, func(t, h, j int) (sum float64) {
		g := h / s.group()
		for c := range n {
			x, y := 0.0, 0.0
			for d := range s.dim() {
				e := float64(basis.At(0, int64(c), int64(g), int64(d)))
				x, y = x+e*s.q(t, h, d), y+e*s.k(j, g, d)
			}
			sum += x * y
		}
		return sum
	}}
}

func (s *selecting) doubleSparse(t *testing.T, b kernel.Backend, r *rand.Rand) keySelector {
	n := 1 + r.IntN(s.dim())
	d := attention.DoubleSparse{Keys: 1, Recent: 1}
	for range s.in.KVHeads {
		var list []int32
		for _, c := range r.Perm(s.dim())[:n] {
			list = append(list, int32(c))
		}
		d.Channels = append(d.Channels, list)
	}
	labels := tensor.New(tensor.F32, int64(len(s.pages)), int64(s.in.PageSize), int64(s.in.KVHeads), int64(n))
	if err := d.Label(s.key, labels, s.pages, s.rows); err != nil {
		t.Fatal(err)
	}
	return keySelector{"doublesparse", func(keys, sinks, recent int) (*attention.Keys, error) {
		d.Keys, d.Sinks, d.Recent = keys, sinks, recent
		return d.Select(b, &s.in, labels)
	}, false, func(t, h, j int) (sum float64) {
		for _, c := range d.Channels[h/s.group()] {
			sum += s.q(t, h, int(c)) * s.k(j, h/s.group(), int(c))
		}
		return sum
	}}
}

func (s *selecting) pqCache(t *testing.T, b kernel.Backend, r *rand.Rand) keySelector {
	p := attention.PQCache{Keys: 1, Recent: 1, Parts: 1 << r.IntN(4), Codes: 1 << (1 + r.IntN(4))}
	centroids := normal(r, tensor.F32, int64(p.Parts), int64(p.Codes), int64(s.in.KVHeads), int64(s.dim()/p.Parts))
	if int(s.in.SeqLens[0]) >= p.Codes {
		var err error
		if centroids, err = p.Train(b, s.key, s.pages, s.rows, r.IntN(3)); err != nil {
			t.Fatal(err)
		}
	}
	codes := tensor.New(tensor.U8, int64(len(s.pages)), int64(s.in.PageSize), int64(s.in.KVHeads), int64(p.Parts))
	if err := p.Encode(b, s.key, centroids, codes, s.pages, s.rows); err != nil {
		t.Fatal(err)
	}
	sub := s.dim() / p.Parts
	return keySelector{"pqcache", func(keys, sinks, recent int) (*attention.Keys, error) {
		p.Keys, p.Sinks, p.Recent = keys, sinks, recent
		return p.Select(b, &s.in, centroids, codes)
	}, false, func(t, h, j int) (sum float64) {
		return s.byCodes(centroids, t, h, j, p.Parts, sub)
	}}
}

// byCodes is the score of key j with head h of token t, its parts replaced by
// their nearest centroids.
func (s *selecting) byCodes(centroids tensor.View, t, h, j, parts, sub int) (sum float64) {
	g := h / s.group()
	for p := range parts {
		best, least := 0, math.Inf(1)
		at := func(code, d int) float64 { return float64(centroids.At(int64(p), int64(code), int64(g), int64(d))) }
		for code := range int(centroids.Shape[1]) {
			distance := 0.0
			for d := range sub {
				e := s.k(j, g, p*sub+d) - at(code, d)
				distance += e * e
			}
			if distance < least-1e-9 {
				best, least = code, distance
			}
		}
		for d := range sub {
			sum += s.q(t, h, p*sub+d) * at(best, d)
		}
	}
	return sum
}

// listed is the rule by sorting: of each row the best between the first and the last,
// and the union over the rows of KV head g.
func (s *selecting) listed(c keySelector, t, g, keys, sinks, recent int) []int32 {
	own := int(s.in.SeqLens[0]) - int(s.in.Query.Shape[0]) + t
	chosen := map[int32]bool{}
	rows := []int{g}
	if !c.shared {
		rows = nil
		for h := range s.group() {
			rows = append(rows, g*s.group()+h)
		}
	}
	for _, row := range rows {
		var between []int32
		score := map[int32]float64{}
		for j := range own + 1 {
			if j < sinks || j > own-recent {
				chosen[int32(j)] = true
				continue
			}
			between = append(between, int32(j))
			score[int32(j)] = c.score(t, row, j)
		}
		slices.SortStableFunc(between, func(a, b int32) int { return cmp.Compare(score[b], score[a]) })
		for _, j := range between[:min(len(between), keys-sinks-recent)] {
			chosen[j] = true
		}
	}
	var out []int32
	for j := range chosen {
		out = append(out, j)
	}
	slices.Sort(out)
	return out
}

func TestKeySelectorsChooseTheKeysOfTheRule(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(11, 12))
	for range 25 {
		tokens := 1 + r.IntN(4)
		s := newSelecting(r, tokens, tokens+r.IntN(100), 1+r.IntN(9), 4, 1<<r.IntN(3), 8)
		for _, c := range keySelectors(t, b, r, s) {
			sinks, recent := r.IntN(3), 1+r.IntN(5)
			keys := sinks + recent + r.IntN(30)
			m, err := c.choose(keys, sinks, recent)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			for g := range s.in.KVHeads {
				for tok := range tokens {
					if got, want := m.Of(tok, g, s.in.KVHeads), s.listed(c, tok, g, keys, sinks, recent); !slices.Equal(got, want) {
						t.Fatalf("%s of %d keys: %d keys, %d first, %d last, token %d, KV head %d: keys %v, want %v", c.name, s.in.SeqLens[0], keys, sinks, recent, tok, g, got, want)
					}
				}
			}
		}
	}
}

// A larger budget adds keys, and one of everything has them all.
func TestKeySelectorsKeepWhatSmallerBudgetsChose(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 2})
	defer b.Close()
	r := rand.New(rand.NewPCG(13, 14))
	for range 5 {
		s := newSelecting(r, 2, 70+r.IntN(100), 1+r.IntN(20), 4, 2, 8)
		for _, c := range keySelectors(t, b, r, s) {
			var before *attention.Keys
			for _, keys := range []int{3, 8, 20, 69, int(s.in.SeqLens[0])} {
				m, err := c.choose(keys, 1, 2)
				if err != nil {
					t.Fatal(err)
				}
				for i := range len(m.Indptr) - 1 {
					list := m.Indices[m.Indptr[i]:m.Indptr[i+1]]
					if before != nil {
						for _, j := range before.Indices[before.Indptr[i]:before.Indptr[i+1]] {
							if !slices.Contains(list, j) {
								t.Fatalf("%s: key %d is in no list of %d", c.name, j, keys)
							}
						}
					}
					if own := int(s.in.SeqLens[0]) - 2 + i/s.in.KVHeads; keys > own && len(list) != own+1 {
						t.Fatalf("%s: %d keys of a budget of all %d", c.name, len(list), own+1)
					}
				}
				before = m
			}
		}
	}
}

// With every feature the scores are those of attention: the choice is exact.
func TestKeySelectorsOfAllFeaturesAreExact(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(15, 16))
	for range 10 {
		s := newSelecting(r, 1, 20+r.IntN(80), 1+r.IntN(9), 4, 4, 8)
		s.in.Scores = tensor.New(tensor.F32, 1, 4, int64(s.in.SeqLens[0]))
		attended := keySelector{"attention", nil, false, func(t, h, j int) (sum float64) {
			for d := range s.dim() {
				sum += s.q(t, h, d) * s.k(j, h/s.group(), d)
			}
			return sum
		}}
		d := attention.DoubleSparse{Keys: 9, Sinks: 1, Recent: 2}
		for range 4 {
			d.Channels = append(d.Channels, []int32{7, 0, 1, 3, 2, 4, 6, 5})
		}
		labels := tensor.New(tensor.F32, s.key.Shape[0], s.key.Shape[1], 4, 8)
		if err := d.Label(s.key, labels, s.pages, s.rows); err != nil {
			t.Fatal(err)
		}
		turned, query := s.turned(t, b, r, labels)
		for name, choose := range map[string]func() (*attention.Keys, error){
			"sparq":        func() (*attention.Keys, error) { return s.sparq(b, 8).choose(9, 1, 2) },
			"doublesparse": func() (*attention.Keys, error) { return d.Select(b, &s.in, labels) },
			"loki": func() (*attention.Keys, error) {
				in := s.in
				in.Query = query
				return attention.Loki{Keys: 9, Sinks: 1, Recent: 2}.Select(b, &in, turned)
			},
		} {
			m, err := choose()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for g := range 4 {
				if got, want := m.Of(0, g, 4), s.listed(attended, 0, g, 9, 1, 2); !slices.Equal(got, want) {
					t.Errorf("%s: KV head %d: keys %v, want %v", name, g, got, want)
				}
			}
		}
	}
}

// turned are keys and queries in an orthonormal basis: products of reflections.
func (s *selecting) turned(t *testing.T, b kernel.Backend, r *rand.Rand, like tensor.View) (keys, query tensor.View) {
	dim := int64(s.dim())
	basis := tensor.New(tensor.F32, 1, dim, int64(s.in.KVHeads), dim)
	for g := range int64(s.in.KVHeads) {
		v, norm := make([]float64, dim), 0.0
		for d := range v {
			v[d] = r.NormFloat64()
			norm += v[d] * v[d]
		}
		for c := range dim {
			for d := range dim {
				x := -2 * v[c] * v[d] / norm
				if c == d {
					x++
				}
				basis.Set(float32(x), 0, c, g, d)
			}
		}
	}
	flat := func(v tensor.View) tensor.View {
		return tensor.FromF32(v.F32s(), v.Shape[0]*v.Shape[1], v.Shape[2], v.Shape[3])
	}
	keys, query = tensor.New(tensor.F32, like.Shape[0], like.Shape[1], like.Shape[2], dim), tensor.New(tensor.F32, 1, s.in.Query.Shape[1], dim)
	if err := (attention.Loki{}).Project(b, flat(s.key), basis, flat(keys)); err != nil {
		t.Fatal(err)
	}
	if err := (attention.Loki{}).Project(b, s.in.Query, basis, query); err != nil {
		t.Fatal(err)
	}
	return keys, query
}

// SparQ's shares are those of the softmax, and its correction mixes in the mean.
func TestSparQGivesTheRestToTheMean(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(21, 22))
	for range 10 {
		s := newSelecting(r, 2, 20+r.IntN(60), 1+r.IntN(9), 4, 4, 8) // a head a row: scores are those of the rule
		s.in.Scores = tensor.New(tensor.F32, 2, 4, int64(s.in.SeqLens[0]))
		c := s.sparq(b, 3)
		keys, alpha, err := attention.SparQ{Rank: 3, Keys: 7, Recent: 2}.SelectWithMean(b, &s.in, s.key)
		if err != nil {
			t.Fatal(err)
		}
		mean, out := normal(r, tensor.F32, 2, 4, 8), normal(r, tensor.F32, 2, 4, 8)
		want := slices.Clone(out.F32s())
		for tok := range 2 {
			for h := range 4 {
				all, part := 0.0, 0.0
				for j := range int(s.in.SeqLens[0]) - 1 + tok {
					w := math.Exp(c.score(tok, h, j))
					if all += w; slices.Contains(keys.Of(tok, h, 4), int32(j)) {
						part += w
					}
				}
				if e := math.Abs(float64(alpha[tok*4+h]) - part/all); e > 1e-5 {
					t.Fatalf("share %v, want %v", alpha[tok*4+h], part/all)
				}
				for d := range 8 {
					i := (tok*4+h)*8 + d
					want[i] = float32(part/all*float64(want[i]) + (1-part/all)*float64(mean.F32s()[i]))
				}
			}
		}
		if err := (attention.SparQ{}).Correct(b, out, mean, alpha); err != nil {
			t.Fatal(err)
		}
		for i, w := range want {
			if math.Abs(float64(out.F32s()[i]-w)) > 1e-5 {
				t.Fatalf("element %d is %v, want %v", i, out.F32s()[i], w)
			}
		}
	}
	// the keys are those chosen without shares
	s := newSelecting(r, 3, 90, 7, 4, 2, 8)
	s.in.Scores = tensor.New(tensor.F32, 3, 4, 90)
	q := attention.SparQ{Rank: 3, Keys: 20, Sinks: 2, Recent: 3}
	with, _, err := q.SelectWithMean(b, &s.in, s.key)
	if err != nil {
		t.Fatal(err)
	}
	if without, err := q.Select(b, &s.in, s.key); err != nil || !slices.Equal(with.Indices, without.Indices) || !slices.Equal(with.Indptr, without.Indptr) {
		t.Errorf("keys %v, without shares %v: %v", with, without, err)
	}
	whole := normal(r, tensor.F32, 1, 1, 8)
	want := slices.Clone(whole.F32s())
	if err := (attention.SparQ{}).Correct(b, whole, normal(r, tensor.F32, 1, 1, 8), []float32{1}); err != nil || !slices.Equal(whole.F32s(), want) {
		t.Errorf("with all the weight: %v, want %v: %v", whole.F32s(), want, err)
	}
	for _, alpha := range [][]float32{{}, {2}, {float32(math.NaN())}, {-1}} {
		if err := (attention.SparQ{}).Correct(b, whole, whole, alpha); err == nil {
			t.Errorf("shares %v were taken", alpha)
		}
	}
}

func TestKeySelectorsRefuseBadParameters(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(23, 24))
	s := newSelecting(r, 1, 20, 4, 2, 1, 8)
	for _, c := range keySelectors(t, b, r, s) {
		for _, bad := range [][3]int{{0, 0, 1}, {1, 0, 0}, {2, 1, 2}, {2, -1, 1}, {math.MinInt, 0, 1}, {1, 0, 2}} {
			if _, err := c.choose(bad[0], bad[1], bad[2]); err == nil {
				t.Errorf("%s: %v was taken", c.name, bad)
			}
		}
		for name, spoil := range map[string]func(*attention.Selection){
			"page size": func(in *attention.Selection) { in.PageSize = 0 }, "short scores": func(in *attention.Selection) { in.Scores = in.Scores.Slice(2, 0, 4) },
			"no query": func(in *attention.Selection) { in.Query = tensor.View{} }, "no scores": func(in *attention.Selection) { in.Scores = tensor.View{} },
		} {
			if c.name == "loki" {
				continue // has a query of its own; the checks are the same
			}
			before := s.in
			spoil(&s.in)
			if _, err := c.choose(4, 1, 1); err == nil {
				t.Errorf("%s: %s: was taken", c.name, name)
			}
			s.in = before
		}
	}
	for _, rank := range []int{0, 9, -1} {
		if _, err := (attention.SparQ{Rank: rank, Keys: 4, Recent: 1}).Select(b, &s.in, s.key); err == nil {
			t.Errorf("sparq: rank %d was taken", rank)
		}
	}
	labels := tensor.New(tensor.F32, int64(len(s.pages)), 4, 1, 2)
	for _, channels := range [][][]int32{nil, {{}}, {{0, 8}}, {{-1, 0}}, {{0, 1}, {0, 1}}} {
		d := attention.DoubleSparse{Keys: 4, Recent: 1, Channels: channels}
		if _, err := d.Select(b, &s.in, labels); err == nil {
			t.Errorf("doublesparse: channels %v were taken", channels)
		}
		if err := d.Label(s.key, labels, s.pages, s.rows); err == nil {
			t.Errorf("doublesparse: labels of channels %v", channels)
		}
	}
	good := attention.DoubleSparse{Keys: 4, Recent: 1, Channels: [][]int32{{0, 1}}}
	for name, err := range map[string]error{
		"page":   good.Label(s.key, labels, []int32{99}, []int32{1}),
		"rows":   good.Label(s.key, labels, []int32{0}, []int32{5}),
		"counts": good.Label(s.key, labels, []int32{0}, nil),
		"shape":  good.Label(s.key, labels.Slice(3, 0, 1), []int32{0}, []int32{1}),
		"none":   good.Label(tensor.View{}, labels, nil, nil),
	} {
		if err == nil {
			t.Errorf("doublesparse: labels with a bad %s", name)
		}
	}
}

// takesSelector fails unless a selector takes a scene of the model's sizes.
func takesSelector(t *testing.T, b kernel.Backend, sizes attention.ModelSizes, name string, value any) {
	t.Helper()
	r := rand.New(rand.NewPCG(27, 28))
	s := newSelecting(r, 1, 300, 64, sizes.Heads, sizes.KVHeads, sizes.HeadDim)
	s.in.Scores = tensor.New(tensor.F32, 1, int64(sizes.Heads), 300)
	var keys *attention.Keys
	var blocks kernel.BlockSparse
	var err error
	means := tensor.New(tensor.F32, s.key.Shape[0], s.key.Shape[2], s.key.Shape[3])
	switch m := value.(type) {
	case attention.InfLLM:
		if err = m.Represent(s.key, normal(r, tensor.F32, 300, int64(sizes.Heads)), means, s.pages, 300); err == nil {
			blocks, err = m.Select(b, &s.in, means)
		}
	case attention.LongHeads:
		if err = m.Represent(b, normal(r, tensor.F32, 300, int64(sizes.Heads), int64(sizes.HeadDim)), s.key, s.key, means, s.pages, s.rows); err == nil {
			blocks, err = m.Select(b, &s.in, means)
		}
	case attention.ReAttention:
		keys, err = m.Select(b, &s.in, s.key)
	case attention.SqueezedAttention:
		var prefix *attention.SqueezedPrefix
		if prefix, err = m.Cluster(b, s.key, s.pages, 200, 10, 1); err == nil {
			keys, err = m.Select(b, &s.in, prefix)
		}
	case attention.NSA:
		blocks, err = s.runNSA(b, m, [3]float32{1, 1, 1}, nil)
	case attention.PQCache:
		var centroids tensor.View
		codes := tensor.New(tensor.U8, s.key.Shape[0], s.key.Shape[1], s.key.Shape[2], int64(m.Parts))
		if centroids, err = m.Train(b, s.key, s.pages, s.rows, 1); err == nil {
			if err = m.Encode(b, s.key, centroids, codes, s.pages, s.rows); err == nil {
				keys, err = m.Select(b, &s.in, centroids, codes)
			}
		}
	case attention.SparQ:
		keys, err = m.Select(b, &s.in, s.key)
	case attention.Loki:
		keys, err = m.Select(b, &s.in, s.key)
	case attention.DoubleSparse:
		labels := tensor.New(tensor.F32, s.key.Shape[0], 64, s.key.Shape[2], int64(len(m.Channels[0])))
		if err = m.Label(s.key, labels, s.pages, s.rows); err == nil {
			keys, err = m.Select(b, &s.in, labels)
		}
	}
	if err == nil && keys == nil {
		keys, err = attention.BlockKeys(&s.in, blocks)
	}
	if err != nil || keys == nil || len(keys.Indptr) != sizes.KVHeads+1 {
		t.Errorf("%s: %v, %v", name, keys, err)
	}
}
