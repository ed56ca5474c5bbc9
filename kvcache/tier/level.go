package tier

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/longctx/longctx/kvcache/page"
)

// Level is a Store as a Manager uses it. Only Store is required.
type Level struct {
	Name  string // in statistics, events and errors; empty: "level 0"
	Store Store

	WriteThrough bool          // Put writes here too, not only what the level above lets go
	Queue        int           // pages that may wait to be written; a Put of one more waits; 0: 16
	Workers      int           // pages that are written at once; 0: 1
	Timeout      time.Duration // of one call of the Store; 0: none

	// After so many failures in a row (0: 3) the level is not asked for some time
	// (0: 5 s), so that a dead server costs no Timeout each time.
	Failures int
	Rest     time.Duration
}

// LevelStats counts what a level did since the Manager was made.
type LevelStats struct {
	Name  string
	Usage Usage // where the Store has one

	Hits, Misses       int64
	Stored             int64 // pages written, all kinds
	Demoted, Promoted  int64 // of Stored: let go by the level above, copied from one below
	Dropped            int64 // pages that this level let go and no level below took
	Corrupt, Failed    int64 // pages found damaged; calls that failed otherwise
	Skipped            int64 // calls not made while the level rested
	BytesIn, BytesOut  int64
	Queued             int           // pages that wait now
	Resting            bool          // now
	CallTime, LastCall time.Duration // of all calls of the store, and of the last
}

// level is a Level at work.
type level struct {
	Level
	index int
	jobs  chan *job
	lets  Bounded // the Store, if what it lets go is moved to the next level
	room  lock    // of Victim and Put then

	mu       sync.Mutex
	stats    LevelStats
	failures int // in a row
	rests    time.Time
}

func (l *level) prepare(i int) error {
	if l.Store == nil {
		return &OptionError{fmt.Sprintf("Level %d: Store", i), "nil", "a Store"}
	}
	for _, f := range []struct {
		name  string
		value int64
	}{{"Queue", int64(l.Queue)}, {"Workers", int64(l.Workers)}, {"Timeout", int64(l.Timeout)}, {"Failures", int64(l.Failures)}, {"Rest", int64(l.Rest)}} {
		if f.value < 0 {
			return &OptionError{fmt.Sprintf("Level %d: %s", i, f.name), fmt.Sprint(f.value), "0 or more"}
		}
	}
	if l.Name == "" {
		l.Name = fmt.Sprint("level ", i)
	}
	if l.Queue == 0 {
		l.Queue = 16
	}
	l.Workers = max(l.Workers, 1)
	if l.Failures == 0 {
		l.Failures = 3
	}
	if l.Rest == 0 {
		l.Rest = 5 * time.Second
	}
	l.index, l.jobs, l.room, l.stats.Name = i, make(chan *job, l.Queue), newLock(), l.Name
	return nil
}

// bounded makes what the Store lets go move to the next level.
func (l *level) bounded() {
	if u, ok := l.Store.(interface{ Usage() Usage }); ok && u.Usage().Limit == 0 {
		return // it lets nothing go
	}
	l.lets, _ = l.Store.(Bounded)
}

// errResting is the error of a call that was not made.
var errResting = errors.New("tier: not asked: it failed too often")

// call calls the store, unless it rests, and judges the outcome.
func (m *Manager) call(ctx context.Context, l *level, f func(ctx context.Context) error) error {
	if !l.awake(m.now()) {
		return errResting
	}
	inner, cancel := ctx, context.CancelFunc(func() {})
	if l.Timeout > 0 {
		inner, cancel = context.WithTimeout(ctx, l.Timeout)
	}
	start := m.now()
	err := f(inner)
	cancel()
	if failure(err) && ctx.Err() != nil {
		return err // the caller's own end says nothing of the level
	}
	if l.judge(err, start, m.now()) {
		m.tell(Event{Kind: Rested, Level: l.Name, Err: err})
	}
	return err
}

func (l *level) awake(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.rests) {
		l.stats.Skipped++
		return false
	}
	return true
}

// judge counts failures. It reports whether the level rests from now on.
func (l *level) judge(err error, start, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.LastCall = now.Sub(start)
	l.stats.CallTime += l.stats.LastCall
	if !failure(err) {
		l.failures = 0
		return false
	}
	l.stats.Failed++
	if l.failures++; l.failures < l.Failures {
		return false
	}
	l.rests = now.Add(l.Rest)
	return true
}

// failure reports whether err is of the device or server, and not of the page.
func failure(err error) bool {
	var corrupt *CorruptError
	var full *FullError
	var format *page.FormatError
	return err != nil && !errors.Is(err, ErrNotFound) && !errors.As(err, &corrupt) && !errors.As(err, &full) && !errors.As(err, &format)
}

func (l *level) count(f func(s *LevelStats)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.stats)
}

func (l *level) snapshot(now time.Time) LevelStats {
	l.mu.Lock()
	s := l.stats
	s.Queued, s.Resting = len(l.jobs), now.Before(l.rests)
	l.mu.Unlock()
	if u, ok := l.Store.(interface{ Usage() Usage }); ok {
		s.Usage = u.Usage()
	}
	return s
}

// lock is a mutex that one can stop waiting for.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) acquire(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l lock) release() { <-l }

// stripe orders what is done to the pages of some keys.
type stripe struct {
	lock
	deletes atomic.Uint64 // of its keys
}
