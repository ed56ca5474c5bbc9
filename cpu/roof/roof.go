package roof

import (
	"fmt"
	"sync"
	"time"
)

// Variant is a set of instructions.
type Variant uint8

const (
	Generic Variant = iota // scalar Go
	NEON                   // arm64
	AVX2                   // amd64 with AVX2 and FMA
	AVX512                 // amd64 with AVX-512F
)

func (v Variant) String() string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("Variant(%d)", uint8(v))
}

var names = [...]string{"scalar Go", "neon", "avx2", "avx512"}

// Variants lists those that this machine can run, the widest first. Generic is
// always the last.
func Variants() []Variant {
	var list []Variant
	for v := AVX512; v > Generic; v-- {
		if supported(v) {
			list = append(list, v)
		}
	}
	return append(list, Generic)
}

// Result is a rate that was reached.
type Result struct {
	Variant Variant
	Threads int
	Rate    float64 // 10⁹ operations, or 10⁹ bytes, a second
}

// loops are what a Variant runs.
type loops struct {
	lanes int // FMAs of one round of fma
	// fma adds a·b to out, n times over: out has lanes entries.
	fma func(n int64, a, b float32, out *[maxLanes]float32)
	// read xors n bytes of p, a multiple of readBlock, into out, as words that
	// repeat after 64 bytes.
	read func(p *byte, n int64, out *[8]uint64)
}

const (
	maxLanes  = 24 * 16
	readBlock = 512
	maxBytes  = 1 << 40
)

// threadLimit keeps a mistyped number from starting goroutines without end.
const threadLimit = 1 << 12

func (v Variant) loops(threads int) (*loops, error) {
	if v != Generic && !supported(v) {
		return nil, fmt.Errorf("roof: variant %v is not supported here, have %v", v, Variants())
	}
	if threads < 1 || threads > threadLimit {
		return nil, fmt.Errorf("roof: %d threads, want 1 to %d", threads, threadLimit)
	}
	return loopsOf(v), nil
}

// FMA runs independent fused multiply-adds of float32 on so many threads for
// about d and returns the best rate in GFLOP/s, an FMA being two operations.
// It returns an error for a Variant that this machine lacks and for fewer
// threads than one.
func FMA(v Variant, threads int, d time.Duration) (Result, error) {
	l, err := v.loops(threads)
	if err != nil {
		return Result{}, err
	}
	const call = 2048 // rounds: some microseconds, for assembly cannot be preempted
	calls := int64(1)
	work := func(int) {
		var out [maxLanes]float32
		for range calls {
			l.fma(call, 1.0/(1<<20), 1, &out)
		}
	}
	for calls < 1<<30 && elapsed(1, work) < window {
		calls *= 2
	}
	flops := 2 * float64(threads) * float64(calls) * call * float64(l.lanes)
	return Result{v, threads, flops / best(threads, d, work).Seconds() / 1e9}, nil
}

// Read reads memory of so many bytes, in equal parts on so many threads, for
// about d, and returns the best rate in GB/s. Bytes should be several times the
// last level of cache. The memory has huge pages where the system gives them.
// It returns an error as FMA does, and where bytes are fewer than a block of
// 512 for each thread or are not to be had.
func Read(v Variant, threads int, bytes int64, d time.Duration) (Result, error) {
	l, err := v.loops(threads)
	if err != nil {
		return Result{}, err
	}
	part := bytes / int64(threads) &^ (readBlock - 1)
	if part < readBlock || bytes > maxBytes {
		return Result{}, fmt.Errorf("roof: %d bytes for %d threads, want at least %d each and at most %d", bytes, threads, readBlock, int64(maxBytes))
	}
	memory, free, err := allocate(part * int64(threads))
	if err != nil {
		return Result{}, fmt.Errorf("roof: %d bytes of memory: %w", bytes, err)
	}
	defer free()
	elapsed(threads, func(i int) { // each thread touches its part first
		for at := int64(i) * part; at < int64(i+1)*part; at += 4096 {
			memory[at] = 1
		}
	})
	const call = 1 << 18
	work := func(i int) {
		var out [8]uint64
		for at, end := int64(i)*part, int64(i+1)*part; at < end; at += call {
			l.read(&memory[at], min(call, end-at), &out)
		}
	}
	return Result{v, threads, float64(part*int64(threads)) / best(threads, d, work).Seconds() / 1e9}, nil
}

// window is long beside starting goroutines, and short enough that among many
// some are undisturbed.
const window = 4 * time.Millisecond

// best is the shortest time of work on all threads, repeated for d.
func best(threads int, d time.Duration, work func(thread int)) time.Duration {
	least := elapsed(threads, work)
	for start := time.Now(); time.Since(start) < d; {
		least = min(least, elapsed(threads, work))
	}
	return max(least, 1) // a clock may be coarse
}

// elapsed runs work once on each thread, the caller's included.
func elapsed(threads int, work func(thread int)) time.Duration {
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	for i := 1; i < threads; i++ {
		ready.Add(1)
		done.Go(func() {
			ready.Done()
			<-start
			work(i)
		})
	}
	ready.Wait()
	begin := time.Now()
	close(start)
	work(0)
	done.Wait()
	return time.Since(begin)
}
