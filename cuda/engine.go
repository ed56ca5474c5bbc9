//go:build cuda && cgo

package cuda

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/longctx/longctx/cuda/internal/driver"
	"github.com/longctx/longctx/kernel"
)

// device is the engine that the driver serves: one stream, all kernels.
type device struct {
	*driver.Device
	title   string
	stream  *driver.Stream
	modules []*driver.Module
	kernels map[string]*driver.Function

	mu        sync.Mutex // of staging
	staging   [4]stage
	next      int
	recording atomic.Bool
	transfers transfers
}

// stage is pinned memory that a copy to the device reads from. It is free again
// when done is reached.
type stage struct {
	bytes []byte
	done  *driver.Event
}

const (
	smallestStage = 64 << 10
	largestStage  = 4 << 20 // larger copies go in parts
)

// openEngine opens a device through the driver.
func openEngine(ordinal int) (engine, error) {
	dev, err := driver.Open(ordinal)
	if err != nil {
		return nil, unavailable(ordinal, err)
	}
	if dev.SM < 80 {
		why := fmt.Errorf("%s has compute capability %d.%d, want 8.0 or later", dev.Name, dev.SM/10, dev.SM%10)
		return nil, unavailable(ordinal, errors.Join(why, dev.Close()))
	}
	d := &device{Device: dev, title: fmt.Sprintf("cuda:%d", ordinal), kernels: map[string]*driver.Function{}}
	if err := d.start(); err != nil {
		return nil, unavailable(ordinal, errors.Join(err, d.close()))
	}
	return d, nil
}

func unavailable(ordinal int, err error) error {
	return &UnavailableError{Device: ordinal, Reason: err.Error(), Err: err}
}

func (d *device) start() (err error) {
	if d.stream, err = d.NewStream(); err != nil {
		return err
	}
	for i := range d.staging {
		if d.staging[i].done, err = d.NewEvent(false); err != nil {
			return err
		}
	}
	if err := d.transfers.open(d.Device); err != nil {
		return err
	}
	return d.load()
}

// load loads every image. Nothing is left to be loaded in a Run.
func (d *device) load() error {
	all, err := manifests()
	if err != nil {
		return err
	}
	for _, m := range all {
		image, err := image(m)
		if err != nil {
			return err
		}
		module, err := d.Load(image)
		if err != nil {
			return fmt.Errorf("kernels of %s: %w", m.Source, err)
		}
		d.modules = append(d.modules, module)
		for _, k := range m.Kernels {
			if d.kernels[k.Name] != nil {
				continue // of the other architecture
			}
			f, err := module.Function(k.Name)
			if err != nil {
				return err
			}
			if f.ParamBytes >= 0 && f.ParamBytes != k.Params {
				return fmt.Errorf("kernel %s takes %d bytes, its image was made for %d", k.Name, f.ParamBytes, k.Params)
			}
			if err := f.SetMaxDynamicShared(d.SharedPerMore - f.StaticShared); err != nil {
				return err
			}
			d.kernels[k.Name] = f
		}
	}
	return nil
}

func (d *device) close() error {
	var errs []error
	if d.stream != nil {
		errs = append(errs, d.stream.Sync())
	}
	errs = append(errs, d.transfers.close())
	for _, m := range d.modules {
		errs = append(errs, m.Close())
	}
	for _, s := range d.staging {
		if s.done != nil {
			errs = append(errs, s.done.Close())
		}
		errs = append(errs, d.FreeHost(s.bytes))
	}
	if d.stream != nil {
		errs = append(errs, d.stream.Close())
	}
	return errors.Join(append(errs, d.Close())...)
}

func (d *device) name() string         { return d.title }
func (d *device) multiprocessors() int { return d.Multiprocs }
func (d *device) sharedBytes() int     { return d.SharedPerMore }
func (d *device) wait() error          { return d.stream.Sync() }

func (d *device) alloc(bytes int64) (uint64, error) {
	p, err := d.Alloc(bytes)
	if errors.Is(err, driver.ErrOutOfMemory) {
		return 0, &kernel.OutOfMemoryError{Backend: "cuda", Bytes: bytes}
	}
	return uint64(p), err
}

func (d *device) allocHost(bytes int64) ([]byte, func() error, error) {
	if bytes == 0 {
		return nil, nil, nil
	}
	memory, err := d.AllocHost(int(bytes))
	if errors.Is(err, driver.ErrOutOfMemory) {
		return nil, nil, &kernel.OutOfMemoryError{Backend: "cuda", Bytes: bytes}
	}
	return memory, func() error { return d.FreeHost(memory) }, err
}

func (d *device) reserve(most int64) (uint64, mapped, error) {
	r, err := d.Reserve(most)
	if err != nil {
		return 0, nil, err
	}
	return uint64(r.Base()), r, nil
}

func (d *device) free(addr uint64) error { return d.Free(driver.Ptr(addr)) }

func (d *device) clear(addr uint64, bytes int64) error {
	return d.stream.Memset(driver.Ptr(addr), 0, bytes)
}

// copyIn copies by way of pinned memory, so that it waits only when all stages
// are under way.
func (d *device) copyIn(dst uint64, src []byte) error {
	if d.recording.Load() {
		return errors.New("cuda: tables cannot be copied to the device while a graph is recorded: plan before")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(src) > 0 {
		part := src[:min(len(src), largestStage)]
		if err := d.copyPart(driver.Ptr(dst), part); err != nil {
			return err
		}
		dst += uint64(len(part))
		src = src[len(part):]
	}
	return nil
}

func (d *device) copyPart(dst driver.Ptr, part []byte) error {
	s := &d.staging[d.next]
	d.next = (d.next + 1) % len(d.staging)
	if err := s.done.Sync(); err != nil {
		return err
	}
	if err := d.growStage(s, len(part)); err != nil {
		return err
	}
	copy(s.bytes, part)
	if err := d.stream.CopyToDevice(dst, s.bytes[:len(part)]); err != nil {
		return err
	}
	return s.done.Record(d.stream)
}

func (d *device) growStage(s *stage, n int) error {
	if n <= len(s.bytes) {
		return nil
	}
	size := smallestStage
	for size < n {
		size *= 2
	}
	bigger, err := d.AllocHost(size)
	if errors.Is(err, driver.ErrOutOfMemory) {
		return &kernel.OutOfMemoryError{Backend: "cuda", Bytes: int64(size)}
	}
	if err != nil {
		return err
	}
	old := s.bytes
	s.bytes = bigger
	return d.FreeHost(old)
}

// copyOut is done when it returns: the memory is not pinned.
func (d *device) copyOut(dst []byte, src uint64) error {
	if err := d.stream.CopyToHost(dst, driver.Ptr(src)); err != nil {
		return err
	}
	return d.stream.Sync()
}

func (d *device) launch(name string, grid, block, shared int, params unsafe.Pointer) error {
	f := d.kernels[name]
	if f == nil {
		return fmt.Errorf("cuda: no kernel %s in this version", name)
	}
	return d.stream.Launch(f, driver.Dim{X: uint32(grid), Y: 1, Z: 1}, driver.Dim{X: uint32(block), Y: 1, Z: 1}, shared, params)
}

func (d *device) capture(record func() error) (graph, error) {
	if !d.recording.CompareAndSwap(false, true) {
		return nil, errors.New("cuda: a graph is being recorded already")
	}
	defer d.recording.Store(false)
	g, err := d.stream.Capture(record)
	if err != nil {
		return nil, err
	}
	return &recorded{g, d.stream}, nil
}

// recorded is a graph of the device's stream.
type recorded struct {
	*driver.Graph
	stream *driver.Stream
}

func (g *recorded) launch() error { return g.Launch(g.stream) }
func (g *recorded) close() error  { return g.Close() }
