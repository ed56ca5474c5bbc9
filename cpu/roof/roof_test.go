package roof

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"
)

func TestVariants(t *testing.T) {
	list := Variants()
	if list[len(list)-1] != Generic || !slices.IsSortedFunc(list, func(a, b Variant) int { return int(b) - int(a) }) {
		t.Errorf("%v, want the widest first and %v last", list, Generic)
	}
}

// Every lane of every variant adds the product n times: the loop does as many
// multiply-adds as are counted for it.
func TestFMACountsWhatItDoes(t *testing.T) {
	for _, v := range Variants() {
		l := loopsOf(v)
		for _, n := range []int64{0, 1, 2, 1000} {
			var out [maxLanes]float32
			for i := range out {
				out[i] = float32(i)
			}
			l.fma(n, 2, 0.25, &out)
			for i, got := range out {
				want := float32(i)
				if i < l.lanes {
					want += float32(n) * 0.5
				}
				if got != want {
					t.Fatalf("%v, n = %d, lane %d of %d: %v, want %v", v, n, i, l.lanes, got, want)
				}
			}
		}
	}
}

// The exclusive or tells a byte that was left out, read twice or read beyond.
func TestReadReadsEveryByte(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	words := make([]uint64, 8*1024+8)
	for _, v := range Variants() {
		for _, blocks := range []int{0, 1, 2, 7, 128} {
			for i := range words {
				words[i] = random.Uint64()
			}
			var got, want [8]uint64
			for i := range want {
				want[i] = random.Uint64()
				got[i] = want[i]
			}
			for i, w := range words[8 : 8+blocks*readBlock/8] {
				want[i%8] ^= w
			}
			loopsOf(v).read((*byte)(unsafe.Pointer(&words[8])), int64(blocks*readBlock), &got)
			if got != want {
				t.Errorf("%v, %d blocks: %x, want %x", v, blocks, got, want)
			}
		}
	}
}

func TestRates(t *testing.T) {
	for _, v := range Variants() {
		for _, threads := range []int{1, 2} {
			f, err := FMA(v, threads, time.Millisecond)
			if err != nil || f.Variant != v || f.Threads != threads || !(f.Rate > 0) {
				t.Errorf("FMA %v, %d threads: %+v, %v", v, threads, f, err)
			}
			r, err := Read(v, threads, 1<<20+77, time.Millisecond)
			if err != nil || r.Variant != v || r.Threads != threads || !(r.Rate > 0) {
				t.Errorf("Read %v, %d threads: %+v, %v", v, threads, r, err)
			}
		}
	}
}

func TestBadRequests(t *testing.T) {
	for _, c := range []struct {
		v       Variant
		threads int
		bytes   int64
		want    string
	}{
		{Generic, 0, 4096, "0 threads"},
		{Generic, -1, 4096, "-1 threads"},
		{Generic, 1 << 20, 1 << 30, "threads"},
		{Variant(77), 1, 4096, "Variant(77)"},
		{Generic, 2, 1023, "1023 bytes"},
		{Generic, 1, -1, "-1 bytes"},
		{Generic, 1, 1 << 60, "bytes"},
	} {
		if _, err := Read(c.v, c.threads, c.bytes, 0); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Read(%v, %d, %d): %v, want %q", c.v, c.threads, c.bytes, err, c.want)
		}
		if _, err := FMA(c.v, c.threads, 0); (c.bytes == 4096 || c.threads > threadLimit) && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("FMA(%v, %d): %v, want %q", c.v, c.threads, err, c.want)
		}
	}
}

func BenchmarkRoof(b *testing.B) {
	for _, v := range Variants() {
		b.Run(v.String(), func(b *testing.B) {
			for b.Loop() {
				for _, threads := range []int{1, 2} {
					f, err := FMA(v, threads, 200*time.Millisecond)
					if err != nil {
						b.Fatal(err)
					}
					r, err := Read(v, threads, 2<<30, 500*time.Millisecond)
					if err != nil {
						b.Fatal(err)
					}
					name := map[int]string{1: "-1", 2: "-2"}[threads]
					b.ReportMetric(f.Rate, "GFLOP/s"+name)
					b.ReportMetric(r.Rate, "GB/s"+name)
				}
			}
		})
	}
}
