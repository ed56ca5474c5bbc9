//go:build !cuda || !cgo

package cuda

import "github.com/longctx/longctx/kernel"

// Backend computes on one CUDA device. Only Open makes one.
type Backend struct{ kernel.Backend }

// Open returns the backend of a device, or an *UnavailableError.
func Open(device int) (*Backend, error) {
	return nil, &UnavailableError{Device: device, Reason: "built without tag cuda or without cgo; use package cpu"}
}
