package cpu_test

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// TestReservedMemoryGrows: it stays where it is, keeps what it has, and begins as
// zeros; what cannot be is refused, and changes nothing.
func TestReservedMemoryGrows(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	x, err := b.Reserve(8 << 20)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	v := tensor.View{Buf: x}
	var want []byte
	var first *byte
	for i, n := range []int64{100, 100, 5000, 3 << 20, 8 << 20} {
		if err := b.Grow(x, n); err != nil {
			t.Fatal(err)
		}
		want = append(want, make([]byte, n-int64(len(want)))...)
		got := v.Bytes()
		if first == nil {
			first = &got[0]
		}
		if x.Size() != n || &got[0] != first || !bytes.Equal(got, want) {
			t.Fatalf("after growing to %d bytes: %d bytes at %p, was at %p, same contents %v", n, x.Size(), &got[0], first, bytes.Equal(got, want))
		}
		for k := range want {
			want[k] = byte(k*7 + i)
		}
		copy(got, want)
	}
	for _, n := range []int64{1, 9 << 20} {
		if err := b.Grow(x, n); err == nil {
			t.Errorf("grown to %d bytes", n)
		}
	}
	if !bytes.Equal(v.Bytes(), want) || x.Device() != "cpu" {
		t.Error("contents changed")
	}
	closer := x.(interface{ Close() error })
	if err := errors.Join(closer.Close(), closer.Close()); err != nil {
		t.Error(err)
	}
	if err := b.Grow(x, 8<<20); err == nil || x.Size() != 0 {
		t.Errorf("a closed buffer of %d bytes: %v", x.Size(), err)
	}
	plain, err := b.Alloc(10)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Grow(plain, 20); err == nil {
		t.Error("a buffer of Alloc has grown")
	}
	if _, err := b.Reserve(0); err == nil {
		t.Error("0 bytes are reserved")
	}
	var short *kernel.OutOfMemoryError
	if _, err := b.Reserve(math.MaxInt64); !errors.As(err, &short) {
		t.Errorf("all addresses: %v", err)
	}
}
