package cpu

import (
	"fmt"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// BenchmarkPrefill is causal prefill of one sequence, pairs above the diagonal
// not counted.
func BenchmarkPrefill(b *testing.B) {
	for _, policy := range []kernel.Policy{kernel.Fast, kernel.Exact} {
		for _, dim := range []int{32, 128} {
			const n, heads, kvHeads = 2048, 4, 2
			b.Run(fmt.Sprintf("policy=%v/dim=%d/keys=%d", policy, dim, n), func(b *testing.B) {
				backend := New(Options{Workers: 1})
				defer backend.Close()
				a, err := backend.Attention(kernel.Spec{
					Heads: heads, KVHeads: kvHeads, HeadDim: dim, ValueDim: dim, DType: tensor.F32, KVDType: tensor.F32,
					Terms: 1, Scale: 0.1, Policy: policy,
				})
				if err != nil {
					b.Fatal(err)
				}
				batch := &kernel.Batch{
					QueryStart: []int32{0, n}, SeqLens: []int32{n}, KeyStart: []int32{0}, ScoreScale: make([]float32, n),
					Terms: []kernel.Term{{Region: kernel.Region{Diff: kernel.Range{Lo: 0, Hi: kernel.MaxBound}, Key: kernel.All}}},
				}
				if err := a.Plan(batch); err != nil {
					b.Fatal(err)
				}
				fill := func(heads int64) tensor.View {
					v := tensor.New(tensor.F32, n, heads, int64(dim))
					for i, x := 0, v.F32s(); i < len(x); i++ {
						x[i] = float32(i%17)*0.1 - 0.8
					}
					return v
				}
				args := &kernel.Args{Query: fill(heads), Key: fill(kvHeads), Value: fill(kvHeads), Out: fill(heads)}
				for b.Loop() {
					if err := a.Run(args); err != nil {
						b.Fatal(err)
					}
				}
				flops := 4 * float64(dim) * heads * n * (n + 1) / 2
				b.ReportMetric(flops*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}
