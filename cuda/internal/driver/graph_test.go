//go:build cuda && cgo

package driver

import (
	"errors"
	"testing"
	"unsafe"
)

// A graph does again what was recorded, with the memory's contents of its launch,
// in two streams.
func TestGraph(t *testing.T) {
	d := open(t)
	a, b, f := stream(t, d), stream(t, d), fill(t, d)
	const n = 8
	p, q := alloc(t, d, 4*n), alloc(t, d, 4*n)
	in, out := pinned(t, d, 4*n), pinned(t, d, 4*n)
	fork, join := must(d.NewEvent(false))(t), must(d.NewEvent(false))(t)
	closing(t, fork.Close)
	closing(t, join.Close)
	clear(in)
	clear(out)
	params := fillParams{out: uint64(q), n: n / 2, value: 3}
	g := must(a.Capture(func() error {
		return errors.Join(
			a.CopyToDevice(p, in),
			fork.Record(a), b.Wait(fork),
			b.Copy(q, p, 4*n),
			b.Launch(f, one, Dim{32, 1, 1}, 0, unsafe.Pointer(&params)),
			join.Record(b), a.Wait(join),
			a.CopyToHost(out, q))
	}))(t)
	closing(t, g.Close)
	params = fillParams{}
	ok(t, a.Sync())
	if floats(out)[0] != 0 {
		t.Error("a capture ran its work")
	}
	if g.Nodes != 4 {
		t.Errorf("%d nodes, want 4", g.Nodes)
	}
	ok(t, g.Upload(a))
	for _, x := range []float32{1, 2} {
		for i := range floats(in) {
			floats(in)[i] = x
		}
		ok(t, g.Launch(a))
		ok(t, a.Sync())
		if floats(out)[0] != 3 || floats(out)[n-1] != x {
			t.Errorf("%v, want 3 in the first half and %v in the second", floats(out), x)
		}
	}
}

// What a capture does not allow breaks it, and leaves a stream that works.
func TestBrokenCapture(t *testing.T) {
	d := open(t)
	a, b := stream(t, d), stream(t, d)
	p := alloc(t, d, 4)
	e := must(d.NewEvent(false))(t)
	closing(t, e.Close)
	mine := errors.New("mine")
	for what, c := range map[string]struct {
		record func() error
		want   Code
	}{
		"waits":               {func() error { _ = a.Sync(); return nil }, 901},
		"a branch not joined": {func() error { return errors.Join(e.Record(a), b.Wait(e), b.Memset(p, 0, 4)) }, 904},
		"memory of a pool":    {func() error { _, err := a.Alloc(4); return err }, 801},
	} {
		if g, err := a.Capture(c.record); g != nil || refused(err) != c.want {
			t.Errorf("%s: %v, %v, want code %d", what, g, err, c.want)
		}
		ok(t, a.Memset(p, 1, 4))
		ok(t, errors.Join(a.Sync(), b.Sync()))
	}
	if g, err := a.Capture(func() error { return mine }); g != nil || !errors.Is(err, mine) {
		t.Errorf("%v, %v, want the recorder's error", g, err)
	}
	g, err := a.Capture(func() error { return nil })
	ok(t, err)
	ok(t, g.Close())
	d.mu.Lock()
	defer d.mu.Unlock()
	ok(t, d.closePool())
}
