package kerneltest

import (
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// codedBlocks are the tensors of coded pages in memory; nil: absent.
type codedBlocks struct{ codes, scale, zero, levels, outliers, left, right *block }

// all lists them with the views that they become.
func (b *codedBlocks) all(p *kernel.CodedPages) (blocks []*block, views []*tensor.View) {
	for i, x := range []*block{b.codes, b.scale, b.zero, b.outliers, b.left, b.right, b.levels} {
		if x != nil {
			blocks = append(blocks, x)
			views = append(views, []*tensor.View{&p.Codes, &p.Scale, &p.Zero, &p.Outliers, &p.Left, &p.Right, &p.Levels}[i])
		}
	}
	return blocks, views
}

// putCoded makes tensors for so many pages. Levels are an input even where the
// pages are an output.
func (m *memory) putCoded(name string, q kernel.Quantizer, levels []float32, l Layout, output bool, pages, size, heads int64, dim int) (b *codedBlocks, err error) {
	l.Spread = 0
	b = &codedBlocks{}
	d, groups := int64(dim), []int64{pages, heads, int64(dim)}
	if q.Group > 0 {
		groups = []int64{pages, size, heads, d / int64(q.Group)}
	}
	other := l
	other.Gap++ // zeros need not lie as scales do
	rows := other
	rows.HeadsFirst = false
	n := len(levels) / int(heads)
	for _, t := range []struct {
		to     **block
		name   string
		dtype  tensor.DType
		layout Layout
		there  bool
		output bool
		shape  []int64
	}{
		{&b.codes, "Codes", tensor.U8, l, true, output, []int64{pages, size, heads, d * int64(bits(q.Codec)) / 8}},
		{&b.scale, "Scale", tensor.F16, l, true, output, groups},
		{&b.zero, "Zero", tensor.F16, other, true, output, groups},
		{&b.levels, "Levels", tensor.F32, rows, q.Levels, false, []int64{heads, int64(n)}},
		{&b.outliers, "Outliers", tensor.U8, other, q.Outliers > 0, output, []int64{pages, heads, int64(4 * q.Outliers)}},
		{&b.left, "Left", tensor.F16, other, q.Rank > 0, output, []int64{pages, size, heads, int64(q.Rank)}},
		{&b.right, "Right", tensor.F16, l, q.Rank > 0, output, []int64{pages, heads, int64(q.Rank), d}},
	} {
		if !t.there {
			continue
		}
		if *t.to, err = m.put(name+"."+t.name, t.dtype, t.layout, t.output, true, t.shape...); err != nil {
			return nil, err
		}
	}
	if q.Levels {
		b.levels.fill(levels)
	}
	return b, nil
}

// put lays a head of a page out.
func (b *codedBlocks) put(h *codedHead, q kernel.Quantizer, page, head int64, size, dim int) {
	for slot, codes := range h.codes {
		b.codes.row(pack(q.Codec, codes), page, int64(slot), head)
		if q.Group > 0 {
			n := dim / q.Group
			b.scale.row(h.scale[slot*n:][:n], page, int64(slot), head)
			b.zero.row(h.zero[slot*n:][:n], page, int64(slot), head)
		}
		if q.Rank > 0 {
			b.left.row(h.left[slot], page, int64(slot), head)
		}
	}
	if q.Group == 0 {
		b.scale.row(h.scale, page, head)
		b.zero.row(h.zero, page, head)
	}
	if q.Outliers > 0 {
		b.outliers.row(packOutliers(h.outliers, q.Outliers, size*dim), page, head)
	}
	for k, row := range h.right {
		b.right.row(row, page, head, int64(k))
	}
}

// placeCoded lays coded rows of dim features out.
func (c *placed) placeCoded(name string, r *codedRows, q kernel.Quantizer, t *kernel.BlockTable, total, dim int, to *kernel.CodedPages) error {
	cfg := &c.problem.Config
	b, err := c.putCoded("Coded"+name, q, r.levels, c.layout, false, int64(total), int64(cfg.PageSize), int64(cfg.KVHeads), dim)
	if err != nil {
		return err
	}
	c.eachPagedKey(t, func(key, entry int, slot int64) {
		if slot > 0 || !t.IsCoded(entry) {
			return
		}
		for head := range cfg.KVHeads {
			if h := r.heads[[2]int{key, head}]; h != nil {
				b.put(h, q, int64(t.Indices[entry]), int64(head), cfg.PageSize, dim)
			}
		}
	})
	blocks, views := b.all(to)
	return c.hands(blocks, views...)
}
