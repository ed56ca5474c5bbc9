package kvcache_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/tensor"
)

// swapping is a machine with a swap space and a given Config.
func swapping(t testing.TB, c kvcache.Config, pages int) *swapMachine {
	t.Helper()
	m := &swapMachine{machine: fixed(t, c), away: map[kvcache.ID]*oracleSequence{}}
	m.backend = &swapBackend{hostBackend: m.machine.backend}
	var err error
	if m.cache, err = kvcache.New(m.backend, c); err != nil {
		t.Fatal(err)
	}
	if m.space, err = m.cache.NewSwapSpace(pages, 0); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestExportedBytes: a page that is not full has the same bytes whatever lies in
// its other rows; the tokens of others never leave with it.
func TestExportedBytes(t *testing.T) {
	ctx := context.Background()
	m := swapping(t, small(), 1)
	id := m.start(6)
	first, err := m.space.Export(ctx, id, 1, keyOf("a", 1), nil)
	m.ok("Export", err)
	last := int64(m.pages(id)[1])
	poison(m.cache, last*4+2)
	poison(m.cache, last*4+3)
	second, err := m.space.Export(ctx, id, 1, keyOf("a", 1), []byte("kept"))
	m.ok("Export", err)
	if string(second[:4]) != "kept" || !bytes.Equal(second[4:], first) {
		t.Error("the rows past the tokens are in the page")
	}
	h, payload, err := page.Parse(first)
	m.ok("Parse", err)
	want := page.Header{Key: keyOf("a", 1), Tokens: 2, Layout: page.Layout{Layers: 2, PageSize: 4, KVHeads: 1, HeadDim: 3, ValueDim: 2, DType: tensor.F32}}
	if h != want {
		t.Errorf("%+v, want %+v", h, want)
	}
	// of the keys of layer 0, row 1 is that of token 6; positions are 4 and 5
	key, _ := rowsOf(m.config, 0, m.oracle[id].tokens[5:])
	list, _, _ := h.Layout.Segments()
	for d := range int64(3) {
		got := math.Float32frombits(binary.LittleEndian.Uint32(payload[list[1].Offset+12+4*d:]))
		if got != key.At(0, 0, d) {
			t.Errorf("feature %d is %g, want %g", d, got, key.At(0, 0, d))
		}
	}
	if !bytes.Equal(payload[:16], []byte{4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("positions % x", payload[:16])
	}
}

// TestFreeDuringExport: the page that is being copied is not given to others
// before the copy is done.
func TestFreeDuringExport(t *testing.T) {
	ctx := context.Background()
	m := swapping(t, small(), 1)
	id := m.start(4)
	want, err := m.space.Export(ctx, id, 0, keyOf("a", 1), nil)
	m.ok("Export", err)
	freed := false
	m.machine.backend.failAppend.Store(0)
	m.backend.during = func() {
		if !freed {
			m.ok("Free", m.cache.Free(id))
		}
		freed = true
		m.meanwhile()
	}
	got, err := m.space.Export(ctx, id, 0, keyOf("a", 1), nil)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the page changed while it was exported, %v", err)
	}
	m.ok("after it", m.cache.CheckIntegrity())
	if s := m.cache.Stats(); s.Free != s.Pages || s.Tokens != 0 {
		t.Errorf("%+v", s)
	}
}

// TestChangedDuringImport: a sequence that others change meanwhile is refused,
// and nothing is lost.
func TestChangedDuringImport(t *testing.T) {
	ctx := context.Background()
	for _, what := range []string{"extended", "freed"} {
		m := swapping(t, small(), 1)
		id := m.start(4)
		b, err := m.space.Export(ctx, id, 0, keyOf("a", 1), nil)
		m.ok("Export", err)
		m.ok("Reserve", m.cache.Reserve(id, 8))
		m.backend.calls = 3
		if err := m.space.Import(ctx, id, b); !errors.Is(err, errInjected) || m.cache.Stats().Reserved != 2 {
			t.Errorf("a failed Import leaves %d pages reserved, %v", m.cache.Stats().Reserved, err)
		}
		once := false
		m.backend.during = func() {
			if once {
				return
			}
			once = true
			if what == "freed" {
				m.ok("Free", m.cache.Free(id))
			} else {
				_, err := m.cache.Extend([]kvcache.ID{id}, []int{1}, nil)
				m.ok("Extend", err)
			}
		}
		var value *kvcache.ValueError
		if err := m.space.Import(ctx, id, b); !errors.As(err, &value) {
			t.Errorf("%s: %v", what, err)
		}
		m.ok(what, m.cache.CheckIntegrity())
		m.ok(what, m.space.CheckIntegrity())
	}
}

func TestSwapRefused(t *testing.T) {
	ctx := context.Background()
	plain, err := kvcache.New(&hostBackend{}, small())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.NewSwapSpace(1, 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a backend that does not swap: %v", err)
	}
	m := swapping(t, small(), 2)
	id := m.start(6)
	var value *kvcache.ValueError
	var unknown *kvcache.UnknownSequenceError
	var layout *kvcache.LayoutError
	for _, f := range []func() error{
		func() error { return m.space.SwapOut(ctx, id, id) },
		func() error { _, err := m.cache.NewSwapSpace(-1, 0); return err },
		func() error { _, err := m.cache.NewSwapSpace(1, 1); return err },
		func() error { _, err := m.space.Export(ctx, id, 2, keyOf("a", 1), nil); return err },
		func() error { _, err := m.space.Export(ctx, id, -1, keyOf("a", 1), nil); return err },
	} {
		if err := f(); !errors.As(err, &value) {
			t.Errorf("%v, want a ValueError", err)
		}
	}
	_, exportErr := m.space.Export(ctx, 0, 0, keyOf("a", 1), nil)
	_, _, _, lenErr := m.space.Len(id)
	for _, err := range []error{m.space.SwapOut(ctx, 0), m.space.Restore(ctx, id), m.space.Discard(id), m.space.Import(ctx, 0), exportErr, lenErr} {
		if !errors.As(err, &unknown) {
			t.Errorf("%v, want an UnknownSequenceError", err)
		}
	}
	full, err := m.space.Export(ctx, id, 0, keyOf("a", 0), nil)
	m.ok("Export", err)
	part, err := m.space.Export(ctx, id, 1, keyOf("a", 1), nil)
	m.ok("Export", err)
	if err := m.space.Import(ctx, id, full); !errors.As(err, &value) {
		t.Errorf("Import after a page that is not full: %v", err)
	}
	if err := m.space.Import(ctx, m.cache.NewSequence(), part, full); !errors.As(err, &value) {
		t.Errorf("Import of a page that is not full before another: %v", err)
	}
	other := small()
	other.HeadDim = 4
	n := swapping(t, other, 2)
	if err := n.space.Import(ctx, n.cache.NewSequence(), full); !errors.As(err, &layout) || layout.Got.HeadDim != 3 || layout.Want.HeadDim != 4 {
		t.Errorf("Import of another layout: %v", err)
	}
	m.ok("Close", m.space.Close())
	m.ok("Close", m.space.Close())
	for _, err := range []error{m.space.SwapOut(ctx, id), m.space.Restore(ctx, id), m.space.Import(ctx, id)} {
		if !errors.Is(err, kvcache.ErrSwapClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// TestPreempt is what a scheduler does: admit by Reserve, append until there is
// no page, swap one out, go on, bring it back when there is room.
func TestPreempt(t *testing.T) {
	ctx := context.Background()
	m := swapping(t, small(), 6) // 6 pages of 4
	a, b := m.start(10), m.start(10)
	var full *kvcache.OutOfPagesError
	if _, err := m.cache.Extend([]kvcache.ID{a, b}, []int{3, 3}, nil); !errors.As(err, &full) {
		t.Fatal(err)
	}
	m.ok("SwapOut", m.space.SwapOut(ctx, b))
	s := m.oracle[b]
	delete(m.oracle, b)
	m.live = []kvcache.ID{a}
	m.grow(a, 3)
	m.check("going on")
	if err := m.space.Restore(ctx, b); !errors.As(err, &full) || full.Need != 3 || full.Free != 2 {
		t.Fatal(err)
	}
	m.forget(a)
	m.ok("Restore", m.space.Restore(ctx, b))
	m.oracle[b], m.live = s, []kvcache.ID{b}
	m.check("Restore")
	m.grow(b, 3)
	m.check("going on")
}

// TestSwapConcurrently: sequences of several goroutines go out and come back on
// the CPU backend, which the race detector watches.
func TestSwapConcurrently(t *testing.T) {
	ctx := context.Background()
	config := kvcache.Config{Layers: 2, Pages: 24, PageSize: 4, KVHeads: 2, HeadDim: 8, ValueDim: 8, DType: tensor.BF16}
	c, err := kvcache.New(cpu.New(cpu.Options{}), config)
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.NewSwapSpace(40, 0)
	if err != nil {
		t.Fatal(err)
	}
	one := func(g int) error {
		rng := rand.New(rand.NewPCG(uint64(g), 9))
		id, n := c.NewSequence(), 1+rng.IntN(20)
		tokens := make([]token, n)
		for i := range tokens {
			tokens[i] = token{value: g*100 + i, position: int32(i)}
		}
		slots, err := c.Extend([]kvcache.ID{id}, []int{n}, nil)
		var full *kvcache.OutOfPagesError
		if errors.As(err, &full) {
			return c.Free(id)
		}
		for layer := range config.Layers {
			key, value := rowsOf(config, layer, tokens)
			err = errors.Join(err, c.Append(layer, slots, key, value))
		}
		for range 10 {
			if err = errors.Join(err, w.SwapOut(ctx, id)); err != nil {
				return err
			}
			for {
				if err = w.Restore(ctx, id); !errors.As(err, &full) {
					break
				}
			}
			blob, exportErr := w.Export(ctx, id, rng.IntN((n+3)/4), keyOf("a", g), nil)
			err = errors.Join(err, exportErr, page.Check(blob, keyOf("a", g)))
		}
		for layer := range config.Layers {
			want, _ := rowsOf(config, layer, tokens)
			got, _, gatherErr := c.Gather(layer, id)
			if err = errors.Join(err, gatherErr); err != nil {
				return err
			}
			for i, x := range got.Bits() {
				if tensor.BF16ToF32(x) != want.F32s()[i] {
					return fmt.Errorf("goroutine %d: element %d of layer %d is not its own", g, i, layer)
				}
			}
		}
		return errors.Join(err, c.Free(id))
	}
	var work sync.WaitGroup
	errs := make([]error, 8)
	for g := range errs {
		work.Go(func() {
			for range 5 {
				errs[g] = errors.Join(errs[g], one(g))
			}
		})
	}
	work.Wait()
	if err := errors.Join(append(errs, c.CheckIntegrity(), w.CheckIntegrity(), w.Close())...); err != nil {
		t.Error(err)
	}
	if s := c.Stats(); s.Free != s.Pages || s.Tokens != 0 {
		t.Errorf("%+v", s)
	}
}

// TestReserve: random reservations and extensions, against a plain count. Who
// has reserved is never refused, and others never get what is reserved.
func TestReserve(t *testing.T) {
	refusals, kept := 0, 0
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 8))
		config := small()
		config.Pages = 1 + rng.IntN(30)
		c, err := kvcache.New(&hostBackend{}, config)
		if err != nil {
			t.Fatal(err)
		}
		type count struct{ tokens, pages, reserved int }
		live := map[kvcache.ID]*count{}
		var ids []kvcache.ID
		for range 8 {
			id := c.NewSequence()
			ids, live[id] = append(ids, id), &count{}
		}
		for range 200 {
			used, reserved := 0, 0
			for _, s := range live {
				used, reserved = used+s.pages, reserved+s.reserved
			}
			free := config.Pages - used
			if st := c.Stats(); st.Free != free || st.Reserved != reserved || reserved > free {
				t.Fatalf("%+v, want %d free, %d reserved", st, free, reserved)
			}
			id, n := ids[rng.IntN(len(ids))], rng.IntN(12)
			s := live[id]
			need := (s.tokens+n+3)/4 - s.pages
			mine := free - reserved + s.reserved
			var full *kvcache.OutOfPagesError
			switch rng.IntN(5) {
			case 0:
				err := c.Reserve(id, n)
				if need > mine != errors.As(err, &full) || err != nil && full == nil {
					t.Fatalf("Reserve of %d pages of %d: %v", need, mine, err)
				}
				if err == nil {
					s.reserved = need
				}
			case 1:
				if err := c.Truncate(id, s.tokens/2); err != nil {
					t.Fatal(err)
				}
				s.tokens /= 2
				s.pages = (s.tokens + 3) / 4
			case 2:
				if err := c.Free(id); err != nil {
					t.Fatal(err)
				}
				delete(live, id)
				next := c.NewSequence()
				ids[slices.Index(ids, id)], live[next] = next, &count{}
			default:
				_, err := c.Extend([]kvcache.ID{id}, []int{n}, nil)
				if need > mine != errors.As(err, &full) || err != nil && full == nil {
					t.Fatalf("Extend by %d pages of %d: %v", need, mine, err)
				}
				if err != nil {
					if refusals++; need <= free {
						kept++
					}
					break
				}
				s.tokens, s.pages = s.tokens+n, s.pages+need
				s.reserved -= min(s.reserved, need)
			}
			if err := c.CheckIntegrity(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if refusals < 100 || kept < 50 {
		t.Errorf("%d refusals, %d for what others reserved: too few to mean anything", refusals, kept)
	}
}

// TestReserveCopy: a reservation counts the copy of a shared last page, and
// Extend of a batch may use the reservations of all it names.
func TestReserveCopy(t *testing.T) {
	m := fixed(t, small()) // 6 pages of 4
	a := m.start(6)
	b := m.branch(a)
	m.ok("Reserve", m.cache.Reserve(a, 2)) // no new page, but the copy
	m.ok("Reserve", m.cache.Reserve(b, 6)) // one new page and the copy
	if s := m.cache.Stats(); s.Reserved != 3 || s.Free != 4 {
		t.Errorf("%+v", s)
	}
	var full *kvcache.OutOfPagesError
	other := m.cache.NewSequence()
	if _, err := m.cache.Extend([]kvcache.ID{other}, []int{5}, nil); !errors.As(err, &full) || full.Need != 2 || full.Free != 1 {
		t.Errorf("%v", err)
	}
	if _, err := m.cache.Extend([]kvcache.ID{other, a, b}, []int{4, 2, 6}, nil); err != nil {
		t.Error(err)
	}
	if s := m.cache.Stats(); s.Reserved != 1 || s.Free != 1 { // one of the two did not have to copy
		t.Errorf("%+v", s)
	}
	m.ok("Extend", m.cache.CheckIntegrity())
	var value *kvcache.ValueError
	var unknown *kvcache.UnknownSequenceError
	var long *kvcache.TooLongError
	if err := m.cache.Reserve(a, -1); !errors.As(err, &value) {
		t.Error(err)
	}
	if err := m.cache.Reserve(0, 1); !errors.As(err, &unknown) {
		t.Error(err)
	}
	if err := m.cache.Reserve(a, 1<<31-1); !errors.As(err, &long) {
		t.Error(err)
	}
	m.ok("Reserve", m.cache.Reserve(b, 0))
	m.ok("Free", m.cache.Free(a))
	if s := m.cache.Stats(); s.Reserved != 0 {
		t.Errorf("%+v", s)
	}
}

// TestReserveCopies: what Apply and Rewrite copy to is not what others reserved.
func TestReserveCopies(t *testing.T) {
	m := fixed(t, small()) // 6 pages of 4
	a := m.start(8)
	m.branch(a)
	other := m.cache.NewSequence()
	m.ok("Reserve", m.cache.Reserve(other, 16))
	var full *kvcache.OutOfPagesError
	if err := m.cache.Apply([]kvcache.ID{a}, []kvcache.Plan{{Keep: []int32{1, 2, 3, 4}}}); !errors.As(err, &full) || full.Free != 0 {
		t.Errorf("Apply: %v", err)
	}
	if _, err := m.cache.Rewrite(a, []int32{2}, nil); !errors.As(err, &full) || full.Free != 0 {
		t.Errorf("Rewrite: %v", err)
	}
	m.ok("Reserve", m.cache.Reserve(other, 12))
	if _, err := m.cache.Rewrite(a, []int32{2}, nil); err != nil {
		t.Error(err)
	}
	m.ok("Rewrite", m.cache.CheckIntegrity())
}

// TestSwapHeld: a sequence whose pages an index holds is swapped out; the pages
// stay for the index, and what comes back is the sequence's own.
func TestSwapHeld(t *testing.T) {
	ctx := context.Background()
	m := swapping(t, small(), 6)
	id := m.start(9)
	held, err := m.cache.Hold(id, 0, 8, nil)
	m.ok("Hold", err)
	m.ok("SwapOut", m.space.SwapOut(ctx, id))
	if s := m.cache.Stats(); s.Cached != 2 || s.Used != 0 || s.Free != 4 {
		t.Errorf("%+v", s)
	}
	m.ok("SwapOut", m.cache.CheckIntegrity())
	m.ok("Restore", m.space.Restore(ctx, id))
	m.ok("Restore", m.cache.CheckIntegrity())
	// the index lets its pages go to a store: a sequence of them is exported
	index, err := m.cache.Start(held, nil)
	m.ok("Start", err)
	for k := range held {
		x, err := m.space.Export(ctx, index, k, keyOf("a", k), nil)
		m.ok("Export", err)
		y, err := m.space.Export(ctx, id, k, keyOf("a", k), nil)
		m.ok("Export", err)
		if !bytes.Equal(x, y) {
			t.Errorf("page %d of the index is not that of the sequence", k)
		}
	}
	m.ok("Free", m.cache.Free(index))
	m.ok("Release", m.cache.Release(held...))
	m.check("Release")
	if s := m.cache.Stats(); s.Used != 3 || s.Cached != 0 {
		t.Errorf("%+v", s)
	}
}

var _ kernel.Swapper = (*cpu.Backend)(nil)
