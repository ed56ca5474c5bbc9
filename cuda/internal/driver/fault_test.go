//go:build cuda && cgo

package driver

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/longctx/longctx/cuda/internal/simdriver"
)

// everything takes and uses one of each, and gives it back whatever happens.
func everything() (err error) {
	also := func(e error) { err = errors.Join(err, e) }
	d, err := Open(0)
	if err != nil {
		return err
	}
	defer func() { also(d.Close()) }()
	s, err := d.NewStream()
	if err != nil {
		return err
	}
	defer func() { also(s.Close()) }()
	e, err := d.NewEvent(true)
	if err != nil {
		return err
	}
	defer func() { also(e.Close()) }()
	m, err := d.Load([]byte(".version 7.0\n"))
	if err != nil {
		return err
	}
	defer func() { also(m.Close()) }()
	f, err := m.Function("test_fill_32")
	if err != nil {
		return err
	}
	p, err := d.Alloc(4096)
	if err != nil {
		return err
	}
	defer func() { also(d.Free(p)) }()
	host, err := d.AllocHost(4096)
	if err != nil {
		return err
	}
	defer func() { also(d.FreeHost(host)) }()
	r, err := d.Reserve(8 << 20)
	if err != nil {
		return err
	}
	defer func() { also(r.Close()) }()
	if err := r.Grow(1); err != nil {
		return err
	}
	if err := r.Grow(8 << 20); err != nil {
		return err
	}
	q, err := s.Alloc(100)
	if err != nil {
		return err
	}
	defer func() { also(s.Free(q)) }()
	params := fillParams{out: uint64(p), n: 4, value: 1}
	work := func() error {
		steps := []func() error{
			func() error { return s.CopyToDevice(p, host) },
			func() error { return s.Memset(p, 0, 16) },
			func() error { return s.Launch(f, one, Dim{32, 1, 1}, 0, unsafe.Pointer(&params)) },
			func() error { return s.LaunchEx(f, one, Dim{32, 1, 1}, 0, unsafe.Pointer(&params), Options{}) },
			func() error { return s.Copy(p+2048, p, 1024) },
			func() error { return s.CopyToHost(host, p) },
		}
		for _, f := range steps {
			if err := f(); err != nil {
				return err
			}
		}
		return nil
	}
	if err := f.SetMaxDynamicShared(100 << 10); err != nil {
		return err
	}
	g, err := s.Capture(work)
	if err != nil {
		return err
	}
	defer func() { also(g.Close()) }()
	for _, f := range []func() error{
		work, func() error { return g.Upload(s) }, func() error { return g.Launch(s) }, func() error { return e.Record(s) },
		func() error { return s.Wait(e) }, s.Sync, e.Sync,
		func() error { return d.CopyToDevice(p, host) }, func() error { return d.CopyToHost(host, p) },
		func() error { _, err := e.Done(); return err }, func() error { _, err := e.Since(e); return err },
		func() error { _, _, err := d.MemInfo(); return err }, func() error { return d.TrimPool(0) },
	} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// Whichever call fails, with whatever it fails, the error is typed and nothing
// that was taken is left over.
func TestNothingLeaks(t *testing.T) {
	if !simdriver.Loaded() {
		t.Skip(simdriver.Missing)
	}
	simdriver.Fail(0, 0)
	if _, err := Devices(); err != nil {
		t.Fatal(err)
	}
	before := simdriver.Live()
	if err := everything(); err != nil {
		t.Fatal(err)
	}
	calls := simdriver.Calls()
	if after := simdriver.Live(); after != before {
		t.Fatalf("without a failure: %s, want %s", after, before)
	}
	t.Logf("%d calls that may fail", calls)
	failures := 0
	for k := 1; k <= calls; k++ {
		for _, code := range []int{2, 1} {
			simdriver.Fail(k, code)
			err := everything()
			simdriver.Fail(0, 0)
			// The driver need not be able to say how large a parameter is.
			var e *Error
			if err != nil {
				failures++
				if !errors.As(err, &e) || int(e.Code) != code || errors.Is(err, ErrOutOfMemory) != (code == 2) {
					t.Errorf("call %d with code %d: %v", k, code, err)
				}
			}
			if after := simdriver.Live(); after != before {
				t.Fatalf("call %d with code %d (%v): %s, want %s", k, code, err, after, before)
			}
		}
	}
	if failures < 2*calls-4 {
		t.Errorf("%d of %d failures were reported", failures, 2*calls)
	}
}

// A device that is lost is reported once; all later calls say when it was, make
// no call, and another Open begins anew.
func TestDeviceLost(t *testing.T) {
	d := open(t)
	s, f := stream(t, d), fill(t, d)
	p := alloc(t, d, 4)
	params := fillParams{out: uint64(p) + 1<<40, n: 1}
	ok(t, s.Launch(f, one, Dim{32, 1, 1}, 0, unsafe.Pointer(&params))) // nobody has waited
	first := s.Sync()
	var e *Error
	if !errors.Is(first, ErrDeviceLost) || !errors.As(first, &e) || e.Code != 700 || e.Kernel != "test_fill_32" || e.Cause != nil || errors.Is(first, ErrOutOfMemory) {
		t.Fatalf("first: %v", first)
	}
	if d.Lost() != error(e) {
		t.Errorf("Lost = %v", d.Lost())
	}
	calls := simdriver.Calls()
	_, e1 := d.Alloc(1)
	_, e2 := d.NewStream()
	_, e3 := d.Reserve(1)
	for _, err := range []error{
		e1, e2, e3, s.Sync(), s.Memset(p, 0, 4), s.Launch(f, one, one, 0, unsafe.Pointer(&params)),
		d.CopyToDevice(p, []byte{1}), s.CopyToHost(make([]byte, 1), p),
	} {
		var later *Error
		if !errors.Is(err, ErrDeviceLost) || !errors.As(err, &later) || later.Cause != e || !strings.Contains(err.Error(), "device lost earlier by cuStreamSynchronize (kernel test_fill_32)") {
			t.Errorf("later: %v", err)
		}
	}
	if n := simdriver.Calls() - calls; n != 0 {
		t.Errorf("%d calls were made of a lost device", n)
	}
}

// Two goroutines may have made their calls before either heard of the loss.
func TestSecondToHearOfTheLoss(t *testing.T) {
	d := &Device{}
	if !simdriver.Loaded() {
		t.Skip(simdriver.Missing)
	}
	first, second := d.failed("cuA", 719, "", "").(*Error), d.failed("cuB", 719, "", "").(*Error)
	if first.Cause != nil || second.Cause != first {
		t.Errorf("%v, then %v", first, second)
	}
	if e := d.failed("cuC", 1, "", "").(*Error); e.Cause != nil || errors.Is(e, ErrDeviceLost) {
		t.Errorf("an error that loses nothing: %v", e)
	}
}

// A thread that was never used for the device, or for another one since.
func TestContextOfEachThread(t *testing.T) {
	d := open(t)
	s, f := stream(t, d), fill(t, d)
	p, host := alloc(t, d, 4), pinned(t, d, 4)
	e := must(d.NewEvent(true))(t)
	closing(t, e.Close)
	g := must(s.Capture(func() error { return s.Memset(p, 0, 4) }))(t)
	closing(t, g.Close)
	params := fillParams{out: uint64(p), n: 1}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for what, call := range map[string]func() error{
		"Launch":       func() error { return s.Launch(f, one, Dim{32, 1, 1}, 0, unsafe.Pointer(&params)) },
		"CopyToDevice": func() error { return s.CopyToDevice(p, host) },
		"Sync":         s.Sync,
		"Record":       func() error { return e.Record(s) },
		"event Sync":   e.Sync,
		"graph":        func() error { return g.Launch(s) },
		"Reserve": func() error {
			r, err := d.Reserve(1)
			if err != nil {
				return err
			}
			return r.Close()
		},
		"Alloc": func() error {
			p, err := d.Alloc(1)
			return errors.Join(err, d.Free(p))
		},
		"Copy": func() error { return d.CopyToHost(host, p) },
	} {
		if c := within(nil, func() error { return nil }); c != 0 {
			t.Fatal(c)
		}
		if err := call(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Of many goroutines that meet a lost device one reports it.
func TestDeviceLostOnce(t *testing.T) {
	d := open(t)
	s := stream(t, d)
	p := alloc(t, d, 4)
	simdriver.Fail(10, 719)
	defer simdriver.Fail(0, 0)
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for range 8 {
		wg.Go(func() {
			for range 4 {
				errs <- errors.Join(s.Memset(p, 0, 4), s.Sync())
			}
		})
	}
	wg.Wait()
	close(errs)
	firsts := 0
	for err := range errs {
		for _, e := range split(err) {
			var x *Error
			if !errors.As(e, &x) || !errors.Is(e, ErrDeviceLost) {
				t.Errorf("%v", e)
			} else if x.Cause == nil {
				firsts++
			}
		}
	}
	if firsts != 1 {
		t.Errorf("%d goroutines report the loss, want 1", firsts)
	}
}

func split(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return nil
}

// Goroutines move between threads: the context is there on each of them.
func TestGoroutines(t *testing.T) {
	d := open(t)
	f := fill(t, d)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 10 {
				if err := oneOf(d, f, float32(i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	ok(t, d.closePool())
}

func oneOf(d *Device, f *Function, x float32) (err error) {
	s, err := d.NewStream()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	p, err := s.Alloc(4)
	if err != nil {
		return err
	}
	params := fillParams{out: uint64(p), n: 1, value: x}
	host := make([]byte, 4)
	err = errors.Join(s.Launch(f, one, Dim{32, 1, 1}, 0, unsafe.Pointer(&params)), s.CopyToHost(host, p), s.Free(p), s.Sync())
	if err == nil && floats(host)[0] != x {
		return errors.New("another goroutine's value")
	}
	return err
}
