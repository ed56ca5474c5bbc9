package cpu

import (
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
