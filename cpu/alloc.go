package cpu

import (
	"math"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Sizes of memory that is more than a few objects.
const (
	hugePage   = 2 << 20
	largeAlloc = 8 << 20  // worth huge pages and a parallel first touch
	askFirst   = 64 << 20 // the system is asked whether it would map so much
)

// Alloc returns zeroed host memory. Where the system offers it, a large block
// is put on huge pages: a cache of 1 GB is 512 of them instead of 262144, so
// that reading it does not miss in the translation buffers. The workers touch
// it first, in turn, so that on a machine with several memory nodes it lies on
// all those they run on.
func (b *Backend) Alloc(bytes int64) (tensor.Buffer, error) {
	if bytes < 0 || bytes > math.MaxInt-askFirst || bytes > askFirst && !granted(bytes) {
		return nil, &kernel.OutOfMemoryError{Backend: "cpu", Bytes: bytes}
	}
	h := tensor.NewHost(bytes)
	if bytes >= largeAlloc {
		t := &toucher{mem: h.Bytes()}
		wantHugePages(wholePages(t.mem))
		b.pool.do(&job{}, t, (bytes+hugePage-1)/hugePage)
	}
	return h, nil
}

// wholePages is the part of b that consists of whole huge pages.
func wholePages(b []byte) []byte {
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (hugePage - 1)
	if skip >= len(b) {
		return nil
	}
	b = b[skip:]
	return b[:len(b)&^(hugePage-1)]
}

// toucher writes to memory for the first time: one item is a huge page.
type toucher struct{ mem []byte }

func (t *toucher) item(_ int, i int64) {
	b := t.mem[i*hugePage:]
	b = b[:min(len(b), hugePage)]
	for k := 0; k < len(b); k += 4096 {
		b[k] = 0
	}
}
