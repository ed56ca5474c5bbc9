package cpu

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/longctx/longctx/cpu/roof"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// scanKind is a recurrence to measure.
type scanKind struct {
	name             string
	keyHeads, heads  int
	keyDim, valueDim int
	gate             int // rank; 0: none
	beta, bonus      bool
}

var scanKinds = []scanKind{
	{"plain", 4, 4, 128, 128, 0, false, false},
	{"head-gate", 4, 4, 128, 128, 2, false, false},
	{"head-gate-grouped", 1, 16, 128, 64, 2, false, false}, // Mamba-2
	{"channel-gate", 4, 4, 128, 128, 3, false, false},
	{"delta", 4, 4, 128, 128, 0, true, false},
	{"head-gate-delta", 4, 4, 128, 128, 2, true, false},
	{"channel-gate-bonus", 8, 8, 64, 64, 3, false, true}, // RWKV-6
}

// args are random arguments for one sequence.
func (k scanKind) args(tokens int) *kernel.ScanArgs {
	r := rand.New(rand.NewPCG(1, 2))
	random := func(f func() float32, shape ...int64) tensor.View {
		v := tensor.New(tensor.F32, shape...)
		for i := range v.F32s() {
			v.F32s()[i] = f()
		}
		return v
	}
	normal := func() float32 { return float32(r.NormFloat64()) / 8 }
	n, h, d := int64(tokens), int64(k.heads), int64(k.keyDim)
	a := &kernel.ScanArgs{ScanInput: kernel.ScanInput{
		Query: random(normal, n, int64(k.keyHeads), d), Key: random(normal, n, int64(k.keyHeads), d), Value: random(normal, n, h, int64(k.valueDim)),
		State: tensor.New(tensor.F32, 1, h, d, int64(k.valueDim)), From: []int32{0}, QueryStart: []int32{0, int32(tokens)}, Scale: 1,
	}, To: []int32{0}, Out: tensor.New(tensor.F32, n, h, int64(k.valueDim))}
	if k.gate > 0 {
		a.Gate = random(func() float32 { return -r.Float32() / 8 }, []int64{n, h, d}[:k.gate]...)
	}
	if k.beta {
		a.Beta = random(r.Float32, n, h)
	}
	if k.bonus {
		a.Bonus = random(normal, h, d)
	}
	return a
}

// flops counts the products that chunks of a tile need: rows and states, and half
// of the pairs of a chunk.
func (k scanKind) flops(tokens int) float64 {
	state, pairs := float64(2*k.keyDim*k.valueDim), float64(tile*(k.keyDim+k.valueDim))
	if k.beta {
		return float64(tokens*k.heads) * (3*state + 2*pairs)
	}
	return float64(tokens*k.heads) * (2*state + pairs)
}

// BenchmarkScan runs a prefill of 2048 tokens, and single steps, on one worker.
// %peak is the part of the multiply-add peak that the products alone make up,
// measured in the same run.
func BenchmarkScan(b *testing.B) {
	backend := New(Options{Workers: 1})
	defer backend.Close()
	fma, err := roof.FMA(roof.Variants()[0], 1, 200*time.Millisecond)
	if err != nil {
		b.Fatal(err)
	}
	for _, k := range scanKinds {
		for _, tokens := range []int{2048, 1} {
			b.Run(fmt.Sprintf("%s/tokens=%d", k.name, tokens), func(b *testing.B) {
				a := k.args(tokens)
				for b.Loop() {
					if err := backend.Scan(a); err != nil {
						b.Fatal(err)
					}
				}
				rate := k.flops(tokens) * float64(b.N) / b.Elapsed().Seconds()
				if tokens > 1 {
					b.ReportMetric(rate/1e9, "GFLOPS")
					b.ReportMetric(rate/1e7/fma.Rate, "%peak")
				} else {
					bytes := float64(2 * 4 * k.heads * k.keyDim * k.valueDim) // the state comes and goes
					b.ReportMetric(bytes*float64(b.N)/b.Elapsed().Seconds()/1e9, "GB/s")
				}
			})
		}
	}
}

// TestScanWorkers: the number of workers, by which heads are dealt out, changes
// no bit.
func TestScanWorkers(t *testing.T) {
	for _, k := range scanKinds {
		var want []float32
		for _, workers := range []int{1, 2, 3, 7} {
			b := New(Options{Workers: workers})
			a := k.args(150)
			a.QueryStart, a.From, a.To = []int32{0, 90, 90, 150}, []int32{0, -1, -1}, []int32{0, -1, -1}
			if err := b.Scan(a); err != nil {
				t.Fatal(err)
			}
			b.Close()
			got := append(append([]float32(nil), a.Out.F32s()...), a.State.F32s()...)
			if want == nil {
				want = got
			}
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("%s, %d workers: element %d is %v, want %v", k.name, workers, i, got[i], want[i])
				}
			}
		}
	}
}

// BenchmarkScanBackward runs the gradient of a prefill of 2048 tokens on one
// worker, and says how many times a Scan it takes.
func BenchmarkScanBackward(b *testing.B) {
	backend := New(Options{Workers: 1})
	defer backend.Close()
	for _, k := range scanKinds {
		b.Run(k.name, func(b *testing.B) {
			a := k.args(2048)
			start := time.Now()
			for range 4 {
				if err := backend.Scan(a); err != nil {
					b.Fatal(err)
				}
			}
			scan := time.Since(start).Seconds() / 4
			like := func(v *tensor.View) tensor.View {
				if v.IsZero() {
					return tensor.View{}
				}
				return tensor.New(tensor.F32, v.Shape[:v.Rank]...)
			}
			g := &kernel.ScanBackwardArgs{
				ScanInput: a.ScanInput, DOut: a.Out, DQuery: like(&a.Query), DKey: like(&a.Key), DValue: like(&a.Value),
				DGate: like(&a.Gate), DBeta: like(&a.Beta),
			}
			if k.bonus {
				g.DBonus = tensor.New(tensor.F32, 1, int64(k.heads), int64(k.keyDim))
			}
			for b.Loop() {
				if err := backend.ScanBackward(g); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/scan, "×scan")
		})
	}
}
