package soak

import (
	"errors"
	"sync/atomic"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

var errInjected = errors.New("injected fault")

// backend is the CPU, of which calls fail when a fault is armed.
type backend struct {
	*cpu.Backend
	allocs, copies, gathers, encodes, appends, grows, swaps fuse

	during   atomic.Pointer[func()] // called once, in the midst of a swap
	injected atomic.Int64
}

var (
	_ kernel.Swapper = (*backend)(nil)
	_ kernel.Grower  = (*backend)(nil)
)

// fuse counts calls down to the one that fails.
type fuse struct{ atomic.Int64 }

func (b *backend) blown(f *fuse) bool {
	for {
		n := f.Load()
		if n <= 0 {
			return false
		}
		if f.CompareAndSwap(n, n-1) {
			if n == 1 {
				b.injected.Add(1)
			}
			return n == 1
		}
	}
}

// disarm ends faults that were not met.
func (b *backend) disarm() {
	for _, f := range []*fuse{&b.allocs, &b.copies, &b.gathers, &b.encodes, &b.appends, &b.grows, &b.swaps} {
		f.Store(0)
	}
	b.during.Store(nil)
}

func (b *backend) Alloc(bytes int64) (tensor.Buffer, error) {
	if b.blown(&b.allocs) {
		return nil, &kernel.OutOfMemoryError{Backend: "injected", Bytes: bytes}
	}
	return b.Backend.Alloc(bytes)
}

func (b *backend) Reserve(most int64) (tensor.Buffer, error) {
	if b.blown(&b.allocs) {
		return nil, &kernel.OutOfMemoryError{Backend: "injected", Bytes: most}
	}
	return b.Backend.Reserve(most)
}

// CopyPages fails after its work, GatherRows and EncodePages too: what was written
// must not be seen.
func (b *backend) CopyPages(a *kernel.CopyArgs) error {
	fail := b.blown(&b.copies)
	if err := b.Backend.CopyPages(a); err != nil {
		return err
	}
	if fail {
		return errInjected
	}
	return nil
}

func (b *backend) GatherRows(a *kernel.GatherArgs) error {
	fail := b.blown(&b.gathers)
	if err := b.Backend.GatherRows(a); err != nil {
		return err
	}
	if fail {
		return errInjected
	}
	return nil
}

func (b *backend) EncodePages(a *kernel.EncodeArgs) error {
	fail := b.blown(&b.encodes)
	if err := b.Backend.EncodePages(a); err != nil {
		return err
	}
	if fail {
		return errInjected
	}
	return nil
}

func (b *backend) AppendKV(a *kernel.AppendArgs) error {
	if b.blown(&b.appends) {
		return errInjected
	}
	return b.Backend.AppendKV(a)
}

func (b *backend) Grow(m tensor.Buffer, bytes int64) error {
	if b.blown(&b.grows) {
		return &kernel.OutOfMemoryError{Backend: "injected", Bytes: bytes}
	}
	return b.Backend.Grow(m, bytes)
}

func (b *backend) SwapOut(a *kernel.SwapArgs) (kernel.Transfer, error) {
	return b.swap(a, b.Backend.SwapOut)
}

func (b *backend) SwapIn(a *kernel.SwapArgs) (kernel.Transfer, error) {
	return b.swap(a, b.Backend.SwapIn)
}

// swap fails at once or, as often, when it is waited for.
func (b *backend) swap(a *kernel.SwapArgs, f func(*kernel.SwapArgs) (kernel.Transfer, error)) (kernel.Transfer, error) {
	if call := b.during.Swap(nil); call != nil {
		(*call)()
	}
	if !b.blown(&b.swaps) {
		return f(a)
	}
	x, err := f(a)
	if err != nil || b.injected.Load()%2 == 0 {
		return nil, errors.Join(errInjected, err)
	}
	return failed{x}, nil
}

type failed struct{ kernel.Transfer }

func (f failed) Done() (bool, error) {
	done, err := f.Transfer.Done()
	if done && err == nil {
		err = errInjected
	}
	return done, err
}

func (f failed) Wait() error { return errors.Join(errInjected, f.Transfer.Wait()) }
