package kernel

import (
	"errors"
	"fmt"
	"strings"
)

// UnsupportedError reports a Spec for which a backend has no kernel, with
// every reason. It is errors.ErrUnsupported.
type UnsupportedError struct {
	Backend string
	Reasons []string // "HeadDim 1024 (have 1 to 576)"
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s: not supported: %s", e.Backend, strings.Join(e.Reasons, "; "))
}

// Is reports whether target is errors.ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// ShapeError reports a tensor or table whose shape does not fit.
type ShapeError struct {
	Tensor    string // "Key", "Batch.SeqLens"
	Got, Want string
}

func (e *ShapeError) Error() string {
	return fmt.Sprintf("kernel: %s is %s, want %s", e.Tensor, e.Got, e.Want)
}

// ValueError reports a value outside what is allowed.
type ValueError struct {
	Name      string // "Spec.KVHeads", "Batch.Pages.Indices[3]"
	Got, Want string
}

func (e *ValueError) Error() string {
	return fmt.Sprintf("kernel: %s is %s, want %s", e.Name, e.Got, e.Want)
}

// OutOfMemoryError reports an allocation that did not succeed. Nothing was
// changed.
type OutOfMemoryError struct {
	Backend string
	Bytes   int64
}

func (e *OutOfMemoryError) Error() string {
	return fmt.Sprintf("%s: no memory for %d bytes", e.Backend, e.Bytes)
}

// ErrNoPlan is returned by Run, Backward and ColumnStats before a Plan.
var ErrNoPlan = errors.New("kernel: Run before Plan")

// ErrClosed is returned by a kernel after Close.
var ErrClosed = errors.New("kernel: closed")

// ErrBusy is returned where one Attention is used from two goroutines at once.
var ErrBusy = errors.New("kernel: Attention used from two goroutines at once")

func name[T ~uint8](x T, names ...string) string {
	if int(x) < len(names) {
		return names[x]
	}
	return fmt.Sprintf("%T(%d)", x, uint8(x))
}
