package kernel

import (
	"fmt"
	"slices"

	"github.com/longctx/longctx/tensor"
)

// Swapper is a Backend that moves pages of a cache to memory of the host and
// back while it computes. Its methods are safe for concurrent use.
type Swapper interface {
	Backend
	// HostAlloc returns zeroed memory of the host that pages can be moved to, or
	// an *OutOfMemoryError. The buffer has a method Close() error.
	HostAlloc(bytes int64) (tensor.Buffer, error)
	// SwapOut copies pages of the cache to the host, as all that was asked of the
	// backend before leaves them. Until the Transfer is done nothing may write
	// them, nor read or write the host's.
	SwapOut(*SwapArgs) (Transfer, error)
	// SwapIn copies pages of the host to the cache, after all that was asked of
	// the backend before. What is asked after it sees them. Until the Transfer is
	// done nothing may write those of the host.
	SwapIn(*SwapArgs) (Transfer, error)
}

// Grower is a Backend with memory that grows where it is: a pool of pages need
// not be as large from the start as it may become.
type Grower interface {
	Backend
	// Reserve returns a buffer without memory that can grow to most bytes. It has
	// a method Close() error.
	Reserve(most int64) (tensor.Buffer, error)
	// Grow gives a buffer of Reserve so many bytes, or an *OutOfMemoryError. What
	// it has stays where it is, as it is; new bytes are 0. On an error nothing has
	// changed.
	Grow(m tensor.Buffer, bytes int64) error
}

// SwapArgs names pages of a cache and pages of the host: page CachePages[i]
// belongs to page HostPages[i]. On the side that is written a page comes once. The
// elements of a page lie together and in one order on both sides.
type SwapArgs struct {
	Cache                 tensor.View // [pages, PageSize, KVHeads, dim], or of scales [pages, KVHeads, dim]
	Host                  tensor.View // likewise, in memory of HostAlloc
	CachePages, HostPages []int32
}

// Transfer is a copy under way.
type Transfer interface {
	// Done reports whether it is done. Its error is that of the copy.
	Done() (bool, error)
	// Wait returns when it is done.
	Wait() error
}

// PageLen is the number of elements of a page.
func (a *SwapArgs) PageLen() int64 {
	if a.Cache.Shape[0] == 0 {
		return 0
	}
	return a.Cache.Len() / a.Cache.Shape[0]
}

// Validate checks the views and pages of a SwapOut, or with in of a SwapIn.
func (a *SwapArgs) Validate(in bool) error {
	if a == nil {
		return absent("SwapArgs")
	}
	c, h := &a.Cache, &a.Host
	if c.Rank != 3 && c.Rank != 4 {
		return &ShapeError{"Cache", c.String(), "[pages, PageSize, KVHeads, dim] or [pages, KVHeads, dim]"}
	}
	if err := checkView("Cache", c, c.DType, c.Shape[:c.Rank]...); err != nil {
		return err
	}
	want := c.Shape
	want[0] = h.Shape[0]
	if err := checkView("Host", h, c.DType, want[:c.Rank]...); err != nil {
		return err
	}
	extent := int64(1)
	for d := 1; d < c.Rank; d++ {
		if c.Stride[d] != h.Stride[d] && c.Shape[d] > 1 {
			return &ShapeError{"Host", fmt.Sprint("strides ", h.Stride[:h.Rank]), fmt.Sprint("those of Cache within a page, ", c.Stride[:c.Rank])}
		}
		extent += (c.Shape[d] - 1) * c.Stride[d]
	}
	if n := a.PageLen(); n > 0 && extent != n {
		return &ShapeError{"Cache", fmt.Sprint("strides ", c.Stride[:c.Rank]), fmt.Sprintf("the %d elements of a page together", n)}
	}
	if err := lengthOf("HostPages", len(a.HostPages), len(a.CachePages)); err != nil {
		return err
	}
	for _, s := range [...]struct {
		name    string
		pages   []int32
		of      int64
		written bool
	}{{"CachePages", a.CachePages, c.Shape[0], in}, {"HostPages", a.HostPages, h.Shape[0], !in}} {
		for i, p := range s.pages {
			if p < 0 || int64(p) >= s.of {
				return &ValueError{fmt.Sprintf("%s[%d]", s.name, i), fmt.Sprint(p), fmt.Sprintf("0 to %d", s.of-1)}
			}
		}
		if !s.written {
			continue
		}
		sorted := slices.Sorted(slices.Values(s.pages))
		for i := 1; i < len(sorted); i++ {
			if sorted[i] == sorted[i-1] {
				return &ValueError{s.name, fmt.Sprintf("page %d twice", sorted[i]), "each page that is written once"}
			}
		}
	}
	return nil
}

// Runs calls f for each run of pages that follow one another on both sides: the
// elements at which it begins in Cache and in Host, and how many it has. An error
// of f ends it.
func (a *SwapArgs) Runs(f func(cache, host, n int64) error) error {
	page := a.PageLen()
	if page == 0 {
		return nil
	}
	c, h := &a.Cache, &a.Host
	for i := 0; i < len(a.CachePages); {
		n := 1
		for c.Stride[0] == page && h.Stride[0] == page && i+n < len(a.CachePages) &&
			a.CachePages[i+n] == a.CachePages[i]+int32(n) && a.HostPages[i+n] == a.HostPages[i]+int32(n) {
			n++
		}
		if err := f(c.Offset+int64(a.CachePages[i])*c.Stride[0], h.Offset+int64(a.HostPages[i])*h.Stride[0], int64(n)*page); err != nil {
			return err
		}
		i += n
	}
	return nil
}
