//go:build cuda && cgo

package driver

import (
	"errors"
	"testing"

	"github.com/longctx/longctx/cuda/internal/simdriver"
)

// A range grows in place, keeps what it holds, and gives memory back.
func TestRange(t *testing.T) {
	d := open(t)
	s := stream(t, d)
	grain := must(d.Granularity())(t)
	r := must(d.Reserve(5*grain - 1))(t)
	closing(t, r.Close)
	if r.Size() != 5*grain || r.Mapped() != 0 {
		t.Fatalf("size %d, mapped %d", r.Size(), r.Mapped())
	}
	if err := d.CopyToDevice(r.Base(), []byte{1}); refused(err) != InvalidValue {
		t.Errorf("memory that is not mapped: %v", err)
	}
	ok(t, r.Grow(1))
	ok(t, s.Memset(r.Base(), 4, grain))
	ok(t, s.Sync())
	base := r.Base()
	ok(t, r.Grow(3*grain))
	ok(t, r.Grow(2*grain)) // has it
	if r.Base() != base || r.Mapped() != 3*grain {
		t.Errorf("base moved: %v, mapped %d", r.Base() != base, r.Mapped())
	}
	// Across what was mapped in two steps.
	ok(t, s.Memset(base+Ptr(grain)-2, 6, 4))
	host := make([]byte, 6)
	ok(t, s.CopyToHost(host, base+Ptr(grain)-4))
	if string(host) != "\x04\x04\x06\x06\x06\x06" {
		t.Errorf("%v", host)
	}
	if err := r.Grow(6 * grain); refused(err) != InvalidValue || r.Mapped() != 3*grain {
		t.Errorf("beyond the range: %v", err)
	}
	ok(t, r.Shrink(grain))
	if r.Mapped() != grain {
		t.Errorf("mapped %d after shrinking", r.Mapped())
	}
	if err := d.CopyToDevice(base+Ptr(grain), []byte{1}); refused(err) != InvalidValue {
		t.Errorf("memory given back: %v", err)
	}
	ok(t, r.Grow(5*grain))
}

// Running out of memory takes nothing and is told apart from other errors.
func TestOutOfMemory(t *testing.T) {
	d := open(t)
	free, _, err := d.MemInfo()
	ok(t, err)
	before := simdriver.Live()
	if p, err := d.Alloc(free + 1); p != 0 || !errors.Is(err, ErrOutOfMemory) || errors.Is(err, ErrDeviceLost) {
		t.Errorf("Alloc: %v, %v", p, err)
	}
	r := must(d.Reserve(2 * free))(t)
	if err := r.Grow(2 * free); !errors.Is(err, ErrOutOfMemory) || r.Mapped() != 0 {
		t.Errorf("Grow: %v, mapped %d", err, r.Mapped())
	}
	ok(t, r.Close())
	if after := simdriver.Live(); after != before {
		t.Errorf("%s, want %s", after, before)
	}
	if d.Lost() != nil {
		t.Error("the device is lost")
	}
}

func TestTensorMap(t *testing.T) {
	open(t)
	good := Tile{Type: MapBFloat16, Address: 1 << 20, Dims: []uint64{128, 1000}, Strides: []uint64{256}, Box: []uint32{64, 64}, Swizzle: Swizzle128}
	m := must(EncodeTile(good))(t)
	if m == (TensorMap{}) {
		t.Error("an empty map")
	}
	if _, err := EncodeTile(Tile{Type: MapFloat32, Address: 1 << 20, Dims: []uint64{64}, Box: []uint32{64}}); err != nil {
		t.Errorf("of one dimension: %v", err)
	}
	for what, edit := range map[string]func(*Tile){
		"address":           func(x *Tile) { x.Address += 8 },
		"stride":            func(x *Tile) { x.Strides = []uint64{250} },
		"box":               func(x *Tile) { x.Box = []uint32{64, 257} },
		"swizzle":           func(x *Tile) { x.Swizzle = Swizzle64 },
		"missing strides":   func(x *Tile) { x.Strides = nil },
		"no dimensions":     func(x *Tile) { x.Dims = nil },
		"too many":          func(x *Tile) { x.Dims = make([]uint64, 6) },
		"a box of one":      func(x *Tile) { x.Box = x.Box[:1] },
		"dimension of none": func(x *Tile) { x.Dims = []uint64{128, 0} },
	} {
		x := good
		edit(&x)
		if m, err := EncodeTile(x); refused(err) != InvalidValue || m != (TensorMap{}) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
