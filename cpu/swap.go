package cpu

import (
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

var _ kernel.Swapper = (*Backend)(nil)

// HostAlloc is Alloc: the backend's memory is the host's.
func (b *Backend) HostAlloc(bytes int64) (tensor.Buffer, error) { return b.Alloc(bytes) }

// SwapOut copies pages of the cache to other memory, and returns when it is done.
func (*Backend) SwapOut(a *kernel.SwapArgs) (kernel.Transfer, error) { return swap(a, false) }

// SwapIn copies them back, and returns when it is done.
func (*Backend) SwapIn(a *kernel.SwapArgs) (kernel.Transfer, error) { return swap(a, true) }

func swap(a *kernel.SwapArgs, in bool) (kernel.Transfer, error) {
	if err := a.Validate(in); err != nil {
		return nil, err
	}
	if err := onHost(&a.Cache, &a.Host); err != nil {
		return nil, err
	}
	cache, host, size := a.Cache.Bytes(), a.Host.Bytes(), a.Cache.DType.Size()
	return done{}, a.Runs(func(from, to, n int64) error {
		x, y := cache[from*size:][:n*size], host[to*size:][:n*size]
		if in {
			x, y = y, x
		}
		copy(y, x)
		return nil
	})
}

// done is a transfer that was done at once.
type done struct{}

func (done) Done() (bool, error) { return true, nil }
func (done) Wait() error         { return nil }
