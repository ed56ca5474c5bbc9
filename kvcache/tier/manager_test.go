package tier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/longctx/longctx/kvcache/page"
)

// remote is a Store without a limit, in memory, that does what the test wants.
type remote struct {
	mu    sync.Mutex
	pages map[page.Key][]byte
	fault func(op string, k page.Key) error // nil: none
	slow  chan struct{}                     // if not nil, each Put takes one from it
	dead  bool                              // calls end with the context alone
}

func newRemote() *remote { return &remote{pages: map[page.Key][]byte{}} }

func (r *remote) enter(ctx context.Context, op string, k page.Key) error {
	r.mu.Lock()
	dead, slow, fault := r.dead, r.slow, r.fault
	r.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if dead {
		<-ctx.Done()
		return ctx.Err()
	}
	if slow != nil && op == "Put" {
		select {
		case <-slow:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fault != nil {
		return fault(op, k)
	}
	return nil
}

func (r *remote) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *remote) Put(ctx context.Context, k page.Key, b []byte) error {
	if err := r.enter(ctx, "Put", k); err != nil {
		return err
	}
	r.set(func() { r.pages[k] = bytes.Clone(b) })
	return nil
}

func (r *remote) Get(ctx context.Context, k page.Key, dst []byte) ([]byte, error) {
	if err := r.enter(ctx, "Get", k); err != nil {
		return dst, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if b, ok := r.pages[k]; ok {
		return append(dst, b...), nil
	}
	return dst, ErrNotFound
}

func (r *remote) Has(ctx context.Context, k page.Key) (bool, error) {
	if err := r.enter(ctx, "Has", k); err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pages[k] != nil, nil
}

func (r *remote) Delete(ctx context.Context, k page.Key) error {
	if err := r.enter(ctx, "Delete", k); err != nil {
		return err
	}
	r.set(func() { delete(r.pages, k) })
	return nil
}

func (r *remote) Close() error { return nil }

func (r *remote) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pages)
}

func host(t *testing.T, bytes int64) *Host {
	t.Helper()
	h, err := NewHost(Limits{Bytes: bytes})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func manager(t *testing.T, o Options, levels ...Level) *Manager {
	t.Helper()
	m, err := NewManager(o, levels...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestChain: what does not fit above is below, in order, and nothing is lost.
func TestChain(t *testing.T) {
	ctx := context.Background()
	size := int64(len(blob(key(0), 1)))
	d, err := OpenDisk(t.TempDir(), DiskOptions{Limits: Limits{Bytes: 4 * size}, NoSync: true})
	must(t, err)
	h, r := host(t, 3*size), newRemote()
	var mu sync.Mutex
	events := map[string]int{}
	m := manager(t, Options{Events: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		events[fmt.Sprint(e.Kind, " ", e.Level)]++
	}}, Level{Name: "host", Store: h}, Level{Name: "disk", Store: d}, Level{Name: "remote", Store: r})
	for i := range 20 {
		must(t, m.Put(ctx, key(i), blob(key(i), 1)))
		b, err := m.Get(ctx, key(i), nil) // in the queue or already written
		if err != nil || !bytes.Equal(b, blob(key(i), 1)) {
			t.Fatalf("page %d after Put: %v", i, err)
		}
	}
	must(t, m.Flush(ctx))
	if h.Usage().Pages != 3 || d.Usage().Pages != 4 || r.len() != 13 || h.Usage().Evicted+d.Usage().Evicted != 0 {
		t.Errorf("%+v, %+v, %d", h.Usage(), d.Usage(), r.len())
	}
	for i := range 20 {
		b, err := m.Get(ctx, key(i), []byte("kept"))
		if err != nil || !bytes.Equal(b[4:], blob(key(i), 1)) {
			t.Fatalf("page %d: %v", i, err)
		}
		must(t, m.Flush(ctx)) // of its promotion
		if ok, err := h.Has(ctx, key(i)); !ok || err != nil {
			t.Fatalf("page %d was not promoted: %v", i, err)
		}
	}
	s := m.Stats()
	if s[0].Stored != 20+s[0].Promoted || s[0].Promoted < 13 || s[1].Demoted != s[1].Stored || s[2].Hits < 13 || s[0].Dropped+s[1].Dropped != 0 {
		t.Errorf("%+v", s)
	}
	mu.Lock()
	if int64(events["promoted host"]) != s[0].Promoted || int64(events["demoted remote"]) != s[2].Demoted || events["stored host"] != 20 {
		t.Errorf("events %v, stats %+v", events, s)
	}
	mu.Unlock()
	for i := range 20 {
		must(t, m.Delete(ctx, key(i)))
		if _, err := m.Get(ctx, key(i), nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("page %d after Delete: %v", i, err)
		}
	}
	if h.Usage().Pages+d.Usage().Pages+r.len() != 0 {
		t.Error("pages are left after all were deleted")
	}
}

// TestBackPressure: a Put waits while the queue is full, no longer than its
// context, and what was accepted is written.
func TestBackPressure(t *testing.T) {
	ctx := context.Background()
	r := newRemote()
	r.slow = make(chan struct{})
	m := manager(t, Options{}, Level{Store: r, Queue: 2})
	accepted := 0
	var err error
	for i := 0; err == nil; i++ {
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		if err = m.Put(short, key(i), blob(key(i), 1)); err == nil {
			accepted++
		}
		cancel()
	}
	var store *StoreError
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &store) || accepted != 3 { // one is being written
		t.Fatalf("%d accepted, %v", accepted, err)
	}
	if _, err := m.Get(ctx, key(accepted), nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("a page that was refused: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	if err := m.Flush(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Flush: %v", err)
	}
	cancel()
	// a second Put of a page waits on its own, and survives the end of the first
	first, stop := context.WithCancel(ctx)
	results := []chan error{make(chan error), make(chan error)}
	for i, ctx := range []context.Context{first, ctx} {
		go func() { results[i] <- m.Put(ctx, key(9), blob(key(9), 1)) }()
		for range 1000 { // until it waits
			m.mu.Lock()
			p := m.pending[key(9)]
			waits := p != nil && p.jobs == i+1
			m.mu.Unlock()
			if waits {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	stop()
	if err := <-results[0]; !errors.Is(err, context.Canceled) {
		t.Errorf("first Put: %v", err)
	}
	close(r.slow)
	must(t, <-results[1])
	must(t, m.Flush(ctx))
	if r.len() != accepted+1 {
		t.Errorf("%d pages written of %d accepted", r.len(), accepted+1)
	}
}

// TestClose: what was not written is told, and nothing hangs.
func TestClose(t *testing.T) {
	ctx := context.Background()
	r := newRemote()
	r.dead = true
	m := manager(t, Options{}, Level{Store: r, Queue: 1})
	for i := range 2 {
		must(t, m.Put(ctx, key(i), blob(key(i), 1)))
	}
	blocked := make(chan error)
	go func() {
		var err error
		for i := 2; err == nil; i++ {
			err = m.Put(ctx, key(i), blob(key(i), 1))
		}
		blocked <- err
	}()
	time.Sleep(5 * time.Millisecond)
	var unwritten *UnwrittenError
	if err := m.Close(); !errors.As(err, &unwritten) || unwritten.Pages < 2 {
		t.Errorf("Close: %v", err)
	}
	if err := <-blocked; !errors.Is(err, ErrClosed) {
		t.Errorf("a Put that waited: %v", err)
	}
	_, getErr := m.Get(ctx, key(0), nil)
	for _, err := range []error{getErr, m.Flush(ctx), m.Delete(ctx, key(0)), m.Put(ctx, key(0), blob(key(0), 1))} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	must(t, m.Close())
}

// clock is a time that the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// TestDeadRemote: a server that does not answer costs its timeout three times,
// then nothing until its rest is over; pages are found elsewhere meanwhile.
func TestDeadRemote(t *testing.T) {
	ctx := context.Background()
	c := &clock{now: time.Unix(1, 0)}
	r := newRemote()
	m := manager(t, Options{now: c.Now}, Level{Name: "host", Store: host(t, 1<<20)},
		Level{Name: "remote", Store: r, WriteThrough: true, Timeout: 10 * time.Millisecond, Rest: time.Minute})
	must(t, m.Put(ctx, key(1), blob(key(1), 1)))
	must(t, m.Flush(ctx))
	if r.len() != 1 {
		t.Fatal("not written through")
	}
	r.set(func() { r.dead = true })
	var store *StoreError
	for i := range 5 {
		must(t, m.Put(ctx, key(10+i), blob(key(10+i), 1)))
		if err := m.Flush(ctx); !errors.As(err, &store) || store.Store != "remote" || errors.Is(err, context.DeadlineExceeded) != (i < 3) {
			t.Errorf("Put %d to a dead server: %v", i, err)
		}
		if _, err := m.Get(ctx, key(10+i), nil); err != nil {
			t.Error(err)
		}
	}
	if s := m.Stats()[1]; s.Failed != 3 || s.Skipped != 2 || !s.Resting {
		t.Errorf("%+v", s)
	}
	if _, err := m.Get(ctx, key(99), nil); !errors.Is(err, ErrNotFound) || !errors.Is(err, errResting) {
		t.Errorf("a page that only the server may have: %v", err)
	}
	r.set(func() { r.dead = false })
	c.add(time.Minute + time.Second)
	must(t, m.Put(ctx, key(2), blob(key(2), 1)))
	must(t, m.Flush(ctx))
	if r.len() != 2 || m.Stats()[1].Resting {
		t.Errorf("%d pages after the rest, %+v", r.len(), m.Stats()[1])
	}
	// two failures, one success and two failures are not three in a row
	for i, fault := range []error{errInjected, errInjected, nil, errInjected, errInjected} {
		r.set(func() { r.fault = func(string, page.Key) error { return fault } })
		must(t, m.Put(ctx, key(20+i), blob(key(20+i), 1)))
		if err := m.Flush(ctx); !errors.Is(err, fault) {
			t.Errorf("%d: %v, want %v", i, err, fault)
		}
	}
	if m.Stats()[1].Resting {
		t.Error("the level rests after two failures")
	}
	// a caller that leaves says nothing of the server
	r.set(func() { r.dead = true })
	for range 5 {
		gone, cancel := context.WithTimeout(ctx, time.Millisecond)
		if _, err := m.Get(gone, key(99), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
	}
	if m.Stats()[1].Resting {
		t.Error("the level rests because callers left")
	}
}

// TestDrop: pages that no level below takes are gone, and each is told; the
// level above goes on.
func TestDrop(t *testing.T) {
	ctx := context.Background()
	r := newRemote()
	r.fault = func(string, page.Key) error { return errInjected }
	size := int64(len(blob(key(0), 1)))
	h := host(t, 2*size)
	m := manager(t, Options{}, Level{Store: h}, Level{Store: r, Failures: 100})
	for i := range 5 {
		must(t, m.Put(ctx, key(i), blob(key(i), 1)))
	}
	if err := m.Flush(ctx); !errors.Is(err, errInjected) {
		t.Error(err)
	}
	if s := m.Stats(); s[0].Dropped != 3 || h.Usage().Pages != 2 {
		t.Errorf("%+v", s)
	}
	// a page too large for the first level goes to the one below
	r.set(func() { r.fault = nil })
	must(t, m.Put(ctx, key(9), blob(key(9), 9)))
	must(t, m.Flush(ctx))
	if b, err := m.Get(ctx, key(9), nil); err != nil || !bytes.Equal(b, blob(key(9), 9)) || r.len() != 1 {
		t.Error(err, r.len())
	}
}

// TestCorruptLevel: a damaged page is looked for below, and told.
func TestCorruptLevel(t *testing.T) {
	ctx := context.Background()
	h, r := host(t, 1<<20), newRemote()
	m := manager(t, Options{}, Level{Store: h}, Level{Store: r, WriteThrough: true})
	must(t, m.Put(ctx, key(1), blob(key(1), 1)))
	must(t, m.Flush(ctx))
	h.index.entries[key(1)].blob[150] ^= 1
	if b, err := m.Get(ctx, key(1), nil); err != nil || !bytes.Equal(b, blob(key(1), 1)) {
		t.Error(err)
	}
	must(t, m.Flush(ctx))
	h.mu.Lock()
	h.index.entries[key(1)].blob[150] ^= 1
	h.mu.Unlock()
	r.set(func() { clear(r.pages) })
	var corrupt *CorruptError
	if _, err := m.Get(ctx, key(1), nil); !errors.As(err, &corrupt) || !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if s := m.Stats()[0]; s.Corrupt != 2 {
		t.Errorf("%+v", s)
	}
}

func TestManagerRefused(t *testing.T) {
	var option *OptionError
	h := host(t, 1)
	for _, levels := range [][]Level{nil, {{}}, {{Store: h, Queue: -1}}, {{Store: h, Workers: -1}}, {{Store: h, Timeout: -1}}, {{Store: h, Failures: -1}}, {{Store: h, Rest: -1}}} {
		if _, err := NewManager(Options{}, levels...); !errors.As(err, &option) {
			t.Errorf("%+v: %v", levels, err)
		}
	}
	m := manager(t, Options{}, Level{Store: h})
	var format *page.FormatError
	if err := m.Put(context.Background(), key(1), blob(key(2), 1)); !errors.As(err, &format) {
		t.Errorf("the page of another key: %v", err)
	}
}

// TestManagerRandom: goroutines put, get and delete pages of their own in a
// chain of small levels with faults: a page is never wrong, never there after a
// Delete, and there after a Put unless its loss was told.
func TestManagerRandom(t *testing.T) {
	ctx := context.Background()
	size := int64(len(blob(key(0), 1)))
	for _, faults := range []bool{false, true} {
		t.Run(fmt.Sprintf("faults=%v", faults), func(t *testing.T) {
			d, err := OpenDisk(t.TempDir(), DiskOptions{Limits: Limits{Bytes: 6 * size, Order: LFU}, NoSync: true})
			must(t, err)
			r := newRemote()
			var mu sync.Mutex
			rng := rand.New(rand.NewPCG(3, 3))
			if faults {
				r.fault = func(op string, _ page.Key) error {
					mu.Lock()
					defer mu.Unlock()
					if op != "Delete" && rng.IntN(4) == 0 {
						return errInjected
					}
					return nil
				}
			}
			m := manager(t, Options{}, Level{Store: host(t, 5*size), Queue: 3, Workers: 2}, Level{Store: d, Queue: 3, Workers: 2}, Level{Store: r, Workers: 3, Failures: 1 << 30})
			var work sync.WaitGroup
			lost, found := make([]int, 4), make([]int, 4)
			for g := range lost {
				work.Go(func() {
					key := func(i int) page.Key { // half in one stripe: the Delete of one meets the moves of others
						k := key(i)
						if g < 2 {
							k.Hash[31] = k.Hash[0]
						}
						return k
					}
					rng := rand.New(rand.NewPCG(uint64(g), 4))
					there := map[int]bool{}
					for n := range 500 {
						if n%10 == 0 { // so that there is room in the queues for promotions
							if err := m.Flush(ctx); err != nil && (!faults || !errors.Is(err, errInjected)) {
								t.Error(err)
							}
						}
						i := rng.IntN(10)*4 + g
						switch rng.IntN(5) {
						case 0:
							if err := m.Delete(ctx, key(i)); err != nil {
								t.Error(err)
							}
							there[i] = false
						case 1, 2:
							if err := m.Put(ctx, key(i), blob(key(i), 1)); err != nil {
								t.Error(err)
							}
							there[i] = true
						default:
							b, err := m.Get(ctx, key(i), nil)
							switch {
							case err == nil && !there[i]:
								t.Errorf("page %d is there, and was deleted", i)
							case err == nil && !bytes.Equal(b, blob(key(i), 1)):
								t.Errorf("page %d is wrong", i)
							case err == nil:
								found[g]++
							case !errors.Is(err, ErrNotFound):
								t.Error(err)
							case there[i]:
								lost[g]++
							}
						}
					}
				})
			}
			work.Wait()
			if err := m.Flush(ctx); err != nil && !faults {
				t.Errorf("Flush: %v", err)
			}
			sum := lost[0] + lost[1] + lost[2] + lost[3]
			if !faults && sum > 0 {
				t.Errorf("%d pages lost without a fault", sum)
			}
			s := m.Stats()
			for _, l := range s[:2] {
				if l.Usage.Bytes > l.Usage.Limit || l.Usage.Evicted > 0 {
					t.Errorf("%+v", l)
				}
			}
			if found[0] < 50 || s[1].Demoted == 0 || s[2].Demoted == 0 || faults && sum == 0 {
				t.Errorf("too little happened: %v found, %v lost, %+v", found, lost, s)
			}
		})
	}
}
