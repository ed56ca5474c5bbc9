package parallel_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/attention/parallel"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// plan is a Schedule and the pairs that it has to show.
type plan struct {
	s    *parallel.Schedule
	sees func(i, j int) bool
}

// plans are all techniques for a sequence.
func plans(t *testing.T, tokens, ranks, heads, kvHeads int, causal bool) (list []plan) {
	t.Helper()
	add := func(s *parallel.Schedule, err error) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, plan{s, func(i, j int) bool { return j <= i || !causal }})
	}
	add(parallel.Ring(tokens, ranks, causal))
	add(parallel.ZigZag(tokens, ranks, causal))
	add(parallel.Striped(tokens, ranks, causal))
	if ranks <= kvHeads {
		add(parallel.Ulysses(tokens, heads, kvHeads, ranks, causal))
	}
	if query := tokens / 5; causal {
		s, err := parallel.Star(tokens, query, ranks)
		if err != nil {
			t.Fatal(err)
		}
		// block of a token of the context, cut as evenly as can be
		block := func(i int) int {
			for r, first := 0, 0; ; r++ {
				n := (tokens - query) / ranks
				if r < (tokens-query)%ranks {
					n++
				}
				if first += n; i < first {
					return r
				}
			}
		}
		list = append(list, plan{s, func(i, j int) bool {
			return j <= i && (i >= tokens-query || block(j) == 0 || block(j) == block(i))
		}})
	}
	return list
}

// Every pair that is to be seen is computed once for each head, by the rank that
// has the query, and every token is held once.
func TestSchedulesPartitionThePairs(t *testing.T) {
	const heads, kvHeads = 6, 3
	for tokens := range 41 {
		for _, ranks := range []int{1, 2, 3, 5, 8} {
			for _, causal := range []bool{true, false} {
				for _, p := range plans(t, tokens, ranks, heads, kvHeads, causal) {
					name := fmt.Sprintf("%s of %d tokens, %d ranks, causal %v", p.s.Name, tokens, ranks, causal)
					holder := make([]int, tokens)
					for i := range holder {
						holder[i] = -1
					}
					for r, held := range p.s.Held {
						for _, x := range held {
							for k := range x.Count {
								if i := x.First + k*x.Step; holder[i] >= 0 {
									t.Fatalf("%s: ranks %d and %d hold token %d", name, holder[i], r, i)
								} else {
									holder[i] = r
								}
							}
						}
					}
					if slices.Contains(holder, -1) {
						t.Fatalf("%s: nobody holds some tokens: %v", name, holder)
					}
					seen := make([]int, heads*tokens*tokens)
					for r, rounds := range p.s.Rounds {
						for _, x := range rounds {
							if n := show(t, &x, r, holder, seen, heads, tokens); n != x.Pairs {
								t.Fatalf("%s: a round of rank %d shows %d pairs, says %d", name, r, n, x.Pairs)
							}
						}
					}
					for h := range heads {
						for i := range tokens {
							for j := range tokens {
								want := 0
								if p.sees(i, j) {
									want = 1
								}
								if got := seen[(h*tokens+i)*tokens+j]; got != want {
									t.Fatalf("%s: query %d of head %d meets key %d %d times, want %d", name, i, h, j, got, want)
								}
							}
						}
					}
				}
			}
		}
	}
}

// show counts the pairs of a round, by the definition of a Region.
func show(t *testing.T, x *parallel.Round, rank int, holder, seen []int, heads, tokens int) (pairs int64) {
	lo, hi := x.Heads[0], x.Heads[1]
	all := hi > 0 // after an all-to-all a rank has all tokens of its heads
	if !all {
		hi = heads
	}
	for a := range x.Query.Count {
		for b := range x.Key.Count {
			index := int64(a + x.Key.Count - x.Query.Count)
			for _, r := range x.Mask.Regions {
				first, end := r.Keys(index, int64(x.Key.Count), 0)
				if int64(b) < first || int64(b) >= end {
					continue
				}
				pairs++
				i, j := x.Query.First+a*x.Query.Step, x.Key.First+b*x.Key.Step
				if !all && (holder[i] != rank || holder[j] != x.From) {
					t.Fatalf("rank %d computes query %d of rank %d with key %d of rank %d, says %d", rank, i, holder[i], j, holder[j], x.From)
				}
				for h := lo; h < hi; h++ {
					seen[(h*tokens+i)*tokens+j]++
				}
			}
		}
	}
	return pairs
}

// The work of ranks: of a ring the last has nearly twice the mean, of the others
// all have the same.
func TestBalance(t *testing.T) {
	const tokens, ranks, heads = 1 << 20, 8, 8
	most := map[string]float64{"ring": (2*ranks - 1) / float64(ranks), "zig-zag": 1, "striped": 1, "ulysses": 1}
	for _, p := range plans(t, tokens, ranks, heads, heads, true) {
		want, known := most[p.s.Name]
		if got := p.s.Imbalance(heads); known && math.Abs(got-want) > 1e-5 {
			t.Errorf("%s: the most work is %.6f of the mean, want %.6f", p.s.Name, got, want)
		}
		total := int64(0)
		for _, w := range p.s.Work(heads) {
			total += w
		}
		if pairs := int64(tokens) * (tokens + 1) / 2 * heads; known && total != pairs {
			t.Errorf("%s: %d pairs in all, want %d", p.s.Name, total, pairs)
		}
	}
}

func random(r *rand.Rand, shape ...int64) tensor.View {
	v := tensor.New(tensor.F32, shape...)
	x := v.F32s()
	for i := range v.Len() {
		x[i] = float32(r.NormFloat64())
	}
	return v
}

// Ranks together compute what one does: bit for bit where a query meets its keys
// in one round, to rounding elsewhere; against float64.
func TestRanksComputeWhatOneDoes(t *testing.T) {
	const heads, kvHeads, dim, value = 4, 2, 16, 12
	b := cpu.New(cpu.Options{Workers: 2})
	defer b.Close()
	r := rand.New(rand.NewPCG(1, 2))
	for _, tokens := range []int64{1, 37, 300} {
		args := kernel.Args{Query: random(r, tokens, heads, dim), Key: random(r, tokens, kvHeads, dim), Value: random(r, tokens, kvHeads, value)}
		for _, rotary := range []attention.Rotary{nil, rope.Default{Base: rope.Base{HeadDim: dim}}} {
			for _, causal := range []bool{true, false} {
				c := attention.Config{Heads: heads, KVHeads: kvHeads, HeadDim: dim, ValueDim: value, Rotary: rotary}
				run := func(p plan) (out, lse []float32) {
					now := args
					now.Out, now.LSE = random(r, tokens, heads, value), random(r, tokens, heads)
					if err := parallel.Run(b, c, p.s, &now); err != nil {
						t.Fatal(err)
					}
					return now.Out.F32s(), now.LSE.F32s()
				}
				one := plans(t, int(tokens), 1, heads, kvHeads, causal)[0]
				want, lse := run(one)
				dense := exact(&args, one.sees)
				for _, ranks := range []int{1, 2, 5} {
					for _, p := range plans(t, int(tokens), ranks, heads, kvHeads, causal) {
						name := fmt.Sprintf("%s, %d tokens, %d ranks, causal %v, rotary %v", p.s.Name, tokens, ranks, causal, rotary != nil)
						out, sums := run(p)
						same := slices.Equal(out, want) && slices.Equal(sums, lse)
						switch {
						case p.s.Name == "ulysses" || ranks == 1 && p.s.Name == "ring":
							if !same {
								t.Errorf("%s: the bits are not those of one rank", name)
							}
						case p.s.Name != "star":
							if d := distance(out, want); !(d < 1e-6) {
								t.Errorf("%s: relative distance %.2g from one rank", name, d)
							}
						}
						if again, _ := run(p); !slices.Equal(again, out) {
							t.Errorf("%s: a second run differs", name)
						}
						if rotary == nil {
							of := dense
							if p.s.Name == "star" {
								of = exact(&args, p.sees)
							}
							if d := distance(out, of); !(d < 2e-6) {
								t.Errorf("%s: relative distance %.2g from float64", name, d)
							}
						}
					}
				}
			}
		}
	}
}

// distance is the relative L2 distance.
func distance(x, y []float32) float64 {
	diff, size := 0.0, 0.0
	for i := range y {
		d := float64(x[i]) - float64(y[i])
		diff, size = diff+d*d, size+float64(y[i])*float64(y[i])
	}
	return math.Sqrt(diff / size)
}

// exact is attention in float64 over the pairs that sees shows.
func exact(a *kernel.Args, sees func(i, j int) bool) (out []float32) {
	tokens, heads, group := int(a.Query.Shape[0]), a.Query.Shape[1], a.Query.Shape[1]/a.Key.Shape[1]
	for i := range tokens {
		for h := range heads {
			sum, row := 0.0, make([]float64, a.Value.Shape[2])
			for j := range tokens {
				if !sees(i, j) {
					continue
				}
				s := 0.0
				for d := range a.Query.Shape[2] {
					s += float64(a.Query.At(int64(i), h, d)) * float64(a.Key.At(int64(j), h/group, d))
				}
				w := math.Exp(s / math.Sqrt(float64(a.Query.Shape[2])))
				sum += w
				for d := range row {
					row[d] += w * float64(a.Value.At(int64(j), h/group, int64(d)))
				}
			}
			for _, x := range row {
				out = append(out, float32(x/sum))
			}
		}
	}
	return out
}

// What cannot be is refused with what can.
func TestRefusals(t *testing.T) {
	for want, make := range map[string]func() (*parallel.Schedule, error){
		"want 0 to 2³¹−2":         func() (*parallel.Schedule, error) { return parallel.Ring(-1, 2, true) },
		"want 1 to 65536":         func() (*parallel.Schedule, error) { return parallel.ZigZag(10, 0, true) },
		"of 70000 ranks":          func() (*parallel.Schedule, error) { return parallel.Striped(10, 70000, true) },
		"at most the 2 KV heads":  func() (*parallel.Schedule, error) { return parallel.Ulysses(10, 4, 2, 3, true) },
		"of 5 query and 2 KV":     func() (*parallel.Schedule, error) { return parallel.Ulysses(10, 5, 2, 1, true) },
		"want 0 to the 10 of the": func() (*parallel.Schedule, error) { return parallel.Star(10, 11, 2) },
	} {
		if s, err := make(); err == nil || s != nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "parallel: ") {
			t.Errorf("%v, %v, want an error with %q", s, err, want)
		}
	}
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(3, 4))
	s, err := parallel.Ring(6, 2, true)
	if err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(c *attention.Config, a *kernel.Args){
		"Config.Mask":        func(c *attention.Config, _ *kernel.Args) { c.Mask = attention.Causal() },
		"over pages":         func(c *attention.Config, _ *kernel.Args) { c.PageSize = 4 },
		"slopes":             func(c *attention.Config, _ *kernel.Args) { c.Score.Slopes = true },
		"LSE is":             func(_ *attention.Config, a *kernel.Args) { a.LSE = tensor.View{} },
		"Key is":             func(_ *attention.Config, a *kernel.Args) { a.Key = a.Key.Slice(0, 0, 5) },
		"Query is":           func(c *attention.Config, _ *kernel.Args) { c.Heads = 4 },
		"rank 0, round 0: a": func(c *attention.Config, _ *kernel.Args) { c.HeadDim = 0 },
	} {
		c := attention.Config{Heads: 2, KVHeads: 1, HeadDim: 4}
		a := kernel.Args{Query: random(r, 6, 2, 4), Key: random(r, 6, 1, 4), Value: random(r, 6, 1, 4), Out: random(r, 6, 2, 4), LSE: random(r, 6, 2)}
		spoil(&c, &a)
		if err := parallel.Run(b, c, s, &a); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
	if err := parallel.Run(b, attention.Config{}, nil, nil); err == nil {
		t.Error("no Schedule: no error")
	}
}
