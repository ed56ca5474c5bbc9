package kvcache_test

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

var (
	errInjected = errors.New("injected fault")
	errGather   = errors.New("injected fault of GatherRows")
	errEncode   = errors.New("injected fault of EncodePages")
)

// hostBackend has what a cache needs of a backend, element by element. The
// counters, if above 0, count calls down to the one that fails.
type hostBackend struct {
	failAlloc, failCopy, failAppend, failEncode, failGather atomic.Int64

	allocated atomic.Int64 // bytes
	copied    atomic.Int64 // pages, of one tensor each
	encoded   atomic.Int64 // pages, of one layer each
	gathered  atomic.Int64 // rows, of one tensor each
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

// GatherRows fails after the first row.
func (b *hostBackend) GatherRows(a *kernel.GatherArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	fail, c := due(&b.failGather), &a.Cache
	at := func(slot int32) (page, offset int64) { return int64(slot) / c.Shape[1], int64(slot) % c.Shape[1] }
	for i, dst := range a.Dst {
		to, row := at(dst)
		for h := range c.Shape[2] {
			for d := range c.Shape[3] {
				sum := float32(0)
				for k := a.Start[i]; k < a.Start[i+1]; k++ {
					from, slot := at(a.Src[k])
					sum = kernel.FMA(c.At(from, slot, h, d), a.Weight(k), sum)
				}
				c.Set(sum, to, row, h, d)
			}
		}
		b.gathered.Add(1)
		if fail {
			return errGather
		}
	}
	return nil
}

// EncodePages fails after the first page, so that a fault leaves half of it.
func (b *hostBackend) EncodePages(a *kernel.EncodeArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	fail := due(&b.failEncode)
	for i := range a.Src {
		key, value := a.Key.Slice(0, int64(a.Src[i]), int64(a.Src[i])+1), a.Value.Slice(0, int64(a.Src[i]), int64(a.Src[i])+1)
		a.Encoded[i] = encodeRows(a.Coding.Key.Codec, &key, &a.CodedKey, int64(a.Dst[i])) && encodeRows(a.Coding.Value.Codec, &value, &a.CodedValue, int64(a.Dst[i]))
		b.encoded.Add(1)
		if fail {
			return errEncode
		}
	}
	return nil
}

// encodeRows codes the rows of one page, [1, size, heads, dim].
func encodeRows(c kernel.Codec, x *tensor.View, to *kernel.CodedPages, page int64) bool {
	size, heads, dim, all := x.Shape[1], x.Shape[2], x.Shape[3], true
	row := func(slot, h int64) []uint8 {
		return to.Codes.Bits8()[page*to.Codes.Stride[0]+slot*to.Codes.Stride[1]+h*to.Codes.Stride[2]:]
	}
	group := func(h, d0, d1, s0, s1 int64, index ...int64) {
		lo, hi := x.At(0, s0, h, d0), x.At(0, s0, h, d0)
		for s := s0; s < s1; s++ {
			for d := d0; d < d1; d++ {
				lo, hi = min(lo, x.At(0, s, h, d)), max(hi, x.At(0, s, h, d))
			}
		}
		scale, zero, ok := c.Group(lo, hi)
		all = all && ok
		to.Scale.Set(tensor.F16ToF32(scale), index...)
		to.Zero.Set(tensor.F16ToF32(zero), index...)
		for s := s0; s < s1; s++ {
			for d := d0; d < d1; d++ {
				c.Put(row(s, h), int(dim), int(d), c.Encode(x.At(0, s, h, d), tensor.F16ToF32(scale), tensor.F16ToF32(zero)))
			}
		}
	}
	for h := range heads {
		if to.Scale.Rank == 3 {
			for d := range dim {
				group(h, d, d+1, 0, size, page, h, d)
			}
			continue
		}
		n := dim / to.Scale.Shape[3]
		for s := range size {
			for g := range to.Scale.Shape[3] {
				group(h, g*n, (g+1)*n, s, s+1, page, s, h, g)
			}
		}
	}
	return all
}

func (*hostBackend) Attention(kernel.Spec) (kernel.Attention, error) {
	return nil, errors.ErrUnsupported
}
func (*hostBackend) Rotate(*kernel.RotateArgs) error { return errors.ErrUnsupported }
func (*hostBackend) Merge(*kernel.MergeArgs) error   { return errors.ErrUnsupported }

func (*hostBackend) PageBounds(*kernel.PageBoundsArgs) error { return errors.ErrUnsupported }
func (*hostBackend) PageScores(*kernel.PageScoresArgs) error { return errors.ErrUnsupported }
func (*hostBackend) RowScores(*kernel.RowScoresArgs) error   { return errors.ErrUnsupported }
func (*hostBackend) CodeScores(*kernel.CodeScoresArgs) error { return errors.ErrUnsupported }
func (*hostBackend) TopK(*kernel.TopKArgs) error             { return errors.ErrUnsupported }
func (*hostBackend) Scores(*kernel.ScoresArgs) error         { return errors.ErrUnsupported }
func (*hostBackend) ScoreLoss(*kernel.ScoreLossArgs) error   { return errors.ErrUnsupported }
