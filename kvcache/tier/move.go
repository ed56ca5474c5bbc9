package tier

import (
	"context"
	"errors"

	"github.com/longctx/longctx/kvcache/page"
)

// work does the jobs of a level until the Manager is closed.
func (m *Manager) work(l *level) {
	for {
		select {
		case <-m.ctx.Done():
			return
		case j := <-l.jobs:
			m.do(l, j)
		}
	}
}

func (m *Manager) do(l *level, j *job) {
	kind, stale := Stored, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return j.pending.deleted
	}
	if j.pending == nil {
		kind, stale = Promoted, func() bool { return m.stripe(j.key).deletes.Load() != j.deletes }
	}
	err := m.place(l, j.key, j.blob, kind, stale)
	if err != nil && m.ctx.Err() != nil {
		return // Close counts the page as not written
	}
	if j.pending != nil {
		m.finish(j.key, j.pending, 1)
	}
	if err != nil && kind == Stored {
		m.note(err)
	}
	m.leave(j.batch)
}

// note keeps an error for Flush.
func (m *Manager) note(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.failed) < maxErrors {
		m.failed = append(m.failed, err)
	}
}

// place writes a page to a level, or where that fails to one below; a page that
// is copied up stays out then. stale is asked when nobody can delete the page:
// one that was deleted meanwhile is not written.
func (m *Manager) place(l *level, k page.Key, blob []byte, kind EventKind, stale func() bool) error {
	var errs []error
	for _, l := range m.levels[l.index:] {
		err := m.write(l, k, blob, kind, stale)
		if err == nil {
			return nil
		}
		if m.ctx.Err() != nil {
			return m.ctx.Err()
		}
		if !errors.Is(err, errResting) {
			m.tell(Event{Kind: Failed, Level: l.Name, Key: k, Bytes: len(blob), Err: err})
		}
		errs = append(errs, &StoreError{l.Name, "Put", k, err})
		if kind == Promoted {
			break
		}
	}
	return errors.Join(errs...)
}

// write puts a page in one level and moves what must go for it. Locks of room
// are taken from above to below, and that of the key last, so none waits for
// another in a circle.
func (m *Manager) write(l *level, k page.Key, blob []byte, kind EventKind, stale func() bool) error {
	if l.lets != nil {
		if err := l.room.acquire(m.ctx); err != nil {
			return err
		}
		defer l.room.release()
		for {
			victim, ok := l.lets.Victim(k, int64(len(blob)))
			if !ok {
				break
			}
			if err := m.demote(l, victim); err != nil {
				return err
			}
		}
	}
	s := m.stripe(k)
	if err := s.acquire(m.ctx); err != nil {
		return err
	}
	defer s.release()
	if stale() {
		return nil
	}
	there := false
	err := m.call(m.ctx, l, func(ctx context.Context) (err error) {
		if kind != Stored { // it may be there from before, and its device slow
			if there, err = l.Store.Has(ctx, k); there || err != nil {
				return err
			}
		}
		return l.Store.Put(ctx, k, blob)
	})
	if err != nil || there {
		return err
	}
	l.count(func(s *LevelStats) {
		s.Stored++
		s.BytesIn += int64(len(blob))
		switch kind {
		case Demoted:
			s.Demoted++
		case Promoted:
			s.Promoted++
		}
	})
	m.tell(Event{Kind: kind, Level: l.Name, Key: k, Bytes: len(blob)})
	return nil
}

// demote moves a page to the level below. A page that cannot be read, or that
// no level takes, is dropped: the level needs the room. An error says that the
// level could not let it go.
func (m *Manager) demote(l *level, k page.Key) error {
	for {
		deletes := m.stripe(k).deletes.Load()
		stale := false
		var blob []byte
		err := m.call(m.ctx, l, func(ctx context.Context) (err error) {
			blob, err = l.Store.Get(ctx, k, nil)
			return err
		})
		var corrupt *CorruptError
		switch {
		case errors.Is(err, ErrNotFound):
			return nil // deleted meanwhile
		case errors.Is(err, errResting):
			return err
		case errors.As(err, &corrupt):
			m.miss(l, k, err)
			return nil
		case err == nil:
			err = m.place(m.levels[l.index+1], k, blob, Demoted, func() bool {
				stale = m.stripe(k).deletes.Load() != deletes
				return stale
			})
		}
		if m.ctx.Err() != nil {
			return m.ctx.Err()
		}
		if stale { // this key or another of the stripe was deleted: look again
			continue
		}
		if err != nil {
			l.count(func(s *LevelStats) { s.Dropped++ })
			m.tell(Event{Kind: Dropped, Level: l.Name, Key: k, Bytes: len(blob), Err: err})
			m.note(err)
		}
		return m.call(m.ctx, l, func(ctx context.Context) error { return l.Store.Delete(ctx, k) })
	}
}
