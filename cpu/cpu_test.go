package cpu

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kernel/kerneltest"
	"github.com/longctx/longctx/tensor"
)

// Every case must be supported: this backend is the fallback for all others.
// The golden hashes hold the variants of the leaf loops and the numbers of
// workers to the same bits; more workers than blocks compute the chunks of a
// block side by side.
func TestConformance(t *testing.T) {
	best := Variant()
	defer UseVariant(best)
	for _, variant := range Variants() {
		for _, workers := range []int{1, 3} {
			if variant != best && (workers == 1) != (variant == "generic") {
				continue // once is enough for the others
			}
			t.Run(fmt.Sprintf("%s/workers=%d", variant, workers), func(t *testing.T) {
				if err := UseVariant(variant); err != nil {
					t.Fatal(err)
				}
				b := New(Options{Workers: workers})
				defer b.Close()
				kerneltest.Run(t, b, kerneltest.All)
			})
		}
	}
	if err := UseVariant("none such"); err == nil {
		t.Error("an unknown variant was accepted")
	}
}

// step is a small step of a kernel that uses every kind of score and mask data.
type step struct {
	attention kernel.Attention
	args      kernel.Args
	grads     kernel.BackwardArgs
	stats     kernel.ColumnStatsArgs
}

func newStep(t *testing.T, b *Backend, queries, keys int, backward bool) *step {
	t.Helper()
	spec := kernel.Spec{
		Heads: 4, KVHeads: 1, HeadDim: 8, ValueDim: 6, DType: tensor.F32, KVDType: tensor.F32,
		Terms: 2, Masks: kernel.MaskDocument, Scores: kernel.ScoreSoftCap | kernel.ScoreSlopes | kernel.ScoreSinkLogit,
		Scale: 0.3, SoftCap: 20, Policy: kernel.Fast, Backward: backward, ColumnStats: true,
	}
	a, err := b.Attention(spec)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	random := func(shape ...int64) tensor.View {
		v := tensor.New(tensor.F32, shape...)
		for i, x := 0, v.F32s(); i < len(x); i++ {
			x[i] = float32(r.NormFloat64())
		}
		return v
	}
	n, k := int64(queries), int64(keys)
	batch := &kernel.Batch{
		QueryStart: []int32{0, int32(queries)}, SeqLens: []int32{int32(keys)}, KeyStart: []int32{0},
		Terms: []kernel.Term{
			{Region: kernel.Region{Diff: kernel.Range{Lo: 0, Hi: 100}, Key: kernel.All}},
			{Region: kernel.Region{Diff: kernel.Range{Lo: 100, Hi: kernel.MaxBound}, Key: kernel.All}},
		},
		Documents: make([]int32, keys),
	}
	for range 2 * queries {
		batch.ScoreScale = append(batch.ScoreScale, 0.4)
	}
	if err := a.Plan(batch); err != nil {
		t.Fatal(err)
	}
	s := &step{attention: a}
	s.args = kernel.Args{Query: random(n, 4, 8), Key: random(k, 1, 8), Value: random(k, 1, 6), Out: random(n, 4, 6), LSE: random(n, 4)}
	s.args.Slopes, s.args.SinkLogit = random(4), random(4)
	s.grads = kernel.BackwardArgs{
		Query: s.args.Query, Key: s.args.Key, Value: s.args.Value, Out: s.args.Out, LSE: s.args.LSE, ScoreArgs: s.args.ScoreArgs,
		DOut: random(n, 4, 6), DQuery: random(n, 4, 8), DKey: random(k, 1, 8), DValue: random(k, 1, 6),
	}
	s.stats = kernel.ColumnStatsArgs{Query: s.args.Query, Key: s.args.Key, LSE: s.args.LSE, ScoreArgs: s.args.ScoreArgs, Power: 2, Window: 150, Out: random(k, 4)}
	return s
}

func TestRunAllocatesNothing(t *testing.T) {
	for _, workers := range []int{1, 2} {
		b := New(Options{Workers: workers})
		defer b.Close()
		for name, s := range map[string]*step{
			"prefill":      newStep(t, b, 200, 200, true),
			"split decode": newStep(t, b, 1, 3000, false),
		} {
			if n := testing.AllocsPerRun(10, func() {
				if err := s.attention.Run(&s.args); err != nil {
					t.Fatal(err)
				}
				if err := s.attention.ColumnStats(&s.stats); err != nil {
					t.Fatal(err)
				}
				if name == "prefill" {
					if err := s.attention.Backward(&s.grads); err != nil {
						t.Fatal(err)
					}
				}
			}); n != 0 {
				t.Errorf("%s with %d workers: %v allocations, want 0", name, workers, n)
			}
		}
	}
}

// Kernels of one backend run side by side; the race detector watches.
func TestKernelsRunConcurrently(t *testing.T) {
	b := New(Options{Workers: 2})
	defer b.Close()
	var group sync.WaitGroup
	for k := range 4 {
		s := newStep(t, b, 1+100*(k%2), 1500, false)
		group.Go(func() {
			for range 3 {
				if err := s.attention.Run(&s.args); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func TestMisuseIsTyped(t *testing.T) {
	b := New(Options{Workers: 1})
	defer b.Close()
	s := newStep(t, b, 4, 4, false)
	fresh, err := b.Attention(kernel.Spec{Heads: 1, KVHeads: 1, HeadDim: 1, ValueDim: 1, DType: tensor.F32, KVDType: tensor.F32, Terms: 1, Scale: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.Run(&s.args); !errors.Is(err, kernel.ErrNoPlan) {
		t.Errorf("Run before Plan: %v, want ErrNoPlan", err)
	}
	if err := s.attention.Backward(&s.grads); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Backward without Spec.Backward: %v, want ErrUnsupported", err)
	}
	if err := fresh.ColumnStats(&s.stats); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("ColumnStats without Spec.ColumnStats: %v, want ErrUnsupported", err)
	}
	for range 2 {
		if err := s.attention.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if err := s.attention.Run(&s.args); !errors.Is(err, kernel.ErrClosed) {
		t.Errorf("Run after Close: %v, want ErrClosed", err)
	}
	var oom *kernel.OutOfMemoryError
	for _, n := range []int64{-1, 1 << 44, 1 << 62} {
		if _, err := b.Alloc(n); !errors.As(err, &oom) || oom.Bytes != n {
			t.Errorf("Alloc(%d): %v, want an OutOfMemoryError", n, err)
		}
	}
	_, err = b.Attention(kernel.Spec{Heads: 3, KVHeads: 2, HeadDim: 1000})
	var unsupported *kernel.UnsupportedError
	if !errors.As(err, &unsupported) || len(unsupported.Reasons) < 5 {
		t.Errorf("a bad Spec: %v, want an UnsupportedError with every reason", err)
	}
}

// elsewhere is memory of another device.
type elsewhere struct{}

func (elsewhere) Device() string { return "cuda:0" }
func (elsewhere) Size() int64    { return 1 << 20 }

func TestMemoryOfAnotherDeviceIsRefused(t *testing.T) {
	b := New(Options{Workers: 1})
	defer b.Close()
	s := newStep(t, b, 4, 4, false)
	s.args.Key.Buf = elsewhere{}
	if err := s.attention.Run(&s.args); err == nil {
		t.Error("Run with keys on another device gave no error")
	}
	s.stats.Key.Buf = elsewhere{}
	if err := s.attention.ColumnStats(&s.stats); err == nil {
		t.Error("ColumnStats with keys on another device gave no error")
	}
}

// A page is copied bit for bit, signalling NaNs too, whatever its strides.
func TestCopyPagesKeepsEveryBit(t *testing.T) {
	b := New(Options{Workers: 1})
	defer b.Close()
	bits := make([]uint16, 2*3*2*5)
	for i := range bits {
		bits[i] = 0x7f81 + uint16(i) // NaNs of bfloat16, quiet bit off
	}
	for name, cache := range map[string]tensor.View{
		"row-major": tensor.FromBits(tensor.BF16, append([]uint16(nil), bits...), 2, 3, 2, 5),
		"strided":   tensor.FromBits(tensor.BF16, append([]uint16(nil), bits...), 2, 5, 2, 3).Swap(1, 3),
	} {
		if err := b.CopyPages(&kernel.CopyArgs{Cache: cache, Src: []int32{1}, Dst: []int32{0}}); err != nil {
			t.Fatal(err)
		}
		for i, got := range cache.Bits()[:30] {
			if want := bits[30+i]; got != want {
				t.Fatalf("%s: element %d is %04x, want %04x", name, i, got, want)
			}
		}
	}
}

// Large memory is zeroed, aligned, writable to its ends, and no smaller or
// larger than asked for, whatever pages it lies on.
func TestLargeAllocations(t *testing.T) {
	b := New(Options{Workers: 3})
	defer b.Close()
	for _, n := range []int64{0, 1, 4095, largeAlloc - 1, largeAlloc, largeAlloc + 1, 3*largeAlloc + 12345} {
		buf, err := b.Alloc(n)
		if err != nil {
			t.Fatal(err)
		}
		mem := buf.(*tensor.Host).Bytes()
		if int64(len(mem)) != n || buf.Size() != n {
			t.Fatalf("Alloc(%d): %d bytes, Size %d", n, len(mem), buf.Size())
		}
		for i, x := range mem {
			if x != 0 {
				t.Fatalf("Alloc(%d): byte %d is %d, want 0", n, i, x)
			}
		}
		if n > 0 {
			mem[0], mem[n-1] = 1, 1
		}
	}
	if p := wholePages(make([]byte, 10*hugePage)); len(p)%hugePage != 0 || len(p) < 9*hugePage || uintptr(unsafe.Pointer(&p[0]))%hugePage != 0 {
		t.Errorf("wholePages of 10 huge pages: %d bytes at %p", len(p), &p[0])
	}
	if p := wholePages(make([]byte, 100)); len(p) != 0 {
		t.Errorf("wholePages of 100 bytes: %d", len(p))
	}
}

// Random cases, every variant: bit for bit the transcript of the rules.
// bench verify -minutes runs as many as there is time for.
func TestRandomCases(t *testing.T) {
	n := uint64(60)
	if testing.Short() {
		n = 15
	}
	best := Variant()
	defer UseVariant(best)
	b := New(Options{Workers: 3})
	defer b.Close()
	for seed := range n {
		c := kerneltest.Random(seed)
		for _, v := range Variants() {
			if err := UseVariant(v); err != nil {
				t.Fatal(err)
			}
			for _, policy := range []kernel.Policy{kernel.Exact, kernel.Fast} {
				if r := kerneltest.Check(b, c, policy); r.Err != nil || r.Differences > 0 {
					t.Errorf("%s: %s", v, r.String())
				} else if r.Unsupported != nil {
					t.Logf("%s: %s", v, r.String())
				}
			}
		}
	}
}
