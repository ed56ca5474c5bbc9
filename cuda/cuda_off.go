//go:build !cuda || !cgo

package cuda

import (
	"errors"
	"fmt"
	"time"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// errOff is what everything returns in a program without CUDA.
var errOff = fmt.Errorf("cuda: built without tag cuda or without cgo; use package cpu: %w", errors.ErrUnsupported)

// Backend computes on one CUDA device. Only Open makes one.
type Backend struct{ kernel.Backend }

// Open returns the backend of a device, or an *UnavailableError.
func Open(device int) (*Backend, error) {
	return nil, &UnavailableError{Device: device, Reason: "built without tag cuda or without cgo; use package cpu"}
}

// Close gives the device back. No method may be called afterwards.
func (*Backend) Close() error { return errOff }

// Wait waits until all that was asked for is done.
func (*Backend) Wait() error { return errOff }

// CopyIn copies src to the start of a buffer of this backend.
func (*Backend) CopyIn(dst tensor.Buffer, src []byte) error { return errOff }

// CopyOut copies the start of a buffer of this backend to dst.
func (*Backend) CopyOut(dst []byte, src tensor.Buffer) error { return errOff }

// Scan runs tokens of sequences through their states.
func (*Backend) Scan(a *kernel.ScanArgs) error { return errOff }

// ScanBackward has no kernel.
func (*Backend) ScanBackward(a *kernel.ScanBackwardArgs) error { return errOff }

// HostAlloc returns pinned memory.
func (*Backend) HostAlloc(bytes int64) (tensor.Buffer, error) { return nil, errOff }

// SwapOut copies pages to pinned memory.
func (*Backend) SwapOut(a *kernel.SwapArgs) (kernel.Transfer, error) { return nil, errOff }

// SwapIn copies pages from pinned memory.
func (*Backend) SwapIn(a *kernel.SwapArgs) (kernel.Transfer, error) { return nil, errOff }

// Reserve reserves addresses, and no memory.
func (*Backend) Reserve(most int64) (tensor.Buffer, error) { return nil, errOff }

// Grow maps memory behind what a buffer of Reserve has.
func (*Backend) Grow(x tensor.Buffer, bytes int64) error { return errOff }

// MeasureRoof measures the device's roofs.
func (*Backend) MeasureRoof(bytes int64, d time.Duration) (r Roof, err error) { return Roof{}, errOff }

// Capture records what record asks of this backend.
func (*Backend) Capture(record func() error) (*Graph, error) { return nil, errOff }

// Graph is a recorded sequence of Runs, to be launched as one.
type Graph struct{}

// Launch runs the graph.
func (*Graph) Launch() error { return errOff }

// Close frees the graph.
func (*Graph) Close() error { return errOff }
