//go:build cuda && cgo

package driver

// #include "calls.h"
import "C"

import (
	"reflect"
	"runtime"
	"unsafe"

	"gorgonia.org/cu"
)

// This file alone imports gorgonia.org/cu. To do without it, write these
// functions with calls of calls.h. Never use its Launch: it passes 8 bytes of a
// parameter, whatever its size.

type handle = unsafe.Pointer

// codeOf is the code of an error of cu: an int of a type it does not export.
func codeOf(err error) C.int {
	if err == nil {
		return 0
	}
	if v := reflect.ValueOf(err); v.Kind() == reflect.Int {
		return C.int(v.Int())
	}
	return C.int(999) // CUDA_ERROR_UNKNOWN
}

// raw is the handle in a struct of cu, each of which holds one and nothing else.
func raw[T cu.CUContext | cu.Module | cu.Function | cu.Stream | cu.Event](v T) handle {
	return *(*handle)(unsafe.Pointer(&v))
}

func wrap[T cu.CUContext | cu.Module | cu.Function | cu.Stream | cu.Event](h handle) (v T) {
	*(*handle)(unsafe.Pointer(&v)) = h
	return v
}

// A build fails here when one of them has become larger or smaller.
const handleBytes = unsafe.Sizeof(handle(nil))

var (
	_ [handleBytes]byte = [unsafe.Sizeof(cu.CUContext{})]byte{}
	_ [handleBytes]byte = [unsafe.Sizeof(cu.Module{})]byte{}
	_ [handleBytes]byte = [unsafe.Sizeof(cu.Function{})]byte{}
	_ [handleBytes]byte = [unsafe.Sizeof(cu.Stream{})]byte{}
	_ [handleBytes]byte = [unsafe.Sizeof(cu.Event{})]byte{}
)

// within makes a call of cu with the context current to its thread.
func within(ctx handle, f func() error) C.int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cu.SetCurrentContext(wrap[cu.CUContext](ctx)); err != nil {
		return codeOf(err)
	}
	return codeOf(f())
}

func cuCount() (int, C.int) {
	n, err := cu.NumDevices()
	return n, codeOf(err)
}

func cuDevice(ordinal int) (int, C.int) {
	d, err := cu.GetDevice(ordinal)
	return int(d), codeOf(err)
}

func cuName(device int) (string, C.int) {
	s, err := cu.Device(device).Name()
	return s, codeOf(err)
}

func cuAttribute(device, attribute int) (int, C.int) {
	v, err := cu.Device(device).Attribute(cu.DeviceAttribute(attribute))
	return v, codeOf(err)
}

func cuTotalMemory(device int) (int64, C.int) {
	n, err := cu.Device(device).TotalMem()
	return n, codeOf(err)
}

func cuRetain(device int) (handle, C.int) {
	ctx, err := cu.Device(device).RetainPrimaryCtx()
	return raw(ctx), codeOf(err)
}

func cuRelease(device int) C.int { return codeOf(cu.Device(device).ReleasePrimaryCtx()) }

func cuMemInfo(ctx handle) (free, total int64, c C.int) {
	c = within(ctx, func() (err error) {
		free, total, err = cu.MemInfo()
		return err
	})
	return free, total, c
}

func cuAlloc(ctx handle, bytes int64) (p Ptr, c C.int) {
	c = within(ctx, func() error {
		q, err := cu.MemAlloc(bytes)
		p = Ptr(q)
		return err
	})
	return p, c
}

func cuFree(ctx handle, p Ptr) C.int {
	return within(ctx, func() error { return cu.MemFree(cu.DevicePtr(p)) })
}

func cuCopyToDevice(ctx handle, dst Ptr, src []byte) C.int {
	return within(ctx, func() error {
		return cu.MemcpyHtoD(cu.DevicePtr(dst), unsafe.Pointer(unsafe.SliceData(src)), int64(len(src)))
	})
}

func cuCopyToHost(ctx handle, dst []byte, src Ptr) C.int {
	return within(ctx, func() error {
		return cu.MemcpyDtoH(unsafe.Pointer(unsafe.SliceData(dst)), cu.DevicePtr(src), int64(len(dst)))
	})
}

func cuLoad(ctx handle, image string) (m handle, c C.int) {
	c = within(ctx, func() error {
		mod, err := cu.LoadData(image)
		m = raw(mod)
		return err
	})
	return m, c
}

func cuUnload(ctx, module handle) C.int {
	return within(ctx, wrap[cu.Module](module).Unload)
}

func cuFunction(ctx, module handle, name string) (f handle, c C.int) {
	c = within(ctx, func() error {
		fn, err := wrap[cu.Module](module).Function(name)
		f = raw(fn)
		return err
	})
	return f, c
}

func cuFunctionAttribute(ctx, function handle, attribute int) (v int, c C.int) {
	c = within(ctx, func() (err error) {
		v, err = wrap[cu.Function](function).Attribute(cu.FunctionAttribute(attribute))
		return err
	})
	return v, c
}

func cuMakeStream(ctx handle, priority int) (s handle, c C.int) {
	c = within(ctx, func() error {
		stream, err := cu.MakeStreamWithPriority(priority, cu.NonBlocking)
		s = raw(stream)
		return err
	})
	return s, c
}

func cuDestroyStream(ctx, stream handle) C.int {
	s := wrap[cu.Stream](stream)
	return within(ctx, s.Destroy)
}

// Flags of events: cu names some, its type is not needed.
func cuMakeEvent(ctx handle, flags int) (e handle, c C.int) {
	c = within(ctx, func() error {
		event, err := cu.MakeEvent(cu.EventFlags(flags))
		e = raw(event)
		return err
	})
	return e, c
}

func cuDestroyEvent(ctx, event handle) C.int {
	e := wrap[cu.Event](event)
	return within(ctx, func() error { return cu.DestroyEvent(&e) })
}
