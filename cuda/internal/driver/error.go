//go:build cuda && cgo

package driver

/*
#include "calls.h"

static const char *code_name(int code) {
	const char *s = 0;
	return lc_cuGetErrorName && lc_cuGetErrorName(code, &s) == 0 && s ? s : "";
}

static const char *code_text(int code) {
	const char *s = 0;
	return lc_cuGetErrorString && lc_cuGetErrorString(code, &s) == 0 && s ? s : "";
}
*/
import "C"

import (
	"errors"
	"fmt"
	"strings"
)

// ErrOutOfMemory is matched by an *Error that says that memory, of the device
// or pinned, ran out. Nothing was taken.
var ErrOutOfMemory = errors.New("driver: out of memory")

// ErrDeviceLost is matched by an *Error after which the device does nothing more
// in this process: an access to a wrong address, a trap, a kernel stopped by the
// watchdog, a fault of the hardware. The first one says what happened, those
// that follow name it as their Cause.
var ErrDeviceLost = errors.New("driver: device lost")

// NoDriverError says that there is no driver, or that it does not start.
type NoDriverError struct {
	Reason string
	Code   Code // of cuInit; 0 when there is no library
}

func (e *NoDriverError) Error() string { return "driver: no CUDA driver: " + e.Reason }

// Code is a CUresult.
type Code int32

// The codes that this package tells apart.
const (
	InvalidValue Code = 1
	OutOfMemory  Code = 2
	NoDevice     Code = 100
	NotReady     Code = 600
	NotSupported Code = 801
)

// lost reports whether the device does nothing more in this process. NVIDIA's
// list of results says of each of these that the process must be ended.
func (c Code) lost() bool {
	switch c {
	case 214, // uncorrectable ECC error
		220, // uncorrectable error of NVLink
		700, // illegal address
		702, // launch timeout
		709, // context is destroyed
		710, // assertion
		714, // stack error
		715, // illegal instruction
		716, // misaligned address
		717, // invalid address space
		718, // invalid program counter
		719: // launch failed
		return true
	}
	return false
}

// Error is a call of the driver that failed.
type Error struct {
	Call   string // of the driver API
	Code   Code
	Name   string // CUDA_ERROR_…
	Text   string // the driver's sentence
	Kernel string // that was launched; for a device lost the last one launched; "": none
	Detail string // what was asked for: sizes, names
	Cause  *Error // of a call that was not made: the one at which the device was lost
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("driver: " + e.Call)
	if e.Kernel != "" {
		b.WriteString(" (kernel " + e.Kernel + ")")
	}
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.Cause != nil {
		return b.String() + ": device lost earlier by " + strings.TrimPrefix(e.Cause.Error(), "driver: ")
	}
	if e.Name == "" {
		fmt.Fprintf(&b, ": CUDA error %d", e.Code)
	} else {
		fmt.Fprintf(&b, ": %s (%d)", e.Name, e.Code)
	}
	if e.Text != "" {
		b.WriteString(": " + e.Text)
	}
	return b.String()
}

// Is reports whether target is ErrOutOfMemory or ErrDeviceLost, and e such an
// error.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrOutOfMemory:
		return e.Code == OutOfMemory
	case ErrDeviceLost:
		return e.Code.lost()
	case errors.ErrUnsupported:
		return e.Code == NotSupported
	}
	return false
}

func newError(call string, c Code, kernel, detail string) *Error {
	return &Error{
		Call: call, Code: c, Kernel: kernel, Detail: detail,
		Name: C.GoString(C.code_name(C.int(c))), Text: C.GoString(C.code_text(C.int(c))),
	}
}

// gone is the error of a call that is not made because the device is lost, or
// nil.
func (d *Device) gone(call string) error {
	if cause := d.lost.Load(); cause != nil {
		return &Error{Call: call, Code: cause.Code, Name: cause.Name, Cause: cause}
	}
	return nil
}

// failed makes the error of a call and remembers the first that lost the
// device.
func (d *Device) failed(call string, c Code, kernel, detail string) error {
	if c.lost() && kernel == "" {
		if f := d.last.Load(); f != nil {
			kernel = f.name
		}
	}
	e := newError(call, c, kernel, detail)
	if c.lost() && !d.lost.CompareAndSwap(nil, e) {
		return d.gone(call)
	}
	return e
}

// try makes a call unless the device is lost.
func (d *Device) try(call string, f func() C.int) error {
	return d.tryWith(call, "", f)
}

func (d *Device) tryWith(call, detail string, f func() C.int) error {
	if err := d.gone(call); err != nil {
		return err
	}
	if c := Code(f()); c != 0 {
		return d.failed(call, c, "", detail)
	}
	return nil
}

// refuse is the error of an argument that the driver is not shown.
func refuse(call, format string, args ...any) error {
	return &Error{Call: call, Code: InvalidValue, Name: "CUDA_ERROR_INVALID_VALUE", Detail: fmt.Sprintf(format, args...)}
}
