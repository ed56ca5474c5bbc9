//go:build cuda && cgo

package driver

/*
#include "calls.h"

#cgo noescape lc_launch
#cgo nocallback lc_launch
#cgo noescape lc_launch_ex
#cgo nocallback lc_launch_ex
*/
import "C"

import "unsafe"

// Dim is the size of a grid, a block or a cluster. Sizes count from 1.
type Dim struct{ X, Y, Z uint32 }

// Module is code that is loaded to the device.
type Module struct {
	dev *Device
	h   handle
}

// Load loads a fatbin, a cubin or PTX. The image is copied.
func (d *Device) Load(image []byte) (*Module, error) {
	if len(image) == 0 {
		return nil, refuse("cuModuleLoadData", "an image of 0 bytes")
	}
	m := &Module{dev: d}
	err := d.tryWith("cuModuleLoadData", bytesText(int64(len(image))), func() (c C.int) {
		m.h, c = cuLoad(d.ctx, unsafe.String(unsafe.SliceData(image), len(image)))
		return c
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Close unloads the module. Its functions must not be launched any more.
func (m *Module) Close() error {
	if m.h == nil {
		return nil
	}
	h := m.h
	m.h = nil
	return m.dev.try("cuModuleUnload", func() C.int { return cuUnload(m.dev.ctx, h) })
}

// Function is a kernel. Each kernel of this library has one parameter, a struct.
type Function struct {
	dev  *Device
	h    handle
	name string
	Attributes
}

// Attributes are what a kernel takes of a multiprocessor.
type Attributes struct {
	Registers    int // of a thread
	Local        int // bytes of a thread, spilled registers among them
	StaticShared int // bytes of a block
	MaxThreads   int // of a block
	ParamBytes   int // size of the parameter; -1 where the driver cannot say
}

// Function is a kernel of the module.
func (m *Module) Function(name string) (*Function, error) {
	d := m.dev
	f := &Function{dev: d, name: name}
	err := d.tryWith("cuModuleGetFunction", name, func() (c C.int) {
		f.h, c = cuFunction(d.ctx, m.h, name)
		return c
	})
	if err != nil {
		return nil, err
	}
	for _, a := range []struct {
		to *int
		id int
	}{{&f.MaxThreads, 0}, {&f.StaticShared, 1}, {&f.Local, 3}, {&f.Registers, 4}} {
		err := d.tryWith("cuFuncGetAttribute", name, func() (c C.int) {
			*a.to, c = cuFunctionAttribute(d.ctx, f.h, a.id)
			return c
		})
		if err != nil {
			return nil, err
		}
	}
	var n C.size_t
	switch c := Code(C.lc_param_bytes(d.ctx, f.h, &n)); {
	case c == 0:
		f.ParamBytes = int(n)
	case c.lost():
		return nil, d.failed("cuFuncGetParamInfo", c, "", name)
	default:
		f.ParamBytes = -1
	}
	return f, nil
}

// Name is the kernel's.
func (f *Function) Name() string { return f.name }

// SetMaxDynamicShared allows launches with up to so many bytes of shared memory,
// of which more than 48 KiB need the allowance.
func (f *Function) SetMaxDynamicShared(bytes int) error {
	if err := f.dev.gone("cuFuncSetAttribute"); err != nil {
		return err
	}
	if c := C.lc_set_dynamic_shared(f.dev.ctx, f.h, C.int(bytes)); c != 0 {
		return f.dev.failed("cuFuncSetAttribute", Code(c), f.name, bytesText(int64(bytes))+" of dynamic shared memory")
	}
	return nil
}

// Launch puts a kernel in the stream with shared bytes of dynamic shared memory.
// params points to its parameter, which must hold no pointers of Go; the call
// copies it. It allocates nothing.
func (s *Stream) Launch(f *Function, grid, block Dim, shared int, params unsafe.Pointer) error {
	d := s.dev
	if err := d.gone("cuLaunchKernel"); err != nil {
		return err
	}
	d.last.Store(f)
	c := C.lc_launch(d.ctx, f.h, C.uint(grid.X), C.uint(grid.Y), C.uint(grid.Z), C.uint(block.X), C.uint(block.Y), C.uint(block.Z),
		C.uint(shared), s.h, params)
	if c != 0 {
		return d.failed("cuLaunchKernel", Code(c), f.name, launchText(grid, block, shared))
	}
	return nil
}

// Options are those of LaunchEx.
type Options struct {
	Cluster Dim // blocks of a cluster; the zero value: none

	// Programmatic lets the kernel start while the one before it in the stream
	// ends; it must wait for that one itself where it needs its results.
	Programmatic bool
}

// LaunchEx is Launch with options.
func (s *Stream) LaunchEx(f *Function, grid, block Dim, shared int, params unsafe.Pointer, o Options) error {
	d := s.dev
	if err := d.gone("cuLaunchKernelEx"); err != nil {
		return err
	}
	d.last.Store(f)
	programmatic := C.int(0)
	if o.Programmatic {
		programmatic = 1
	}
	c := C.lc_launch_ex(d.ctx, f.h, C.uint(grid.X), C.uint(grid.Y), C.uint(grid.Z), C.uint(block.X), C.uint(block.Y), C.uint(block.Z),
		C.uint(shared), s.h, params, C.uint(o.Cluster.X), C.uint(o.Cluster.Y), C.uint(o.Cluster.Z), programmatic)
	if c != 0 {
		return d.failed("cuLaunchKernelEx", Code(c), f.name, launchText(grid, block, shared))
	}
	return nil
}
