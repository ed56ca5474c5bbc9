// Package cuda is the CUDA backend. In this version it has no kernels: Open
// says so, and programs fall back to package cpu, which gives the results that
// the CUDA kernels will have to reproduce bit for bit. The API is the same with
// and without the build tag cuda.
package cuda

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// Backend computes on one CUDA device. Only Open makes one.
type Backend struct{ kernel.Backend }

// UnavailableError says why no device can be opened. It is
// errors.ErrUnsupported.
type UnavailableError struct {
	Device int
	Reason string
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("cuda: device %d: %s", e.Device, e.Reason)
}

// Is reports whether target is errors.ErrUnsupported.
func (e *UnavailableError) Is(target error) bool { return target == errors.ErrUnsupported }

// Open returns the backend of a device, or an *UnavailableError.
func Open(device int) (*Backend, error) {
	return nil, &UnavailableError{device, reason}
}
