package cpu

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// pageOperations are a PageBounds of some pages, and a PageScores of one query
// token of 32 heads with them.
func pageOperations(d tensor.DType, pages int) (kernel.PageBoundsArgs, kernel.PageScoresArgs) {
	const size, heads, group, dim = 16, 8, 4, 128
	r, n := rand.New(rand.NewPCG(5, 6)), int64(pages)
	fill := func(v tensor.View) tensor.View {
		for i := range v.Shape[0] {
			for h := range v.Shape[v.Rank-2] {
				if v.Rank == 4 {
					for j := range v.Shape[1] {
						v.Set(float32(r.NormFloat64()), i, j, h, r.Int64N(dim))
					}
				} else {
					v.Set(float32(r.NormFloat64()), i, h, r.Int64N(dim))
				}
			}
		}
		return v
	}
	b := kernel.PageBoundsArgs{Key: fill(tensor.New(d, n, size, heads, dim)), Min: tensor.New(d, n, heads, dim), Max: tensor.New(d, n, heads, dim)}
	s := kernel.PageScoresArgs{Query: fill(tensor.New(tensor.F32, 1, heads*group, dim)), Min: b.Min, Max: b.Max, Scale: 0.1,
		QueryStart: []int32{0, 1}, Pages: kernel.BlockTable{Indptr: []int32{0, int32(pages)}}, Out: tensor.New(tensor.F32, 1, heads*group, n)}
	for _, p := range r.Perm(pages) {
		b.Pages, b.Rows = append(b.Pages, int32(p)), append(b.Rows, size)
		s.Pages.Indices = append(s.Pages.Indices, int32(p))
	}
	return b, s
}

func TestSmallPageOperationsAllocateNothing(t *testing.T) {
	for _, workers := range []int{1, 2} {
		b := New(Options{Workers: workers})
		defer b.Close()
		for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
			bounds, scores := pageOperations(d, 5)
			for name, call := range map[string]func() error{
				"PageBounds": func() error { return b.PageBounds(&bounds) },
				"PageScores": func() error { return b.PageScores(&scores) },
			} {
				if n := testing.AllocsPerRun(10, func() {
					if err := call(); err != nil {
						t.Fatal(err)
					}
				}); n != 0 {
					t.Errorf("%s of %v with %d workers: %v allocations, want 0", name, d, workers, n)
				}
			}
		}
	}
}

// The workers share large ones out; that cannot change a bit.
func TestPageOperationsOfAnyWorkers(t *testing.T) {
	want, wantScores := pageOperations(tensor.F32, 300)
	for workers := 1; workers <= 5; workers += 2 {
		b := New(Options{Workers: workers})
		defer b.Close()
		bounds, scores := pageOperations(tensor.F32, 300)
		if err := b.PageBounds(&bounds); err != nil {
			t.Fatal(err)
		}
		if err := b.PageScores(&scores); err != nil {
			t.Fatal(err)
		}
		if workers == 1 {
			want, wantScores = bounds, scores
		}
		for name, v := range map[string][2]tensor.View{"Min": {bounds.Min, want.Min}, "Max": {bounds.Max, want.Max}, "Out": {scores.Out, wantScores.Out}} {
			for i, x := range v[0].F32s() {
				if y := v[1].F32s()[i]; x != y {
					t.Fatalf("%s with %d workers: element %d is %v, want %v", name, workers, i, x, y)
				}
			}
		}
	}
}

// BenchmarkColumnStats is beside the Run of the same step: a causal prefill
// (pairs above the diagonal not counted) or its last 32 queries, which a
// window observes. A pair costs Run two products, ColumnStats one.
func BenchmarkColumnStats(b *testing.B) {
	const n, heads, kvHeads, dim = 2048, 8, 2, 128
	backend := New(Options{Workers: 1})
	defer backend.Close()
	a, err := backend.Attention(kernel.Spec{
		Heads: heads, KVHeads: kvHeads, HeadDim: dim, ValueDim: dim, DType: tensor.F32, KVDType: tensor.F32,
		Terms: 1, Scale: 0.1, ColumnStats: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	scale := make([]float32, n)
	for i := range scale {
		scale[i] = 0.1
	}
	if err := a.Plan(&kernel.Batch{
		QueryStart: []int32{0, n}, SeqLens: []int32{n}, KeyStart: []int32{0}, ScoreScale: scale,
		Terms: []kernel.Term{{Region: kernel.Region{Diff: kernel.Range{Lo: 0, Hi: kernel.MaxBound}, Key: kernel.All}}},
	}); err != nil {
		b.Fatal(err)
	}
	fill := func(heads, dim int64) tensor.View {
		v := tensor.New(tensor.F32, n, heads, dim)
		for i, x := 0, v.F32s(); i < len(x); i++ {
			x[i] = float32(i%17)*0.1 - 0.8
		}
		return v
	}
	args := kernel.Args{Query: fill(heads, dim), Key: fill(kvHeads, dim), Value: fill(kvHeads, dim), Out: fill(heads, dim), LSE: tensor.New(tensor.F32, n, heads)}
	stats := kernel.ColumnStatsArgs{Query: args.Query, Key: args.Key, LSE: args.LSE, Out: tensor.New(tensor.F32, n, heads), Power: 1}
	bench := func(name string, flops float64, call func() error) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := call(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(flops*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
	pairs := float64(n) * (n + 1) / 2 * heads * dim
	bench("run", 4*pairs, func() error { return a.Run(&args) })
	for _, power := range []int{1, 2} {
		for _, window := range []int{0, 32} {
			count := 2 * pairs
			if window > 0 {
				count = 2 * (float64(n) - float64(window)/2) * float64(window) * heads * dim
			}
			bench(fmt.Sprintf("power=%d/window=%d", power, window), count, func() error {
				stats.Power, stats.Window = power, window
				return a.ColumnStats(&stats)
			})
		}
	}
}

// BenchmarkPages reports bytes read: of the pages, or of their bounds.
func BenchmarkPages(b *testing.B) {
	for _, workers := range []int{1, 2} {
		backend := New(Options{Workers: workers})
		defer backend.Close()
		for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
			bounds, scores := pageOperations(d, 2048)
			for _, c := range []struct {
				name  string
				bytes int64
				call  func() error
			}{
				{"bounds", bounds.Key.Len() * d.Size(), func() error { return backend.PageBounds(&bounds) }},
				{"scores", 2 * bounds.Min.Len() * d.Size(), func() error { return backend.PageScores(&scores) }},
			} {
				b.Run(fmt.Sprintf("%s/%v/workers=%d", c.name, d, workers), func(b *testing.B) {
					b.SetBytes(c.bytes)
					for b.Loop() {
						if err := c.call(); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}
