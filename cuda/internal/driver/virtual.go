//go:build cuda && cgo

package driver

// #include "calls.h"
import "C"

import (
	"errors"
	"fmt"
)

// Range is a range of addresses of the device that memory is mapped to as it is
// needed: an array that grows without being copied. Calls of one Range must not
// run beside each other.
type Range struct {
	dev    *Device
	base   Ptr
	size   int64
	grain  int64
	mapped []mapping // by address
}

type mapping struct {
	at     int64
	bytes  int64
	handle C.ulonglong
}

// Granularity is what sizes of mapped memory are a multiple of, in bytes.
func (d *Device) Granularity() (int64, error) {
	var n C.size_t
	err := d.try("cuMemGetAllocationGranularity", func() C.int { return C.lc_granularity(d.ctx, C.int(d.id), &n) })
	return int64(n), err
}

// Reserve reserves at least so many bytes of addresses, and no memory.
func (d *Device) Reserve(bytes int64) (*Range, error) {
	if bytes <= 0 {
		return nil, refuse("cuMemAddressReserve", "%d bytes, want at least 1", bytes)
	}
	grain, err := d.Granularity()
	if err != nil {
		return nil, err
	}
	bytes = (bytes + grain - 1) / grain * grain
	var p C.uint64_t
	err = d.tryWith("cuMemAddressReserve", bytesText(bytes), func() C.int { return C.lc_reserve(d.ctx, &p, C.size_t(bytes), 0) })
	if err != nil {
		return nil, err
	}
	return &Range{dev: d, base: Ptr(p), size: bytes, grain: grain}, nil
}

// Base is the first address.
func (r *Range) Base() Ptr { return r.base }

// Size is the number of bytes reserved.
func (r *Range) Size() int64 { return r.size }

// Mapped is the number of bytes from the base that have memory.
func (r *Range) Mapped() int64 {
	if len(r.mapped) == 0 {
		return 0
	}
	last := r.mapped[len(r.mapped)-1]
	return last.at + last.bytes
}

// Grow maps memory so that the first bytes of the range have some. What has
// memory keeps it, and its contents; on an error nothing has changed.
func (r *Range) Grow(bytes int64) error {
	at := r.Mapped()
	if bytes <= at {
		return nil
	}
	if bytes > r.size {
		return refuse("cuMemMap", "%d bytes of a range of %d", bytes, r.size)
	}
	m := mapping{at: at, bytes: (bytes - at + r.grain - 1) / r.grain * r.grain}
	d, p, n := r.dev, C.uint64_t(r.base)+C.uint64_t(at), C.size_t(m.bytes)
	err := d.tryWith("cuMemCreate", bytesText(m.bytes), func() C.int { return C.lc_memory_create(d.ctx, C.int(d.id), &m.handle, n) })
	if err != nil {
		return err
	}
	if err := d.try("cuMemMap", func() C.int { return C.lc_map(d.ctx, p, n, m.handle) }); err != nil {
		C.lc_memory_release(d.ctx, m.handle)
		return err
	}
	if err := d.try("cuMemSetAccess", func() C.int { return C.lc_allow(d.ctx, C.int(d.id), p, n) }); err != nil {
		C.lc_unmap(d.ctx, p, n)
		C.lc_memory_release(d.ctx, m.handle)
		return err
	}
	r.mapped = append(r.mapped, m)
	return nil
}

// Shrink gives memory back beyond the first bytes, as far as whole steps of Grow
// lie beyond them. The device must be done with it.
func (r *Range) Shrink(bytes int64) error {
	for len(r.mapped) > 0 {
		m := r.mapped[len(r.mapped)-1]
		if m.at < bytes {
			break
		}
		if err := r.unmap(m); err != nil {
			return err
		}
		r.mapped = r.mapped[:len(r.mapped)-1]
	}
	return nil
}

func (r *Range) unmap(m mapping) error {
	d, p := r.dev, C.uint64_t(r.base)+C.uint64_t(m.at)
	if err := d.try("cuMemUnmap", func() C.int { return C.lc_unmap(d.ctx, p, C.size_t(m.bytes)) }); err != nil {
		return err
	}
	return d.try("cuMemRelease", func() C.int { return C.lc_memory_release(d.ctx, m.handle) })
}

// Close gives memory and addresses back.
func (r *Range) Close() error {
	if r.base == 0 {
		return nil
	}
	var errs []error
	for _, m := range r.mapped {
		if err := r.unmap(m); err != nil {
			errs = append(errs, err)
		}
	}
	d, base := r.dev, r.base
	r.mapped, r.base = nil, 0
	err := d.try("cuMemAddressFree", func() C.int { return C.lc_reserve_free(d.ctx, C.uint64_t(base), C.size_t(r.size)) })
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("driver: range of %d bytes: %w", r.size, err)
	}
	return nil
}
