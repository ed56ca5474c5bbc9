package kerneltest

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// swaps adds the cases of a Swapper. A backend need not be one.
func (t *builder) swaps(exact kernel.Policy) {
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16, tensor.U8} {
		for _, l := range []Layout{{}, {Gap: 2}, {HeadsFirst: true}} {
			t.operation("swap", fmt.Sprintf("%v/gap=%d/heads-first=%v", d, l.Gap, l.HeadsFirst), func(t *trial) { t.swapPages(d, l) }, exact)
		}
	}
	t.operation("swap", "many", (*trial).swapMany, exact)
	t.operation("swap", "refused", (*trial).swapRefused, exact)
}

// swapper is the backend, if it is one.
func (t *trial) swapper() (kernel.Swapper, error) {
	if s, ok := t.backend.(kernel.Swapper); ok {
		return s, nil
	}
	return nil, &kernel.UnsupportedError{Backend: t.backend.Name(), Reasons: []string{"it is no kernel.Swapper"}}
}

// hostPages is memory of the host for so many pages of cache.
func hostPages(s kernel.Swapper, cache *tensor.View, pages int64) (v tensor.View, free func() error, err error) {
	v = *cache
	v.Shape[0], v.Offset = pages, 0
	m, err := s.HostAlloc(pages * v.Stride[0] * v.DType.Size())
	if err != nil {
		return v, nil, err
	}
	v.Buf = m
	return v, func() error {
		if c, ok := m.(interface{ Close() error }); ok {
			return c.Close()
		}
		return nil
	}, nil
}

// swapPages: pages go out and come back to other places bit for bit, whatever
// happened to them meanwhile, and no other element changes.
func (t *trial) swapPages(d tensor.DType, l Layout) {
	const pages, size, heads, dim = 9, 4, 2, 6
	t.with(func(m *memory) (err error) {
		s, err := t.swapper()
		if err != nil {
			return err
		}
		block, x, err := m.filled("Cache", d, l, true, 1, pages, size, heads, dim)
		if err != nil {
			return err
		}
		block.fill(x)
		a := kernel.SwapArgs{CachePages: []int32{3, 4, 5, 8, 0}, HostPages: []int32{1, 2, 3, 0, 5}}
		if a.Cache, err = m.hand(block); err != nil {
			return err
		}
		var free func() error
		if a.Host, free, err = hostPages(s, &a.Cache, 6); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, free()) }()
		want := block.words()
		const page = size * heads * dim
		from := slices.Clone(want.bits)
		out, err := s.SwapOut(&a)
		if err != nil {
			return err
		}
		if err := out.Wait(); err != nil {
			return err
		}
		// what they held is overwritten before they come back elsewhere
		if err := s.CopyPages(&kernel.CopyArgs{Cache: a.Cache, Src: []int32{1, 2, 6}, Dst: []int32{3, 4, 8}}); err != nil {
			return err
		}
		for i, dst := range []int{3, 4, 8} {
			copy(want.bits[dst*page:][:page], from[[]int{1, 2, 6}[i]*page:][:page])
		}
		a.CachePages = []int32{1, 2, 7, 6, 5}
		in, err := s.SwapIn(&a)
		if err != nil {
			return err
		}
		for i, dst := range a.CachePages {
			copy(want.bits[int(dst)*page:][:page], from[int([]int32{3, 4, 5, 8, 0}[i])*page:][:page])
		}
		// what is asked after it sees the pages, without waiting
		if err := s.CopyPages(&kernel.CopyArgs{Cache: a.Cache, Src: []int32{7}, Dst: []int32{0}}); err != nil {
			return err
		}
		copy(want.bits[:page], want.bits[7*page:][:page])
		if err := m.take(); err != nil {
			return err
		}
		got := block.words()
		for i := range got.bits {
			if got.bits[i] != want.bits[i] {
				t.wrong("Cache: element %d is %#x, want %#x", i, got.bits[i], want.bits[i])
				break
			}
		}
		if err := in.Wait(); err != nil {
			return err
		}
		for _, x := range []kernel.Transfer{out, in, out} {
			if done, err := x.Done(); !done || err != nil {
				t.wrong("a transfer that was waited for: done is %v, %v", done, err)
			}
		}
		return nil
	})
}

// swapMany: many transfers may be asked for at once, and each is right.
func (t *trial) swapMany() {
	const pages, n = 40, 200
	t.with(func(m *memory) (err error) {
		s, err := t.swapper()
		if err != nil {
			return err
		}
		block, x, err := m.filled("Cache", tensor.F32, Layout{}, true, 1, pages, 2, 1, 4)
		if err != nil {
			return err
		}
		block.fill(x)
		a := kernel.SwapArgs{}
		if a.Cache, err = m.hand(block); err != nil {
			return err
		}
		var free func() error
		if a.Host, free, err = hostPages(s, &a.Cache, n); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, free()) }()
		var list []kernel.Transfer
		for i := range n {
			a.CachePages, a.HostPages = []int32{int32(i*7) % pages}, []int32{int32(i)}
			x, err := s.SwapOut(&a)
			if err != nil {
				return err
			}
			list = append(list, x)
		}
		for _, x := range list {
			if err := x.Wait(); err != nil {
				return err
			}
		}
		want, host := block.words(), a.Host.F32s()
		for i := range n {
			for e := range 8 {
				if got := math.Float32bits(host[i*8+e]); got != want.bits[i*7%pages*8+e] {
					t.wrong("page %d of the host: element %d is %#x, want %#x", i, e, got, want.bits[i*7%pages*8+e])
					return m.take()
				}
			}
		}
		return m.take()
	})
}

// swapRefused: what cannot be right is refused, and changes nothing.
func (t *trial) swapRefused() {
	for _, f := range []struct {
		name  string
		spoil func(a *kernel.SwapArgs)
	}{
		{"page past the end", func(a *kernel.SwapArgs) { a.CachePages[0] = 4 }},
		{"page before the start", func(a *kernel.SwapArgs) { a.HostPages[1] = -1 }},
		{"a page twice", func(a *kernel.SwapArgs) { a.CachePages[0], a.HostPages[0] = a.CachePages[1], a.HostPages[1] }},
		{"pages short", func(a *kernel.SwapArgs) { a.HostPages = a.HostPages[:1] }},
		{"another type", func(a *kernel.SwapArgs) { a.Host.DType = tensor.BF16 }},
		{"another shape", func(a *kernel.SwapArgs) { a.Host.Shape[2]-- }},
		{"another order", func(a *kernel.SwapArgs) {
			a.Host.Stride[1], a.Host.Stride[2] = a.Host.Stride[3], a.Host.Shape[3]*a.Host.Shape[1]
		}},
		{"elements apart", func(a *kernel.SwapArgs) { a.Cache.Shape[3]--; a.Host.Shape[3]-- }},
		{"no cache", func(a *kernel.SwapArgs) { a.Cache = tensor.View{} }},
		{"no host", func(a *kernel.SwapArgs) { a.Host = tensor.View{} }},
	} {
		t.with(func(m *memory) (err error) {
			s, err := t.swapper()
			if err != nil {
				return err
			}
			block, x, err := m.filled("Cache", tensor.F32, Layout{}, true, 1, 4, 2, 2, 4)
			if err != nil {
				return err
			}
			block.fill(x)
			a := kernel.SwapArgs{CachePages: []int32{2, 0}, HostPages: []int32{1, 2}}
			if a.Cache, err = m.hand(block); err != nil {
				return err
			}
			var free func() error
			if a.Host, free, err = hostPages(s, &a.Cache, 3); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, free()) }()
			f.spoil(&a)
			for name, call := range map[string]func(*kernel.SwapArgs) (kernel.Transfer, error){"SwapOut": s.SwapOut, "SwapIn": s.SwapIn} {
				if _, err := call(&a); err == nil {
					t.wrong("%s: %s: no error", name, f.name)
				}
			}
			return m.untouched()
		})
	}
}
