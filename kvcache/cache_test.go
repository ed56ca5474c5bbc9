package kvcache_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

func small() kvcache.Config {
	return kvcache.Config{Layers: 2, Pages: 6, PageSize: 4, KVHeads: 1, HeadDim: 3, ValueDim: 2, DType: tensor.F32}
}

// fixed is a machine with a given Config, driven by the test.
func fixed(t testing.TB, c kvcache.Config) *machine {
	m := &machine{t: t, in: &bytesReader{}, backend: &hostBackend{}, config: c, oracle: map[kvcache.ID]*oracleSequence{}}
	var err error
	if m.cache, err = kvcache.New(m.backend, c); err != nil {
		t.Fatal(err)
	}
	return m
}

// start is a new sequence of n tokens.
func (m *machine) start(n int) kvcache.ID {
	id := m.cache.NewSequence()
	m.add(id, &oracleSequence{})
	m.grow(id, n)
	return id
}

// grow adds n tokens to a sequence and stores them in all layers.
func (m *machine) grow(id kvcache.ID, n int) {
	m.t.Helper()
	ids, counts := []kvcache.ID{id}, []int{n}
	slots, err := m.cache.Extend(ids, counts, nil)
	m.ok("Extend", err)
	m.in.b = []byte{1, 1} // no fault
	m.store("Extend", ids, counts, nil, slots)
}

func (m *machine) branch(id kvcache.ID) kvcache.ID {
	m.t.Helper()
	other, err := m.cache.Fork(id)
	m.ok("Fork", err)
	m.add(other, &oracleSequence{slices.Clone(m.oracle[id].tokens), m.oracle[id].next})
	return other
}

func (m *machine) pages(id kvcache.ID) []int32 { return m.lower(id).Pages.Indices }

// TestCopyOnWrite: a fork shares all pages until one side is extended; then
// only the partly filled page is copied, and neither side sees the other's.
func TestCopyOnWrite(t *testing.T) {
	for _, parentFirst := range []bool{true, false} {
		m := fixed(t, small())
		parent := m.start(6)
		child := m.branch(parent)
		if s := m.cache.Stats(); s.Used != 2 || s.Shared != 2 || s.Tokens != 12 {
			t.Fatalf("after Fork: %+v", s)
		}
		first, second := parent, child
		if !parentFirst {
			first, second = child, parent
		}
		common := m.pages(parent)
		m.grow(first, 1)
		m.check("extending one side")
		if p := m.pages(first); p[0] != common[0] || p[1] == common[1] {
			t.Errorf("pages %v after extending a sharer of %v", p, common)
		}
		m.grow(second, 1)
		m.check("extending the other")
		if p := m.pages(second); !slices.Equal(p, common) {
			t.Errorf("pages %v of the last sharer, want %v in place", p, common)
		}
		if s := m.cache.Stats(); s.Used != 3 || s.Shared != 1 {
			t.Errorf("in the end: %+v", s)
		}
	}
}

// TestCopyOnWriteInOneCall: of the sequences of one batch that share a page,
// one keeps it, unless a sequence outside the batch holds it too.
func TestCopyOnWriteInOneCall(t *testing.T) {
	for outside := range 2 {
		m := fixed(t, small())
		ids := []kvcache.ID{m.start(3)}
		ids = append(ids, m.branch(ids[0]), m.branch(ids[0]))
		if outside == 1 {
			m.branch(ids[0])
		}
		counts := []int{1, 1, 1}
		slots, err := m.cache.Extend(ids, counts, nil)
		m.ok("Extend", err)
		m.store("Extend", ids, counts, nil, slots)
		m.check("Extend")
		if s := m.cache.Stats(); s.Used != 3+outside || s.Shared != 0 {
			t.Errorf("%d sharers outside: %+v", outside, s)
		}
	}
}

// TestForkOfFork: any of a family of forks may go in any order.
func TestForkOfFork(t *testing.T) {
	m := fixed(t, small())
	a := m.start(5)
	b := m.branch(a)
	c := m.branch(b)
	m.grow(b, 1)
	m.check("extending the middle")
	m.forget(a)
	m.check("freeing the first")
	m.grow(c, 4)
	m.check("extending the last")
	m.forget(b)
	m.forget(c)
	m.check("freeing all")
	if s := m.cache.Stats(); s.Free != s.Pages || s.Tokens != 0 || s.Shared != 0 || s.UsedBytes != 0 {
		t.Errorf("an empty cache has %+v", s)
	}
}

func (m *machine) forget(id kvcache.ID) {
	m.t.Helper()
	m.ok("Free", m.cache.Free(id))
	delete(m.oracle, id)
	m.live = slices.DeleteFunc(m.live, func(x kvcache.ID) bool { return x == id })
	m.freed = append(m.freed, id)
}

// TestTruncateIntoSharedPage: rolling back into a shared page and going on
// copies it, and the other side keeps what was rolled back.
func TestTruncateIntoSharedPage(t *testing.T) {
	m := fixed(t, small())
	a := m.start(7)
	b := m.branch(a)
	m.ok("Truncate", m.cache.Truncate(b, 5))
	m.oracle[b].tokens, m.oracle[b].next = m.oracle[b].tokens[:5], 5
	m.check("Truncate")
	m.grow(b, 1)
	m.check("extending the truncated side")
	m.grow(a, 1)
	m.check("extending the other")
	if copied := m.backend.copied.Load(); copied != 4 { // one page, keys and values, two layers
		t.Errorf("%d copies, want 4", copied)
	}
}

// TestTruncateKeepsOwnPage: rolling back a page that is not shared costs no copy.
func TestTruncateKeepsOwnPage(t *testing.T) {
	m := fixed(t, small())
	a := m.start(9)
	pages := m.pages(a)
	m.ok("Truncate", m.cache.Truncate(a, 6))
	m.oracle[a].tokens, m.oracle[a].next = m.oracle[a].tokens[:6], 6
	if s := m.cache.Stats(); s.Used != 2 {
		t.Errorf("6 keys in %d pages", s.Used)
	}
	m.grow(a, 3)
	m.check("Extend")
	if got := m.pages(a); !slices.Equal(got, pages) || m.backend.copied.Load() != 0 {
		t.Errorf("pages %v, want %v again, with %d copies", got, pages, m.backend.copied.Load())
	}
}

// TestDropKeepsPositions: StreamingLLM's cache of sinks and a window, a token
// at a time. Positions stay logical and memory stays constant.
func TestDropKeepsPositions(t *testing.T) {
	c := small()
	c.PageSize, c.Pages = 1, 9
	m := fixed(t, c)
	const sinks, window = 2, 6
	id := m.start(sinks + window)
	view := m.cache.Sequences(id)
	if p := view.KeyPositions(nil); p != nil {
		t.Errorf("positions %v before the first Drop, want none", p)
	}
	for step := range 20 {
		m.grow(id, 1)
		m.ok("Drop", m.cache.Drop(id, sinks, sinks+1))
		s := m.oracle[id]
		s.tokens = slices.Delete(s.tokens, sinks, sinks+1)
		m.check("Drop")
		want := []int32{0, 1}
		for p := range window {
			want = append(want, int32(sinks+1+step+p))
		}
		if got := view.KeyPositions(nil); !slices.Equal(got, want) {
			t.Fatalf("positions %v, want %v", got, want)
		}
	}
	if s := m.cache.Stats(); s.Used != sinks+window {
		t.Errorf("%d pages used, want %d", s.Used, sinks+window)
	}
}

// TestDropAll: a sequence whose keys were all dropped goes on at its position.
func TestDropAll(t *testing.T) {
	m := fixed(t, small())
	id := m.start(6)
	m.ok("Drop", m.cache.Drop(id, 0, 6))
	m.oracle[id].tokens = nil
	m.grow(id, 2)
	m.check("Drop")
	if p, _ := m.cache.Positions(id, nil); !slices.Equal(p, []int32{6, 7}) {
		t.Errorf("positions %v, want [6 7]", p)
	}
}

// TestOutOfPagesLosesNothing: an Extend that does not fit changes nothing,
// wherever in the batch the pages run out.
func TestOutOfPagesLosesNothing(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(m *machine) (ids []kvcache.ID, counts []int)
		need    int64
	}{
		{"one sequence", func(m *machine) ([]kvcache.ID, []int) {
			return []kvcache.ID{m.start(20)}, []int{5}
		}, 2},
		{"the last of a batch", func(m *machine) ([]kvcache.ID, []int) {
			return []kvcache.ID{m.start(4), m.start(8), m.start(8)}, []int{4, 0, 1}
		}, 2},
		{"only a copy", func(m *machine) ([]kvcache.ID, []int) {
			a := m.start(22)
			return []kvcache.ID{m.branch(a)}, []int{1}
		}, 1},
		{"a copy after a page", func(m *machine) ([]kvcache.ID, []int) {
			a := m.start(18)
			return []kvcache.ID{a, m.branch(a)}, []int{6, 3}
		}, 3},
		{"far too many", func(m *machine) ([]kvcache.ID, []int) {
			return []kvcache.ID{m.start(1), m.start(0)}, []int{math.MaxInt32 - 1, math.MaxInt32}
		}, 1<<30 - 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := fixed(t, small())
			ids, counts := tt.prepare(m)
			before := m.snapshot()
			var full *kvcache.OutOfPagesError
			_, err := m.cache.Extend(ids, counts, nil)
			if !errors.As(err, &full) || full.Need != tt.need || full.Free != before.stats.Free {
				t.Fatalf("error %v, want OutOfPages{%d, %d}", err, tt.need, before.stats.Free)
			}
			m.unchanged("Extend", before)
			m.check("Extend")
			if m.backend.copied.Load() != 0 {
				t.Error("pages were copied for nothing")
			}
			// What fits is still to be had: all pages, in the order of a new cache.
			m.forgetAll()
			m.start(24)
			m.check("Extend to all pages")
		})
	}
}

func (m *machine) forgetAll() {
	for _, id := range slices.Clone(m.live) {
		m.forget(id)
	}
}

// TestFailedCopyLosesNothing: whichever tensor's copy fails.
func TestFailedCopyLosesNothing(t *testing.T) {
	for call := int64(1); call <= 4; call++ {
		m := fixed(t, small())
		a := m.start(6)
		ids := []kvcache.ID{a, m.branch(a), m.branch(a)}
		before := m.snapshot()
		m.backend.failCopy.Store(call)
		if _, err := m.cache.Extend(ids, []int{1, 1, 1}, nil); !errors.Is(err, errInjected) {
			t.Fatalf("copy %d: error %v, want the backend's", call, err)
		}
		m.unchanged("Extend", before)
		m.check("Extend")
		for _, id := range ids {
			m.grow(id, 1)
			m.check("Extend again")
		}
	}
}

// TestLowerKV: tables of a ragged batch, in the memory of the last one; a
// refused call leaves them alone.
func TestLowerKV(t *testing.T) {
	m := fixed(t, small())
	a, b, empty := m.start(5), m.start(4), m.start(0)
	var source interface { // what attention asks of its keys
		KeyStorage() kernel.KeyStorage
		PageSize() int
		LowerKV(dst *kernel.Batch) error
		KeyPositions(dst []int32) []int32
	}
	view := m.cache.Sequences(b, empty, a, b)
	source = view
	batch := kernel.Batch{KeyStart: []int32{9}, SeqLens: []int32{9}, QueryStart: []int32{0, 1}}
	m.ok("LowerKV", source.LowerKV(&batch))
	want := kernel.BlockTable{Indptr: []int32{0, 1, 1, 3, 4}}
	want.Indices = slices.Concat(m.pages(b), m.pages(a), m.pages(b))
	if !slices.Equal(batch.SeqLens, []int32{4, 0, 5, 4}) || !slices.Equal(batch.Pages.Indptr, want.Indptr) ||
		!slices.Equal(batch.Pages.Indices, want.Indices) || len(batch.KeyStart) != 0 || len(batch.QueryStart) != 2 {
		t.Errorf("lowered %+v, want pages %v", batch, want)
	}
	before := fmt.Sprint(batch)
	m.forget(a)
	if err := view.LowerKV(&batch); err == nil || fmt.Sprint(batch) != before {
		t.Errorf("a freed sequence: %v, batch %v", err, batch)
	}
	view.Reset()
	m.ok("LowerKV of nothing", view.LowerKV(&batch))
	if len(batch.SeqLens) != 0 || !slices.Equal(batch.Pages.Indptr, []int32{0}) {
		t.Errorf("lowered %+v for no sequence", batch)
	}
	key := m.cache.KeyView(2)
	if value := m.cache.ValueView(-1); !key.IsZero() || !value.IsZero() {
		t.Error("a layer that is not there has a tensor")
	}
}

// TestDecodeAllocates: a decode step allocates only to grow, so that growth
// amortised over many steps is nothing.
func TestDecodeAllocates(t *testing.T) {
	c := small()
	c.Pages = 4096
	cache, err := kvcache.New(noWork{&hostBackend{}}, c)
	if err != nil {
		t.Fatal(err)
	}
	ids, counts := []kvcache.ID{cache.NewSequence(), cache.NewSequence()}, []int{1, 1}
	moved, err := cache.Extend(ids, []int{9, 9}, nil)
	if err != nil || len(moved) != 18 {
		t.Fatal(err)
	}
	if err := cache.Drop(ids[0], 4, 8); err != nil { // positions are not the ordinals
		t.Fatal(err)
	}
	var batch kernel.Batch
	var slots, positions []int32
	view := cache.Sequences(ids...)
	key, value := tensor.New(tensor.F32, 2, 1, 3), tensor.New(tensor.F32, 2, 1, 2)
	step := func() {
		slots, err = cache.Extend(ids, counts, slots[:0])
		if err == nil {
			err = view.LowerKV(&batch)
		}
		positions = view.KeyPositions(positions[:0])
		for layer := 0; layer < c.Layers && err == nil; layer++ {
			err = cache.Append(layer, slots, key, value)
		}
	}
	if n := testing.AllocsPerRun(2000, step); n != 0 || err != nil {
		t.Errorf("%v allocations a step (%v), want 0", n, err)
	}
	if n, _ := cache.Len(ids[1]); n != 9+2001 || len(positions) != 2*n-4 {
		t.Errorf("%d keys and %d positions: the steps were not made", n, len(positions))
	}
	// Once grown, none at all: roll back and go again.
	again := func() {
		for _, id := range ids {
			n, _ := cache.Len(id)
			if err == nil {
				err = cache.Truncate(id, n-1)
			}
		}
		step()
	}
	if n := testing.AllocsPerRun(100, again); n != 0 || err != nil {
		t.Errorf("%v allocations a step of a grown cache (%v), want 0", n, err)
	}
}

// noWork stores nothing, so that only the cache's own allocations count.
type noWork struct{ *hostBackend }

func (noWork) AppendKV(*kernel.AppendArgs) error { return nil }

// TestConcurrentForks: goroutines fork a common sequence, go on, roll back and
// free, while others read the common one by tables made at the start. Run with
// -race.
func TestConcurrentForks(t *testing.T) {
	const workers, rounds, prefix = 6, 25, 6
	c := small()
	c.Pages = 2 + 3*workers
	m := fixed(t, c)
	root := m.start(prefix)
	tokens, table := m.oracle[root].tokens, m.lower(root)
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	readers.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				readPrefix(t, m.cache, table, tokens)
				m.cache.Stats()
			}
		}
	})
	for w := range workers {
		writers.Go(func() {
			for round := range rounds {
				if err := forkAndCheck(m.cache, root, tokens, 1000*(w+1)+10*round); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	m.check("all")
	if s := m.cache.Stats(); s.Used != 2 || s.Sequences != 1 {
		t.Errorf("in the end: %+v", s)
	}
}

// readPrefix reads a sequence as attention does: rows by tables, no lock.
func readPrefix(t *testing.T, c *kvcache.Cache, table *kernel.Batch, tokens []token) {
	size := c.Config().PageSize
	for layer := range c.Config().Layers {
		want, _ := rowsOf(c.Config(), layer, tokens)
		key := c.KeyView(layer)
		for j := range tokens {
			if slot := int(table.Pages.Indices[j/size])*size + j%size; !sameRow(&want, j, &want, &key, slot) {
				t.Errorf("layer %d key %d changed under a reader", layer, j)
			}
		}
	}
}

// forkAndCheck grows a fork by 5 tokens, takes 4 back, adds 2 and compares.
func forkAndCheck(c *kvcache.Cache, root kvcache.ID, tokens []token, value int) error {
	id, err := c.Fork(root)
	if err != nil {
		return err
	}
	tokens = slices.Clone(tokens)
	for _, n := range []int{5, 2} {
		slots, err := c.Extend([]kvcache.ID{id}, []int{n}, nil)
		if err != nil {
			return err
		}
		first := len(tokens)
		for range n {
			value++
			tokens = append(tokens, token{value: value})
		}
		for layer := range c.Config().Layers {
			key, value := rowsOf(c.Config(), layer, tokens[first:])
			if err := c.Append(layer, slots, key, value); err != nil {
				return err
			}
			dense, _, err := c.Gather(layer, id)
			if err != nil {
				return err
			}
			want, _ := rowsOf(c.Config(), layer, tokens)
			if !slices.Equal(dense.F32s(), want.F32s()) {
				return fmt.Errorf("layer %d of sequence %d is not what was appended", layer, id)
			}
		}
		if n == 5 {
			tokens = tokens[:len(tokens)-4]
			if err := c.Truncate(id, len(tokens)); err != nil {
				return err
			}
		}
	}
	return errors.Join(c.CheckIntegrity(), c.Free(id))
}
