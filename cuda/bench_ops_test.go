//go:build cuda && cgo

package cuda

import (
	"fmt"
	"testing"

	"github.com/longctx/longctx/cuda/internal/simdriver"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// opBench times an operation that takes so many FLOPs and bytes, as attention's
// benchmarks do. It begins with an upload of tables, a few microseconds of each call.
func opBench(b *testing.B, name string, flop, bytes float64, make func(b *testing.B, dev *Backend) func() error) {
	b.Run(name, func(b *testing.B) {
		dev, err := Open(0)
		if err != nil {
			b.Skip(err)
		}
		b.Cleanup(func() { dev.Close() })
		roof, err := roofs()
		if err != nil {
			b.Fatal(err)
		}
		run := make(b, dev)
		wait := func(err error) {
			if err == nil {
				err = dev.Wait()
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		wait(run())
		b.ResetTimer()
		for range b.N {
			if err := run(); err != nil {
				b.Fatal(err)
			}
		}
		wait(nil)
		seconds := b.Elapsed().Seconds() / float64(b.N)
		b.ReportMetric(flop/seconds/1e9, "GFLOP/s")
		b.ReportMetric(bytes/seconds/1e9, "GB/s")
		if flop/roof.FMA > bytes/roof.Read {
			b.ReportMetric(100*flop/seconds/roof.FMA, "%FMA")
		} else {
			b.ReportMetric(100*bytes/seconds/roof.Read, "%read")
		}
	})
}

// onDev is a tensor of the device with random elements.
func onDev(b *testing.B, dev *Backend, d tensor.DType, shape ...int64) tensor.View {
	n := d.Size()
	for _, x := range shape {
		n *= x
	}
	m, err := dev.Alloc(n)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.(*buffer).Close() })
	v := tensor.Of(m, d, shape...)
	if d != tensor.U8 { // codes of 0 are as good as any
		fill(b, dev, &v)
	}
	return v
}

// BenchmarkScan has prompts and steps of gated recurrences, with gates of heads and
// of channels. FLOPs are those of package recurrence.
func BenchmarkScan(b *testing.B) {
	for _, x := range []struct {
		tokens, batch, heads int64
		channels, delta      bool
	}{{8192, 1, 32, false, false}, {8192, 1, 32, true, false}, {8192, 1, 32, false, true}, {1, 64, 32, false, true}, {1, 64, 32, true, false}} {
		if simdriver.Loaded() {
			x.tokens, x.batch, x.heads = min(x.tokens, 70), 1, 1
		}
		const dim = 128
		n, state := x.tokens*x.batch, float64(dim*dim)
		flop := float64(n*x.heads) * (4*state + 64*2*dim)
		if x.delta {
			flop = float64(n*x.heads) * (6*state + 2*64*2*dim)
		}
		chunks := float64((x.tokens + 63) / 64 * x.batch * x.heads)
		bytes := 4*float64(4*n*x.heads*dim) + 8*chunks*state
		opBench(b, fmt.Sprintf("tokens=%d/batch=%d/channels=%v/delta=%v", x.tokens, x.batch, x.channels, x.delta), flop, bytes, func(b *testing.B, dev *Backend) func() error {
			f := func(shape ...int64) tensor.View { return onDev(b, dev, tensor.F32, shape...) }
			a := &kernel.ScanArgs{Out: f(n, x.heads, dim)}
			a.Query, a.Key, a.Value, a.State, a.Scale = f(n, x.heads, dim), f(n, x.heads, dim), f(n, x.heads, dim), f(x.batch, x.heads, dim, dim), 0.01
			if a.Gate = f(n, x.heads); x.channels {
				a.Gate = f(n, x.heads, dim)
			}
			if x.delta {
				a.Beta = f(n, x.heads)
			}
			a.QueryStart = []int32{0}
			for s := range x.batch {
				a.QueryStart = append(a.QueryStart, int32((s+1)*x.tokens))
				a.To = append(a.To, int32(s))
			}
			return func() error { return dev.Scan(a) }
		})
	}
}

// BenchmarkRowScores has the scores that selectors choose keys by, over 128k keys.
func BenchmarkRowScores(b *testing.B) {
	keys := int64(128 << 10)
	if simdriver.Loaded() {
		keys = 256
	}
	const heads, kvHeads, dim, size = 32, 8, 128, 64
	table := kernel.KeyTable{QueryStart: []int32{0, 1}, SeqLens: []int32{int32(keys)}, Pages: kernel.BlockTable{Indptr: []int32{0, int32(keys / size)}}}
	for p := range keys / size {
		table.Pages.Indices = append(table.Pages.Indices, int32(p))
	}
	for _, channels := range []int{0, 16} {
		width := float64(dim)
		if channels > 0 {
			width = float64(channels)
		}
		opBench(b, fmt.Sprintf("keys=%d/channels=%d", keys, channels), 2*float64(keys*heads)*width, float64(keys*kvHeads)*width*2+4*float64(keys*heads), func(b *testing.B, dev *Backend) func() error {
			a := &kernel.RowScoresArgs{Query: onDev(b, dev, tensor.F32, 1, heads, dim), KeyTable: table, Scale: 0.1, Out: onDev(b, dev, tensor.F32, 1, heads, keys)}
			a.Key = onDev(b, dev, tensor.BF16, keys/size, size, kvHeads, dim)
			if channels > 0 { // SparQ's second copy: slots side by side
				a.Key = onDev(b, dev, tensor.BF16, keys/size, dim, kvHeads, size).Swap(1, 3)
				for c := range channels * kvHeads {
					a.Channels = append(a.Channels, int32(c*7%dim))
				}
			}
			return func() error { return dev.RowScores(a) }
		})
	}
	opBench(b, fmt.Sprintf("keys=%d/codes", keys), float64(keys*heads*16), float64(keys*kvHeads*16)+4*float64(keys*heads), func(b *testing.B, dev *Backend) func() error {
		a := &kernel.CodeScoresArgs{Table: onDev(b, dev, tensor.F32, 1, heads, 16*256), Codes: onDev(b, dev, tensor.U8, keys/size, size, kvHeads, 16), KeyTable: table, Out: onDev(b, dev, tensor.F32, 1, heads, keys)}
		return func() error { return dev.CodeScores(a) }
	})
}

// BenchmarkScoreLoss has the loss of a layer of TinyBERT, with gradients and without.
func BenchmarkScoreLoss(b *testing.B) {
	tokens, batch := int64(512), int64(16)
	if simdriver.Loaded() {
		tokens, batch = 70, 1
	}
	const heads, student, teacher = 12, 26, 64
	pairs := float64(tokens*tokens*batch) * heads
	for _, gradient := range []bool{false, true} {
		flop := 2 * pairs * (student + teacher)
		if gradient {
			flop = 2*flop + 4*pairs*student
		}
		opBench(b, fmt.Sprintf("tokens=%d/batch=%d/gradient=%v", tokens, batch, gradient), flop, 0, func(b *testing.B, dev *Backend) func() error {
			f := func(shape ...int64) tensor.View { return onDev(b, dev, tensor.F32, shape...) }
			n := tokens * batch
			a := &kernel.ScoreLossArgs{Out: f(n, heads), Gradient: 1,
				Student: kernel.ScoreSide{Query: f(n, heads, student), Key: f(n, heads, student), Scale: 0.2},
				Teacher: kernel.ScoreSide{Query: f(n, heads, teacher), Key: f(n, heads, teacher), Scale: 0.1}}
			for s := range batch + 1 {
				a.QueryStart = append(a.QueryStart, int32(s*tokens))
			}
			if a.KeyStart = a.QueryStart; gradient {
				a.DQuery, a.DKey = f(n, heads, student), f(n, heads, student)
			}
			return func() error { return dev.ScoreLoss(a) }
		})
	}
}
