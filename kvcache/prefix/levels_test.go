package prefix_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/kvcache/tier"
	"github.com/longctx/longctx/tensor"
)

// below is an index with levels below it.
type below struct {
	*prefix.Levels
	t     *testing.T
	index prefix.Index
	lost  []error
}

func newBelow(t *testing.T, kind int, codec kernel.Codec, h prefix.Hasher, store prefix.PageStore) *below {
	c := kvcache.Config{Layers: 1, Pages: 24, PageSize: 4, KVHeads: 1, HeadDim: 2, ValueDim: 1, DType: tensor.F32, Coding: kernel.KIVI(codec, 1)}
	if codec != kernel.NoCodec {
		c.CodedPages = 24
	}
	cache, err := kvcache.New(cpu.New(cpu.Options{Workers: 1}), c)
	must(t, err)
	space, err := cache.NewSwapSpace(2, min(2, c.CodedPages))
	must(t, err)
	b := &below{t: t, Levels: &prefix.Levels{Cache: cache, Space: space, Store: store, Model: "m", Hasher: h}}
	b.Failed = func(_ prefix.Evicted, err error) { b.lost = append(b.lost, err) }
	o := prefix.Options{Evicted: b.Evicted, Hasher: h}
	if kind == 0 {
		b.index, err = prefix.NewRadix(cache, o)
	} else {
		b.index, err = prefix.NewChain(cache, o)
	}
	must(t, err)
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func hostStore(t *testing.T) *tier.Manager {
	host, err := tier.NewHost(tier.Limits{Bytes: 1 << 24})
	must(t, err)
	m, err := tier.NewManager(tier.Options{}, tier.Level{Store: host, Queue: 4})
	must(t, err)
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// serve begins a sequence, computes what was not found, checks every row, and makes
// its pages known. It returns the number of tokens found.
func (b *below) serve(p *prefix.Prompt) int {
	b.t.Helper()
	id, found, err := b.Start(context.Background(), b.index, p)
	must(b.t, err)
	n := len(p.Tokens) - found
	slots, err := prefix.Extend(b.Cache, b.index, []kvcache.ID{id}, []int{n}, nil)
	must(b.t, err)
	key, value := tensor.New(tensor.F32, int64(n), 1, 2), tensor.New(tensor.F32, int64(n), 1, 1)
	for j := range int64(n) {
		x := mark(p, found+int(j))
		key.Set(x, j, 0, 0)
		key.Set(-x, j, 0, 1)
		value.Set(x, j, 0, 0)
	}
	must(b.t, b.Cache.Append(0, slots, key, value))
	_, err = b.Cache.Extend([]kvcache.ID{id}, []int{0}, nil) // codes what is due
	must(b.t, err)
	key, value, err = b.Cache.Gather(0, id)
	must(b.t, err)
	positions, err := b.Cache.Positions(id, nil)
	must(b.t, err)
	for j := range p.Tokens {
		x := mark(p, j)
		if d := value.At(int64(j), 0, 0) - x; positions[j] != int32(j) || d > 1 || d < -1 || b.Cache.Config().Coding.Key.Codec == kernel.NoCodec && d != 0 {
			b.t.Fatalf("%+v, %d found: key %d at %d has %v, want %v", p, found, j, positions[j], value.At(int64(j), 0, 0), x)
		}
	}
	_, err = b.index.Insert(p, id)
	must(b.t, err)
	must(b.t, errors.Join(b.Cache.Free(id), b.index.CheckIntegrity(), b.Cache.CheckIntegrity(), b.Space.CheckIntegrity()))
	return found
}

// TestEvictedComesBack: what was evicted from an index of either kind is found
// below it, each row in its place and of its own scope, plain or coded; without a
// hasher that tells scopes apart as well.
func TestEvictedComesBack(t *testing.T) {
	for kind := range 2 {
		for _, codec := range []kernel.Codec{kernel.NoCodec, kernel.Int8} {
			for _, h := range []prefix.Hasher{nil, prefix.NewVLLM("")} {
				t.Run(fmt.Sprintf("%d, %v, %T", kind, codec, h), func(t *testing.T) {
					store := hostStore(t)
					b, rng := newBelow(t, kind, codec, h, store), rand.New(rand.NewPCG(uint64(kind), 1))
					known := map[string]int{}
					again, full := 0, 0
					for range 300 {
						p := &prefix.Prompt{}
						*[]*string{&p.Namespace, &p.Salt, &p.Adapter}[rng.IntN(3)] = "x"
						for range rng.IntN(40) {
							p.Tokens = append(p.Tokens, int32(rng.IntN(8)/7))
						}
						if rng.IntN(3) == 0 {
							p.Media = []prefix.Media{{ID: string(rune('a' + rng.IntN(2))), Offset: rng.IntN(9), Length: 3}}
						}
						if len(p.Media) > 0 && p.Media[0].Offset >= len(p.Tokens) {
							p.Media = nil
						}
						must(t, store.Flush(context.Background())) // so that each page is where it should be
						want := 0
						for n := 4; n <= len(p.Tokens); n += 4 {
							if _, ok := known[(&machine{}).key(p, n)]; !ok {
								break
							}
							want = n
						}
						found := b.serve(p)
						if found != want {
							t.Fatalf("%+v: %d tokens found, want %d", p, found, want)
						}
						if found > 0 {
							again++
						}
						for n := 4; n <= len(p.Tokens); n += 4 {
							known[(&machine{}).key(p, n)] = n
						}
						if rng.IntN(4) == 0 {
							full += b.index.Evict(rng.IntN(24))
						}
					}
					if len(b.lost) > 0 || again < 50 || full < 100 {
						t.Errorf("%d found, %d evicted, lost %v", again, full, b.lost)
					}
				})
			}
		}
	}
}

// broken is a store that fails.
type broken struct{ err error }

func (s broken) Put(context.Context, page.Key, []byte) error { return s.err }
func (s broken) Prefix(context.Context, []page.Key, int) ([][]byte, error) {
	return nil, s.err
}

// TestStoreFails: a store that fails costs the pages, is told, and nothing else.
func TestStoreFails(t *testing.T) {
	failed := errors.New("no store")
	b := newBelow(t, 0, kernel.NoCodec, nil, broken{failed})
	p := &prefix.Prompt{Tokens: make([]int32, 12)}
	id, found, err := b.Start(context.Background(), b.index, p)
	if !errors.Is(err, failed) || found != 0 {
		t.Fatalf("%d tokens, %v", found, err)
	}
	slots, err := b.Cache.Extend([]kvcache.ID{id}, []int{12}, nil)
	must(t, err)
	must(t, b.Cache.Append(0, slots, tensor.New(tensor.F32, 12, 1, 2), tensor.New(tensor.F32, 12, 1, 1)))
	_, err = b.index.Insert(p, id)
	must(t, errors.Join(err, b.Cache.Free(id)))
	if n := b.index.Evict(9); n != 3 || len(b.lost) != 3 || !errors.Is(b.lost[0], failed) {
		t.Errorf("%d evicted, told %v", n, b.lost)
	}
	if s := b.Cache.Stats(); s.Free != s.Pages || s.Sequences != 0 {
		t.Errorf("in the end %+v", s)
	}
	must(t, errors.Join(b.index.CheckIntegrity(), b.Cache.CheckIntegrity()))
}
