//go:build cuda && cgo

package cuda

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/longctx/longctx/cuda/internal/driver"
	"github.com/longctx/longctx/cuda/internal/simdriver"
	"github.com/longctx/longctx/kernel"
)

// Copies larger than a stage, and more than there are stages, arrive whole though
// the source changes after each call.
func TestCopiesThroughStages(t *testing.T) {
	b := open(t)
	const n = 2*largestStage + 12345
	var addrs []uint64
	var want [][]byte
	r := rand.NewChaCha8([32]byte{})
	src := make([]byte, n)
	for i := range 7 {
		size := n >> (3 * i)
		r.Read(src[:size])
		p, err := b.dev.alloc(int64(size))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.dev.copyIn(p, src[:size]); err != nil {
			t.Fatal(err)
		}
		addrs, want = append(addrs, p), append(want, bytes.Clone(src[:size]))
		clear(src)
	}
	for i, p := range addrs {
		got := make([]byte, len(want[i]))
		if err := b.dev.copyOut(got, p); err != nil || !bytes.Equal(got, want[i]) {
			t.Errorf("copy %d of %d bytes differs, %v", i, len(got), err)
		}
		if err := b.dev.free(p); err != nil {
			t.Error(err)
		}
	}
}

// Running out of the device's memory is the error that the cache knows, and
// leaves a backend that works.
func TestOutOfMemory(t *testing.T) {
	b := open(t)
	_, total, err := b.dev.(*device).MemInfo()
	if err != nil {
		t.Fatal(err)
	}
	var want *kernel.OutOfMemoryError
	if m, err := b.Alloc(total + 1); m != nil || !errors.As(err, &want) || want.Bytes != total+1 {
		t.Errorf("%v, %v, want an OutOfMemoryError of %d bytes", m, err, total+1)
	}
	m, err := b.Alloc(100)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.(*buffer).Close(); err != nil {
		t.Error(err)
	}
}

// Memory of Reserve grows where it is and keeps what it holds; where there is not
// enough, nothing changes.
func TestReservedMemoryGrows(t *testing.T) {
	b := open(t)
	free, _, err := b.dev.(*device).MemInfo()
	if err != nil {
		t.Fatal(err)
	}
	x, err := b.Reserve(4 * free)
	if err != nil {
		t.Fatal(err)
	}
	m := x.(*buffer)
	addr, want := m.addr, []byte{}
	for i, n := range []int64{100, 100, 5000, 3 << 20, 7 << 20} {
		if err := b.Grow(x, n); err != nil {
			t.Fatal(err)
		}
		want = append(want, make([]byte, n-int64(len(want)))...)
		got := make([]byte, n)
		if err := b.CopyOut(got, x); err != nil || x.Size() != n || m.addr != addr || !bytes.Equal(got, want) {
			t.Fatalf("after growing to %d bytes: %d bytes at %#x, was at %#x, same contents %v, %v", n, x.Size(), m.addr, addr, bytes.Equal(got, want), err)
		}
		for k := range want {
			want[k] = byte(k*7 + i)
		}
		if err := b.CopyIn(x, want); err != nil {
			t.Fatal(err)
		}
	}
	var short *kernel.OutOfMemoryError
	if err := b.Grow(x, 3*free); !errors.As(err, &short) || x.Size() != int64(len(want)) {
		t.Errorf("beyond the device's memory: %v, and %d bytes", err, x.Size())
	}
	for _, n := range []int64{1, 5*free + 1<<30} {
		if err := b.Grow(x, n); err == nil {
			t.Errorf("grown to %d bytes", n)
		}
	}
	got := make([]byte, len(want))
	if err := b.CopyOut(got, x); err != nil || !bytes.Equal(got, want) {
		t.Errorf("contents changed, %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := errors.Join(b.Grow(x, 10), m.Close()); err == nil || x.Size() != 0 {
		t.Errorf("a closed buffer of %d bytes: %v", x.Size(), err)
	}
	plain, err := b.Alloc(10)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Grow(plain, 20); err == nil {
		t.Error("a buffer of Alloc has grown")
	}
	if err := plain.(*buffer).Close(); err != nil {
		t.Error(err)
	}
}

// Tables are not copied by a graph: it would copy what they hold when it is
// launched.
func TestNoTablesInGraphs(t *testing.T) {
	b := open(t)
	p, err := b.dev.alloc(4)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Capture(func() error { return b.dev.copyIn(p, []byte{1}) }); err == nil || !strings.Contains(err.Error(), "while a graph is recorded") {
		t.Errorf("%v", err)
	}
	if err := errors.Join(b.dev.copyIn(p, []byte{1}), b.dev.free(p)); err != nil {
		t.Error(err)
	}
}

// Whichever call fails, opening a backend leaves nothing behind, and its error
// is the driver's.
func TestOpenLeaksNothing(t *testing.T) {
	if !simdriver.Loaded() {
		t.Skip(simdriver.Missing)
	}
	simdriver.Fail(0, 0)
	b, err := Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	before, calls := simdriver.Live(), simdriver.Calls()
	for k := 1; k <= calls; k++ {
		simdriver.Fail(k, 2)
		b, err := Open(0)
		simdriver.Fail(0, 0)
		if err == nil { // what failed was not needed
			err = b.Close()
			if err != nil {
				t.Error(err)
			}
		} else if e := new(driver.Error); !errors.As(err, &e) || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("call %d: %v", k, err)
		}
		if after := simdriver.Live(); after != before {
			t.Fatalf("call %d (%v): %s, want %s", k, err, after, before)
		}
	}
}
