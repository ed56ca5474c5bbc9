package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/tier"
)

// health is how a remote store does.
type health int32

const (
	well health = iota
	slow
	dead    // answers never
	refuses // answers with errors
	rots    // what it holds is damaged
	cuts    // what it is given is cut short, and it says so
	full
	healths
)

// remote is a server of pages, by the ways of tier/redis and tier/s3: bytes under
// the name of a key, which are checked when they come back. It outlives a
// Manager.
type remote struct {
	health   atomic.Int32
	injected atomic.Int64

	mu    sync.Mutex
	rng   *rand.Rand
	pages map[page.Key][]byte
}

func newRemote(seed uint64) *remote {
	return &remote{rng: rand.New(rand.NewPCG(seed, 3)), pages: map[page.Key][]byte{}}
}

func (r *remote) enter(ctx context.Context, op string, k page.Key) error {
	if err := ctx.Err(); err != nil {
		return &tier.StoreError{Store: "remote", Op: op, Key: k, Err: err}
	}
	switch health(r.health.Load()) {
	case slow:
		select {
		case <-time.After(200 * time.Microsecond):
		case <-ctx.Done():
			return &tier.StoreError{Store: "remote", Op: op, Key: k, Err: ctx.Err()}
		}
	case dead:
		r.injected.Add(1)
		<-ctx.Done()
		return &tier.StoreError{Store: "remote", Op: op, Key: k, Err: ctx.Err()}
	case refuses:
		r.injected.Add(1)
		return &tier.StoreError{Store: "remote", Op: op, Key: k, Err: errInjected}
	}
	return nil
}

func (r *remote) Put(ctx context.Context, k page.Key, b []byte) error {
	if err := page.Check(b, k); err != nil {
		return err
	}
	if err := r.enter(ctx, "Put", k); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch health(r.health.Load()) {
	case full:
		r.injected.Add(1)
		return &tier.FullError{Store: "remote", Need: int64(len(b))}
	case cuts:
		r.injected.Add(1)
		r.pages[k] = bytes.Clone(b[:r.rng.IntN(len(b))])
		return &tier.StoreError{Store: "remote", Op: "Put", Key: k, Err: errInjected}
	}
	r.pages[k] = bytes.Clone(b)
	return nil
}

func (r *remote) Get(ctx context.Context, k page.Key, dst []byte) ([]byte, error) {
	if err := r.enter(ctx, "Get", k); err != nil {
		return dst, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.pages[k]
	if !ok {
		return dst, tier.ErrNotFound
	}
	if health(r.health.Load()) == rots {
		r.injected.Add(1)
		b = bytes.Clone(b)
		if len(b) > 0 {
			b[r.rng.IntN(len(b))] ^= 1 << r.rng.IntN(8)
		}
	}
	if err := page.Check(b, k); err != nil {
		delete(r.pages, k)
		return dst, &tier.CorruptError{Store: "remote", Key: k, Err: err}
	}
	return append(dst, b...), nil
}

func (r *remote) Has(ctx context.Context, k page.Key) (bool, error) {
	if err := r.enter(ctx, "Has", k); err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.pages[k]
	return ok, nil
}

func (r *remote) Delete(ctx context.Context, k page.Key) error {
	if err := r.enter(ctx, "Delete", k); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pages, k)
	return nil
}

func (r *remote) Close() error { return nil }

// device is a Disk that is full at times.
type device struct {
	*tier.Disk
	full     atomic.Bool
	injected atomic.Int64
}

func (d *device) Put(ctx context.Context, k page.Key, b []byte) error {
	if d.full.Load() {
		d.injected.Add(1)
		return &tier.FullError{Store: "disk", Need: int64(len(b)), Err: syscall.ENOSPC}
	}
	return d.Disk.Put(ctx, k, b)
}

// damage changes a byte of a file of a folder of pages, or cuts it short.
func damage(dir string, choose func(n int) int) (bool, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		return false, err
	}
	name := files[choose(len(files))]
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // let go in the meantime
	} else if err != nil {
		return false, err
	}
	if len(b) < page.HeaderBytes { // the lock of the folder
		return false, nil
	}
	if choose(3) == 0 {
		err = os.Truncate(name, int64(choose(len(b))))
		return err == nil, ignoreMissing(err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return false, ignoreMissing(err)
	}
	at := choose(len(b))
	_, err = f.WriteAt([]byte{b[at] ^ 16}, int64(at))
	return err == nil, errors.Join(err, f.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// expected reports what is wrong with an error of the tiers: each must have a type
// that a caller can act on.
func expected(err error, faults bool, ended bool) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, expected(e, faults, ended))
		}
		return errors.Join(all...)
	}
	var (
		corrupt *tier.CorruptError
		fullErr *tier.FullError
		store   *tier.StoreError
	)
	switch {
	case err == nil, errors.Is(err, tier.ErrNotFound):
		return nil
	case ended && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)):
		return nil
	case faults && (errors.As(err, &corrupt) || errors.As(err, &fullErr) || errors.As(err, &store)):
		return nil
	}
	return fmt.Errorf("an error of no expected type: %T %w", err, err)
}
