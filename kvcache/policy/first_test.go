package policy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/tensor"
)

// TestFirst: the front is that of a sorted list, whatever the order and the repeats.
func TestFirst(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 6))
	for range 2000 {
		x := make([]int, rng.IntN(300))
		kind, values := rng.IntN(4), 1+rng.IntN(400)
		for i := range x {
			switch kind {
			case 0:
				x[i] = rng.IntN(values)
			case 1:
				x[i] = i
			case 2:
				x[i] = -i
			case 3:
				x[i] = min(i, len(x)-i)
			}
		}
		want, n := slices.Sorted(slices.Values(x)), rng.IntN(len(x)+1)
		first(x, n, cmp.Compare[int])
		slices.Sort(x[:n])
		if !slices.Equal(x[:n], want[:n]) {
			t.Fatalf("the first %d are %v, want %v", n, x[:n], want[:n])
		}
	}
}

// BenchmarkPlan plans for one layer of 8 heads of 32768 keys of 128 features.
func BenchmarkPlan(b *testing.B) {
	const n, dim = 32768, 128
	rng := rand.New(rand.NewPCG(1, 7))
	s := NewSequence(1, 8)
	s.Extend(n)
	for _, h := range s.Heads {
		h.Key, h.Recent = tensor.New(tensor.BF16, n, dim), make([]float32, n)
		for i := range h.Key.Bits() {
			h.Key.Bits()[i] = tensor.F32ToBF16(float32(rng.NormFloat64()))
		}
		for j := range h.Recent {
			h.Recent[j] = float32(rng.ExpFloat64())
		}
	}
	for _, p := range []struct {
		name string
		Planner
	}{{"streaming-llm", StreamingLLM(4)}, {"snapkv", SnapKV(32)}, {"ada-kv", AdaKV(32)}, {"l2-norm", L2Norm()}, {"keydiff", KeyDiff()}} {
		b.Run(fmt.Sprintf("%s/keys=%d", p.name, n/8), func(b *testing.B) {
			for b.Loop() {
				if _, err := p.Plan(s, n/8); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
