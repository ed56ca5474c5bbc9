package kernels

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Available is the memory, in bytes, that the system says programs may still
// take, and 4 GiB where it does not say.
func Available() int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 4 << 30
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kib int64
		if n, _ := fmt.Sscanf(s.Text(), "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 4 << 30
}

// ParseSize reads a number with an optional suffix k (2¹⁰) or m (2²⁰).
func ParseSize(word string) (int, error) {
	word = strings.ToLower(strings.TrimSpace(word))
	shift := 0
	if w, ok := strings.CutSuffix(word, "k"); ok {
		word, shift = w, 10
	} else if w, ok := strings.CutSuffix(word, "m"); ok {
		word, shift = w, 20
	}
	n, err := strconv.Atoi(word)
	if err != nil || n < 0 || n > 1<<30>>shift {
		return 0, fmt.Errorf("%q is no number of 0 to 2³⁰, such as 512, 4k or 1m", word)
	}
	return n << shift, nil
}

// workingSet is what the layers of a decode case take at least: more than
// caches hold.
const workingSet = 1 << 30

// maxLayers bounds the layers of short cases.
const maxLayers = 64

// layers is how many layers a case has if it may take limit bytes.
func (c Case) layers(limit int64) int {
	if c.Kind == Prefill {
		return 1
	}
	one := c.kvBytes()
	return int(max(1, min((workingSet+one-1)/one, maxLayers, (limit-2*c.queryBytes())/(one+c.tail()))))
}

// tail is what the last page of a layer takes beyond the keys.
func (c Case) tail() int64 {
	if c.PageSize == 0 {
		return 0
	}
	return 2 * int64(c.PageSize*c.KVHeads*c.HeadDim) * c.KV.DType.Size()
}

// need is the memory of a case with so many layers.
func (c Case) need(layers int) int64 {
	return int64(layers)*(c.kvBytes()+c.tail()) + 2*c.queryBytes()
}

// arena is memory full of random elements that all cases share: filling it
// anew would take longer than most of them.
type arena struct {
	buffer tensor.Buffer
	bytes  []byte
	dtype  tensor.DType
	filled int64 // bytes that hold elements of dtype
	used   int64
}

// newArena takes size bytes from b, which lays out its own memory best.
func newArena(b kernel.Backend, size int64) (*arena, error) {
	buffer, err := b.Alloc(size)
	if err != nil {
		return nil, err
	}
	v := tensor.Of(buffer, tensor.F32)
	return &arena{buffer: buffer, bytes: v.Bytes()}, nil
}

// reset takes everything back and makes size bytes of dtype ready.
func (a *arena) reset(dtype tensor.DType, size int64) error {
	if size > int64(len(a.bytes)) {
		return fmt.Errorf("kernels: internal error: %d bytes of an arena of %d", size, len(a.bytes))
	}
	if a.dtype != dtype {
		a.dtype, a.filled = dtype, 0
	}
	if a.filled < size {
		fill(a.bytes[a.filled:size], dtype)
		a.filled = size
	}
	a.used = 0
	return nil
}

// take is the next n bytes, at a multiple of a cache line.
func (a *arena) take(n int64) (tensor.Buffer, error) {
	if a.used+n > int64(len(a.bytes)) {
		return nil, &kernel.OutOfMemoryError{Backend: "cpu", Bytes: n}
	}
	b := tensor.HostBytes(a.bytes[a.used : a.used+n : a.used+n])
	a.used += (n + 63) &^ 63
	return b, nil
}

// period is a prime number of elements: rows of no power of two repeat soon,
// nor with a page.
const period = 1<<20 + 7

// fill writes normally distributed elements, again after period.
func fill(dst []byte, dtype tensor.DType) {
	random := rand.New(rand.NewPCG(1, 2))
	size := int(dtype.Size())
	block := make([]byte, size*min(period, (len(dst)+size-1)/size))
	v := tensor.Of(tensor.HostBytes(block), dtype, int64(len(block)/size))
	if dtype == tensor.F32 {
		for i, x := 0, v.F32s(); i < len(x); i++ {
			x[i] = float32(random.NormFloat64())
		}
	} else {
		for i, x := 0, v.Bits(); i < len(x); i++ {
			x[i] = dtype.FromF32(float32(random.NormFloat64()))
		}
	}
	for n := copy(dst, block); n < len(dst); {
		n += copy(dst[n:], block)
	}
}

// lender is a backend whose Alloc lends from an arena.
type lender struct {
	kernel.Backend
	arena *arena
}

func (l lender) Alloc(n int64) (tensor.Buffer, error) { return l.arena.take(n) }
