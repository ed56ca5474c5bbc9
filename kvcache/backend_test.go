package kvcache_test

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

var errInjected = errors.New("injected fault")

// hostBackend has what a cache needs of a backend, element by element. The
// counters, if above 0, count calls down to the one that fails.
type hostBackend struct {
	failAlloc, failCopy, failAppend atomic.Int64

	allocated atomic.Int64 // bytes
	copied    atomic.Int64 // pages, of one tensor each
}

func due(n *atomic.Int64) bool { return n.Load() > 0 && n.Add(-1) == 0 }

func (*hostBackend) Name() string { return "host" }

func (b *hostBackend) Alloc(bytes int64) (tensor.Buffer, error) {
	if due(&b.failAlloc) {
		return nil, &kernel.OutOfMemoryError{Backend: "host", Bytes: bytes}
	}
	b.allocated.Add(bytes)
	return tensor.NewHost(bytes), nil
}

func (b *hostBackend) AppendKV(a *kernel.AppendArgs) error {
	if due(&b.failAppend) {
		return errInjected
	}
	for i, slot := range a.Slots {
		if slot < 0 {
			continue
		}
		storeRow(&a.KeyCache, slot, &a.Key, i)
		storeRow(&a.ValueCache, slot, &a.Value, i)
	}
	return nil
}

func storeRow(cache *tensor.View, slot int32, rows *tensor.View, i int) {
	page, offset := int64(slot)/cache.Shape[1], int64(slot)%cache.Shape[1]
	for h := range cache.Shape[2] {
		for d := range cache.Shape[3] {
			cache.Set(rows.At(int64(i), h, d), page, offset, h, d)
		}
	}
}

// CopyPages fails after the first page, so that a fault leaves half a copy.
func (b *hostBackend) CopyPages(a *kernel.CopyArgs) error {
	both := map[int32]bool{}
	for _, page := range a.Src {
		both[page] = true
	}
	fail := due(&b.failCopy)
	page := a.Cache.Stride[0] * a.Cache.DType.Size()
	for i := range a.Src {
		if both[a.Dst[i]] {
			return fmt.Errorf("page %d is source and destination", a.Dst[i])
		}
		copy(a.Cache.Bytes()[int64(a.Dst[i])*page:][:page], a.Cache.Bytes()[int64(a.Src[i])*page:][:page])
		b.copied.Add(1)
		if fail {
			return errInjected
		}
	}
	return nil
}

func (*hostBackend) EncodePages(*kernel.EncodeArgs) error { return errors.ErrUnsupported }
func (*hostBackend) Attention(kernel.Spec) (kernel.Attention, error) {
	return nil, errors.ErrUnsupported
}
func (*hostBackend) Rotate(*kernel.RotateArgs) error { return errors.ErrUnsupported }
func (*hostBackend) Merge(*kernel.MergeArgs) error   { return errors.ErrUnsupported }
