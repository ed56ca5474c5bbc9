//go:build cuda && cgo

package cuda

// #include "kernels/params.h"
import "C"

import (
	"bytes"
	"fmt"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// PageBounds finds the least and the largest value of each feature of pages.
func (b *Backend) PageBounds(a *kernel.PageBoundsArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Key, &a.KeyScale, &a.Min, &a.Max); err != nil {
		return err
	}
	if len(a.Pages) == 0 {
		return nil
	}
	return b.withTables(func(at []uint64) error {
		var p C.lc_bounds_params
		setTensor(&p.key, &a.Key)
		setTensor(&p.least, &a.Min)
		setTensor(&p.most, &a.Max)
		setScalars(&p.scale, &a.KeyScale)
		p.list, p.rows = C.uint64_t(at[0]), C.uint64_t(at[1])
		p.pages, p.heads, p.features = C.int32_t(len(a.Pages)), C.int32_t(a.Key.Shape[2]), C.int32_t(a.Key.Shape[3])
		return b.op("page_bounds_256", int64(len(a.Pages))*a.Key.Shape[2]*a.Key.Shape[3], unsafe.Pointer(&p))
	}, bytesOf(a.Pages), bytesOf(a.Rows))
}

// PageScores bounds the scores of the keys of pages. The Fast policy computes as
// Exact does.
func (b *Backend) PageScores(a *kernel.PageScoresArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Query, &a.Min, &a.Max, &a.Out); err != nil {
		return err
	}
	if a.Out.Len() == 0 {
		return nil
	}
	return b.withTables(func(at []uint64) error {
		var p C.lc_scores_params
		setTensor(&p.query, &a.Query)
		setTensor(&p.least, &a.Min)
		setTensor(&p.most, &a.Max)
		setTensor(&p.out, &a.Out)
		p.query_start, p.indptr, p.indices = C.uint64_t(at[0]), C.uint64_t(at[1]), C.uint64_t(at[2])
		heads, columns := a.Min.Shape[1], a.Out.Shape[2]
		tiles := (columns + kernel.TileSize - 1) / kernel.TileSize
		items := int64(len(a.QueryStart)-1) * heads * tiles
		p.items, p.tiles, p.columns = C.int64_t(items), C.int64_t(tiles), C.int64_t(columns)
		p.heads, p.group, p.features = C.int32_t(heads), C.int32_t(a.Query.Shape[1]/heads), C.int32_t(a.Query.Shape[2])
		p.scale = C.float(a.Scale)
		if err := b.dev.launch("page_scores_256", blocksFor(items, 1), opThreads, int(C.lc_scores_shared()), unsafe.Pointer(&p)); err != nil {
			return fmt.Errorf("cuda: page_scores_256 of %v: %w", &a.Out, err)
		}
		return nil
	}, bytesOf(a.QueryStart), bytesOf(a.Pages.Indptr), bytesOf(a.Pages.Indices))
}

// EncodePages codes plain pages. It waits for the device: which pages could be
// coded is known only then.
func (b *Backend) EncodePages(a *kernel.EncodeArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if reasons := lacksCoding(&a.Coding); len(reasons) > 0 {
		return &kernel.UnsupportedError{Backend: "cuda", Reasons: reasons}
	}
	if err := b.onDevice(&a.Key, &a.Value, &a.KeyScale, &a.ValueScale, &a.CodedKey.Codes, &a.CodedKey.Scale, &a.CodedKey.Zero,
		&a.CodedValue.Codes, &a.CodedValue.Scale, &a.CodedValue.Zero); err != nil {
		return err
	}
	n := len(a.Src)
	if n == 0 {
		return nil
	}
	encoded := bytes.Repeat([]byte{1}, n)
	if err := b.withTables(func(at []uint64) error {
		for _, x := range [...]struct {
			kernel      string
			rows, scale *tensor.View
			coded       *kernel.CodedPages
			q           *kernel.Quantizer
		}{{"encode_keys_256", &a.Key, &a.KeyScale, &a.CodedKey, &a.Coding.Key}, {"encode_values_256", &a.Value, &a.ValueScale, &a.CodedValue, &a.Coding.Value}} {
			var p C.lc_encode_params
			setTensor(&p.rows, x.rows)
			setScalars(&p.scale, x.scale)
			setCoded(&p.coded, x.coded)
			p.coded.codec, p.coded.group = C.int32_t(x.q.Codec), C.int32_t(x.q.Group)
			p.src, p.dst, p.encoded = C.uint64_t(at[0]), C.uint64_t(at[1]), C.uint64_t(at[2])
			p.pages, p.slots, p.heads, p.features = C.int32_t(n), C.int32_t(x.rows.Shape[1]), C.int32_t(x.rows.Shape[2]), C.int32_t(x.rows.Shape[3])
			if err := b.op(x.kernel, x.rows.Shape[2]*x.rows.Shape[3]*int64(n), unsafe.Pointer(&p)); err != nil {
				return err
			}
		}
		return b.dev.copyOut(encoded, at[2])
	}, bytesOf(a.Src), bytesOf(a.Dst), encoded); err != nil {
		return err
	}
	for i, x := range encoded {
		a.Encoded[i] = x == 1
	}
	return nil
}

// TopK finds the indices of the largest scores of rows. It waits for the device.
func (b *Backend) TopK(a *kernel.TopKArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Scores); err != nil {
		return err
	}
	rows := a.Scores.Shape[0] * a.Scores.Shape[1]
	if rows == 0 {
		return nil
	}
	return b.withTables(func(at []uint64) error {
		var p C.lc_topk_params
		setTensor(&p.scores, &a.Scores)
		if a.Counts != nil {
			p.counts = C.uint64_t(at[0])
		}
		p.out, p.rows = C.uint64_t(at[1]), C.int64_t(rows)
		p.heads, p.n, p.k = C.int32_t(a.Scores.Shape[1]), C.int32_t(a.Scores.Shape[2]), C.int32_t(a.K)
		if err := b.dev.launch("topk_rows_256", blocksFor(rows, 1), opThreads, int(C.lc_topk_shared()), unsafe.Pointer(&p)); err != nil {
			return fmt.Errorf("cuda: topk_rows_256 of %v: %w", &a.Scores, err)
		}
		return b.dev.copyOut(bytesOf(a.Out), at[1])
	}, bytesOf(a.Counts), bytesOf(a.Out))
}
