//go:build cuda && cgo

package driver

/*
#include "calls.h"

#cgo noescape lc_copy_htod
#cgo nocallback lc_copy_htod
#cgo noescape lc_copy_dtoh
#cgo nocallback lc_copy_dtoh
#cgo nocallback lc_copy_dtod
#cgo nocallback lc_memset
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Ptr is an address of device memory.
type Ptr uint64

func deviceRange(ordinal, n int) string {
	return fmt.Sprintf("device %d of %d (they count from 0)", ordinal, n)
}

func bytesText(n int64) string { return fmt.Sprintf("%d bytes", n) }

// Alloc takes memory of the device. It waits for the device.
func (d *Device) Alloc(bytes int64) (Ptr, error) {
	if bytes <= 0 {
		return 0, refuse("cuMemAlloc", "%d bytes, want at least 1", bytes)
	}
	var p Ptr
	err := d.tryWith("cuMemAlloc", bytesText(bytes), func() (c C.int) {
		p, c = cuAlloc(d.ctx, bytes)
		return c
	})
	if err != nil {
		return 0, err
	}
	return p, nil
}

// Free gives back what Alloc gave. It waits for the device. Address 0 is none.
func (d *Device) Free(p Ptr) error {
	if p == 0 {
		return nil
	}
	return d.try("cuMemFree", func() C.int { return cuFree(d.ctx, p) })
}

// AllocHost takes pinned memory of the host: copies from and to it run beside
// the host. It is no memory of Go's: FreeHost gives it back.
func (d *Device) AllocHost(bytes int) ([]byte, error) {
	if bytes <= 0 {
		return nil, refuse("cuMemHostAlloc", "%d bytes, want at least 1", bytes)
	}
	var p unsafe.Pointer
	err := d.tryWith("cuMemHostAlloc", bytesText(int64(bytes)), func() C.int { return C.lc_host_alloc(d.ctx, &p, C.size_t(bytes)) })
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), bytes), nil
}

// FreeHost gives back what AllocHost gave.
func (d *Device) FreeHost(b []byte) error {
	if b == nil {
		return nil
	}
	p := unsafe.Pointer(unsafe.SliceData(b))
	return d.try("cuMemFreeHost", func() C.int { return C.lc_host_free(d.ctx, p) })
}

// CopyToDevice copies and waits.
func (d *Device) CopyToDevice(dst Ptr, src []byte) error {
	if len(src) == 0 {
		return nil
	}
	return d.tryWith("cuMemcpyHtoD", bytesText(int64(len(src))), func() C.int { return cuCopyToDevice(d.ctx, dst, src) })
}

// CopyToHost copies and waits for what was put before in no stream: order it
// after work in a Stream by Sync of that.
func (d *Device) CopyToHost(dst []byte, src Ptr) error {
	if len(dst) == 0 {
		return nil
	}
	return d.tryWith("cuMemcpyDtoH", bytesText(int64(len(dst))), func() C.int { return cuCopyToHost(d.ctx, dst, src) })
}

// CopyToDevice puts a copy in the stream. Pinned memory must stay as it is until
// it is done; other memory may change when the call returns.
func (s *Stream) CopyToDevice(dst Ptr, src []byte) error {
	if len(src) == 0 {
		return nil
	}
	if err := s.dev.gone("cuMemcpyHtoDAsync"); err != nil {
		return err
	}
	c := C.lc_copy_htod(s.dev.ctx, C.uint64_t(dst), unsafe.Pointer(unsafe.SliceData(src)), C.size_t(len(src)), s.h)
	return s.copied("cuMemcpyHtoDAsync", c, int64(len(src)))
}

// CopyToHost puts a copy in the stream. To memory that is not pinned it is done
// when the call returns.
func (s *Stream) CopyToHost(dst []byte, src Ptr) error {
	if len(dst) == 0 {
		return nil
	}
	if err := s.dev.gone("cuMemcpyDtoHAsync"); err != nil {
		return err
	}
	c := C.lc_copy_dtoh(s.dev.ctx, unsafe.Pointer(unsafe.SliceData(dst)), C.uint64_t(src), C.size_t(len(dst)), s.h)
	return s.copied("cuMemcpyDtoHAsync", c, int64(len(dst)))
}

// Copy puts a copy within the device in the stream.
func (s *Stream) Copy(dst, src Ptr, bytes int64) error {
	if bytes == 0 {
		return nil
	}
	if err := s.dev.gone("cuMemcpyDtoDAsync"); err != nil {
		return err
	}
	c := C.lc_copy_dtod(s.dev.ctx, C.uint64_t(dst), C.uint64_t(src), C.size_t(bytes), s.h)
	return s.copied("cuMemcpyDtoDAsync", c, bytes)
}

// Memset puts in the stream that bytes become value.
func (s *Stream) Memset(dst Ptr, value byte, bytes int64) error {
	if bytes == 0 {
		return nil
	}
	if err := s.dev.gone("cuMemsetD8Async"); err != nil {
		return err
	}
	c := C.lc_memset(s.dev.ctx, C.uint64_t(dst), C.uchar(value), C.size_t(bytes), s.h)
	return s.copied("cuMemsetD8Async", c, bytes)
}

func (s *Stream) copied(call string, c C.int, bytes int64) error {
	if c == 0 {
		return nil
	}
	return s.dev.failed(call, Code(c), "", bytesText(bytes))
}

// Alloc takes memory that may be used by what is put in the stream from now on,
// from a pool of the device's; it does not wait for the device.
func (s *Stream) Alloc(bytes int64) (Ptr, error) {
	if bytes <= 0 {
		return 0, refuse("cuMemAllocFromPoolAsync", "%d bytes, want at least 1", bytes)
	}
	pool, err := s.dev.memPool()
	if err != nil {
		return 0, err
	}
	var p C.uint64_t
	err = s.dev.tryWith("cuMemAllocFromPoolAsync", bytesText(bytes), func() C.int {
		return C.lc_pool_alloc(s.dev.ctx, &p, C.size_t(bytes), pool, s.h)
	})
	if err != nil {
		return 0, err
	}
	return Ptr(p), nil
}

// Free gives back what Alloc of a stream gave, when all that was put in the
// stream before is done.
func (s *Stream) Free(p Ptr) error {
	if p == 0 {
		return nil
	}
	return s.dev.try("cuMemFreeAsync", func() C.int { return C.lc_pool_free(s.dev.ctx, C.uint64_t(p), s.h) })
}

func (d *Device) memPool() (handle, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pool != nil {
		return d.pool, nil
	}
	var pool handle
	if err := d.try("cuMemPoolCreate", func() C.int { return C.lc_pool_create(d.ctx, &pool, C.int(d.id)) }); err != nil {
		return nil, err
	}
	d.pool = pool
	return pool, nil
}

// TrimPool gives the device memory that the pool of Stream.Alloc holds free,
// but for keep bytes.
func (d *Device) TrimPool(keep int64) error {
	pool, err := d.memPool()
	if err != nil {
		return err
	}
	return d.try("cuMemPoolTrimTo", func() C.int { return C.lc_pool_trim(d.ctx, pool, C.size_t(max(keep, 0))) })
}
