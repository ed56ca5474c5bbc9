package tier

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/longctx/longctx/kvcache/page"
)

// Manager is a chain of levels, the fastest first, and itself a Store.
//
// Put writes to the first level, and to those with WriteThrough, in the
// background: it returns when the page waits in a queue, and where that is full
// it waits for room. What a bounded level lets go is moved to the next; what the
// last lets go is gone. Get asks one level after the other, and a page found
// below the first is copied there in the background. A page is in a queue or in
// a level from Put on, also while it moves.
//
// What goes wrong in the background is counted, told as an Event and returned by
// the next Flush. A level that fails is passed by: its pages go to the one below,
// and Get goes on to the next.
type Manager struct {
	levels  []*level
	events  func(Event)
	now     func() time.Time
	ctx     context.Context // of what is done in the background
	cancel  context.CancelFunc
	workers sync.WaitGroup
	stripes [256]stripe

	mu      sync.Mutex
	pending map[page.Key]*pendingPage
	batches []*batch // that are not done; the last is open
	failed  []error  // for Flush
	closed  bool
}

var _ Store = (*Manager)(nil)

// Options are those of NewManager.
type Options struct {
	// Events is told of each event, from the goroutine that does the work: it must
	// be quick and must not call the Manager. Of one key, what is written and
	// deleted is told in the order in which it was.
	Events func(Event)

	now func() time.Time
}

// Event is something that happened to a page or a level.
type Event struct {
	Kind  EventKind
	Level string
	Key   page.Key
	Bytes int
	Err   error
}

// EventKind says what happened.
type EventKind uint8

const (
	Stored   EventKind = iota // put in Level
	Demoted                   // moved to Level, from the one above
	Promoted                  // copied to Level from one below
	Deleted                   // by Delete, from all levels
	Dropped                   // let go by Level, and not taken by one below
	Corrupt                   // found damaged in Level, and removed
	Failed                    // a call of Level failed
	Rested                    // Level is not asked for some time
)

func (k EventKind) String() string {
	names := [...]string{"stored", "demoted", "promoted", "deleted", "dropped", "corrupt", "failed", "rested"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("EventKind(%d)", uint8(k))
}

// pendingPage is a page that waits to be written.
type pendingPage struct {
	blob    []byte
	jobs    int
	queued  bool // all jobs of a Put are in the queues
	deleted bool
}

// job is a page to be written to a level.
type job struct {
	key     page.Key
	blob    []byte
	pending *pendingPage // nil: a promotion
	deletes uint64       // of a promotion: those of the stripe when the page was read
	batch   *batch
}

// batch counts jobs for a Flush.
type batch struct {
	jobs int
	done chan struct{} // closed when jobs is 0 and the batch is no longer open
	open bool
}

// maxErrors bounds what is kept for a Flush.
const maxErrors = 16

// NewManager starts a Manager of the given levels. Close closes their stores.
func NewManager(o Options, levels ...Level) (*Manager, error) {
	if len(levels) == 0 {
		return nil, &OptionError{"number of levels", "0", "1 or more"}
	}
	m := &Manager{events: o.Events, now: o.now, pending: map[page.Key]*pendingPage{}}
	if m.now == nil {
		m.now = time.Now
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	for i := range m.stripes {
		m.stripes[i].lock = newLock()
	}
	m.openBatch()
	for i, l := range levels {
		x := &level{Level: l}
		if err := x.prepare(i); err != nil {
			return nil, err
		}
		m.levels = append(m.levels, x)
	}
	for _, l := range m.levels[:len(levels)-1] {
		l.bounded()
	}
	for _, l := range m.levels {
		for range l.Workers {
			m.workers.Go(func() { m.work(l) })
		}
	}
	return m, nil
}

func (m *Manager) stripe(k page.Key) *stripe { return &m.stripes[k.Hash[0]^k.Hash[31]] }

func (m *Manager) tell(e Event) {
	if m.events != nil {
		m.events(e)
	}
}

// Put is Store.Put, but returns before the page is written; Flush waits for that.
// After an error of the context the page may be kept or not.
func (m *Manager) Put(ctx context.Context, k page.Key, b []byte) error {
	if err := ctx.Err(); err != nil {
		return &StoreError{"manager", "Put", k, err}
	}
	if err := page.Check(b, k); err != nil {
		return err
	}
	var to []*level
	for i, l := range m.levels {
		if i == 0 || l.WriteThrough {
			to = append(to, l)
		}
	}
	p, err := m.begin(k, b, len(to))
	if p == nil {
		return err
	}
	for i, l := range to {
		j := &job{key: k, blob: p.blob, pending: p}
		if err := m.enqueue(ctx, l, j); err != nil {
			m.finish(k, p, len(to)-i)
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p.queued = true
	return nil
}

// begin makes a page pending, with so many jobs; nil if it is in the queues. A
// page that another Put waits to enqueue is not: that Put may be cancelled.
func (m *Manager) begin(k page.Key, b []byte, jobs int) (*pendingPage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	p := m.pending[k]
	if p != nil && p.queued {
		return nil, nil
	}
	if p == nil {
		p = &pendingPage{blob: slices.Clone(b)}
		m.pending[k] = p
	}
	p.jobs += jobs
	return p, nil
}

// enqueue waits for room in the queue of a level.
func (m *Manager) enqueue(ctx context.Context, l *level, j *job) error {
	j.batch = m.join()
	select {
	case l.jobs <- j:
		return nil
	default:
	}
	var err error
	select {
	case l.jobs <- j:
		return nil
	case <-ctx.Done():
		err = &StoreError{l.Name, "Put", j.key, ctx.Err()}
	case <-m.ctx.Done():
		err = ErrClosed
	}
	m.leave(j.batch)
	return err
}

// finish ends n jobs of a pending page.
func (m *Manager) finish(k page.Key, p *pendingPage, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.jobs -= n; p.jobs == 0 && m.pending[k] == p {
		delete(m.pending, k)
	}
}

// waiting is the page of k that waits to be written, or nil.
func (m *Manager) waiting(k page.Key) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if p := m.pending[k]; p != nil {
		return p.blob, nil
	}
	return nil, nil
}

// Get is Store.Get. Where no level has the page the error is ErrNotFound, joined
// with what kept levels from answering: a *CorruptError, a *StoreError.
func (m *Manager) Get(ctx context.Context, k page.Key, dst []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return dst, &StoreError{"manager", "Get", k, err}
	}
	deletes := m.stripe(k).deletes.Load()
	b, err := m.waiting(k)
	if err != nil {
		return dst, err
	}
	if b != nil {
		m.levels[0].count(func(s *LevelStats) { s.Hits++; s.BytesOut += int64(len(b)) })
		return append(dst, b...), nil
	}
	errs := []error{ErrNotFound}
	for i, l := range m.levels {
		out := dst
		err := m.call(ctx, l, func(ctx context.Context) (err error) {
			out, err = l.Store.Get(ctx, k, dst)
			return err
		})
		if err == nil {
			blob := out[len(dst):]
			l.count(func(s *LevelStats) { s.Hits++; s.BytesOut += int64(len(blob)) })
			if i > 0 {
				m.promote(k, blob, deletes)
			}
			return out, nil
		}
		if ctx.Err() != nil {
			return dst, &StoreError{l.Name, "Get", k, ctx.Err()}
		}
		errs = append(errs, m.miss(l, k, err)...)
	}
	if len(errs) == 1 {
		return dst, ErrNotFound
	}
	return dst, errors.Join(errs...)
}

// miss notes why a level gave no page, and gives what the caller should hear.
func (m *Manager) miss(l *level, k page.Key, err error) []error {
	var corrupt *CorruptError
	switch {
	case errors.Is(err, ErrNotFound):
		l.count(func(s *LevelStats) { s.Misses++ })
		return nil
	case errors.As(err, &corrupt):
		l.count(func(s *LevelStats) { s.Corrupt++ })
		m.tell(Event{Kind: Corrupt, Level: l.Name, Key: k, Err: err})
	case !errors.Is(err, errResting):
		m.tell(Event{Kind: Failed, Level: l.Name, Key: k, Err: err})
	}
	return []error{fmt.Errorf("%s: %w", l.Name, err)}
}

// promote copies a page to the first level, if its queue has room.
func (m *Manager) promote(k page.Key, blob []byte, deletes uint64) {
	if jobs := m.levels[0].jobs; len(jobs) == cap(jobs) {
		return
	}
	j := &job{key: k, blob: slices.Clone(blob), deletes: deletes, batch: m.join()}
	select {
	case m.levels[0].jobs <- j:
	default:
		m.leave(j.batch)
	}
}

// Has is Store.Has. Levels that do not answer count as without the page.
func (m *Manager) Has(ctx context.Context, k page.Key) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, &StoreError{"manager", "Has", k, err}
	}
	b, err := m.waiting(k)
	if b != nil || err != nil {
		return b != nil, err
	}
	for _, l := range m.levels {
		var there bool
		err := m.call(ctx, l, func(ctx context.Context) (err error) {
			there, err = l.Store.Has(ctx, k)
			return err
		})
		if ctx.Err() != nil {
			return false, &StoreError{l.Name, "Has", k, ctx.Err()}
		}
		if err == nil && there {
			return true, nil
		}
	}
	return false, nil
}

// Delete is Store.Delete, of all levels, now. After an error the page may still
// be in the levels that it names: a page deleted while a level does not answer
// is there again when that answers.
func (m *Manager) Delete(ctx context.Context, k page.Key) error {
	s := m.stripe(k)
	if err := s.acquire(ctx); err != nil {
		return &StoreError{"manager", "Delete", k, err}
	}
	defer s.release()
	if err := ctx.Err(); err != nil {
		return &StoreError{"manager", "Delete", k, err}
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrClosed
	}
	if p := m.pending[k]; p != nil {
		p.deleted = true
		delete(m.pending, k)
	}
	m.mu.Unlock()
	defer s.deletes.Add(1) // not before: who reads the page until it is gone must see the change
	var errs []error
	for _, l := range m.levels {
		if err := m.call(ctx, l, func(ctx context.Context) error { return l.Store.Delete(ctx, k) }); err != nil {
			errs = append(errs, &StoreError{l.Name, "Delete", k, err})
		}
	}
	m.tell(Event{Kind: Deleted, Key: k, Err: errors.Join(errs...)})
	return errors.Join(errs...)
}

// Flush waits until all pages put before it are written, and returns what went
// wrong in the background since the last Flush, at most 16 errors joined.
func (m *Manager) Flush(ctx context.Context) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrClosed
	}
	last := m.batches[len(m.batches)-1]
	wait := slices.Clone(m.batches)
	m.openBatch()
	last.open = false
	m.settle(last)
	m.mu.Unlock()
	for _, b := range wait {
		select {
		case <-b.done:
		case <-ctx.Done():
			return fmt.Errorf("tier: manager: Flush: %w", ctx.Err())
		case <-m.ctx.Done():
			return ErrClosed
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	err := errors.Join(m.failed...)
	m.failed = nil
	return err
}

// openBatch begins a batch. The caller has the lock, or is NewManager.
func (m *Manager) openBatch() {
	m.batches = append(m.batches, &batch{done: make(chan struct{}), open: true})
}

func (m *Manager) join() *batch {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.batches[len(m.batches)-1]
	b.jobs++
	return b
}

func (m *Manager) leave(b *batch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b.jobs--
	m.settle(b)
}

func (m *Manager) settle(b *batch) {
	if b.jobs == 0 && !b.open {
		close(b.done)
		m.batches = slices.DeleteFunc(m.batches, func(x *batch) bool { return x == b })
	}
}

// Stats is one entry a level.
func (m *Manager) Stats() []LevelStats {
	var list []LevelStats
	for _, l := range m.levels {
		list = append(list, l.snapshot(m.now()))
	}
	return list
}

// UnwrittenError reports pages that Close found in the queues.
type UnwrittenError struct{ Pages int }

func (e *UnwrittenError) Error() string {
	return fmt.Sprintf("tier: manager: closed with %d pages not written; Flush before Close", e.Pages)
}

// Close ends what is done in the background, without waiting for the queues, and
// closes the stores. Pages that were not written are an *UnwrittenError; Flush
// first.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.workers.Wait()
	var errs []error
	m.mu.Lock()
	if n := len(m.pending); n > 0 {
		errs = append(errs, &UnwrittenError{n})
	}
	m.mu.Unlock()
	for _, l := range m.levels {
		errs = append(errs, l.Store.Close())
	}
	return errors.Join(errs...)
}
