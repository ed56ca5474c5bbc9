package tier

import (
	"context"
	"sync"

	"github.com/longctx/longctx/kvcache/page"
)

// Host keeps pages in memory.
type Host struct {
	mu     sync.Mutex
	index  index
	closed bool
}

var _ Bounded = (*Host)(nil)

// NewHost is an empty Host. Limits.Bytes is at least 1.
func NewHost(l Limits) (*Host, error) {
	if err := l.check("Host", 1); err != nil {
		return nil, err
	}
	return &Host{index: newIndex(l)}, nil
}

// Put is Store.Put. It lets pages go until there is room.
func (h *Host) Put(ctx context.Context, k page.Key, b []byte) error {
	if err := ctx.Err(); err != nil {
		return &StoreError{"host", "Put", k, err}
	}
	if err := page.Check(b, k); err != nil {
		return err
	}
	n := int64(len(b))
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrClosed
	}
	x := &h.index
	if e := x.entries[k]; e != nil {
		x.use(e)
		return nil
	}
	if n > x.limits.Bytes {
		return &FullError{Store: "host", Need: n, Limit: x.limits.Bytes}
	}
	for victim, ok := x.room(n); !ok; victim, ok = x.room(n) {
		x.remove(victim)
		x.evicted++
	}
	x.add(&entry{key: k, bytes: n, blob: append(make([]byte, 0, n), b...)})
	return nil
}

// Get is Store.Get.
func (h *Host) Get(ctx context.Context, k page.Key, dst []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return dst, &StoreError{"host", "Get", k, err}
	}
	e, err := h.use(k)
	if err != nil {
		return dst, err
	}
	// the blob of an entry does not change, so it is read without the lock
	if err := page.Check(e.blob, k); err != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.index.entries[k] == e {
			h.index.remove(e)
		}
		h.index.corrupt++
		return dst, &CorruptError{"host", k, err}
	}
	return append(dst, e.blob...), nil
}

func (h *Host) use(k page.Key) (*entry, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	e := h.index.entries[k]
	if e == nil {
		return nil, ErrNotFound
	}
	h.index.use(e)
	return e, nil
}

// Has is Store.Has. It does not count as a use.
func (h *Host) Has(ctx context.Context, k page.Key) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, &StoreError{"host", "Has", k, err}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false, ErrClosed
	}
	return h.index.entries[k] != nil, nil
}

// Delete is Store.Delete.
func (h *Host) Delete(ctx context.Context, k page.Key) error {
	if err := ctx.Err(); err != nil {
		return &StoreError{"host", "Delete", k, err}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrClosed
	}
	h.index.remove(h.index.entries[k])
	return nil
}

// Victim is Bounded.Victim.
func (h *Host) Victim(k page.Key, bytes int64) (page.Key, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.index.victim(k, bytes)
}

// Usage is what h holds now.
func (h *Host) Usage() Usage {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.index.usage()
}

// Close lets all pages go.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	l := h.index.limits
	h.index = newIndex(l)
	return nil
}
