package cpu

import (
	"fmt"
	"sync"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Backend computes on the CPU.
type Backend struct {
	pool     *pool
	scans    sync.Pool // of *scanScratch
	encoders free[encoder]
}

// Options of New.
type Options struct {
	Workers int // goroutines that compute, the caller's included; 0: GOMAXPROCS
}

// New starts a backend. Its workers live until Close.
func New(o Options) *Backend {
	return &Backend{pool: newPool(o.Workers), scans: sync.Pool{New: newScanScratch}}
}

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

// Variants names the sets of leaf loops that this machine can run, the one
// that New would take last: "generic" is Go alone; "avx2", "avx512" and "neon"
// are assembly. Under the Exact policy all give the same bits.
func Variants() []string {
	var names []string
	for _, v := range vec.Variants() {
		names = append(names, v.String())
	}
	return names
}

// Variant is the name of the leaf loops in use.
func Variant() string { return vec.Active().String() }

// UseVariant chooses the leaf loops of all backends of this program. It is for
// tests and measurements, and must not be called while one computes.
func UseVariant(name string) error {
	for _, v := range vec.Variants() {
		if v.String() == name {
			_, err := vec.Use(v)
			return err
		}
	}
	return fmt.Errorf("cpu: variant %q, want one of %v", name, Variants())
}
