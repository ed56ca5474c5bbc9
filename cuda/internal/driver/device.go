//go:build cuda && cgo

package driver

/*
#cgo linux LDFLAGS: -ldl
#include "calls.h"

static int driver_version(int *v) { return lc_cuDriverGetVersion ? lc_cuDriverGetVersion(v) : lc_not_supported; }
*/
import "C"

import (
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Info is what a device is.
type Info struct {
	Ordinal       int
	Name          string
	PCI           string // domain:bus:device.function
	SM            int    // 10·major + minor of the compute capability: 90 for an H200
	Multiprocs    int
	Memory        int64 // bytes
	L2            int   // bytes
	SharedPerSM   int   // bytes
	SharedPerMore int   // bytes a block may have when its kernel is allowed more than 48 KiB
	DriverVersion int   // of CUDA: 13000 for 13.0
}

// Device is one device with its primary context. Open makes it, Close gives the
// context back: what was made from the device must be closed before.
type Device struct {
	Info
	id  int // CUdevice
	ctx handle

	lost atomic.Pointer[Error]
	last atomic.Pointer[Function] // launched

	mu     sync.Mutex
	pool   handle // made by the first Stream.Alloc
	closed bool
}

// start loads the driver. Its errors are those of every call that needs one.
func start() error {
	switch c := C.lc_open(); c {
	case 0:
		return nil
	case C.lc_no_library:
		return &NoDriverError{Reason: C.GoString(C.lc_open_error())}
	default:
		return &NoDriverError{Reason: newError("cuInit", Code(c), "", "").Error(), Code: Code(c)}
	}
}

// Devices is the number of devices, or a *NoDriverError.
func Devices() (int, error) {
	if err := start(); err != nil {
		return 0, err
	}
	n, c := cuCount()
	if c != 0 {
		return 0, newError("cuDeviceGetCount", Code(c), "", "")
	}
	return n, nil
}

// Open takes the primary context of a device.
func Open(ordinal int) (*Device, error) {
	n, err := Devices()
	if err != nil {
		return nil, err
	}
	if ordinal < 0 || ordinal >= n {
		e := newError("cuDeviceGet", 101, "", "")
		e.Detail = deviceRange(ordinal, n)
		return nil, e
	}
	d := &Device{}
	d.Ordinal = ordinal
	if err := d.describe(); err != nil {
		return nil, err
	}
	ctx, c := cuRetain(d.id)
	if c != 0 {
		return nil, newError("cuDevicePrimaryCtxRetain", Code(c), "", d.Name)
	}
	d.ctx = ctx
	return d, nil
}

func (d *Device) describe() error {
	var c C.int
	if d.id, c = cuDevice(d.Ordinal); c != 0 {
		return newError("cuDeviceGet", Code(c), "", "")
	}
	if d.Name, c = cuName(d.id); c != 0 {
		return newError("cuDeviceGetName", Code(c), "", "")
	}
	if d.Memory, c = cuTotalMemory(d.id); c != 0 {
		return newError("cuDeviceTotalMem", Code(c), "", "")
	}
	var major, minor int
	for _, a := range []struct {
		to *int
		id int
	}{{&major, 75}, {&minor, 76}, {&d.Multiprocs, 16}, {&d.L2, 38}, {&d.SharedPerSM, 81}, {&d.SharedPerMore, 97}} {
		if *a.to, c = cuAttribute(d.id, a.id); c != 0 {
			return newError("cuDeviceGetAttribute", Code(c), "", "")
		}
	}
	d.SM = 10*major + minor
	var id [32]C.char
	if c = C.lc_pci_bus_id(&id[0], C.int(len(id)), C.int(d.id)); c != 0 {
		return newError("cuDeviceGetPCIBusId", Code(c), "", "")
	}
	d.PCI = C.GoString(&id[0])
	var v C.int
	if c = C.driver_version(&v); c != 0 {
		return newError("cuDriverGetVersion", Code(c), "", "")
	}
	d.DriverVersion = int(v)
	return nil
}

// Close gives the primary context back. A second Close does nothing.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	pool := d.closePool()
	// Of a lost device too: the context is counted by the process.
	if c := cuRelease(d.id); c != 0 && d.lost.Load() == nil {
		return errors.Join(pool, newError("cuDevicePrimaryCtxRelease", Code(c), "", d.Name))
	}
	return pool
}

// closePool gives the pool back; d.mu is held.
func (d *Device) closePool() error {
	pool := d.pool
	if pool == nil {
		return nil
	}
	d.pool = nil
	return d.try("cuMemPoolDestroy", func() C.int { return C.lc_pool_destroy(d.ctx, pool) })
}

// Lost is the error that lost the device, or nil.
func (d *Device) Lost() error {
	if e := d.lost.Load(); e != nil {
		return e
	}
	return nil
}

// MemInfo is the device's memory that is free now, and all it has, in bytes.
func (d *Device) MemInfo() (free, total int64, err error) {
	err = d.try("cuMemGetInfo", func() (c C.int) {
		free, total, c = cuMemInfo(d.ctx)
		return c
	})
	return free, total, err
}

// Context is the primary context, for libraries that share it.
func (d *Device) Context() unsafe.Pointer { return d.ctx }
