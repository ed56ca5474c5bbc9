package prefix_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/tensor"
)

func newCache(t testing.TB, pages, size int) *kvcache.Cache {
	t.Helper()
	c, err := kvcache.New(cpu.New(cpu.Options{Workers: 1}), kvcache.Config{Layers: 1, Pages: pages, PageSize: size, KVHeads: 1, HeadDim: 2, ValueDim: 1, DType: tensor.F32})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// kinds are the indexes, by name.
func kinds(t testing.TB, c *kvcache.Cache, order prefix.Order) map[string]prefix.Index {
	t.Helper()
	radix, err := prefix.NewRadix(c, prefix.Options{Order: order})
	chain, err2 := prefix.NewChain(c, prefix.Options{Order: order, Hasher: prefix.NewVLLM("0")})
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return map[string]prefix.Index{"radix": radix, "chain": chain}
}

// known computes a prompt, makes it known and frees its sequence.
func known(t testing.TB, c *kvcache.Cache, x prefix.Index, p *prefix.Prompt) {
	t.Helper()
	id := c.NewSequence()
	_, err := c.Extend([]kvcache.ID{id}, []int{len(p.Tokens)}, nil)
	if err == nil {
		_, err = x.Insert(p, id)
	}
	if err := errors.Join(err, c.Free(id)); err != nil {
		t.Fatal(err)
	}
}

func matched(t testing.TB, x prefix.Index, p *prefix.Prompt) int {
	t.Helper()
	l, err := x.Match(p)
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
	return l.Tokens()
}

// TestEvictionOrder: which pages go, one at a time, for each order.
func TestEvictionOrder(t *testing.T) {
	a, b, d := []int32{1, 1, 2, 2, 3, 3}, []int32{1, 1, 4, 4}, []int32{5, 5, 6, 6} // in pages of 2: a 1-2-3, b 1-4, d 5-6
	for order, want := range map[prefix.Order]string{
		prefix.LRU:        "5-6 5 1-4 1-2-3 1-2 1", // b and then a were matched last
		prefix.LFU:        "1-2-3 1-2 1-4 5-6 5 1", // a was matched once, b twice, d three times, as was what a and b share
		prefix.FIFO:       "1-2-3 1-2 1-4 1 5-6 5",
		prefix.ByPriority: "1-4 5-6 5 1-2-3 1-2 1",
	} {
		c := newCache(t, 8, 2)
		for name, x := range kinds(t, c, order) {
			pa, pb, pd := &prefix.Prompt{Tokens: a, Priority: 7}, &prefix.Prompt{Tokens: b, Priority: -1}, &prefix.Prompt{Tokens: d}
			known(t, c, x, pa)
			known(t, c, x, pb)
			known(t, c, x, pd)
			for _, p := range []*prefix.Prompt{pd, pd, pd, pb, pb, pa} {
				matched(t, x, p)
			}
			paths := map[string][]int32{"1": a[:2], "1-2": a[:4], "1-2-3": a, "1-4": b, "5": d[:2], "5-6": d}
			var got string
			for range 6 {
				gone := x.Evict(1)
				if err := x.CheckIntegrity(); err != nil || gone != 1 {
					t.Fatalf("%s %v: %d evicted, %v", name, order, gone, err)
				}
				// Look without a Match, which would change the order.
				for path := range paths {
					if !present(t, c, x, paths[path]) {
						got += " " + path
						delete(paths, path)
					}
				}
			}
			if got = got[1:]; got != want {
				t.Errorf("%s %v evicts %q, want %q", name, order, got, want)
			}
		}
	}
}

// present tells whether all of a prompt is known, of a copy of the index: one
// more Insert would hold nothing.
func present(t testing.TB, c *kvcache.Cache, x prefix.Index, tokens []int32) bool {
	return slices.Contains(prefix.Known(x), fmt.Sprint(tokens))
}

// TestNamespacesNeverLeak: the same tokens under other names are not found, not
// even where the hashes of vLLM are the same.
func TestNamespacesNeverLeak(t *testing.T) {
	tokens := []int32{1, 2, 3, 4}
	prompts := []*prefix.Prompt{
		{Tokens: tokens}, {Tokens: tokens, Namespace: "x"}, {Tokens: tokens, Salt: "x"}, {Tokens: tokens, Adapter: "x"},
		{Tokens: tokens, Namespace: "x", Salt: "x"}, {Tokens: tokens, Salt: "xx"}, {Tokens: tokens, Adapter: "x", Salt: "x"},
		{Tokens: tokens, Media: []prefix.Media{{ID: "x", Offset: 0, Length: 1}}}, {Tokens: tokens, Media: []prefix.Media{{ID: "x", Offset: 0, Length: 2}}},
		{Tokens: tokens, Media: []prefix.Media{{ID: "x", Offset: 1, Length: 1}}},
	}
	salt, _ := prefix.Hashes(prefix.NewVLLM("0"), prompts[2], 4)
	adapter, _ := prefix.Hashes(prefix.NewVLLM("0"), prompts[3], 4)
	if salt[0] != adapter[0] {
		t.Error("vLLM's hashes of a salt and an adapter of one name differ: the case is not tested")
	}
	c := newCache(t, 2*len(prompts), 4)
	for name, x := range kinds(t, c, prefix.LRU) {
		for i, p := range prompts {
			for j, q := range prompts {
				if want := 4; matched(t, x, q) != want && j < i || matched(t, x, q) != 0 && j >= i {
					t.Errorf("%s: with the first %d known, %+v is found: %d tokens", name, i, *q, matched(t, x, q))
				}
			}
			known(t, c, x, p)
		}
		if s := x.Stats(); s.Scopes != 7 || s.Pages != len(prompts) {
			t.Errorf("%s: %+v", name, s)
		}
		x.Evict(len(prompts))
	}
}

// TestExtendEvicts: room is made by giving up what nobody uses, and what is
// leased or in a sequence stays.
func TestExtendEvicts(t *testing.T) {
	c := newCache(t, 8, 2)
	for name, x := range kinds(t, c, prefix.LRU) {
		p, q := &prefix.Prompt{Tokens: []int32{1, 1, 2, 2}}, &prefix.Prompt{Tokens: []int32{3, 3, 4, 4}}
		known(t, c, x, p)
		known(t, c, x, q)
		lease, err := x.Match(p)
		if err != nil {
			t.Fatal(err)
		}
		id := c.NewSequence()
		if _, err := prefix.Extend(c, x, []kvcache.ID{id}, []int{12}, nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if x.Stats().Pages != 2 || c.Stats().Free != 0 {
			t.Errorf("%s: %+v, %+v", name, x.Stats(), c.Stats())
		}
		var full *kvcache.OutOfPagesError
		if _, err := prefix.Extend(c, x, []kvcache.ID{id}, []int{1}, nil); !errors.As(err, &full) {
			t.Errorf("%s: a leased page was evicted: %v", name, err)
		}
		other, err := lease.Start()
		lease.Release()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := prefix.Extend(c, x, []kvcache.ID{id}, []int{1}, nil); !errors.As(err, &full) {
			t.Errorf("%s: a page of a sequence was evicted: %v", name, err)
		}
		if err := c.Free(other); err != nil {
			t.Fatal(err)
		}
		if _, err := prefix.Extend(c, x, []kvcache.ID{id}, []int{1}, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := errors.Join(c.Free(id), x.CheckIntegrity(), c.CheckIntegrity()); err != nil {
			t.Error(err)
		}
		x.Clear()
	}
}

// TestInsertRefuses: what was not computed from the prompt alone.
func TestInsertRefuses(t *testing.T) {
	c := newCache(t, 8, 2)
	for name, x := range kinds(t, c, prefix.LRU) {
		id := c.NewSequence()
		if _, err := c.Extend([]kvcache.ID{id}, []int{6}, nil); err != nil {
			t.Fatal(err)
		}
		if err := c.Drop(id, 2, 4); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Insert(&prefix.Prompt{Tokens: []int32{1, 2, 3, 4}}, id); !errors.As(err, new(*prefix.ValueError)) {
			t.Errorf("%s: keys were dropped: %v", name, err)
		}
		if err := c.Free(id); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Insert(&prefix.Prompt{Tokens: []int32{1}}, id); !errors.As(err, new(*kvcache.UnknownSequenceError)) {
			t.Errorf("%s: a freed sequence: %v", name, err)
		}
		bad := &prefix.Prompt{Media: []prefix.Media{{}}}
		if _, err := x.Match(bad); !errors.As(err, new(*prefix.ValueError)) {
			t.Errorf("%s: media of no tokens: %v", name, err)
		}
		if s := x.Stats(); s.Scopes != 0 || s.Pages != 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	_, err := prefix.NewRadix(nil, prefix.Options{})
	_, err2 := prefix.NewChain(c, prefix.Options{Order: 4})
	_, err3 := prefix.NewRadix(c, prefix.Options{Hasher: prefix.SHA256{}})
	for _, err := range []error{err, err2, err3} {
		if !errors.As(err, new(*prefix.ValueError)) {
			t.Errorf("error %v, want a ValueError", err)
		}
	}
}

// TestConcurrentRequests: goroutines match, start, extend, insert and free
// prompts with common beginnings in a cache too small for all of them. Run with
// -race.
func TestConcurrentRequests(t *testing.T) {
	const workers, rounds, size = 6, 60, 4
	c := newCache(t, 8+8*workers, size)
	for name, x := range kinds(t, c, prefix.LRU) {
		var group sync.WaitGroup
		for w := range workers {
			group.Go(func() {
				for round := range rounds {
					p := &prefix.Prompt{Salt: fmt.Sprint(w % 2)}
					for j := range 7 * size {
						p.Tokens = append(p.Tokens, int32(round%5*(j/size%3)))
					}
					p.Tokens[5*size] = int32(w*rounds + round) // from here on its own
					if err := request(c, x, p); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
		group.Wait()
		if err := errors.Join(x.CheckIntegrity(), c.CheckIntegrity()); err != nil {
			t.Error(err)
		}
		s := x.Stats()
		if s.HitTokens == 0 || s.FreedPages == 0 || s.Locked != 0 {
			t.Errorf("%s: %+v", name, s)
		}
		if n := x.Clear(); n != 0 || c.Stats().Free != c.Stats().Pages {
			t.Errorf("%s: %d pages stay, %+v", name, n, c.Stats())
		}
	}
}

// request is one, and compares all its rows.
func request(c *kvcache.Cache, x prefix.Index, p *prefix.Prompt) error {
	l, err := x.Match(p)
	if err != nil {
		return err
	}
	defer l.Release()
	id, err := l.Start()
	if err != nil {
		return err
	}
	n := len(p.Tokens) - l.Tokens()
	slots, err := prefix.Extend(c, x, []kvcache.ID{id}, []int{n}, nil)
	if err != nil {
		return errors.Join(err, c.Free(id))
	}
	key, value := tensor.New(tensor.F32, int64(n), 1, 2), tensor.New(tensor.F32, int64(n), 1, 1)
	for j := range n {
		key.Set(mark(p, l.Tokens()+j), int64(j), 0, 0)
	}
	if err := c.Append(0, slots, key, value); err != nil {
		return err
	}
	if _, err := x.Insert(p, id); err != nil {
		return err
	}
	all, _, err := c.Gather(0, id)
	if err != nil {
		return err
	}
	for j := range p.Tokens {
		if got := all.At(int64(j), 0, 0); got != mark(p, j) {
			return fmt.Errorf("key %d of a prompt is %v, want %v", j, got, mark(p, j))
		}
	}
	return c.Free(id)
}
