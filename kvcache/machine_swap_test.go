package kvcache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/tensor"
)

// swapBackend is a Swapper whose copies happen as late as they may: when they
// are waited for.
type swapBackend struct {
	*hostBackend
	calls, waits int    // down to the one that fails, if above 0
	during       func() // called in each Wait
}

var _ kernel.Swapper = (*swapBackend)(nil)

func (*swapBackend) HostAlloc(n int64) (tensor.Buffer, error) { return tensor.NewHost(n), nil }

func (b *swapBackend) SwapOut(a *kernel.SwapArgs) (kernel.Transfer, error) { return b.swap(a, false) }
func (b *swapBackend) SwapIn(a *kernel.SwapArgs) (kernel.Transfer, error)  { return b.swap(a, true) }

func (b *swapBackend) swap(a *kernel.SwapArgs, in bool) (kernel.Transfer, error) {
	if err := a.Validate(in); err != nil {
		return nil, err
	}
	if b.calls--; b.calls == 0 {
		return nil, errInjected
	}
	return &lateCopy{b, *a, in}, nil
}

type lateCopy struct {
	backend *swapBackend
	args    kernel.SwapArgs
	in      bool
}

func (*lateCopy) Done() (bool, error) { return false, nil }

func (x *lateCopy) Wait() error {
	if x.backend.during != nil {
		x.backend.during()
	}
	if x.backend.waits--; x.backend.waits == 0 {
		return errInjected
	}
	a, size := &x.args, x.args.Cache.DType.Size()
	return a.Runs(func(from, to, n int64) error {
		cache, host := a.Cache.Bytes()[from*size:][:n*size], a.Host.Bytes()[to*size:][:n*size]
		if x.in {
			cache, host = host, cache
		}
		copy(host, cache)
		return nil
	})
}

// swapMachine is a machine with a swap space.
type swapMachine struct {
	*machine
	backend *swapBackend
	space   *kvcache.SwapSpace
	away    map[kvcache.ID]*oracleSequence
	out     []kvcache.ID // the keys of away

	swaps, restores, imports, fullSwap, fullCache, faults, cancels, damaged int
}

func newSwapMachine(t testing.TB, input []byte) *swapMachine {
	m := &swapMachine{machine: newMachine(t, input), away: map[kvcache.ID]*oracleSequence{}}
	m.backend = &swapBackend{hostBackend: m.machine.backend}
	var err error
	if m.cache, err = kvcache.New(m.backend, m.config); err != nil {
		t.Fatal(err)
	}
	coded := 0
	if m.config.Coded() {
		coded = m.in.below(16)
	}
	if m.space, err = m.cache.NewSwapSpace(1+m.in.below(24), coded); err != nil {
		t.Fatal(err)
	}
	m.backend.during = m.meanwhile
	return m
}

// meanwhile is what others do while pages are copied: the cache can be used, is
// sound, and every page that it calls free is written to.
func (m *swapMachine) meanwhile() {
	m.ok("during a copy", m.cache.CheckIntegrity())
	id := m.cache.NewSequence()
	n := m.cache.Stats().Free * m.config.PageSize
	slots, err := m.cache.Extend([]kvcache.ID{id}, []int{n}, nil)
	m.ok("Extend during a copy", err)
	for layer := range m.config.Layers {
		key, value := rowsOf(m.config, layer, make([]token, n))
		m.ok("Append during a copy", m.cache.Append(layer, slots, key, value))
	}
	m.ok("Free during a copy", m.cache.Free(id))
}

// fault makes the next copy fail, at times. It returns the context for it and
// what the error must be.
func (m *swapMachine) fault() (ctx context.Context, want error) {
	ctx = context.Background()
	m.backend.calls, m.backend.waits, m.backend.during = 0, 0, m.meanwhile
	tensors := 2 * m.config.Layers
	switch m.in.below(8) {
	case 0:
		m.backend.calls = 1 + m.in.below(tensors)
		return ctx, errInjected
	case 1:
		m.backend.waits = 1 + m.in.below(tensors)
		return ctx, errInjected
	case 2:
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return ctx, context.Canceled
	case 3: // in the middle
		ctx, cancel := context.WithCancel(ctx)
		m.backend.during = func() {
			cancel()
			m.meanwhile()
		}
		return ctx, context.Canceled
	}
	return ctx, nil
}

// failed judges an error that a fault explains.
func (m *swapMachine) failed(what string, err, want error, before snapshot) bool {
	m.t.Helper()
	if err == nil {
		return false
	}
	if want == nil || !errors.Is(err, want) {
		m.t.Fatalf("%s: error %v, want %v", what, err, want)
	}
	if want == errInjected {
		m.faults++
	} else {
		m.cancels++
	}
	m.unchanged(what, before)
	return true
}

func (m *swapMachine) run() {
	for range 400 {
		if len(m.in.b) == 0 {
			return
		}
		what := ""
		if len(m.live) > 0 && m.in.below(3) == 0 {
			what = m.swapOut()
		} else if len(m.out) > 0 && m.in.below(2) == 0 {
			what = m.bringBack()
		} else if len(m.live) > 0 && m.in.below(4) == 0 {
			what = m.copyOver()
		} else {
			what = m.step()
		}
		m.ok("the swap space after "+what, m.space.CheckIntegrity())
		m.check(what)
	}
}

// count is the plain and coded pages of a sequence.
func (m *swapMachine) count(id kvcache.ID) (plain, coded int) {
	p := m.lower(id).Pages
	for k := range p.Indices {
		if p.IsCoded(k) {
			coded++
		} else {
			plain++
		}
	}
	return plain, coded
}

// some are up to three of a list, once each.
func (m *swapMachine) some(list []kvcache.ID) (ids []kvcache.ID) {
	for range 1 + m.in.below(3) {
		if id := list[m.in.below(len(list))]; !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m *swapMachine) swapOut() string {
	ids := m.some(m.live)
	what := fmt.Sprintf("SwapOut(%v)", ids)
	plain, coded := 0, 0
	for _, id := range ids {
		p, q := m.count(id)
		plain, coded = plain+p, coded+q
	}
	room, before := m.space.Stats(), m.snapshot()
	ctx, want := m.fault()
	err := m.space.SwapOut(ctx, ids...)
	var full *kvcache.OutOfSwapError
	if plain > room.Free || coded > room.CodedFree {
		if !errors.As(err, &full) || full.Coded != (plain <= room.Free) {
			m.t.Fatalf("%s of %d+%d pages to %+v: %v", what, plain, coded, room, err)
		}
		m.unchanged(what, before)
		m.fullSwap++
		return what
	}
	if m.failed(what, err, want, before) {
		return what
	}
	for _, id := range ids {
		s := m.oracle[id]
		var unknown *kvcache.UnknownSequenceError
		if _, err := m.cache.Len(id); !errors.As(err, &unknown) {
			m.t.Fatalf("%s: the cache still knows %d: %v", what, id, err)
		}
		if n, p, q, err := m.space.Len(id); err != nil || n != len(s.tokens) || p+q != (n+m.config.PageSize-1)/m.config.PageSize {
			m.t.Fatalf("%s: Len %d, %d, %d, %v", what, n, p, q, err)
		}
		delete(m.oracle, id)
		m.live = slices.DeleteFunc(m.live, func(x kvcache.ID) bool { return x == id })
		m.away[id], m.out = s, append(m.out, id)
		m.swaps++
	}
	return what
}

// bringBack restores a sequence, or discards it.
func (m *swapMachine) bringBack() string {
	at := m.in.below(len(m.out))
	id := m.out[at]
	if m.in.below(8) == 0 {
		m.ok("Discard", m.space.Discard(id))
		m.freed = append(m.freed, id)
		delete(m.away, id)
		m.out = slices.Delete(m.out, at, at+1)
		return "Discard"
	}
	ids := m.some(m.out)
	what := fmt.Sprintf("Restore(%v)", ids)
	plain, coded := 0, 0
	for _, id := range ids {
		_, p, q, err := m.space.Len(id)
		m.ok("Len", err)
		plain, coded = plain+p, coded+q
	}
	before := m.snapshot()
	ctx, want := m.fault()
	err := m.space.Restore(ctx, ids...)
	var full *kvcache.OutOfPagesError
	if plain > before.stats.Free || coded > before.stats.CodedFree {
		if !errors.As(err, &full) || full.Coded != (plain <= before.stats.Free) {
			m.t.Fatalf("%s of %d+%d pages to %+v: %v", what, plain, coded, before.stats, err)
		}
		m.unchanged(what, before)
		m.fullCache++
		return what
	}
	if m.failed(what, err, want, before) {
		return what
	}
	for _, id := range ids {
		m.oracle[id], m.live = m.away[id], append(m.live, id)
		delete(m.away, id)
		m.out = slices.DeleteFunc(m.out, func(x kvcache.ID) bool { return x == id })
		m.restores++
	}
	return what
}

func keyOf(ns string, k int) page.Key {
	return page.Key{Namespace: ns, Hash: sha256.Sum256([]byte{byte(k)})}
}

// copyOver exports a sequence and imports it as another.
func (m *swapMachine) copyOver() string {
	id, s := m.pick()
	what := fmt.Sprintf("Export(%d)", id)
	plain, coded := m.count(id)
	room, before := m.space.Stats(), m.snapshot()
	if len(m.live) >= 8 || room.Free == 0 || coded > 0 && room.CodedFree == 0 {
		return "no Export"
	}
	var blobs [][]byte
	for k := range plain + coded {
		ctx, want := m.fault()
		b, err := m.space.Export(ctx, id, k, keyOf("model", k), nil)
		if m.failed(what, err, want, before) {
			return what
		}
		m.ok("the page", page.Check(b, keyOf("model", k)))
		blobs = append(blobs, b)
	}
	m.unchanged(what, before)
	m.backend.calls, m.backend.waits = 0, 0
	if again, err := m.space.Export(context.Background(), id, 0, keyOf("model", 0), nil); len(blobs) > 0 && (err != nil || !bytes.Equal(again, blobs[0])) {
		m.t.Fatalf("%s: the same page has other bytes, %v", what, err)
	}
	other := m.cache.NewSequence()
	o := &oracleSequence{tokens: slices.Clone(s.tokens)}
	if n := len(o.tokens); n > 0 {
		o.next = o.tokens[n-1].position + 1
	}
	before = m.snapshot()
	what = fmt.Sprintf("Import(%d)", other)
	if len(blobs) > 0 && m.in.below(4) == 0 {
		bad := slices.Clone(blobs)
		at := m.in.below(len(bad))
		bad[at] = bytes.Clone(bad[at])
		bad[at][rand.IntN(len(bad[at]))] ^= 16
		var format *page.FormatError
		var version *page.VersionError
		if err := m.space.Import(context.Background(), other, bad...); !errors.As(err, &format) && !errors.As(err, &version) {
			m.t.Fatalf("%s of a damaged page: %v", what, err)
		}
		m.unchanged(what, before)
		m.damaged++
	}
	ctx, want := m.fault()
	err := m.space.Import(ctx, other, blobs...)
	var fullCache *kvcache.OutOfPagesError
	var fullSwap *kvcache.OutOfSwapError
	switch {
	case plain > before.stats.Free || coded > before.stats.CodedFree:
		if !errors.As(err, &fullCache) {
			m.t.Fatalf("%s of %d+%d pages to %+v: %v", what, plain, coded, before.stats, err)
		}
	case plain > room.Free || coded > room.CodedFree:
		if !errors.As(err, &fullSwap) {
			m.t.Fatalf("%s of %d+%d pages through %+v: %v", what, plain, coded, room, err)
		}
	case m.failed(what, err, want, before):
	default:
		m.add(other, o)
		m.imports++
		return what
	}
	m.unchanged(what, before)
	m.ok("Free", m.cache.Free(other))
	m.freed = append(m.freed, other)
	return what
}

// TestOracleSwap: with sequences swapped out and back and exported and imported
// between all else, the cache holds what the oracle holds, and what fails
// changes nothing.
func TestOracleSwap(t *testing.T) {
	runs := 60
	if testing.Short() {
		runs = 12
	}
	var swaps, restores, imports, fullSwap, fullCache, faults, cancels, damaged int
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 5))
		input := make([]byte, 2500)
		for i := range input {
			input[i] = byte(rng.Uint32())
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m := newSwapMachine(t, input)
			m.run()
			for _, id := range m.out {
				m.ok("Discard", m.space.Discard(id))
			}
			if s := m.space.Stats(); s.Free != s.Pages || s.CodedFree != s.CodedPages || s.Sequences != 0 {
				t.Errorf("an empty space has %+v", s)
			}
			if s := m.space.Stats(); s.Out != int64(m.swaps) || s.In != int64(m.restores) || s.Failed != int64(m.faults+m.cancels) || s.PagesOut < s.PagesIn {
				t.Errorf("%+v, want %d out, %d in, %d failed", s, m.swaps, m.restores, m.faults+m.cancels)
			}
			m.ok("Close", m.space.Close())
			swaps, restores, imports = swaps+m.swaps, restores+m.restores, imports+m.imports
			fullSwap, fullCache = fullSwap+m.fullSwap, fullCache+m.fullCache
			faults, cancels, damaged = faults+m.faults, cancels+m.cancels, damaged+m.damaged
		})
	}
	t.Logf("%d swaps, %d restores, %d imports, %d full spaces, %d full caches, %d faults, %d cancels, %d damaged pages", swaps, restores, imports, fullSwap, fullCache, faults, cancels, damaged)
	for _, n := range []int{swaps, restores, imports, fullSwap, fullCache, faults, cancels, damaged} {
		if n < runs/4 {
			t.Error("the runs met too little to mean anything")
		}
	}
}

// FuzzSwap is TestOracleSwap with the operations of the fuzzer.
func FuzzSwap(f *testing.F) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 6))
		input := make([]byte, 60*(seed+1))
		for i := range input {
			input[i] = byte(rng.Uint32())
		}
		f.Add(input)
	}
	f.Fuzz(func(t *testing.T, input []byte) { newSwapMachine(t, input).run() })
}
