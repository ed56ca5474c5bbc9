package attention_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// runNSA runs NSA on the scene, with the same gates for every token and head, and
// returns the blocks it selected.
func (s *selecting) runNSA(b kernel.Backend, m attention.NSA, gate [3]float32, out *kernel.Args) (kernel.BlockSparse, error) {
	q := s.in.Query
	a, err := m.New(b, attention.Config{Heads: int(q.Shape[1]), KVHeads: s.in.KVHeads, HeadDim: s.dim(), PageSize: s.in.PageSize})
	if err != nil {
		return kernel.BlockSparse{}, err
	}
	defer a.Close()
	means := tensor.New(tensor.F32, s.key.Shape[0], s.key.Shape[2], s.key.Shape[3])
	for i := range means.F32s() {
		means.F32s()[i] = float32(math.NaN())
	}
	full := s.pages[:int(s.in.SeqLens[0])/s.in.PageSize]
	if err := m.Compress(s.key, s.key, means, means, full); err != nil {
		return kernel.BlockSparse{}, err
	}
	var gates [3]tensor.View
	for i := range gates {
		gates[i] = tensor.New(tensor.F32, q.Shape[0], q.Shape[1])
		for k := range gates[i].F32s() {
			gates[i].F32s()[k] = gate[i]
		}
	}
	args := s.args(s.key)
	args.LSE = tensor.View{}
	err = a.Run(b, &s.in, &args, means, means, gates)
	if out != nil {
		*out = args
	}
	return a.Selected, err
}

// over is attention in float64 of a query over rows, and the weights.
func over(q []float64, rows [][]float64) (out, weights []float64) {
	out, sum := make([]float64, len(q)), 0.0
	for _, k := range rows {
		dot := 0.0
		for d := range q {
			dot += q[d] * k[d]
		}
		weights = append(weights, math.Exp(dot/math.Sqrt(float64(len(q)))))
		sum += weights[len(weights)-1]
	}
	for i, k := range rows {
		weights[i] /= sum
		for d := range out {
			out[d] += weights[i] * k[d]
		}
	}
	return out, weights
}

// The three attentions one by one, by hand, and their gated sum.
func TestNSABranchByBranch(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(41, 42))
	for range 25 {
		tokens := 1 + r.IntN(3)
		s := newSelecting(r, tokens, tokens+r.IntN(150), 1+r.IntN(12), 4, 1<<r.IntN(3), 8)
		m := attention.NSA{Sinks: r.IntN(2), Recent: 1 + r.IntN(2), Window: 1 + r.IntN(40)}
		m.Blocks = m.Sinks + m.Recent + r.IntN(5)
		var got [4]kernel.Args
		var blocks kernel.BlockSparse
		for i, gate := range [4][3]float32{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}, {0.5, 0.25, 2}} {
			var err error
			if blocks, err = s.runNSA(b, m, gate, &got[i]); err != nil {
				t.Fatal(err)
			}
		}
		for tok := range tokens {
			own := int(s.in.SeqLens[0]) - tokens + tok
			for g := range s.in.KVHeads {
				row := func(j int) (out []float64) {
					for d := range 8 {
						out = append(out, s.k(j, g, d))
					}
					return out
				}
				var means [][]float64
				for p := range (own + 1) / s.in.PageSize {
					mean := make([]float64, 8)
					for j := p * s.in.PageSize; j < (p+1)*s.in.PageSize; j++ {
						for d, x := range row(j) {
							mean[d] += x / float64(s.in.PageSize)
						}
					}
					means = append(means, mean)
				}
				importance := make([]float64, own/s.in.PageSize+1)
				var compressed [][]float64
				queries := func(h int) (q []float64) {
					for d := range 8 {
						q = append(q, s.q(tok, h, d))
					}
					return q
				}
				for h := g * s.group(); h < (g+1)*s.group(); h++ {
					out, weights := over(queries(h), means)
					compressed = append(compressed, out)
					for p, w := range weights {
						importance[p] += w
					}
				}
				want := best(func(p int) float64 { return importance[p] }, own/s.in.PageSize, m.Sinks, m.Recent, m.Blocks-m.Sinks-m.Recent)
				at := g*tokens + tok
				if list := blocks.Indices[blocks.Indptr[at]:blocks.Indptr[at+1]]; !slices.Equal(list, want) {
					t.Fatalf("%+v of %d keys, pages of %d, token %d, KV head %d: blocks %v, want %v", m, s.in.SeqLens[0], s.in.PageSize, tok, g, list, want)
				}
				var selected, window [][]float64
				for j := range own + 1 {
					if slices.Contains(want, int32(j/s.in.PageSize)) {
						selected = append(selected, row(j))
					}
					if j > own-m.Window {
						window = append(window, row(j))
					}
				}
				for n := range s.group() {
					h := g*s.group() + n
					var branch [4][]float64
					branch[0] = compressed[n]
					branch[1], _ = over(queries(h), selected)
					branch[2], _ = over(queries(h), window)
					for d := range 8 {
						branch[3] = append(branch[3], 0.5*branch[0][d]+0.25*branch[1][d]+2*branch[2][d])
					}
					for i, name := range []string{"compressed", "selected", "window", "sum"} {
						for d, w := range branch[i] {
							if x := float64(got[i].Out.At(int64(tok), int64(h), int64(d))); !(math.Abs(x-w) <= 2e-5) {
								t.Fatalf("%s of token %d, head %d, feature %d is %v, want %v", name, tok, h, d, x, w)
							}
						}
					}
				}
			}
		}
	}
}

func TestNSARefusesBadArguments(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	s := newSelecting(rand.New(rand.NewPCG(43, 44)), 1, 20, 4, 4, 2, 8)
	good := attention.NSA{Blocks: 3, Sinks: 1, Recent: 1, Window: 4}
	for _, m := range []attention.NSA{{}, {Blocks: 1, Window: 1}, {Blocks: 1, Recent: 1}, {Blocks: 1, Recent: 1, Sinks: -1, Window: 1}, {Blocks: 2, Recent: 2, Sinks: 1, Window: 1}} {
		if _, err := s.runNSA(b, m, [3]float32{1, 1, 1}, nil); err == nil {
			t.Errorf("%+v was taken", m)
		}
	}
	c := attention.Config{Heads: 4, KVHeads: 2, HeadDim: 8, PageSize: 4}
	for name, spoil := range map[string]func(*attention.Config){
		"mask": func(c *attention.Config) { c.Mask = attention.Causal() }, "rotation": func(c *attention.Config) { c.Rotary = plain{dim: 8} },
		"score": func(c *attention.Config) { c.Score.LogN = 9 }, "contiguous": func(c *attention.Config) { c.PageSize = 0 }, "heads": func(c *attention.Config) { c.KVHeads = 3 },
	} {
		bad := c
		spoil(&bad)
		if _, err := good.New(b, bad); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	a, err := good.New(b, c)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	means, gate := tensor.New(tensor.F32, 5, 2, 8), tensor.New(tensor.F32, 1, 4)
	run := func(args kernel.Args, k, v, gate tensor.View) error {
		return a.Run(b, &s.in, &args, k, v, [3]tensor.View{gate, gate, gate})
	}
	args := s.args(s.key)
	args.LSE = tensor.View{}
	if err := run(args, means, means, gate); err != nil {
		t.Fatal(err)
	}
	short := args
	short.Out = tensor.New(tensor.F32, 1, 3, 8)
	for name, err := range map[string]error{
		"LSE": run(s.args(s.key), means, means, gate), "out": run(short, means, means, gate), "no means": run(args, tensor.View{}, means, gate),
		"gates": run(args, means, means, tensor.New(tensor.F32, 1, 3)), "no gates": run(args, means, means, tensor.View{}), "nothing": run(kernel.Args{}, means, means, gate),
		"means of other heads": run(args, tensor.New(tensor.F32, 5, 1, 8), means, gate),
		"nil":                  a.Run(b, &s.in, nil, means, means, [3]tensor.View{}),
		"compressing a page":   good.Compress(s.key, s.key, means, means, []int32{5}),
		"compressing":          good.Compress(s.key, tensor.View{}, means, means, nil),
	} {
		if err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

func TestReAttentionChoosesTheSpansOfTheRule(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(45, 46))
	for range 40 {
		tokens := 1 + r.IntN(3)
		s := newSelecting(r, tokens, tokens+r.IntN(120), 1+r.IntN(9), 4, 1<<r.IntN(3), 8)
		s.in.Scores = tensor.New(tensor.F32, int64(tokens), 4, int64(s.in.SeqLens[0]))
		m := attention.ReAttention{Top: 1 + r.IntN(3), Span: 1 + r.IntN(9), Global: r.IntN(8), Local: 1 + r.IntN(20)}
		keys, err := m.Select(b, &s.in, s.key)
		if err != nil {
			t.Fatal(err)
		}
		for tok := range tokens {
			own := int(s.in.SeqLens[0]) - tokens + tok
			chosen := map[int32]bool{}
			for j := range own + 1 {
				chosen[int32(j)] = j < m.Global || j > own-m.Local
			}
			for h := range 4 {
				score := func(j int) (sum float64) {
					for d := range 8 {
						sum += s.q(tok, h, d) * s.k(j, h/s.group(), d)
					}
					return sum
				}
				for _, j := range best(score, own, m.Global, m.Local, m.Top) {
					if int(j) < m.Global || int(j) > own-m.Local {
						continue
					}
					for n := range m.Span {
						chosen[int32(min(max(int(j)-m.Span/2+n, m.Global), own-m.Local))] = true
					}
				}
			}
			var want []int32
			for j := range int32(own + 1) {
				if chosen[j] {
					want = append(want, j)
				}
			}
			for g := range s.in.KVHeads {
				if got := keys.Of(tok, g, s.in.KVHeads); !slices.Equal(got, want) {
					t.Fatalf("%+v of %d keys, token %d: %v, want %v", m, s.in.SeqLens[0], tok, got, want)
				}
			}
		}
		m.Top = int(s.in.SeqLens[0])
		if keys, err = m.Select(b, &s.in, s.key); err != nil || !slices.Equal(keys.Indices, s.everything().Indices) {
			t.Fatalf("of all: %v, %v", keys, err)
		}
	}
	s := newSelecting(r, 1, 20, 4, 4, 2, 8)
	for _, m := range []attention.ReAttention{{}, {Span: 1, Local: 1}, {Top: 1, Local: 1}, {Top: 1, Span: 1}, {Top: 1, Span: 1, Local: 1, Global: -1}} {
		if _, err := m.Select(b, &s.in, s.key); err == nil {
			t.Errorf("%+v was taken", m)
		}
	}
}

func TestSqueezedAttentionChoosesTheClustersOfTheRule(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(47, 48))
	for range 30 {
		s := newSelecting(r, 1+r.IntN(3), 60+r.IntN(120), 1+r.IntN(9), 4, 1<<r.IntN(3), 8)
		s.in.Scores = tensor.New(tensor.F32, s.in.Query.Shape[0], 4, 60)
		m := attention.SqueezedAttention{Threshold: math.Exp(-2 - 5*r.Float64())}
		n, fixed := 1+r.IntN(20), 20+r.IntN(37)
		prefix, err := m.Cluster(b, s.key, s.pages, fixed, n, r.IntN(3))
		if err != nil {
			t.Fatal(err)
		}
		keys, err := m.Select(b, &s.in, prefix)
		if err != nil {
			t.Fatal(err)
		}
		centroid := func(i, g, d int) float64 {
			return float64(prefix.Centroids.At(0, int64(i), int64(g), int64(d)))
		}
		label := make([][]int, s.in.KVHeads) // of each key
		for g := range label {
			for j := range fixed {
				at, least := 0, math.Inf(1)
				for i := range n {
					distance := 0.0
					for d := range 8 {
						distance += (s.k(j, g, d) - centroid(i, g, d)) * (s.k(j, g, d) - centroid(i, g, d))
					}
					if distance < least-1e-5 {
						at, least = i, distance
					}
				}
				label[g] = append(label[g], at)
			}
		}
		for tok := range int(s.in.Query.Shape[0]) {
			for g := range s.in.KVHeads {
				var want []int32
				for j := range int(s.in.SeqLens[0]) - int(s.in.Query.Shape[0]) + tok + 1 {
					seen := j >= fixed
					for h := g * s.group(); h < (g+1)*s.group() && !seen; h++ {
						weight := func(i int) float64 {
							dot := 0.0
							for d := range 8 {
								dot += s.q(tok, h, d) * centroid(i, g, d)
							}
							return math.Exp(float64(s.in.Scale) * dot)
						}
						total := 0.0
						for _, i := range label[g] {
							total += weight(i)
						}
						seen = weight(label[g][j])/total > m.Threshold
					}
					if seen {
						want = append(want, int32(j))
					}
				}
				if got := keys.Of(tok, g, s.in.KVHeads); !slices.Equal(got, want) {
					t.Fatalf("%d clusters of %d keys, token %d, KV head %d: %v, want %v", n, fixed, tok, g, got, want)
				}
			}
		}
		m.Threshold = -1
		if keys, err = m.Select(b, &s.in, prefix); err != nil || !slices.Equal(keys.Indices, s.everything().Indices) {
			t.Fatalf("of all: %v, %v", keys, err)
		}
	}
}

func TestSqueezedAttentionRefusesBadArguments(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	s := newSelecting(rand.New(rand.NewPCG(49, 50)), 1, 20, 4, 4, 2, 8)
	s.in.Scores = tensor.New(tensor.F32, 1, 4, 20)
	var m attention.SqueezedAttention
	prefix, err := m.Cluster(b, s.key, s.pages, 10, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Select(b, &s.in, prefix); err != nil {
		t.Fatal(err)
	}
	for _, threshold := range []float64{1, 2, math.NaN(), math.Inf(1)} {
		if _, err := (attention.SqueezedAttention{Threshold: threshold}).Select(b, &s.in, prefix); err == nil {
			t.Errorf("threshold %v was taken", threshold)
		}
	}
	for _, bad := range [][3]int{{0, 1, 1}, {21, 3, 1}, {10, 0, 1}, {10, 11, 1}, {10, 3, -1}} {
		if _, err := m.Cluster(b, s.key, s.pages, bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%d keys in %d clusters in %d iterations were taken", bad[0], bad[1], bad[2])
		}
	}
	if _, err := m.Cluster(b, tensor.View{}, s.pages, 10, 3, 1); err == nil {
		t.Error("no keys were taken")
	}
	for name, spoil := range map[string]func(*attention.SqueezedPrefix, *attention.Selection){
		"member": func(p *attention.SqueezedPrefix, _ *attention.Selection) { p.Members[0] = 10 },
		"bounds": func(p *attention.SqueezedPrefix, _ *attention.Selection) { p.Start[1] = 99 },
		"counts": func(p *attention.SqueezedPrefix, _ *attention.Selection) { p.Start = p.Start[:3] },
		"length": func(p *attention.SqueezedPrefix, _ *attention.Selection) { p.Keys = 20 },
		"scores": func(_ *attention.SqueezedPrefix, in *attention.Selection) { in.Scores = in.Scores.Slice(2, 0, 2) },
		"none":   func(p *attention.SqueezedPrefix, _ *attention.Selection) { *p = attention.SqueezedPrefix{} },
	} {
		p, in := *prefix, s.in
		p.Members, p.Start = slices.Clone(p.Members), slices.Clone(p.Start)
		spoil(&p, &in)
		if _, err := m.Select(b, &in, &p); err == nil {
			t.Errorf("a bad %s was taken", name)
		}
	}
	if _, err := m.Select(b, &s.in, nil); err == nil {
		t.Error("no prefix was taken")
	}
}
