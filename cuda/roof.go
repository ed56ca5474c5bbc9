//go:build cuda && cgo

package cuda

// #include "kernels/params.h"
import "C"

import (
	"fmt"
	"time"
	"unsafe"
)

// MeasureRoof measures the device's roofs: fused multiply-adds of registers, and
// reading so many bytes, which should be several times what its caches hold. Each
// takes the best of some runs of about the given time together.
func (b *Backend) MeasureRoof(bytes int64, d time.Duration) (r Roof, err error) {
	const perThread = 2 * 16 // FLOP of a step
	blocks := 8 * b.dev.multiprocessors()
	threads := int64(blocks) * opThreads
	data, out := buffer{dev: b.dev}, buffer{dev: b.dev}
	defer data.Close()
	defer out.Close()
	bytes = max(bytes&^15, 16)
	if err := data.grow(bytes); err != nil {
		return r, err
	}
	if err := out.grow(4 * threads); err != nil {
		return r, err
	}
	if err := b.dev.clear(data.addr, bytes); err != nil {
		return r, err
	}
	// best is the shortest time of a launch.
	best := func(name string, p *C.lc_roof_params) (float64, error) {
		least, start := time.Duration(1<<62), time.Now()
		for n := 0; n < 3 || time.Since(start) < d; n++ {
			began := time.Now()
			if err := b.dev.launch(name, blocks, opThreads, 0, unsafe.Pointer(p)); err != nil {
				return 0, fmt.Errorf("cuda: %s: %w", name, err)
			}
			if err := b.dev.wait(); err != nil {
				return 0, fmt.Errorf("cuda: %s: %w", name, err)
			}
			least = min(least, time.Since(began))
		}
		return least.Seconds(), nil
	}
	p := C.lc_roof_params{data: C.uint64_t(data.addr), out: C.uint64_t(out.addr), n: C.int64_t(bytes / 16)}
	seconds, err := best("roof_read_256", &p)
	if err != nil {
		return r, err
	}
	r.Read = float64(bytes) / seconds
	p.n = 1
	for { // long enough that launching counts for nothing
		if seconds, err = best("roof_fma_256", &p); err != nil {
			return r, err
		}
		if seconds > 5e-3 || p.n > 1<<30 {
			break
		}
		p.n *= 4
	}
	r.FMA = perThread * float64(p.n) * float64(threads) / seconds
	return r, nil
}
