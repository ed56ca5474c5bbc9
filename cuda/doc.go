// Package cuda is the CUDA backend. Built with tag cuda and cgo it computes on
// an NVIDIA device with the bits of package cpu; otherwise, and where there is
// no driver or device, Open says why, and programs fall back to package cpu. The
// API is the same with and without the tag.
//
// The kernels are in kernels/: attention.cuh first, the rules they follow in
// package kernel. sim/ runs them on the host, for tests. No kernel has been timed
// on a device yet. The Fast policy computes as Exact does.
package cuda

import (
	"errors"
	"fmt"
)

// UnavailableError says why no device can be opened. It is
// errors.ErrUnsupported.
type UnavailableError struct {
	Device int
	Reason string
	Err    error // of the driver; nil where there is none in the program
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("cuda: device %d: %s", e.Device, e.Reason)
}

// Unwrap returns Err.
func (e *UnavailableError) Unwrap() error { return e.Err }

// Is reports whether target is errors.ErrUnsupported.
func (e *UnavailableError) Is(target error) bool { return target == errors.ErrUnsupported }

// StaleGraphError says that a kernel was planned so that a graph no longer serves
// it: for other numbers of tokens, or for sequences so much longer that its tables
// have moved, which happens each time that they double. Capture anew.
type StaleGraphError struct {
	Kernel string
}

func (e *StaleGraphError) Error() string {
	return fmt.Sprintf("cuda: graph: the last Plan of %s does not fit what was captured: capture anew", e.Kernel)
}

// Roof is what a device can do at most, as it was measured.
type Roof struct {
	FMA  float64 // FLOP/s of FP32 fused multiply-adds in registers
	Read float64 // bytes/s read from its memory
}
