//go:build cuda && cgo

package cuda

import (
	"errors"
	"fmt"
	"sync"

	"github.com/longctx/longctx/cuda/internal/driver"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

var _ kernel.Swapper = (*Backend)(nil)

// maxTransfers is how many transfers may be under way: who asks for one more
// waits until the oldest is done.
const maxTransfers = 16

// pinned is memory of the host that the device copies to and from by itself.
type pinned struct {
	*tensor.Host
	free func() error
}

// Close frees the memory. It may be called twice.
func (p *pinned) Close() error {
	free := p.free
	p.Host, p.free = tensor.HostBytes(nil), nil
	if free == nil {
		return nil
	}
	return free()
}

// HostAlloc returns zeroed, pinned memory, or a *kernel.OutOfMemoryError.
func (b *Backend) HostAlloc(bytes int64) (tensor.Buffer, error) {
	if bytes < 0 {
		return nil, fmt.Errorf("cuda: allocation of %d bytes", bytes)
	}
	memory, free, err := b.dev.allocHost(bytes)
	if err != nil {
		return nil, err
	}
	clear(memory)
	return &pinned{tensor.HostBytes(memory), free}, nil
}

// SwapOut copies pages to pinned memory beside what the device computes.
func (b *Backend) SwapOut(a *kernel.SwapArgs) (kernel.Transfer, error) { return b.swap(a, false) }

// SwapIn copies pages from pinned memory. What is asked of the backend afterwards
// runs when they are there; the caller does not wait.
func (b *Backend) SwapIn(a *kernel.SwapArgs) (kernel.Transfer, error) { return b.swap(a, true) }

func (b *Backend) swap(a *kernel.SwapArgs, in bool) (kernel.Transfer, error) {
	if err := a.Validate(in); err != nil {
		return nil, err
	}
	if err := b.onDevice(&a.Cache); err != nil {
		return nil, err
	}
	if _, ok := a.Host.Buf.(*pinned); !ok {
		return nil, fmt.Errorf("cuda: Host %v is no memory of HostAlloc: a copy from it would hold up the caller", &a.Host)
	}
	if b.recording.Load() != nil {
		return nil, errors.New("cuda: pages cannot be swapped while a graph is recorded")
	}
	host, base, size := a.Host.Bytes(), a.Cache.Buf.(*buffer).addr, a.Cache.DType.Size()
	return b.dev.transfer(in, func(copy func(device uint64, host []byte) error) error {
		return a.Runs(func(from, to, n int64) error {
			return copy(base+uint64(from*size), host[to*size:][:n*size])
		})
	})
}

// transfers are the copies of a device that run beside its stream.
type transfers struct {
	mu     sync.Mutex
	stream *driver.Stream
	before *driver.Event // in the stream that computes
	slots  [maxTransfers]slot
	next   int
}

// slot is an event that one transfer after another has.
type slot struct {
	done *driver.Event
	turn int // transfers so far
}

// open makes the stream and events.
func (t *transfers) open(d *driver.Device) (err error) {
	if t.stream, err = d.NewStream(); err != nil {
		return err
	}
	if t.before, err = d.NewEvent(false); err != nil {
		return err
	}
	for i := range t.slots {
		if t.slots[i].done, err = d.NewEvent(false); err != nil {
			return err
		}
	}
	return nil
}

func (t *transfers) close() error {
	var errs []error
	if t.stream != nil {
		errs = append(errs, t.stream.Sync())
	}
	for _, e := range append([]*driver.Event{t.before}, t.events()...) {
		if e != nil {
			errs = append(errs, e.Close())
		}
	}
	if t.stream != nil {
		errs = append(errs, t.stream.Close())
	}
	return errors.Join(errs...)
}

func (t *transfers) events() (list []*driver.Event) {
	for _, s := range t.slots {
		list = append(list, s.done)
	}
	return list
}

// transfer puts the copies that each asks for into the stream of transfers, after
// all that is in the stream that computes; with in, what comes after in that one
// waits for them.
func (d *device) transfer(in bool, each func(copy func(device uint64, host []byte) error) error) (kernel.Transfer, error) {
	t := &d.transfers
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.slots[t.next]
	if err := s.done.Sync(); err != nil { // of the oldest
		return nil, err
	}
	if err := t.before.Record(d.stream); err != nil {
		return nil, err
	}
	if err := t.stream.Wait(t.before); err != nil {
		return nil, err
	}
	err := each(func(device uint64, host []byte) error {
		if in {
			return t.stream.CopyToDevice(driver.Ptr(device), host)
		}
		return t.stream.CopyToHost(host, driver.Ptr(device))
	})
	// Whatever came of it, what was begun has to end before the pages are used.
	err = errors.Join(err, s.done.Record(t.stream))
	if in || err != nil {
		err = errors.Join(err, d.stream.Wait(s.done))
	}
	if err != nil {
		return nil, errors.Join(err, t.stream.Sync())
	}
	s.turn++
	t.next = (t.next + 1) % len(t.slots)
	return &transfer{t, s, s.turn}, nil
}

// transfer is one of a slot's.
type transfer struct {
	of   *transfers
	slot *slot
	turn int
}

// past reports whether the slot has gone on to others, which it does when this
// one is done.
func (x *transfer) past() bool {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	return x.slot.turn != x.turn
}

// Done reports whether the copies are done.
func (x *transfer) Done() (bool, error) {
	if x.past() {
		return true, nil
	}
	return x.slot.done.Done()
}

// Wait returns when they are.
func (x *transfer) Wait() error {
	if x.past() {
		return nil
	}
	return x.slot.done.Sync()
}
