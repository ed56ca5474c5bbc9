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

// best are the first, the last, and the n largest of scores 0 … own between them, of
// equal ones the first.
func best(score func(p int) float64, own, first, last, n int) []int32 {
	var between, out []int32
	for p := range own + 1 {
		if p < first || p > own-last {
			out = append(out, int32(p))
		} else {
			between = append(between, int32(p))
		}
	}
	slices.SortStableFunc(between, func(a, b int32) int { return cmp.Compare(score(int(b)), score(int(a))) })
	out = append(out, between[:min(n, len(between))]...)
	slices.Sort(out)
	return slices.Compact(out)
}

// infLLM is a scene with the means of its pages' representatives, by the selector and
// by hand.
func (s *selecting) infLLM(t *testing.T, m attention.InfLLM, r *rand.Rand) (means tensor.View, byHand func(p, g, d int) float64) {
	keys, heads := int(s.in.SeqLens[0]), int(s.in.Query.Shape[1])
	weights := normal(r, tensor.F32, int64(keys), int64(heads))
	means = tensor.New(tensor.F32, s.key.Shape[0], s.key.Shape[2], s.key.Shape[3])
	if err := m.Represent(s.key, weights, means, s.pages, keys); err != nil {
		t.Fatal(err)
	}
	return means, func(p, g, d int) float64 {
		list := make([]int, s.rows[p])
		weight := make([]float64, len(list))
		for slot := range list {
			list[slot] = slot
			for h := g * s.group(); h < (g+1)*s.group(); h++ {
				weight[slot] += float64(weights.At(int64(p*s.in.PageSize+slot), int64(h)))
			}
		}
		slices.SortFunc(list, func(a, b int) int { return cmp.Compare(weight[b], weight[a]) })
		list = list[:min(len(list), m.Representatives)]
		sum := 0.0
		for _, slot := range list {
			sum += s.k(p*s.in.PageSize+slot, g, d)
		}
		return sum / float64(len(list))
	}
}

func TestInfLLMChoosesThePagesOfTheRule(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(31, 32))
	for range 30 {
		tokens := 1 + r.IntN(3)
		s := newSelecting(r, tokens, tokens+r.IntN(120), 1+r.IntN(9), 4, 1<<r.IntN(3), 8)
		m := attention.InfLLM{Blocks: 1 + r.IntN(5), Init: r.IntN(3), Local: 1 + r.IntN(3), Representatives: 1 + r.IntN(5)}
		means, byHand := s.infLLM(t, m, r)
		blocks, err := m.Select(b, &s.in, means)
		if err != nil {
			t.Fatal(err)
		}
		for tok := range tokens {
			score := func(p int) (sum float64) {
				for h := range 4 {
					for d := range 8 {
						sum += s.q(tok, h, d) * byHand(p, h/s.group(), d)
					}
				}
				return sum
			}
			own := (int(s.in.SeqLens[0]) - tokens + tok) / s.in.PageSize
			if got, want := blocks.Indices[blocks.Indptr[tok]:blocks.Indptr[tok+1]], best(score, own, m.Init, m.Local, m.Blocks); !slices.Equal(got, want) {
				t.Fatalf("%+v of %d keys, pages of %d, token %d: pages %v, want %v", m, s.in.SeqLens[0], s.in.PageSize, tok, got, want)
			}
		}
	}
}

// attend runs attention over blocks of the scene, or over all without.
func (s *selecting) attend(t *testing.T, b kernel.Backend, c attention.Config, blocks *kernel.BlockSparse) kernel.Args {
	c.Heads, c.KVHeads, c.HeadDim, c.PageSize, c.Mask = int(s.in.Query.Shape[1]), s.in.KVHeads, s.dim(), s.in.PageSize, attention.Causal()
	step := attention.Step{QueryLens: []int{int(s.in.Query.Shape[0])}, KV: pagedKV{s}}
	if blocks != nil {
		c.Mask.Kinds |= kernel.MaskBlocks
		step.Blocks = *blocks
	}
	a, err := attention.New(b, c)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Plan(step); err != nil {
		t.Fatal(err)
	}
	args := s.args(s.key)
	if err := a.Run(&args); err != nil {
		t.Fatal(err)
	}
	return args
}

func TestInfLLMOfAllBlocksIsReRoPE(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(33, 34))
	for range 10 {
		s := newSelecting(r, 1+r.IntN(3), 30+r.IntN(300), 1+r.IntN(40), 4, 2, 8)
		m := attention.InfLLM{Blocks: len(s.pages), Init: r.IntN(2), Local: 1 + r.IntN(2), Representatives: 4}
		means, _ := s.infLLM(t, m, r)
		blocks, err := m.Select(b, &s.in, means)
		if err != nil {
			t.Fatal(err)
		}
		c := attention.Config{Position: attention.ReRoPE{Window: 7}, Rotary: plain{dim: 8}}
		if got, want := s.attend(t, b, c, &blocks), s.attend(t, b, c, nil); !slices.Equal(got.Out.F32s(), want.Out.F32s()) {
			t.Fatalf("%+v of %d keys, pages of %d: not the bits of ReRoPE", m, s.in.SeqLens[0], s.in.PageSize)
		}
	}
}

// Representations are the paper's two softmaxes, by hand, and heads choose by them.
func TestLongHeadsChoosesTheChunksOfTheRule(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(35, 36))
	for range 20 {
		s := newSelecting(r, 1, 1+r.IntN(120), 1+r.IntN(9), 4, 1<<r.IntN(3), 8)
		queries := normal(r, tensor.F32, int64(s.in.SeqLens[0]), 4, 8)
		means := tensor.New(tensor.F32, s.key.Shape[0], s.key.Shape[2], 8)
		m := attention.LongHeads{Chunks: 3 + r.IntN(5)}
		if err := m.Represent(b, queries, s.key, s.key, means, s.pages, s.rows); err != nil {
			t.Fatal(err)
		}
		represent := make([][][]float64, len(s.pages))
		for p := range s.pages {
			for g := range s.in.KVHeads {
				mean := make([]float64, 8)
				for slot := range int(s.rows[p]) {
					for h := g * s.group(); h < (g+1)*s.group(); h++ {
						q := make([]float64, 8)
						for d := range q {
							q[d] = float64(queries.At(int64(p*s.in.PageSize+slot), int64(h), int64(d)))
						}
						for d, x := range s.within(p, g, q) {
							mean[d] += x / float64(int(s.rows[p])*s.group())
						}
					}
				}
				represent[p] = append(represent[p], s.within(p, g, mean))
				for d, x := range represent[p][g] {
					if got := float64(means.At(int64(s.pages[p]), int64(g), int64(d))); math.Abs(got-x) > 1e-5 {
						t.Fatalf("chunk %d, KV head %d, feature %d: %v, want %v", p, g, d, got, x)
					}
				}
			}
		}
		blocks, err := m.Select(b, &s.in, means)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := attention.BlockKeys(&s.in, blocks)
		if err != nil {
			t.Fatal(err)
		}
		for g := range s.in.KVHeads {
			var want, wantKeys []int32
			for h := g * s.group(); h < (g+1)*s.group(); h++ {
				want = append(want, best(func(p int) (sum float64) {
					for d, x := range represent[p][g] {
						sum += s.q(0, h, d) * x
					}
					return sum
				}, len(s.pages)-1, 1, 2, m.Chunks-3)...)
			}
			slices.Sort(want)
			want = slices.Compact(want)
			for _, p := range want {
				for slot := range s.rows[p] {
					wantKeys = append(wantKeys, p*int32(s.in.PageSize)+slot)
				}
			}
			if got := blocks.Indices[blocks.Indptr[g]:blocks.Indptr[g+1]]; !slices.Equal(got, want) {
				t.Fatalf("%+v of %d chunks, KV head %d: %v, want %v", m, len(s.pages), g, got, want)
			}
			if got := keys.Of(0, g, s.in.KVHeads); !slices.Equal(got, wantKeys) {
				t.Fatalf("keys %v, want %v", got, wantKeys)
			}
		}
	}
}

// within is attention of q over the keys of page p, which are the values too.
func (s *selecting) within(p, g int, q []float64) []float64 {
	out, sum := make([]float64, len(q)), 0.0
	for slot := range int(s.rows[p]) {
		j, dot := p*s.in.PageSize+slot, 0.0
		for d, x := range q {
			dot += x * s.k(j, g, d)
		}
		w := math.Exp(dot / math.Sqrt(float64(len(q))))
		sum += w
		for d := range out {
			out[d] += w * s.k(j, g, d)
		}
	}
	for d := range out {
		out[d] /= sum
	}
	return out
}

func TestBlockSelectorsRefuseBadParameters(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(37, 38))
	s := newSelecting(r, 1, 20, 4, 4, 2, 8)
	good := attention.InfLLM{Blocks: 2, Init: 1, Local: 1, Representatives: 2}
	means, weights, queries := tensor.New(tensor.F32, 5, 2, 8), normal(r, tensor.F32, 20, 4), normal(r, tensor.F32, 20, 4, 8)
	heads := attention.LongHeads{Chunks: 3}
	blocks, err := good.Select(b, &s.in, means)
	if err != nil {
		t.Fatal(err)
	}
	short := blocks
	short.Indptr = short.Indptr[:1]
	for name, refused := range map[string]func() error{
		"infllm without blocks": func() error {
			_, err := attention.InfLLM{Local: 1, Representatives: 1}.Select(b, &s.in, means)
			return err
		},
		"infllm without local pages": func() error {
			_, err := attention.InfLLM{Blocks: 1, Representatives: 1}.Select(b, &s.in, means)
			return err
		},
		"infllm without representatives": func() error {
			return attention.InfLLM{Blocks: 1, Local: 1}.Represent(s.key, weights, means, s.pages, 20)
		},
		"infllm, negative init": func() error {
			_, err := attention.InfLLM{Blocks: 1, Local: 1, Init: -1, Representatives: 1}.Select(b, &s.in, means)
			return err
		},
		"infllm, means of other heads": func() error { _, err := good.Select(b, &s.in, tensor.New(tensor.F32, 5, 1, 8)); return err },
		"infllm, no means":             func() error { _, err := good.Select(b, &s.in, tensor.View{}); return err },
		"infllm, few weights":          func() error { return good.Represent(s.key, weights, means, s.pages, 21) },
		"infllm, no weights":           func() error { return good.Represent(s.key, tensor.View{}, means, s.pages, 20) },
		"infllm, bad page":             func() error { return good.Represent(s.key, weights, means, []int32{9, 1, 2, 3, 0}, 20) },
		"longheads of 2":               func() error { _, err := attention.LongHeads{Chunks: 2}.Select(b, &s.in, means); return err },
		"longheads, no page":           func() error { return heads.Represent(b, queries, s.key, s.key, means, nil, nil) },
		"longheads, empty page":        func() error { return heads.Represent(b, queries, s.key, s.key, means, []int32{0}, []int32{0}) },
		"longheads, page too large":    func() error { return heads.Represent(b, queries, s.key, s.key, means, []int32{0}, []int32{5}) },
		"longheads, few queries": func() error {
			return heads.Represent(b, queries.Slice(0, 0, 3), s.key, s.key, means, []int32{0}, []int32{4})
		},
		"longheads, no keys":      func() error { return heads.Represent(b, queries, tensor.View{}, s.key, means, []int32{0}, []int32{4}) },
		"lists of other blocks":   func() error { _, err := attention.BlockKeys(&s.in, kernel.BlockSparse{}); return err },
		"lists of too few rows":   func() error { _, err := attention.BlockKeys(&s.in, short); return err },
		"pqcache, parts":          func() error { return pqRefused(b, s, attention.PQCache{Keys: 4, Recent: 1, Parts: 3, Codes: 4}) },
		"pqcache, no parts":       func() error { return pqRefused(b, s, attention.PQCache{Keys: 4, Recent: 1, Codes: 4}) },
		"pqcache, codes":          func() error { return pqRefused(b, s, attention.PQCache{Keys: 4, Recent: 1, Parts: 2, Codes: 6}) },
		"pqcache, too many codes": func() error { return pqRefused(b, s, attention.PQCache{Keys: 4, Recent: 1, Parts: 2, Codes: 512}) },
		"pqcache, more codes than keys": func() error {
			return pqRefused(b, s, attention.PQCache{Keys: 4, Recent: 1, Parts: 2, Codes: 32})
		},
	} {
		if err := refused(); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
	p := attention.PQCache{Keys: 4, Recent: 1, Parts: 2, Codes: 4}
	centroids, err := p.Train(b, s.key, s.pages, s.rows, 1)
	if err != nil {
		t.Fatal(err)
	}
	codes := tensor.New(tensor.U8, 5, 4, 2, 2)
	s.in.Scores = tensor.New(tensor.F32, 1, 4, 20)
	if _, err := p.Select(b, &s.in, centroids, codes); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"codes of f32":     p.Encode(b, s.key, centroids, tensor.New(tensor.F32, 5, 4, 2, 2), s.pages, s.rows),
		"codes of 3 parts": p.Encode(b, s.key, centroids, tensor.New(tensor.U8, 5, 4, 2, 3), s.pages, s.rows),
		"no centroids":     p.Encode(b, s.key, tensor.View{}, codes, s.pages, s.rows),
		"bad page":         p.Encode(b, s.key, centroids, codes, []int32{7}, []int32{1}),
		"no keys":          p.Encode(b, tensor.View{}, centroids, codes, nil, nil),
	} {
		if err == nil {
			t.Errorf("pqcache: %s: was taken", name)
		}
	}
}

func pqRefused(b kernel.Backend, s *selecting, p attention.PQCache) error {
	_, err := p.Train(b, s.key, s.pages, s.rows, 1)
	return err
}

// k-means does not make the keys farther from their centroids.
func TestPQCacheTrainingComesCloser(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	s := newSelecting(rand.New(rand.NewPCG(39, 40)), 1, 200, 16, 2, 2, 8)
	p := attention.PQCache{Keys: 4, Recent: 1, Parts: 2, Codes: 8}
	last := math.Inf(1)
	for iterations := range 6 {
		centroids, err := p.Train(b, s.key, s.pages, s.rows, iterations)
		if err != nil {
			t.Fatal(err)
		}
		total := 0.0
		for j := range 200 {
			for g := range 2 {
				for part := range 2 {
					least := math.Inf(1)
					for c := range int64(8) {
						distance := 0.0
						for d := range 4 {
							e := s.k(j, g, part*4+d) - float64(centroids.At(int64(part), c, int64(g), int64(d)))
							distance += e * e
						}
						least = min(least, distance)
					}
					total += least
				}
			}
		}
		if total > last*(1+1e-6) || iterations == 5 && total > 1500 {
			t.Errorf("%d iterations: %v, before %v", iterations, total, last)
		}
		last = total
	}
}
