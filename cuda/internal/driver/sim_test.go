//go:build cuda && cgo

package driver

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"github.com/longctx/longctx/cuda/internal/simdriver"
)

// fillParams is the parameter of test_fill_32 in cuda/sim/driver.
type fillParams struct {
	out    uint64
	n      int64
	value  float32
	shared int32
	tail   [104]byte
	last   float32
	_      int32
}

func open(t testing.TB) *Device {
	t.Helper()
	if !simdriver.Loaded() {
		t.Skip(simdriver.Missing)
	}
	simdriver.Fail(0, 0)
	d, err := Open(0)
	if err != nil {
		t.Fatal(err)
	}
	before := simdriver.Live()
	t.Cleanup(func() {
		if after := simdriver.Live(); after != before && d.Lost() == nil {
			t.Errorf("left over: %s, want %s", after, before)
		}
		if err := d.Close(); err != nil && d.Lost() == nil {
			t.Error(err)
		}
	})
	return d
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// closing registers the end of what a test takes, the last taken first.
func closing(t testing.TB, f func() error) {
	t.Cleanup(func() {
		if err := f(); err != nil && !errors.Is(err, ErrDeviceLost) {
			t.Error(err)
		}
	})
}

func stream(t testing.TB, d *Device) *Stream {
	s := must(d.NewStream())(t)
	closing(t, s.Close)
	return s
}

func alloc(t testing.TB, d *Device, n int64) Ptr {
	p := must(d.Alloc(n))(t)
	closing(t, func() error { return d.Free(p) })
	return p
}

func pinned(t testing.TB, d *Device, n int) []byte {
	b := must(d.AllocHost(n))(t)
	closing(t, func() error { return d.FreeHost(b) })
	return b
}

func fill(t testing.TB, d *Device) *Function {
	m := must(d.Load([]byte(".version 7.0\n")))(t)
	closing(t, m.Close)
	return must(m.Function("test_fill_32"))(t)
}

func floats(b []byte) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
}

var one = Dim{1, 1, 1}

func TestInfo(t *testing.T) {
	d := open(t)
	if d.Name == "" || d.SM != 90 || d.Multiprocs < 1 || d.Memory <= 0 || d.SharedPerMore != 227<<10 || d.DriverVersion < 12000 || d.PCI == "" {
		t.Errorf("%+v", d.Info)
	}
	free, total := int64(0), int64(0)
	var err error
	if free, total, err = d.MemInfo(); err != nil || free <= 0 || free > total {
		t.Errorf("%d of %d bytes free, %v", free, total, err)
	}
	for _, n := range []int{-1, 99} {
		var e *Error
		if x, err := Open(n); x != nil || !errors.As(err, &e) || !strings.Contains(err.Error(), fmt.Sprintf("device %d of", n)) {
			t.Errorf("Open(%d) = %v, %v", n, x, err)
		}
	}
}

// Everything a kernel is given arrives, however large its parameter.
func TestLaunch(t *testing.T) {
	d := open(t)
	s, f := stream(t, d), fill(t, d)
	if f.ParamBytes != int(unsafe.Sizeof(fillParams{})) || f.Name() != "test_fill_32" || f.Registers == 0 {
		t.Fatalf("%+v, want a parameter of %d bytes", f.Attributes, unsafe.Sizeof(fillParams{}))
	}
	const n = 1000
	p, host := alloc(t, d, 4*n), pinned(t, d, 4*n)
	params := fillParams{out: uint64(p), n: n, value: 2, last: 0.5}
	ok(t, s.Launch(f, Dim{3, 1, 1}, Dim{32, 1, 1}, 0, unsafe.Pointer(&params)))
	params = fillParams{} // the call has copied it
	ok(t, s.CopyToHost(host, p))
	if floats(host)[0] == 2.5 {
		t.Error("the copy ran before anybody waited")
	}
	ok(t, s.Sync())
	for i, x := range floats(host) {
		if x != 2.5 {
			t.Fatalf("element %d is %v, want 2.5", i, x)
		}
	}
}

func TestLaunchExtended(t *testing.T) {
	d := open(t)
	s, f := stream(t, d), fill(t, d)
	p, host := alloc(t, d, 4), make([]byte, 4)
	params := fillParams{out: uint64(p), n: 1, value: 1}
	ok(t, s.LaunchEx(f, Dim{4, 1, 1}, Dim{32, 1, 1}, 0, unsafe.Pointer(&params), Options{Cluster: Dim{2, 1, 1}, Programmatic: true}))
	ok(t, s.Sync())
	ok(t, d.CopyToHost(host, p))
	if floats(host)[0] != 1 {
		t.Errorf("%v, want 1", floats(host)[0])
	}
	err := s.LaunchEx(f, Dim{3, 1, 1}, Dim{32, 1, 1}, 0, unsafe.Pointer(&params), Options{Cluster: Dim{2, 1, 1}})
	if refused(err) != InvalidValue {
		t.Errorf("a grid of 3 in clusters of 2: %v", err)
	}
}

func refused(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return -1
}

// More shared memory than a kernel is allowed is refused; the error names the
// kernel and what was asked for.
func TestDynamicShared(t *testing.T) {
	d := open(t)
	s, f := stream(t, d), fill(t, d)
	p := alloc(t, d, 4)
	const much = 200 << 10
	params := fillParams{out: uint64(p), n: 1, shared: much}
	err := s.Launch(f, one, Dim{32, 1, 1}, much, unsafe.Pointer(&params))
	if refused(err) != InvalidValue || !strings.Contains(err.Error(), "kernel test_fill_32") || !strings.Contains(err.Error(), "204800 bytes") {
		t.Errorf("without allowance: %v", err)
	}
	ok(t, f.SetMaxDynamicShared(much))
	ok(t, s.Launch(f, one, Dim{32, 1, 1}, much, unsafe.Pointer(&params)))
	ok(t, s.Sync())
	if err := f.SetMaxDynamicShared(228 << 10); refused(err) != InvalidValue {
		t.Errorf("more than the device has: %v", err)
	}
}

func TestLaunchRefusals(t *testing.T) {
	d := open(t)
	s, f := stream(t, d), fill(t, d)
	params := fillParams{}
	for _, c := range []struct{ grid, block Dim }{
		{Dim{0, 1, 1}, Dim{32, 1, 1}},
		{Dim{1, 65536, 1}, Dim{32, 1, 1}},
		{one, Dim{1025, 1, 1}},
		{one, Dim{32, 33, 1}},
		{one, Dim{1, 1, 65}},
		{one, Dim{}},
	} {
		if err := s.Launch(f, c.grid, c.block, 0, unsafe.Pointer(&params)); refused(err) != InvalidValue {
			t.Errorf("%+v: %v", c, err)
		}
	}
	m := must(d.Load([]byte(".version 7.0\n")))(t)
	closing(t, m.Close)
	if g, err := m.Function("no_such_kernel"); g != nil || refused(err) != 500 || !strings.Contains(err.Error(), "no_such_kernel") {
		t.Errorf("%v, %v", g, err)
	}
	if x, err := d.Load([]byte("this is no image at all")); x != nil || refused(err) != 200 {
		t.Errorf("%v, %v", x, err)
	}
}

// Launches, copies of pinned memory and launches of graphs allocate nothing.
func TestNoAllocations(t *testing.T) {
	d := open(t)
	s, f := stream(t, d), fill(t, d)
	p, host := alloc(t, d, 4), pinned(t, d, 4)
	e := must(d.NewEvent(false))(t)
	closing(t, e.Close)
	params := fillParams{out: uint64(p), n: 1}
	g := must(s.Capture(func() error { return s.Memset(p, 0, 4) }))(t)
	closing(t, g.Close)
	for what, call := range map[string]func() error{
		"Launch": func() error { return s.Launch(f, one, Dim{32, 1, 1}, 0, unsafe.Pointer(&params)) },
		"LaunchEx": func() error {
			return s.LaunchEx(f, one, Dim{32, 1, 1}, 0, unsafe.Pointer(&params), Options{Programmatic: true})
		},
		"copies":  func() error { return errors.Join(s.CopyToDevice(p, host), s.CopyToHost(host, p)) },
		"memset":  func() error { return s.Memset(p, 1, 4) },
		"events":  func() error { return errors.Join(e.Record(s), s.Wait(e)) },
		"a graph": func() error { return g.Launch(s) },
		"Sync":    s.Sync,
	} {
		n := testing.AllocsPerRun(20, func() {
			if err := call(); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
	ok(t, s.Sync())
}

// On the simulated driver this is the cost of the way there: cgo, the context,
// and a queue.
func BenchmarkLaunch(b *testing.B) {
	d := open(b)
	s, f := stream(b, d), fill(b, d)
	p := alloc(b, d, 4)
	params := fillParams{out: uint64(p)}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Launch(f, one, Dim{32, 1, 1}, 0, unsafe.Pointer(&params)); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCopies(t *testing.T) {
	d := open(t)
	s := stream(t, d)
	p, q := alloc(t, d, 1000), alloc(t, d, 1000)
	data := bytes.Repeat([]byte{1, 2, 3, 4, 5}, 200)
	host := make([]byte, 1000)
	ok(t, d.CopyToDevice(p, data))
	ok(t, s.Copy(q, p, 1000))
	ok(t, s.Memset(q+10, 9, 5))
	ok(t, s.CopyToHost(host, q)) // to memory that is not pinned: done when it returns
	want := append([]byte{}, data...)
	copy(want[10:], []byte{9, 9, 9, 9, 9})
	if !bytes.Equal(host, want) {
		t.Error("bytes differ")
	}
	// Memory that is not pinned may change after the call, pinned memory may not.
	ok(t, s.CopyToDevice(p, data))
	clear(data)
	ok(t, s.CopyToHost(host, p))
	if host[0] != 1 {
		t.Error("the source was read after the call")
	}
	pin := pinned(t, d, 1000)
	copy(pin, want)
	ok(t, s.CopyToDevice(p, pin))
	clear(pin)
	ok(t, s.Sync())
	ok(t, d.CopyToHost(host, p))
	if host[0] != 0 {
		t.Error("pinned memory was read before the copy ran: the simulation hides a misuse")
	}
	for what, err := range map[string]error{
		"past the end": d.CopyToDevice(p+1, data),
		"from nowhere": d.CopyToHost(host, 8),
		"free twice":   d.Free(p + 4),
	} {
		if refused(err) != InvalidValue {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, n := range []int64{0, -1} {
		if p, err := d.Alloc(n); p != 0 || refused(err) != InvalidValue {
			t.Errorf("Alloc(%d) = %v, %v", n, p, err)
		}
	}
}

// Fresh memory is NaN in every type, so that what nobody wrote is seen.
func TestPoison(t *testing.T) {
	d := open(t)
	p := alloc(t, d, 64)
	host := make([]byte, 64)
	ok(t, d.CopyToHost(host, p))
	for _, x := range floats(host) {
		if x == x {
			t.Fatalf("fresh memory holds %v", x)
		}
	}
}

// Work of one stream is not there for another that does not wait for it.
func TestEvents(t *testing.T) {
	d := open(t)
	a, b := stream(t, d), stream(t, d)
	p, host := alloc(t, d, 4), pinned(t, d, 4)
	e := must(d.NewEvent(true))(t)
	closing(t, e.Close)
	end := must(d.NewEvent(true))(t)
	closing(t, end.Close)
	for _, wait := range []bool{false, true} {
		ok(t, d.CopyToDevice(p, []byte{0, 0, 0, 0}))
		ok(t, a.Memset(p, 7, 4))
		ok(t, e.Record(a))
		if done, err := e.Done(); done || err != nil {
			t.Errorf("done %v, %v, before anybody waited", done, err)
		}
		ok(t, a.Memset(p, 7, 4)) // Done ran one op
		ok(t, e.Record(a))
		if wait {
			ok(t, b.Wait(e))
		}
		ok(t, d.CopyToDevice(p, []byte{0, 0, 0, 0}))
		ok(t, b.CopyToHost(host, p))
		ok(t, b.Sync())
		if got := host[0] == 7; got != wait {
			t.Errorf("waited %v: the other stream's work seen: %v", wait, got)
		}
		ok(t, e.Sync())
		if done, err := e.Done(); !done || err != nil {
			t.Errorf("done %v, %v", done, err)
		}
	}
	ok(t, end.Record(a))
	ok(t, end.Sync())
	if dt, err := end.Since(e); err != nil || dt < 0 {
		t.Errorf("%v, %v", dt, err)
	}
	quiet := must(d.NewEvent(false))(t)
	closing(t, quiet.Close)
	if _, err := quiet.Since(e); err == nil {
		t.Error("an event without timing has a time")
	}
}

func TestPool(t *testing.T) {
	d := open(t)
	s := stream(t, d)
	ok(t, d.TrimPool(0)) // the pool itself lives as long as the device
	t.Cleanup(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		ok(t, d.closePool())
	})
	p := must(s.Alloc(100))(t)
	ok(t, s.Memset(p, 5, 100))
	host := make([]byte, 100)
	ok(t, s.CopyToHost(host, p))
	if host[99] != 5 {
		t.Error("not set")
	}
	ok(t, s.Free(p))
	if err := s.Free(p); refused(err) != InvalidValue {
		t.Errorf("freed twice: %v", err)
	}
	ok(t, s.Sync())
	if err := s.Memset(p, 0, 100); refused(err) != InvalidValue {
		t.Errorf("used after it was freed: %v", err)
	}
	q := must(s.Alloc(100))(t)
	if err := d.Free(q); refused(err) != InvalidValue {
		t.Errorf("memory of the pool freed as if it were not: %v", err)
	}
	ok(t, s.Free(q))
	ok(t, s.Sync())
}
