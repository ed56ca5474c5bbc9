//go:build cuda && cgo

package cuda

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/cuda/internal/driver"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

var _ kernel.Grower = (*Backend)(nil)

// Reserve reserves addresses, and no memory: see Grow.
func (b *Backend) Reserve(most int64) (tensor.Buffer, error) {
	if most < 1 {
		return nil, fmt.Errorf("cuda: Reserve of %d bytes, want at least 1", most)
	}
	addr, pages, err := b.dev.reserve(most)
	if err != nil {
		return nil, err
	}
	return &buffer{dev: b.dev, addr: addr, mapped: pages}, nil
}

// Grow maps memory behind what a buffer of Reserve has. Addresses stay, so that
// plans and graphs do too.
func (b *Backend) Grow(x tensor.Buffer, bytes int64) error {
	m, err := b.own(x, 0)
	if err != nil {
		return err
	}
	if m.mapped == nil {
		return errors.New("cuda: Grow of a buffer that is not of Reserve, or closed")
	}
	if bytes < m.Size() || bytes > m.mapped.Size() {
		return fmt.Errorf("cuda: Grow to %d bytes, want %d to %d", bytes, m.Size(), m.mapped.Size())
	}
	if err := m.mapped.Grow(bytes); errors.Is(err, driver.ErrOutOfMemory) {
		return &kernel.OutOfMemoryError{Backend: "cuda", Bytes: bytes - m.Size()}
	} else if err != nil {
		return err
	}
	if bytes > m.Size() { // memory that is mapped holds anything
		if err := b.dev.clear(m.addr+uint64(m.Size()), bytes-m.Size()); err != nil {
			return err
		}
	}
	m.size.Store(bytes)
	return nil
}
