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

// BenchmarkScoreLoss compares a layer of TinyBERT with one of BERT: 12 heads of 26
// and 64 features, a batch of 8 sequences. A product of queries and keys is two
// operations a feature; with gradients there are four, three of them of 26.
func BenchmarkScoreLoss(b *testing.B) {
	for _, n := range []int64{64, 128, 512} {
		for _, gradient := range []bool{false, true} {
			b.Run(fmt.Sprintf("keys=%d/gradient=%v", n, gradient), func(b *testing.B) {
				const batch, heads = 8, 12
				backend := New(Options{Workers: 1})
				defer backend.Close()
				fill := func(dim int64) tensor.View {
					v := tensor.New(tensor.F32, batch*n, heads, dim)
					for i, x := 0, v.F32s(); i < len(x); i++ {
						x[i] = float32(i%17)*0.1 - 0.8
					}
					return v
				}
				a := &kernel.ScoreLossArgs{
					Student: kernel.ScoreSide{Query: fill(26), Key: fill(26), Scale: 0.196}, Teacher: kernel.ScoreSide{Query: fill(64), Key: fill(64), Scale: 0.125},
					ZeroBelow: -100, Out: tensor.New(tensor.F32, batch*n, heads), Gradient: 1,
				}
				for i := range int32(batch + 1) {
					a.QueryStart, a.KeyStart = append(a.QueryStart, i*int32(n)), append(a.KeyStart, i*int32(n))
				}
				features := 26 + 64
				if gradient {
					a.DQuery, a.DKey = fill(26), fill(26)
					features += 2 * 26
				}
				for b.Loop() {
					if err := backend.ScoreLoss(a); err != nil {
						b.Fatal(err)
					}
				}
				flops := 2 * float64(features) * batch * heads * float64(n*n)
				b.ReportMetric(flops*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}
