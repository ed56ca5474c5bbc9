package cpu

import (
	"math"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

// Rows and features that are worked on at a time. A chain of additions goes
// through all features of the largest values, then of the least, so they may
// come in pieces.
const (
	pageRows     = 32
	pageFeatures = 64
)

// PageBounds finds the least and the largest value of each feature of pages.
func (b *Backend) PageBounds(a *kernel.PageBoundsArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Key, &a.KeyScale, &a.Min, &a.Max); err != nil {
		return err
	}
	t := bounding{readKeys(&a.Key, &a.KeyScale, nil, kernel.Quantizer{}), read(&a.Min), read(&a.Max), a.Key.Shape[2], a.Pages, a.Rows}
	n := int64(len(a.Pages))
	if b.pool.workers > 1 && n > 1 && n*a.Key.Shape[1]*a.Key.Shape[2]*a.Key.Shape[3] >= opShare {
		b.pool.do(&job{}, &bounding{t.key, t.least, t.most, t.heads, t.pages, t.rows}, n)
		return nil
	}
	for i := range n {
		t.item(0, i)
	}
	return nil
}

// bounding finds the bounds of a page an item.
type bounding struct {
	key, least, most reader
	heads            int64
	pages, rows      []int32
}

func (t *bounding) item(_ int, i int64) {
	var x [tile * pageFeatures]float32
	var lo, hi [pageFeatures]float32
	page, rows := int64(t.pages[i]), int64(t.rows[i])
	for h := range t.heads {
		for d0 := 0; d0 < t.key.n; d0 += pageFeatures {
			n := min(pageFeatures, t.key.n-d0)
			key, least, most := t.key.features(d0, n), t.least.features(d0, n), t.most.features(d0, n)
			for d := range n {
				lo[d], hi[d] = float32(math.Inf(1)), float32(math.Inf(-1))
			}
			at := key.offset + page*key.row + h*key.head
			for slot := int64(0); slot < rows; slot += tile {
				have := int(min(tile, rows-slot))
				key.loadScaled(x[:], pageFeatures, false, at+slot*key.slot, key.slot, have, 0, int(h))
				vec.MinMax(lo[:n], hi[:n], x[:], pageFeatures, have)
			}
			for d := range n {
				lo[d], hi[d] = lo[d]+0, hi[d]+0 // −0 becomes +0
			}
			least.storeRow(lo[:], page, int(h))
			most.storeRow(hi[:], page, int(h))
		}
	}
}

// features is r with only n features from d0 of each row.
func (r reader) features(d0, n int) reader {
	r.offset += int64(d0) * r.dim
	r.n = n
	return r
}

// PageScores bounds the scores of the keys of pages.
func (b *Backend) PageScores(a *kernel.PageScoresArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Query, &a.Min, &a.Max, &a.Out); err != nil {
		return err
	}
	t := pageScoring{args: *a, query: read(&a.Query), bounds: [2]reader{read(&a.Max), read(&a.Min)}, out: read(&a.Out)}
	t.group, t.heads = int(a.Query.Shape[1]/a.Min.Shape[1]), a.Min.Shape[1]
	t.tiles = (a.Out.Shape[2] + tile - 1) / tile
	n := int64(len(a.QueryStart)-1) * t.heads * t.tiles
	if b.pool.workers > 1 && n > 1 && a.Out.Len()*a.Query.Shape[2] >= opShare {
		b.pool.do(&job{}, &pageScoring{t.args, t.query, t.bounds, t.out, t.group, t.heads, t.tiles}, n)
		return nil
	}
	for i := range n {
		t.item(0, i)
	}
	return nil
}

// pageScoring bounds the scores of 64 pages of a sequence and KV head an item.
type pageScoring struct {
	args   kernel.PageScoresArgs
	query  reader
	bounds [2]reader // the largest values, then the least
	out    reader
	group  int
	heads  int64 // KV heads
	tiles  int64 // of pages, for each sequence and head
}

// pageTile is the memory of an item.
type pageTile struct {
	bounds, columns [tile * pageFeatures]float32     // as stored, and feature d of page n at d·tile+n
	query           [pageRows * pageFeatures]float32 // positive or negative parts
	sums            [pageRows * tile]float32
}

func (t *pageScoring) item(_ int, i int64) {
	x, kvHead, s := i%t.tiles, int(i/t.tiles%t.heads), int(i/t.tiles/t.heads)
	table := &t.args.Pages
	pages := table.Indices[table.Indptr[s]:table.Indptr[s+1]]
	pages = pages[min(x*tile, int64(len(pages))):]
	pages = pages[:min(tile, len(pages))]
	t0, rows := int64(t.args.QueryStart[s]), int(t.args.QueryStart[s+1]-t.args.QueryStart[s])*t.group
	var m pageTile
	for r0 := 0; r0 < rows; r0 += pageRows {
		n := min(pageRows, rows-r0)
		clear(m.sums[:])
		if len(pages) > 0 {
			for side := range t.bounds {
				for d0 := 0; d0 < t.query.n; d0 += pageFeatures {
					t.add(&m, side, pages, kvHead, d0, min(pageFeatures, t.query.n-d0), t0, r0, n)
				}
			}
		}
		for r := range n {
			t.store(m.sums[r*tile:][:tile], len(pages), x*tile, t0+int64((r0+r)/t.group), kvHead*t.group+(r0+r)%t.group)
		}
	}
}

// add adds to the sums of n rows from r0 what features d0 … d0+dim−1 of one
// side of the bounds give.
func (t *pageScoring) add(m *pageTile, side int, pages []int32, kvHead, d0, dim int, t0 int64, r0, n int) {
	bounds, query := t.bounds[side].features(d0, dim), t.query.features(d0, dim)
	for k, page := range pages {
		bounds.loadRow(m.bounds[k*pageFeatures:], int64(page), kvHead)
	}
	vec.ColumnsF32(m.columns[:], tile, m.bounds[:], pageFeatures, len(pages), dim, 0)
	for r := range n {
		q := m.query[r*pageFeatures:][:dim]
		query.loadRow(q, t0+int64((r0+r)/t.group), kvHead*t.group+(r0+r)%t.group)
		for d, x := range q {
			if side == 0 {
				q[d] = max(x, 0)
			} else {
				q[d] = min(x, 0)
			}
		}
	}
	vec.MulAdd(t.args.Policy, vec.Matrix{X: m.sums[:], Row: tile}, vec.Matrix{X: m.query[:], Row: pageFeatures, Col: 1},
		vec.Matrix{X: m.columns[:], Row: tile}, n, dim, tile, vec.Keep, nil)
}

// store writes the scores of a row with pages n0 … of a sequence, the first
// have of which there are.
func (t *pageScoring) store(sums []float32, have int, n0, token int64, head int) {
	n := min(int64(t.out.n)-n0, tile)
	for k := range sums[:n] {
		if k < have {
			sums[k] *= t.args.Scale
		} else {
			sums[k] = float32(math.Inf(-1))
		}
	}
	out := t.out.features(int(n0), int(n))
	out.storeRow(sums, token, head)
}
