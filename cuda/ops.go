//go:build cuda && cgo

package cuda

// #include "kernels/params.h"
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Operations run an element or a pair a thread, in at most opBlocks blocks.
const (
	opThreads = 256
	opBlocks  = 4096
)

func blocksFor(n int64, each int64) int { return int(min((n+each-1)/each, opBlocks)) }

// withTables copies tables into the scratch memory of the backend and calls
// launch with their addresses. The device runs what it is asked in order, so
// the memory is free again for the next call.
func (b *Backend) withTables(launch func(at []uint64) error, tables ...[]byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var at [6]uint64
	b.tables = b.tables[:0]
	for i, t := range tables {
		for len(b.tables)%16 != 0 {
			b.tables = append(b.tables, 0)
		}
		at[i] = uint64(len(b.tables))
		b.tables = append(b.tables, t...)
	}
	if err := b.scratch.grow(int64(len(b.tables))); err != nil {
		return err
	}
	if err := b.dev.copyIn(b.scratch.addr, b.tables); err != nil {
		return err
	}
	for i := range tables {
		at[i] += b.scratch.addr
	}
	return launch(at[:len(tables)])
}

// AppendKV stores rows in slots of a paged cache.
func (b *Backend) AppendKV(a *kernel.AppendArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Key, &a.Value, &a.KeyCache, &a.ValueCache, &a.KeyScale, &a.ValueScale); err != nil {
		return err
	}
	if len(a.Slots) == 0 {
		return nil
	}
	return b.withTables(func(at []uint64) error {
		for _, x := range [...]struct{ rows, cache, scale *tensor.View }{{&a.Key, &a.KeyCache, &a.KeyScale}, {&a.Value, &a.ValueCache, &a.ValueScale}} {
			var p C.lc_append_params
			setTensor(&p.rows, x.rows)
			setTensor(&p.cache, x.cache)
			setScalars(&p.scale, x.scale)
			p.slots = C.uint64_t(at[0])
			p.tokens, p.heads, p.features = C.int32_t(len(a.Slots)), C.int32_t(x.rows.Shape[1]), C.int32_t(x.rows.Shape[2])
			p.page_size = C.int32_t(x.cache.Shape[1])
			if err := b.op("append_rows_256", x.rows.Len(), unsafe.Pointer(&p)); err != nil {
				return err
			}
		}
		return nil
	}, bytesOf(a.Slots))
}

// GatherRows makes rows of a cache of others.
func (b *Backend) GatherRows(a *kernel.GatherArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Cache); err != nil {
		return err
	}
	if len(a.Dst) == 0 {
		return nil
	}
	copies := len(a.Src) == len(a.Dst)
	for k := range a.Src {
		copies = copies && a.Weight(int32(k)) == 1
	}
	tables := [][]byte{bytesOf(a.Dst), bytesOf(a.Start), bytesOf(a.Src)}
	if a.Weights != nil {
		tables = append(tables, bytesOf(a.Weights))
	}
	return b.withTables(func(at []uint64) error {
		var p C.lc_gather_params
		c := &a.Cache
		setTensor(&p.cache, c)
		p.dst, p.start, p.src = C.uint64_t(at[0]), C.uint64_t(at[1]), C.uint64_t(at[2])
		if a.Weights != nil {
			p.weights = C.uint64_t(at[3])
		}
		p.rows, p.heads, p.features, p.page_size = C.int32_t(len(a.Dst)), C.int32_t(c.Shape[2]), C.int32_t(c.Shape[3]), C.int32_t(c.Shape[1])
		if copies {
			p.copies = 1
		}
		return b.op("gather_rows_256", int64(len(a.Dst))*c.Shape[2]*c.Shape[3], unsafe.Pointer(&p))
	}, tables...)
}

// CopyPages copies pages bit for bit.
func (b *Backend) CopyPages(a *kernel.CopyArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Cache); err != nil {
		return err
	}
	if len(a.Src) == 0 {
		return nil
	}
	return b.withTables(func(at []uint64) error {
		var p C.lc_copy_params
		c := &a.Cache
		setTensor(&p.cache, c)
		p.src, p.dst = C.uint64_t(at[0]), C.uint64_t(at[1])
		p.pages, p.slots, p.heads, p.features = C.int32_t(len(a.Src)), C.int32_t(c.Shape[1]), C.int32_t(c.Shape[2]), C.int32_t(c.Shape[3])
		n := int64(len(a.Src)) * c.Shape[1] * c.Shape[2] * c.Shape[3]
		return b.op("copy_pages_256", n, unsafe.Pointer(&p))
	}, bytesOf(a.Src), bytesOf(a.Dst))
}

// op launches an operation on n elements.
func (b *Backend) op(name string, n int64, params unsafe.Pointer) error {
	if n == 0 {
		return nil
	}
	if err := b.dev.launch(name, blocksFor(n, opThreads), opThreads, 0, params); err != nil {
		return fmt.Errorf("cuda: %s of %d elements: %w", name, n, err)
	}
	return nil
}

// Rotate turns rows of a tensor in place. The Fast policy computes as Exact
// does.
func (b *Backend) Rotate(a *kernel.RotateArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.X); err != nil {
		return err
	}
	if a.X.Len() == 0 {
		return nil
	}
	half := a.Dim / 2
	cos, sin := make([]float32, len(a.Rows)*half), make([]float32, len(a.Rows)*half)
	for i, r := range a.Rows {
		if r >= 0 {
			copy(cos[i*half:][:half], a.Table.Cos[int(r)*half:])
			copy(sin[i*half:][:half], a.Table.Sin[int(r)*half:])
		}
	}
	return b.withTables(func(at []uint64) error {
		var p C.lc_rotate_params
		setTensor(&p.x, &a.X)
		p.rows, p.cos, p.sin = C.uint64_t(at[0]), C.uint64_t(at[1]), C.uint64_t(at[2])
		p.tokens, p.heads, p.dim = C.int32_t(len(a.Rows)), C.int32_t(a.X.Shape[1]), C.int32_t(a.Dim)
		if a.Layout == kernel.Interleaved {
			p.interleaved = 1
		}
		if a.Inverse {
			p.inverse = 1
		}
		return b.op("rotate_rows_256", int64(len(a.Rows))*a.X.Shape[1]*int64(half), unsafe.Pointer(&p))
	}, bytesOf(a.Rows), bytesOf(cos), bytesOf(sin))
}

// Merge joins the states of two sets of keys. The Fast policy computes as Exact
// does.
func (b *Backend) Merge(a *kernel.MergeArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.OutA, &a.LSEA, &a.OutB, &a.LSEB, &a.Out, &a.LSE); err != nil {
		return err
	}
	var p C.lc_merge_params
	setTensor(&p.out_a, &a.OutA)
	setTensor(&p.out_b, &a.OutB)
	setTensor(&p.out, &a.Out)
	setScalars(&p.lse_a, &a.LSEA)
	setScalars(&p.lse_b, &a.LSEB)
	setScalars(&p.lse, &a.LSE)
	p.tokens, p.heads, p.features = C.int32_t(a.Out.Shape[0]), C.int32_t(a.Out.Shape[1]), C.int32_t(a.Out.Shape[2])
	rows := a.Out.Shape[0] * a.Out.Shape[1]
	if rows == 0 {
		return nil
	}
	if err := b.dev.launch("merge_states_128", blocksFor(rows, 1), blockThreads, 0, unsafe.Pointer(&p)); err != nil {
		return fmt.Errorf("cuda: merge of %v: %w", &a.Out, err)
	}
	return nil
}
