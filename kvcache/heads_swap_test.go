package kvcache_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// TestHeadCacheSwap: with sequences swapped out and back between all else, each
// head holds what it should, and what fails changes nothing.
func TestHeadCacheSwap(t *testing.T) {
	ctx := context.Background()
	swaps, restores, full, faults := 0, 0, 0, 0
	for seed := range uint64(30) {
		m := newHeadMachine(t, seed)
		b := &swapBackend{hostBackend: m.backend}
		var err error
		if m.cache, err = kvcache.NewHeads(b, m.config); err != nil {
			t.Fatal(err)
		}
		w, err := m.cache.NewSwapSpace(5+m.rng.IntN(40), m.config.CodedPages)
		if err != nil {
			t.Fatal(err)
		}
		away := map[kvcache.ID]*headOracle{}
		fault := func() {
			b.calls, b.waits = 0, 0
			if m.rng.IntN(6) == 0 {
				b.calls = 1 + m.rng.IntN(2)
			} else if m.rng.IntN(6) == 0 {
				b.waits = 1 + m.rng.IntN(2)
			}
		}
		var noSwap *kvcache.OutOfSwapError
		var noPages *kvcache.OutOfPagesError
		failed := func(err error) bool {
			switch {
			case err == nil:
				return false
			case errors.As(err, &noSwap), errors.As(err, &noPages):
				full++
			case errors.Is(err, errInjected):
				faults++
			default:
				t.Fatalf("seed %d: %v", seed, err)
			}
			return true
		}
		for range 100 {
			what := ""
			switch m.rng.IntN(4) {
			case 0:
				if len(m.live) == 0 {
					break
				}
				id := m.live[m.rng.IntN(len(m.live))]
				fault()
				if what = "SwapOut"; failed(w.SwapOut(ctx, id)) {
					break
				}
				var unknown *kvcache.UnknownSequenceError
				if _, err := m.cache.Tokens(id); !errors.As(err, &unknown) {
					t.Fatalf("seed %d: a sequence that is away: %v", seed, err)
				}
				away[id] = m.oracle[id]
				delete(m.oracle, id)
				m.live = slices.DeleteFunc(m.live, func(x kvcache.ID) bool { return x == id })
				swaps++
			case 1:
				if len(away) == 0 {
					break
				}
				id := slices.Min(slices.Collect(maps.Keys(away)))
				fault()
				if what = "Restore"; m.rng.IntN(6) == 0 {
					what = "Discard"
					m.ok(what, w.Discard(id))
				} else if failed(w.Restore(ctx, id)) {
					break
				} else {
					m.oracle[id], m.live = away[id], append(m.live, id)
					restores++
				}
				delete(away, id)
			default:
				what = m.step()
			}
			m.check(what)
			m.ok(what, w.CheckIntegrity())
		}
		for id := range away {
			m.ok("Discard", w.Discard(id))
		}
		if s := w.Stats(); s.Free != s.Pages || s.CodedFree != s.CodedPages || s.Sequences != 0 {
			t.Errorf("seed %d: %+v", seed, s)
		}
		m.ok("Close", w.Close())
		var unknown *kvcache.UnknownSequenceError
		if err := w.Restore(ctx, 0); !errors.As(err, &unknown) {
			t.Errorf("Restore of nothing: %v", err)
		}
	}
	if swaps < 200 || restores < 100 || full < 10 || faults < 50 {
		t.Errorf("%d swaps, %d restores, %d refusals and %d faults: too few to mean anything", swaps, restores, full, faults)
	}
}

// TestHeadCacheIntegrityWhileMoving: a sequence on its way out or back is no fault.
func TestHeadCacheIntegrityWhileMoving(t *testing.T) {
	b := &swapBackend{hostBackend: &hostBackend{}}
	c, err := kvcache.NewHeads(b, kvcache.Config{Layers: 2, Pages: 16, PageSize: 4, KVHeads: 2, HeadDim: 8, ValueDim: 8, DType: tensor.F32})
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.NewSwapSpace(16, 0)
	if err != nil {
		t.Fatal(err)
	}
	id := c.NewSequence()
	if _, err := c.Extend([]kvcache.ID{id}, []int{5}, nil); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var look sync.WaitGroup
	look.Go(func() {
		for ctx.Err() == nil {
			if err := c.CheckIntegrity(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 3000 {
		if err := errors.Join(w.SwapOut(ctx, id), w.Restore(ctx, id)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	look.Wait()
	if err := c.CheckIntegrity(); err != nil {
		t.Error(err)
	}
}
