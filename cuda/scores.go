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

// RowScores computes the scores of single keys over some of their features. The
// Fast policy computes as Exact does.
func (b *Backend) RowScores(a *kernel.RowScoresArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Query, &a.Key, &a.Out); err != nil {
		return err
	}
	if a.Out.Len() == 0 {
		return nil
	}
	tables := [][]byte{bytesOf(a.QueryStart), bytesOf(a.Pages.Indptr), bytesOf(a.SeqLens), bytesOf(a.Pages.Indices)}
	if a.Channels != nil {
		tables = append(tables, bytesOf(a.Channels))
	}
	return b.withTables(func(at []uint64) error {
		var p C.lc_key_scores_params
		setTensor(&p.query, &a.Query)
		setTensor(&p.key, &a.Key)
		setTensor(&p.out, &a.Out)
		p.query_start, p.key_start, p.seq_lens, p.pages = C.uint64_t(at[0]), C.uint64_t(at[1]), C.uint64_t(at[2]), C.uint64_t(at[3])
		p.features, p.page_size, p.columns, p.scale = C.int32_t(a.Query.Shape[2]), C.int32_t(a.Key.Shape[1]), C.int64_t(a.Out.Shape[2]), C.float(a.Scale)
		if a.Channels != nil {
			p.channels = C.uint64_t(at[4])
			p.features = C.int32_t(int64(len(a.Channels)) / (a.Query.Shape[0] * a.Key.Shape[2]))
		}
		return b.keyScores(&p, a.QueryStart, a.Query.Shape[1], a.Key.Shape[2], a.Out.Shape[2])
	}, tables...)
}

// Scores computes the scores of all queries and keys of sequences. The Fast
// policy computes as Exact does.
func (b *Backend) Scores(a *kernel.ScoresArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Query, &a.Key, &a.Out); err != nil {
		return err
	}
	if a.Out.Len() == 0 {
		return nil
	}
	pairs, most := []int64{0}, int64(0)
	for s := range len(a.QueryStart) - 1 {
		keys := int64(a.KeyStart[s+1] - a.KeyStart[s])
		pairs, most = append(pairs, pairs[s]+int64(a.QueryStart[s+1]-a.QueryStart[s])*keys), max(most, keys)
	}
	return b.withTables(func(at []uint64) error {
		var p C.lc_key_scores_params
		setTensor(&p.query, &a.Query)
		setTensor(&p.key, &a.Key)
		p.out = C.lc_tensor{data: C.uint64_t(address(&a.Out)), row: C.int64_t(a.Out.Stride[0]), dim: C.int64_t(a.Out.Stride[1]), dtype: C.int32_t(tensor.F32), vector: 1}
		p.query_start, p.key_start, p.pairs = C.uint64_t(at[0]), C.uint64_t(at[1]), C.uint64_t(at[2])
		p.features, p.columns, p.scale = C.int32_t(a.Query.Shape[2]), C.int64_t(most), C.float(a.Scale)
		return b.keyScores(&p, a.QueryStart, a.Query.Shape[1], a.Key.Shape[1], most)
	}, bytesOf(a.QueryStart), bytesOf(a.KeyStart), bytesOf(pairs))
}

// keyScores launches the kernel whose block of rows fits those of the longest
// sequence.
func (b *Backend) keyScores(p *C.lc_key_scores_params, queryStart []int32, heads, kvHeads, columns int64) error {
	tokens := int64(0)
	for s := range len(queryStart) - 1 {
		tokens = max(tokens, int64(queryStart[s+1]-queryStart[s]))
	}
	group := heads / kvHeads
	rows, name := int64(8), "key_scores_8"
	if of := tokens * group; of > 32 && p.channels == 0 || group > 32 {
		rows, name = 64, "key_scores_64"
	}
	blocks := (tokens*group + rows - 1) / rows
	if p.channels != 0 {
		blocks = tokens * ((group + rows - 1) / rows)
	}
	tiles := (columns + kernel.TileSize - 1) / kernel.TileSize
	items := int64(len(queryStart)-1) * kvHeads * blocks * tiles
	p.heads, p.group = C.int32_t(kvHeads), C.int32_t(group)
	p.items, p.row_blocks, p.tiles = C.int64_t(items), C.int64_t(blocks), C.int64_t(tiles)
	if err := b.dev.launch(name, blocksFor(items, 1), blockThreads, int(C.lc_key_scores_shared(C.int32_t(rows))), unsafe.Pointer(p)); err != nil {
		return fmt.Errorf("cuda: %s of %d tiles of keys: %w", name, items, err)
	}
	return nil
}

// CodeScores computes the scores of keys that are codes.
func (b *Backend) CodeScores(a *kernel.CodeScoresArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Table, &a.Codes, &a.Out); err != nil {
		return err
	}
	if a.Out.Len() == 0 {
		return nil
	}
	return b.withTables(func(at []uint64) error {
		var p C.lc_code_scores_params
		setTensor(&p.table, &a.Table)
		setTensor(&p.codes, &a.Codes)
		setTensor(&p.out, &a.Out)
		p.query_start, p.key_start, p.seq_lens, p.pages = C.uint64_t(at[0]), C.uint64_t(at[1]), C.uint64_t(at[2]), C.uint64_t(at[3])
		heads, parts, columns := a.Codes.Shape[2], a.Codes.Shape[3], a.Out.Shape[2]
		tiles := (columns + opThreads - 1) / opThreads
		items := int64(len(a.SeqLens)) * heads * tiles
		p.items, p.tiles, p.columns = C.int64_t(items), C.int64_t(tiles), C.int64_t(columns)
		p.heads, p.group, p.page_size = C.int32_t(heads), C.int32_t(a.Table.Shape[1]/heads), C.int32_t(a.Codes.Shape[1])
		p.parts, p.codes_of_part = C.int32_t(parts), C.int32_t(a.Table.Shape[2]/parts)
		if err := b.dev.launch("code_scores_256", blocksFor(items, 1), opThreads, int(C.lc_code_scores_shared()), unsafe.Pointer(&p)); err != nil {
			return fmt.Errorf("cuda: code_scores_256 of %v: %w", &a.Out, err)
		}
		return nil
	}, bytesOf(a.QueryStart), bytesOf(a.Pages.Indptr), bytesOf(a.SeqLens), bytesOf(a.Pages.Indices))
}
