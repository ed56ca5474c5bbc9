package kernels

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/cuda"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// far is a device as the measurements see one: memory that only CopyIn and
// CopyOut reach from outside, and work that is done when Wait has returned.
type far struct {
	*cpu.Backend
	free  int64 // bytes left
	queue []func() error
	taken int
}

// sealed is a buffer of the device: outside, its bytes are not to be had.
type sealed struct {
	inside *tensor.View // of bytes
	of     *far
	open   *bool
}

func (s sealed) Device() string { return "far" }
func (s sealed) Size() int64    { return s.inside.Len() }

func (s sealed) Close() error { // may be called twice
	if *s.open {
		s.of.taken--
	}
	*s.open = false
	return nil
}

func (f *far) Name() string { return "far" }

func (f *far) Alloc(n int64) (tensor.Buffer, error) {
	if n > f.free {
		return nil, &kernel.OutOfMemoryError{Backend: "far", Bytes: n}
	}
	f.free -= n
	f.taken++
	v := tensor.New(tensor.U8, n)
	open := true
	return sealed{&v, f, &open}, nil
}

func (f *far) CopyIn(dst tensor.Buffer, src []byte) error {
	copy(dst.(sealed).inside.Bytes(), src)
	return nil
}

func (f *far) CopyOut(dst []byte, src tensor.Buffer) error {
	if err := f.Wait(); err != nil {
		return err
	}
	copy(dst, src.(sealed).inside.Bytes())
	return nil
}

func (f *far) Wait() error {
	for _, do := range f.queue {
		if err := do(); err != nil {
			return err
		}
	}
	f.queue = nil
	return nil
}

func (f *far) MeasureRoof(int64, time.Duration) (cuda.Roof, error) {
	return cuda.Roof{FMA: 4e9, Read: 2e9}, nil
}

func (f *far) Attention(s kernel.Spec) (kernel.Attention, error) {
	a, err := f.Backend.Attention(s)
	return &farAttention{a, f}, err
}

type farAttention struct {
	kernel.Attention
	of *far
}

func (a *farAttention) Run(args *kernel.Args) error {
	inside := *args
	for _, v := range append(tensors(&inside), &inside.Query, &inside.Out, &inside.LSE) {
		if !v.IsZero() {
			v.Buf = v.Buf.(sealed).inside.Buf
		}
	}
	a.of.queue = append(a.of.queue, func() error { return a.Attention.Run(&inside) })
	return nil
}

func (a *farAttention) Backward(args *kernel.BackwardArgs) error {
	inside := *args
	for _, v := range []*tensor.View{&inside.Query, &inside.Key, &inside.Value, &inside.Out, &inside.LSE, &inside.DOut, &inside.DQuery, &inside.DKey, &inside.DValue} {
		v.Buf = v.Buf.(sealed).inside.Buf
	}
	a.of.queue = append(a.of.queue, func() error { return a.Attention.Backward(&inside) })
	return nil
}

func newFar(t *testing.T, free int64) *far {
	b := cpu.New(cpu.Options{Workers: 1})
	t.Cleanup(func() { b.Close() })
	return &far{Backend: b, free: free}
}

// TestADeviceIsMeasuredAndChecked: every form of case is computed from a copy in
// the device's memory, waited for, checked, and the memory is given back.
func TestADeviceIsMeasuredAndChecked(t *testing.T) {
	if testing.Short() {
		t.Skip("runs every kernel")
	}
	cases := small()
	cases = slices.DeleteFunc(cases, func(c Case) bool { return c.Threads != 1 })
	for i := range cases {
		cases[i].Threads = 0
	}
	device := newFar(t, 1<<40)
	r := newRunner(t, cases)
	r.Device, r.Variants, r.Policies = device, []string{"far"}, r.Policies[:1]
	for _, c := range cases {
		rows, err := r.Run(t.Context(), c)
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		if len(rows) != 1 || rows[0].Backend != "far" || rows[0].Note != "" || !(rows[0].Seconds > 0) || !(rows[0].Error >= 0 && rows[0].Error < 1e-2) {
			t.Errorf("%v: %+v", c, rows)
		}
		if device.taken != 0 {
			t.Fatalf("%v: %d buffers of the device were not given back", c, device.taken)
		}
	}
}

// TestADeviceWithoutRoom: the case is left out, and says why.
func TestADeviceWithoutRoom(t *testing.T) {
	c := Case{Kind: Decode, KV: Types[1], HeadDim: 64, Heads: 8, KVHeads: 8, PageSize: 16, Length: 150}
	device := newFar(t, 1<<20)
	r := newRunner(t, []Case{c})
	r.Device, r.Variants = device, []string{"far"}
	rows, err := r.Run(t.Context(), c)
	if err != nil || len(rows) != 1 || !strings.Contains(rows[0].Note, "memory") || device.taken != 0 {
		t.Errorf("%+v, %v, %d buffers left", rows, err, device.taken)
	}
}

// TestADeviceThatComputesNothing has no speed.
func TestADeviceThatComputesNothing(t *testing.T) {
	c := Case{Kind: Prefill, KV: Types[0], HeadDim: 64, Heads: 4, KVHeads: 2, Causal: true, Length: 70}
	r := newRunner(t, []Case{c})
	r.Device, r.Variants, r.Policies = lazy{newFar(t, 1<<40)}, []string{"far"}, r.Policies[:1]
	rows, err := r.Run(t.Context(), c)
	if err != nil || len(rows) != 1 || rows[0].Seconds != 0 || !strings.Contains(rows[0].Note, "wrong") {
		t.Errorf("%+v, %v", rows, err)
	}
}

type lazy struct{ *far }

func (l lazy) Attention(s kernel.Spec) (kernel.Attention, error) {
	a, err := l.far.Attention(s)
	return lazyAttention{a}, err
}

type lazyAttention struct{ kernel.Attention }

func (lazyAttention) Run(*kernel.Args) error { return nil }

func TestDeviceRoofs(t *testing.T) {
	r, err := DeviceRoofs(newFar(t, 0), 1, time.Nanosecond)
	if err != nil || len(r) != 1 || r.of(0) != (Roof{0, 4, 2, "FP32"}) {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := DeviceRoofs(broken{}, 1, 1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

type broken struct{ Device }

func (broken) MeasureRoof(int64, time.Duration) (cuda.Roof, error) {
	return cuda.Roof{}, errors.ErrUnsupported
}
