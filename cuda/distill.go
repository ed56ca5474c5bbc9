//go:build cuda && cgo

package cuda

// #include "kernels/params.h"
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/longctx/longctx/kernel"
)

// ScoreLoss compares the scores of two models. The Fast policy computes as Exact
// does.
func (b *Backend) ScoreLoss(a *kernel.ScoreLossArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Student.Query, &a.Student.Key, &a.Teacher.Query, &a.Teacher.Key, &a.Out, &a.DQuery, &a.DKey); err != nil {
		return err
	}
	return b.withTables(func(at []uint64) error {
		var p C.lc_loss_params
		heads := a.Student.Query.Shape[1]
		for _, x := range [...]struct {
			to   *C.lc_score_side
			from *kernel.ScoreSide
		}{{&p.student, &a.Student}, {&p.teacher, &a.Teacher}} {
			setTensor(&x.to.query, &x.from.Query)
			setTensor(&x.to.key, &x.from.Key)
			x.to.scale, x.to.group, x.to.features = C.float(x.from.Scale), C.int32_t(heads/x.from.Key.Shape[1]), C.int32_t(x.from.Query.Shape[2])
		}
		setScalars(&p.out, &a.Out)
		setTensor(&p.dquery, &a.DQuery)
		setTensor(&p.dkey, &a.DKey)
		p.query_start, p.key_start = C.uint64_t(at[0]), C.uint64_t(at[1])
		p.heads, p.zero_below, p.gradient = C.int32_t(heads), C.float(a.ZeroBelow), C.float(a.Gradient)
		if err := b.compare("loss_queries_64", &p, a.QueryStart, heads); err != nil || a.DKey.IsZero() {
			return err
		}
		return b.compare("loss_keys_64", &p, a.KeyStart, a.Student.Key.Shape[1])
	}, bytesOf(a.QueryStart), bytesOf(a.KeyStart))
}

// compare launches a kernel that owns tiles of rows of each sequence and head.
func (b *Backend) compare(name string, p *C.lc_loss_params, starts []int32, heads int64) error {
	tiles := int64(0)
	for s := range len(starts) - 1 {
		tiles = max(tiles, (int64(starts[s+1]-starts[s])+kernel.TileSize-1)/kernel.TileSize)
	}
	items := int64(len(starts)-1) * heads * tiles
	if items == 0 {
		return nil
	}
	p.items, p.tiles = C.int64_t(items), C.int64_t(tiles)
	if err := b.dev.launch(name, blocksFor(items, 1), blockThreads, int(C.lc_loss_shared()), unsafe.Pointer(p)); err != nil {
		return fmt.Errorf("cuda: %s of %d tiles: %w", name, items, err)
	}
	return nil
}
