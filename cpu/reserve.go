package cpu

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

var _ kernel.Grower = (*Backend)(nil)

// reserved is a buffer that grows where it is: addresses, of which the first size
// bytes are memory.
type reserved struct {
	mu   sync.Mutex // of mem, and of growing
	mem  []byte     // all addresses; nil: closed
	size atomic.Int64
}

func (*reserved) Device() string { return "cpu" }

func (r *reserved) Size() int64 { return r.size.Load() }

// Bytes returns the memory that there is.
func (r *reserved) Bytes() []byte { return r.mem[:r.size.Load()] }

// Close gives addresses and memory back. Nothing may use the buffer any more.
func (r *reserved) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mem == nil {
		return nil
	}
	r.size.Store(0)
	mem := r.mem
	r.mem = nil
	return release(mem)
}

// Reserve reserves addresses, and no memory: see Grow. It returns a
// *kernel.UnsupportedError where the system has no such thing, as Windows in this
// version.
func (b *Backend) Reserve(most int64) (tensor.Buffer, error) {
	if most < 1 {
		return nil, fmt.Errorf("cpu: Reserve of %d bytes, want at least 1", most)
	}
	if int64(int(most)) != most {
		return nil, &kernel.OutOfMemoryError{Backend: "cpu", Bytes: most}
	}
	mem, err := reserve(int(most))
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, &kernel.UnsupportedError{Backend: "cpu", Reasons: []string{"memory that grows is to be had on Unix alone"}}
	} else if err != nil {
		return nil, &kernel.OutOfMemoryError{Backend: "cpu", Bytes: most}
	}
	return &reserved{mem: mem}, nil
}

// Grow turns addresses of a buffer of Reserve into memory, up to so many bytes in
// all. Where the system has no more, the error is a *kernel.OutOfMemoryError.
func (b *Backend) Grow(x tensor.Buffer, bytes int64) error {
	r, ok := x.(*reserved)
	if !ok {
		return errors.New("cpu: Grow of a buffer that is not of Reserve")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mem == nil {
		return errors.New("cpu: Grow of a buffer that is closed")
	}
	have := r.size.Load()
	if bytes < have || bytes > int64(len(r.mem)) {
		return fmt.Errorf("cpu: Grow to %d bytes, want %d to %d", bytes, have, len(r.mem))
	}
	if err := commit(r.mem[:bytes]); err != nil {
		return &kernel.OutOfMemoryError{Backend: "cpu", Bytes: bytes - have}
	}
	wantHugePages(wholePages(r.mem[:bytes]))
	r.size.Store(bytes)
	return nil
}
