package cpu

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Backend computes on the CPU.
type Backend struct{ pool *pool }

// Options of New.
type Options struct {
	Workers int // goroutines that compute, the caller's included; 0: GOMAXPROCS
}

// New starts a backend. Its workers live until Close.
func New(o Options) *Backend { return &Backend{newPool(o.Workers)} }

// Close stops the workers. No method may be called afterwards.
func (b *Backend) Close() { b.pool.close.Do(func() { close(b.pool.jobs) }) }

// Name returns "cpu".
func (*Backend) Name() string { return "cpu" }

// Attention returns the kernel for s. It supports every valid Spec.
func (b *Backend) Attention(s kernel.Spec) (kernel.Attention, error) {
	if p := s.Problems(); len(p) > 0 {
		return nil, &kernel.UnsupportedError{Backend: "cpu", Reasons: p}
	}
	return newAttention(b.pool, s), nil
}

// onHost reports a view that this backend cannot reach.
func onHost(views ...*tensor.View) error {
	for _, v := range views {
		if v.Buf != nil && v.Bytes() == nil && v.Buf.Size() > 0 {
			return fmt.Errorf("cpu: tensor %v is on %s, want host memory", v, v.Buf.Device())
		}
	}
	return nil
}
