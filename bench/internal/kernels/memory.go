package kernels

import (
	"bufio"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
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
	if c.Kind != Decode {
		return 1
	}
	one := c.kvBytes()
	return int(max(1, min((workingSet+one-1)/one, maxLayers, (limit-2*c.queryBytes())/(c.need(1)-2*c.queryBytes()))))
}

// need is the memory of a case with so many layers.
func (c Case) need(layers int) int64 {
	return c.storage(layers) + 2*c.queryBytes() + c.gradientBytes()
}

// storage is the memory of the keys and values of so many layers.
func (c Case) storage(layers int) int64 {
	const slack = 8 * 64 // what alignment takes, a layer
	if c.PageSize == 0 {
		return int64(layers) * (c.kvBytes() + slack)
	}
	n, err := kvcache.Bytes(c.cache(layers))
	if err != nil {
		return math.MaxInt64 / 2
	}
	return n + int64(layers)*slack
}

// plainPages is how many pages a sequence may have plain while it grows and the
// full ones are coded.
const plainPages = 8

// cache is the paged cache of a case with so many layers.
func (c Case) cache(layers int) kvcache.Config {
	pages := (c.Length + c.PageSize - 1) / c.PageSize
	f := kvcache.Config{
		Layers: layers, Pages: pages, PageSize: c.PageSize, KVHeads: c.KVHeads, HeadDim: c.HeadDim, ValueDim: c.HeadDim, DType: c.KV.DType,
	}
	if c.KV.Codec != kernel.NoCodec {
		f.Coding, f.Pages, f.CodedPages = c.coding(), plainPages, pages
	}
	return f
}

// arena is memory full of random elements that all cases share: filling it
// anew would take longer than most of them.
type arena struct {
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
	return &arena{bytes: v.Bytes()}, nil
}

// reset takes everything back and makes size bytes of dtype ready.
func (a *arena) reset(dtype tensor.DType, size int64) error {
	if size > int64(len(a.bytes)) {
		return &kernel.OutOfMemoryError{Backend: "cpu", Bytes: size}
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

// fill writes normally distributed elements, or any bytes for U8, again after
// period.
func fill(dst []byte, dtype tensor.DType) {
	size := int(dtype.Size())
	block := randomBlock(dtype, min(period, (len(dst)+size-1)/size))
	for n := 0; n < len(dst); {
		n += copy(dst[n:], block)
	}
}

// randomBlock is n random elements.
func randomBlock(dtype tensor.DType, n int) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	block := make([]byte, dtype.Size()*int64(n))
	v := tensor.Of(tensor.HostBytes(block), dtype, int64(n))
	for i := range n {
		if dtype == tensor.U8 {
			block[i] = uint8(random.Uint32())
			continue
		}
		v.Set(float32(random.NormFloat64()), int64(i))
	}
	return block
}

// lender is a backend whose Alloc lends from an arena.
type lender struct {
	kernel.Backend
	arena *arena
}

func (l lender) Alloc(n int64) (tensor.Buffer, error) { return l.arena.take(n) }

// EncodePages codes nothing: the memory is full of codes already.
func (lender) EncodePages(a *kernel.EncodeArgs) error {
	for i := range a.Encoded {
		a.Encoded[i] = true
	}
	return nil
}
