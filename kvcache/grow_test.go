package kvcache_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// growing is the CPU, of which the n-th Grow from now on fails.
type growing struct {
	*cpu.Backend
	fail atomic.Int64
}

func (g *growing) Grow(m tensor.Buffer, bytes int64) error {
	if due(&g.fail) {
		return &kernel.OutOfMemoryError{Backend: "cpu", Bytes: bytes}
	}
	return g.Backend.Grow(m, bytes)
}

func newGrowing(t *testing.T) *growing {
	t.Helper()
	b := cpu.New(cpu.Options{Workers: 1})
	t.Cleanup(b.Close)
	m, err := b.Reserve(1)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	m.(interface{ Close() error }).Close()
	return &growing{Backend: b}
}

func growable(pages, most int) kvcache.Config {
	return kvcache.Config{Layers: 3, Pages: pages, MaxPages: most, PageSize: 4, KVHeads: 2, HeadDim: 8, ValueDim: 5, DType: tensor.F16}
}

// feed extends a sequence by n tokens of rows drawn from r.
func feed(c *kvcache.Cache, r *rand.Rand, id kvcache.ID, n int) error {
	slots, err := c.Extend([]kvcache.ID{id}, []int{n}, nil)
	if err != nil {
		return err
	}
	f := c.Config()
	rows := func(dim int) tensor.View {
		v := tensor.New(tensor.F32, int64(n), int64(f.KVHeads), int64(dim))
		for i := range v.F32s() {
			v.F32s()[i] = float32(r.NormFloat64())
		}
		return v
	}
	for layer := range f.Layers {
		if err := c.Append(layer, slots, rows(f.HeadDim), rows(f.ValueDim)); err != nil {
			return err
		}
	}
	return nil
}

// allRows are the bits of all rows of a sequence.
func allRows(t *testing.T, c *kvcache.Cache, id kvcache.ID) (all []byte) {
	t.Helper()
	for layer := range c.Config().Layers {
		k, v, err := c.Gather(layer, id)
		if err != nil {
			t.Fatal(err)
		}
		all = append(append(all, k.Bytes()...), v.Bytes()...)
	}
	return all
}

// TestGrowIsLikeEnoughFromTheStart: a cache that grows whenever pages are short
// holds what one holds that has all pages from the start, through swaps as well.
func TestGrowIsLikeEnoughFromTheStart(t *testing.T) {
	for seed := range uint64(20) {
		b := newGrowing(t)
		config := growable(2, 400)
		if seed%2 == 1 {
			config.DType, config.Coding, config.CodedPages, config.HeadDim, config.ValueDim = tensor.F32, kernel.KIVI(kernel.Int4, 16), 100, 8, 16
		}
		all := config
		all.Pages, all.MaxPages = 400, 0
		var caches [2]*kvcache.Cache
		var spaces [2]*kvcache.SwapSpace
		for i, f := range []kvcache.Config{config, all} {
			var err error
			if caches[i], err = kvcache.New(b, f); err != nil {
				t.Fatal(err)
			}
			if spaces[i], err = caches[i].NewSwapSpace(400, f.CodedPages); err != nil {
				t.Fatal(err)
			}
		}
		r := rand.New(rand.NewPCG(seed, 1))
		ids := [2][]kvcache.ID{}
		for step := range 120 {
			what, pick, n, draws := r.IntN(10), r.Uint64(), 1+r.IntN(9), r.Uint64()
			for i, c := range caches {
				var err error
				at := int(pick % uint64(max(len(ids[i]), 1)))
				switch {
				case what == 0 || len(ids[i]) == 0:
					ids[i] = append(ids[i], c.NewSequence())
				case what == 1:
					var id kvcache.ID
					id, err = c.Fork(ids[i][at])
					ids[i] = append(ids[i], id)
				case what == 2:
					err = c.Free(ids[i][at])
					ids[i] = slices.Delete(ids[i], at, at+1)
				case what == 3:
					if err = spaces[i].SwapOut(t.Context(), ids[i][at]); err == nil {
						err = spaces[i].Restore(t.Context(), ids[i][at])
					}
				default:
					err = feed(c, rand.New(rand.NewPCG(draws, 2)), ids[i][at], n)
				}
				for short := new(kvcache.OutOfPagesError); errors.As(err, &short) && i == 0; {
					have := c.Config().Pages
					if err = c.Grow(min(have+max(1, int(short.Need)-short.Free), 400)); err != nil {
						break
					}
					if what == 3 {
						err = spaces[i].Restore(t.Context(), ids[i][at])
					} else {
						err = feed(c, rand.New(rand.NewPCG(draws, 2)), ids[i][at], n)
					}
				}
				if err != nil {
					t.Fatalf("seed %d, step %d, cache %d: %v", seed, step, i, err)
				}
				if err := c.CheckIntegrity(); err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, step, err)
				}
			}
			if len(ids[0]) != len(ids[1]) {
				t.Fatal("the caches went apart")
			}
		}
		if !config.Coded() { // with one, what is coded depends on the pages there are
			for i := range ids[0] {
				if string(allRows(t, caches[0], ids[0][i])) != string(allRows(t, caches[1], ids[1][i])) {
					t.Errorf("seed %d: rows of sequence %d differ", seed, i)
				}
			}
		}
		s, bytes := caches[0].Stats(), int64(0)
		f := caches[0].Config()
		f.MaxPages = 0
		if bytes, _ = kvcache.Bytes(f); f.Pages == 2 || s.Pages != f.Pages || s.Bytes != bytes {
			t.Errorf("seed %d: %+v of %d pages, %d bytes", seed, s, f.Pages, bytes)
		}
		for i := range caches {
			if err := errors.Join(spaces[i].Close(), caches[i].Close()); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestGrowOutOfMemory: at whichever layer memory ends, the cache is as it was, and
// grows once there is some.
func TestGrowOutOfMemory(t *testing.T) {
	b := newGrowing(t)
	c, err := kvcache.New(b, growable(3, 50))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	id := c.NewSequence()
	if err := feed(c, rand.New(rand.NewPCG(1, 1)), id, 10); err != nil {
		t.Fatal(err)
	}
	want, stats := allRows(t, c, id), c.Stats()
	for n := int64(1); n <= 6; n++ {
		b.fail.Store(n)
		var short *kernel.OutOfMemoryError
		if err := c.Grow(20 + int(n)); !errors.As(err, &short) {
			t.Fatalf("Grow without memory: %v", err)
		}
		if c.Stats() != stats || c.Config().Pages != 3 || c.KeyView(0).Shape[0] != 3 || string(allRows(t, c, id)) != string(want) {
			t.Fatalf("after a Grow that failed: %+v, was %+v", c.Stats(), stats)
		}
		if err := errors.Join(c.CheckIntegrity(), c.Grow(3)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Grow(12); err != nil { // less than the layers already have
		t.Fatal(err)
	}
	if s := c.Stats(); s.Pages != 12 || s.Free != 9 || c.KeyView(2).Shape[0] != 12 || string(allRows(t, c, id)) != string(want) {
		t.Errorf("%+v", s)
	}
	if err := feed(c, rand.New(rand.NewPCG(1, 2)), id, 38); err != nil {
		t.Error(err)
	}
	if err := c.CheckIntegrity(); err != nil {
		t.Error(err)
	}
	b.fail.Store(1)
	if _, err := kvcache.New(b, growable(3, 50)); err == nil {
		t.Error("a cache without memory")
	}
}

func TestGrowRefuses(t *testing.T) {
	b := newGrowing(t)
	c, err := kvcache.New(b, growable(3, 50))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var bad *kvcache.ValueError
	for _, n := range []int{-1, 0, 2, 51, 1 << 30} {
		if err := c.Grow(n); !errors.As(err, &bad) || c.Config().Pages != 3 {
			t.Errorf("Grow(%d): %v", n, err)
		}
	}
	fixed, err := kvcache.New(b, growable(3, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := fixed.Grow(4); !errors.As(err, &bad) {
		t.Errorf("a cache without MaxPages grows: %v", err)
	}
	if err := errors.Join(fixed.Grow(3), fixed.Close()); err != nil {
		t.Error(err)
	}
	for _, f := range []kvcache.Config{growable(3, 2), growable(3, -1), growable(3, 1<<30)} {
		if _, err := kvcache.New(b, f); !errors.As(err, &bad) {
			t.Errorf("MaxPages %d: %v", f.MaxPages, err)
		}
	}
	if _, err := kvcache.New(&hostBackend{}, growable(3, 5)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a backend that is no Grower: %v", err)
	}
}

// TestGrowWhileOthersWork: sequences are extended and read meanwhile.
func TestGrowWhileOthersWork(t *testing.T) {
	c, err := kvcache.NewHeads(newGrowing(t), growable(100, 2000))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var group sync.WaitGroup
	errs := make([]error, 4)
	for g := range errs {
		group.Go(func() {
			id, rows := c.NewSequence(), [2]tensor.View{tensor.New(tensor.F32, 1, 2, 8), tensor.New(tensor.F32, 1, 2, 5)}
			for range 50 {
				slots, err := c.Extend([]kvcache.ID{id}, []int{1}, nil)
				for layer := 0; layer < 3 && err == nil; layer++ {
					var args kernel.Args
					if err = c.Append(layer, slots, rows[0], rows[1]); err == nil {
						err = c.Bind(&args)
					}
				}
				if errs[g] = err; err != nil {
					return
				}
			}
		})
	}
	for n := 101; n <= 2000; n += 100 {
		if err := c.Grow(n); err != nil {
			t.Error(err)
		}
	}
	group.Wait()
	if err := errors.Join(append(errs, c.CheckIntegrity())...); err != nil {
		t.Error(err)
	}
	if n := c.Config().Pages; n != 2001-100 {
		t.Errorf("%d pages", n)
	}
}
