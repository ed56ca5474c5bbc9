//go:build cuda && cgo

package cuda

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// engine is a device as the backend sees it. Addresses are the device's. Work
// runs in the order of the calls; the host waits in copyOut and wait alone.
type engine interface {
	name() string // "cuda:0"
	multiprocessors() int
	sharedBytes() int // that a block may have
	alloc(bytes int64) (uint64, error)
	allocHost(bytes int64) (memory []byte, free func() error, err error)
	free(addr uint64) error
	reserve(most int64) (addr uint64, m mapped, err error)
	clear(addr uint64, bytes int64) error
	copyIn(dst uint64, src []byte) error // src may change when it returns
	copyOut(dst []byte, src uint64) error
	launch(kernel string, grid, block, shared int, params unsafe.Pointer) error
	transfer(in bool, each func(copy func(device uint64, host []byte) error) error) (kernel.Transfer, error)
	wait() error
	capture(record func() error) (graph, error)
	close() error
}

// Backend computes on one CUDA device. Only Open makes one.
type Backend struct {
	dev engine

	mu      sync.Mutex // of what follows
	scratch buffer     // tables of the operation under way
	tables  []byte
	space   buffer // states of a Scan under way

	recording atomic.Pointer[recording]
}

// Open returns the backend of a device, or an *UnavailableError.
func Open(device int) (*Backend, error) {
	dev, err := openEngine(device)
	if err != nil {
		return nil, err
	}
	return &Backend{dev: dev, scratch: buffer{dev: dev}, space: buffer{dev: dev}}, nil
}

// Name returns "cuda".
func (*Backend) Name() string { return "cuda" }

// Close gives the device back. No method may be called afterwards.
func (b *Backend) Close() error {
	return errors.Join(b.scratch.Close(), b.space.Close(), b.dev.close())
}

// Wait waits until all that was asked for is done.
func (b *Backend) Wait() error { return b.dev.wait() }

// buffer is memory of the device.
type buffer struct {
	dev    engine
	addr   uint64
	size   atomic.Int64 // Grow changes it while others look
	mapped mapped       // of Reserve; nil: memory of its own
}

// mapped is a range of addresses that memory is mapped to.
type mapped interface {
	Grow(bytes int64) error
	Size() int64 // that it can grow to
	Close() error
}

func (m *buffer) Device() string { return m.dev.name() }
func (m *buffer) Size() int64    { return m.size.Load() }

// Close frees the memory. It may be called twice.
func (m *buffer) Close() error {
	addr, pages := m.addr, m.mapped
	m.size.Store(0)
	m.addr, m.mapped = 0, nil
	switch {
	case pages != nil:
		return errors.Join(m.dev.wait(), pages.Close())
	case addr != 0:
		return m.dev.free(addr)
	}
	return nil
}

// grow makes room for n bytes, of which the first ones are not kept.
func (m *buffer) grow(n int64) error {
	if n <= m.Size() {
		return nil
	}
	if err := m.Close(); err != nil {
		return err
	}
	addr, err := m.dev.alloc(n)
	if err != nil {
		return err
	}
	m.addr = addr
	m.size.Store(n)
	return nil
}

// Alloc returns zeroed memory of the device, or a *kernel.OutOfMemoryError. The
// buffer has a method Close() error, which frees it.
func (b *Backend) Alloc(n int64) (tensor.Buffer, error) {
	if n < 0 {
		return nil, fmt.Errorf("cuda: allocation of %d bytes", n)
	}
	m := &buffer{dev: b.dev}
	if err := m.grow(n); err != nil {
		return nil, err
	}
	if n > 0 {
		if err := b.dev.clear(m.addr, n); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

// CopyIn copies src to the start of a buffer of this backend.
func (b *Backend) CopyIn(dst tensor.Buffer, src []byte) error {
	m, err := b.own(dst, int64(len(src)))
	if err != nil || len(src) == 0 {
		return err
	}
	return b.dev.copyIn(m.addr, src)
}

// CopyOut copies the start of a buffer of this backend to dst, after all that
// was asked for before is done.
func (b *Backend) CopyOut(dst []byte, src tensor.Buffer) error {
	m, err := b.own(src, int64(len(dst)))
	if err != nil || len(dst) == 0 {
		return err
	}
	return b.dev.copyOut(dst, m.addr)
}

func (b *Backend) own(x tensor.Buffer, n int64) (*buffer, error) {
	m, ok := x.(*buffer)
	if !ok || m.dev != b.dev {
		return nil, fmt.Errorf("cuda: a buffer on %s, want one of %s", x.Device(), b.dev.name())
	}
	if n > m.Size() {
		return nil, fmt.Errorf("cuda: copy of %d bytes, the buffer has %d", n, m.Size())
	}
	return m, nil
}

// onDevice reports a view that is not on the device.
func (b *Backend) onDevice(views ...*tensor.View) error {
	for _, v := range views {
		if v.Buf == nil || v.Buf.Size() == 0 {
			continue
		}
		if m, ok := v.Buf.(*buffer); !ok || m.dev != b.dev {
			return fmt.Errorf("cuda: tensor %v is on %s, want %s", v, v.Buf.Device(), b.dev.name())
		}
	}
	return nil
}
