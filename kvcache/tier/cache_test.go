package tier_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/tier"
	"github.com/longctx/longctx/tensor"
)

// world is a cache, its swap space and a chain of levels, driven at random, with
// all that they should hold beside it.
type world struct {
	t       *testing.T
	rng     *rand.Rand
	config  kvcache.Config
	cache   *kvcache.Cache
	space   *kvcache.SwapSpace
	dir     string
	manager *tier.Manager
	remote  *tier.Host // outlives a restart

	live map[kvcache.ID]*request
	away map[kvcache.ID]*request
	kept map[page.Key][]byte // every page that was ever put

	hits, misses, refused, restarts, swaps int
}

// request is a sequence: the tokens of a tenant.
type request struct {
	tenant string
	tokens []int
}

// row is what a token's rows hold, of its tenant and all tokens up to it: as in a
// model, equal prefixes have equal rows and others do not.
func (r *request) row(j, layer int) float32 {
	h := sha256.New()
	fmt.Fprint(h, r.tenant, layer, r.tokens[:j+1])
	return float32(binary.LittleEndian.Uint16(h.Sum(nil)))
}

// key is that of page k, by the tokens up to its end.
func (w *world) key(r *request, k int) page.Key {
	return page.Key{Namespace: r.tenant, Hash: sha256.Sum256(fmt.Append(nil, r.tokens[:(k+1)*w.config.PageSize]))}
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

const blobBytes = 128 + 8 + 64 + 4*128 // of a page of the config below

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), dir: t.TempDir(), live: map[kvcache.ID]*request{}, away: map[kvcache.ID]*request{}, kept: map[page.Key][]byte{}}
	w.config = kvcache.Config{Layers: 2, Pages: 16, PageSize: 4, KVHeads: 1, HeadDim: 8, ValueDim: 8, DType: tensor.F32, KeyStorage: kernel.PreRoPE}
	var err error
	w.cache, err = kvcache.New(cpu.New(cpu.Options{}), w.config)
	w.ok(err)
	w.space, err = w.cache.NewSwapSpace(12, 0)
	w.ok(err)
	w.remote, err = tier.NewHost(tier.Limits{Bytes: 30 * blobBytes, Order: tier.LFU})
	w.ok(err)
	w.start()
	return w
}

// keep is a store that a Manager cannot close.
type keep struct{ tier.Bounded }

func (keep) Close() error { return nil }

func (w *world) start() {
	host, err := tier.NewHost(tier.Limits{Bytes: 5 * blobBytes})
	w.ok(err)
	disk, err := tier.OpenDisk(w.dir, tier.DiskOptions{NoSync: true, Limits: tier.Limits{Bytes: 10 * blobBytes, Order: tier.FIFO}})
	w.ok(err)
	w.manager, err = tier.NewManager(tier.Options{}, tier.Level{Store: host, Queue: 4}, tier.Level{Store: disk}, tier.Level{Store: keep{w.remote}})
	w.ok(err)
}

// restart ends the levels, written or not, and begins again with what the disk
// and the remote store have.
func (w *world) restart() {
	var unwritten *tier.UnwrittenError
	if err := w.manager.Close(); err != nil && !errors.As(err, &unwritten) {
		w.t.Fatal(err)
	}
	w.start()
	w.restarts++
}

func pick[V any](rng *rand.Rand, m map[kvcache.ID]V) (id kvcache.ID, ok bool) {
	var ids []kvcache.ID
	for id := range m {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return 0, false
	}
	slices.Sort(ids)
	return ids[rng.IntN(len(ids))], true
}

func (w *world) step() {
	ctx := context.Background()
	switch w.rng.IntN(8) {
	case 0:
		w.begin()
	case 1, 2:
		if id, ok := pick(w.rng, w.live); ok {
			w.extend(id, 1+w.rng.IntN(6))
		}
	case 3:
		if id, ok := pick(w.rng, w.live); ok {
			w.save(id)
			w.ok(w.cache.Free(id))
			delete(w.live, id)
		}
	case 4:
		if id, ok := pick(w.rng, w.live); ok {
			var full *kvcache.OutOfSwapError
			if err := w.space.SwapOut(ctx, id); errors.As(err, &full) {
				w.refused++
				return
			} else {
				w.ok(err)
			}
			w.away[id] = w.live[id]
			delete(w.live, id)
		}
	case 5:
		if id, ok := pick(w.rng, w.away); ok {
			var full *kvcache.OutOfPagesError
			if err := w.space.Restore(ctx, id); errors.As(err, &full) {
				w.refused++
				return
			} else {
				w.ok(err)
			}
			w.swaps++
			w.live[id] = w.away[id]
			delete(w.away, id)
		}
	case 6:
		if id, ok := pick(w.rng, w.live); ok {
			w.save(id)
		}
	default:
		if w.rng.IntN(20) == 0 {
			w.restart()
		} else if id, ok := pick(w.rng, w.away); ok && w.rng.IntN(4) == 0 {
			w.ok(w.space.Discard(id))
			delete(w.away, id)
		}
	}
}

// begin is a new request, of few possible tokens so that prefixes meet, which
// takes of its prefix what the levels have.
func (w *world) begin() {
	ctx := context.Background()
	r := &request{tenant: []string{"a", "b", "ab"}[w.rng.IntN(3)]}
	want := r.tokens
	for range w.rng.IntN(24) {
		want = append(want, w.rng.IntN(8)/7)
	}
	id := w.cache.NewSequence()
	w.live[id] = r
	for k := range len(want) / w.config.PageSize {
		full := &request{r.tenant, want[:(k+1)*w.config.PageSize]}
		key := w.key(full, k)
		b, err := w.manager.Get(ctx, key, nil)
		if errors.Is(err, tier.ErrNotFound) {
			w.misses++
			break
		}
		w.ok(err)
		if !bytes.Equal(b, w.kept[key]) {
			w.t.Fatalf("page of %v is not what was put", key)
		}
		var fullCache *kvcache.OutOfPagesError
		if err := w.space.Import(ctx, id, b); errors.As(err, &fullCache) {
			w.refused++
			break
		} else if space := (*kvcache.OutOfSwapError)(nil); errors.As(err, &space) {
			w.refused++
			break
		} else {
			w.ok(err)
		}
		w.hits++
		r.tokens = full.tokens
	}
	r.tokens = slices.Clone(r.tokens)
}

func (w *world) extend(id kvcache.ID, n int) {
	r := w.live[id]
	slots, err := w.cache.Extend([]kvcache.ID{id}, []int{n}, nil)
	var full *kvcache.OutOfPagesError
	if errors.As(err, &full) {
		w.refused++
		return
	}
	w.ok(err)
	first := len(r.tokens)
	for range n {
		r.tokens = append(r.tokens, w.rng.IntN(8)/7)
	}
	for layer := range w.config.Layers {
		key, value := tensor.New(tensor.F32, int64(n), 1, 8), tensor.New(tensor.F32, int64(n), 1, 8)
		for i := range n {
			for d := range int64(8) {
				key.Set(r.row(first+i, layer)+float32(d), int64(i), 0, d)
				value.Set(-r.row(first+i, layer)-float32(d), int64(i), 0, d)
			}
		}
		w.ok(w.cache.Append(layer, slots, key, value))
	}
}

// save puts the full pages of a sequence in the levels.
func (w *world) save(id kvcache.ID) {
	ctx := context.Background()
	r := w.live[id]
	for k := range len(r.tokens) / w.config.PageSize {
		key := w.key(r, k)
		b, err := w.space.Export(ctx, id, k, key, nil)
		if full := (*kvcache.OutOfSwapError)(nil); errors.As(err, &full) {
			w.refused++
			return
		}
		w.ok(err)
		if was := w.kept[key]; was != nil && !bytes.Equal(was, b) {
			w.t.Fatalf("the page of %v has changed", key)
		}
		w.kept[key] = b
		w.ok(w.manager.Put(ctx, key, b))
	}
}

func (w *world) check() {
	w.ok(errors.Join(w.cache.CheckIntegrity(), w.space.CheckIntegrity()))
	for id, r := range w.live {
		for layer := range w.config.Layers {
			key, value, err := w.cache.Gather(layer, id)
			w.ok(err)
			if int(key.Shape[0]) != len(r.tokens) {
				w.t.Fatalf("sequence %d has %d keys, want %d", id, key.Shape[0], len(r.tokens))
			}
			for j := range r.tokens {
				if want := r.row(j, layer); key.At(int64(j), 0, 7) != want+7 || value.At(int64(j), 0, 0) != -want {
					t := w.t
					t.Fatalf("sequence %d of %q: key %d of layer %d is not its own", id, r.tenant, j, layer)
				}
			}
		}
	}
}

// TestCacheAndTiers: requests of three tenants come, grow, are swapped, saved
// and freed, and find their prefixes again, over restarts; every row is that of
// its tokens and its tenant, always.
func TestCacheAndTiers(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	var mu sync.Mutex
	var hits, misses, refused, restarts, swaps int
	t.Run("seeds", func(t *testing.T) {
		for seed := range seeds {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, seed)
				for range 800 {
					w.step()
					w.check()
				}
				w.ok(w.manager.Flush(context.Background()))
				for _, s := range w.manager.Stats() {
					if s.Dropped+s.Failed+s.Corrupt > 0 || s.Usage.Bytes > s.Usage.Limit {
						t.Errorf("%+v", s)
					}
				}
				w.ok(w.manager.Close())
				mu.Lock()
				defer mu.Unlock()
				hits, misses, refused, restarts, swaps = hits+w.hits, misses+w.misses, refused+w.refused, restarts+w.restarts, swaps+w.swaps
			})
		}
	})
	t.Logf("%d pages found, %d not, %d calls refused for room, %d restarts, %d swaps", hits, misses, refused, restarts, swaps)
	if n := int(seeds); hits < 20*n || misses < 10*n || refused < 5*n || restarts < n || swaps < 10*n {
		t.Error("too little happened to mean anything")
	}
}
