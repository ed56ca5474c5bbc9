package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// PageBounds and PageScores.

func (t *builder) pageOperations() {
	exact := kernel.Exact
	bounds := func(name string, c boundsCase) {
		t.operation("pagebounds", name, func(t *trial) { t.pageBounds(c) }, exact)
	}
	for i, l := range layouts {
		bounds(fmt.Sprintf("layout=%d", i), boundsCase{7, 5, 2, 9, tensor.F32, tensor.F32, false, l, 1})
	}
	for _, d := range []tensor.DType{tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2} {
		bounds(fmt.Sprintf("%v-to-f32", d), boundsCase{7, 16, 3, 24, d, tensor.F32, false, Layout{Spread: 2}, 2})
	}
	for _, d := range allTypes() {
		bounds(fmt.Sprintf("%v-to-%v", d, d), boundsCase{7, 16, 3, 40, d, d, false, Layout{Pad: 1, Spread: 2}, 3})
	}
	for _, d := range fp8() {
		bounds(fmt.Sprintf("%v/scaled", d), boundsCase{7, 5, 3, 8, d, tensor.F32, true, Layout{}, 4})
	}
	for _, dim := range []int{1, 127, 128, 129, 300} {
		bounds(fmt.Sprintf("dim=%d", dim), boundsCase{4, 3, 1, dim, tensor.F32, tensor.F32, false, Layout{}, 5})
	}
	bounds("dim=300/features-apart", boundsCase{4, 3, 1, 300, tensor.F32, tensor.F32, false, Layout{Spread: 3, HeadsFirst: true}, 5})
	bounds("many", boundsCase{90, 16, 2, 64, tensor.BF16, tensor.BF16, false, Layout{}, 6})

	scores := func(name string, c scoresCase) {
		t.operation("pagescores", name, func(t *trial) { t.pageScores(c) })
	}
	usual := scoresCase{heads: 4, kvHeads: 2, dim: 16, size: 4, queries: []int{3, 0, 1, 5}, lens: []int{7, 4, 0, 30},
		query: tensor.F32, key: tensor.F32, scale: 0.25, seed: 1}
	with := func(edit func(c *scoresCase)) scoresCase { c := usual; edit(&c); return c }
	for i, l := range layouts {
		scores(fmt.Sprintf("layout=%d", i), with(func(c *scoresCase) { c.layout = l }))
	}
	for _, q := range allTypes() {
		for _, k := range allTypes() {
			scores(fmt.Sprintf("types/%v/%v", q, k), with(func(c *scoresCase) { c.query, c.key, c.layout = q, k, Layout{Spread: 2} }))
		}
	}
	for _, n := range []int{1, 63, 64, 65, 130, 200} {
		scores(fmt.Sprintf("decode/pages=%d", n), with(func(c *scoresCase) { c.queries, c.lens = []int{1, 1}, []int{4 * n, 4*n - 3} }))
	}
	for _, n := range []int{15, 16, 17, 33, 70} {
		scores(fmt.Sprintf("queries=%d", n), with(func(c *scoresCase) { c.queries, c.lens = []int{n}, []int{90} }))
	}
	for _, d := range []int{1, 63, 64, 65, 128, 300} {
		scores(fmt.Sprintf("dim=%d", d), with(func(c *scoresCase) { c.dim = d }))
	}
	for _, h := range [][2]int{{1, 1}, {3, 3}, {8, 1}, {40, 1}, {14, 2}} {
		scores(fmt.Sprintf("heads=%d/kvheads=%d", h[0], h[1]), with(func(c *scoresCase) { c.heads, c.kvHeads = h[0], h[1] }))
	}
	scores("dim=150/pages=130/features-apart", with(func(c *scoresCase) {
		c.dim, c.queries, c.lens, c.layout = 150, []int{1, 2}, []int{4 * 130, 4 * 70}, Layout{Spread: 3, Gap: 1}
	}))
	scores("one-key-a-page", with(func(c *scoresCase) { c.size = 1 }))
	scores("one-key-a-page/scale=3", with(func(c *scoresCase) { c.size, c.scale, c.dim = 1, 3, 64 }))
	scores("spare-columns", with(func(c *scoresCase) { c.spare = 70 }))
	scores("no-pages", with(func(c *scoresCase) { c.queries, c.lens, c.spare = []int{2, 1}, []int{0, 0}, 2 }))
	scores("no-sequences", with(func(c *scoresCase) { c.queries, c.lens, c.spare = nil, nil, 3 }))
	scores("extreme", with(func(c *scoresCase) { c.extreme = true }))
	scores("large", with(func(c *scoresCase) {
		c.queries, c.lens, c.dim, c.size, c.seed = []int{1, 7, 1}, []int{700, 900, 20}, 64, 4, 2
	}))
}

// boundsCase is a PageBounds.
type boundsCase struct {
	pages, size, heads, dim int
	key, bound              tensor.DType
	scaled                  bool
	layout                  Layout
	seed                    uint64
}

// pageBounds: rule 16 bit for bit, and rows of pages that are not listed stay.
// Slots that do not count are NaN.
func (t *trial) pageBounds(c boundsCase) {
	t.with(func(m *memory) error {
		r := newRandom(c.seed, 7)
		shape := []int64{int64(c.pages), int64(c.heads), int64(c.dim)}
		key, x, err := m.filled("Key", c.key, c.layout, false, c.seed, int64(c.pages), int64(c.size), shape[1], shape[2])
		if err != nil {
			return err
		}
		least, _, err := m.filled("Min", c.bound, c.layout, true, 50, shape...)
		if err != nil {
			return err
		}
		most, _, err := m.filled("Max", c.bound, c.layout, true, 51, shape...)
		if err != nil {
			return err
		}
		var a kernel.PageBoundsArgs
		for i, page := range r.permutation(c.pages)[:c.pages-c.pages/4] {
			a.Pages = append(a.Pages, int32(page))
			a.Rows = append(a.Rows, int32([]int{c.size, r.below(c.size + 1), c.size - 1, 0, 1}[i%5]))
		}
		row := c.heads * c.dim
		page := func(i int) []float32 { return x[int(a.Pages[i])*c.size*row:][:c.size*row] }
		copy(page(0), []float32{float32(math.Inf(1)), float32(math.Copysign(0, -1)), float32(math.Inf(-1))}[:min(3, row)])
		for j := range c.size { // all of the second feature are zeros of both signs
			page(0)[j*row+row-1] = float32(math.Copysign(0, float64(j%2)-1))
		}
		page(2)[0] = float32(math.NaN())
		for i, n := range a.Rows {
			for k := int(n) * row; k < c.size*row; k++ {
				page(i)[k] = float32(math.NaN())
			}
		}
		for i, v := range x {
			x[i] = float32(round(c.key, float64(v)))
		}
		key.fill(x)
		scales := make([]float32, c.heads)
		if c.scaled {
			for h := range scales {
				scales[h] = float32(0.3 + float64(h))
			}
			scale, err := m.put("KeyScale", tensor.F32, Layout{}, false, true, shape[1])
			if err != nil {
				return err
			}
			scale.fill(scales)
			if a.KeyScale, err = m.hand(scale); err != nil {
				return err
			}
		}
		if err := m.hands([]*block{key, least, most}, &a.Key, &a.Min, &a.Max); err != nil {
			return err
		}
		wantLeast, wantMost := least.words(), most.words()
		for i, p := range a.Pages {
			for k := range row {
				lo, hi := math.Inf(1), math.Inf(-1)
				for j := range int(a.Rows[i]) {
					v := page(i)[j*row+k]
					if c.scaled {
						v = float32(v * scales[k/c.dim])
					}
					lo, hi = math.Min(lo, float64(v)), math.Max(hi, float64(v))
				}
				wantLeast.bits[int(p)*row+k], wantMost.bits[int(p)*row+k] = encode(c.bound, lo+0), encode(c.bound, hi+0)
			}
		}
		if err := t.backend.PageBounds(&a); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		gotLeast, gotMost := least.words(), most.words()
		t.differ(differ("Min", &gotLeast, &wantLeast))
		t.differ(differ("Max", &gotMost, &wantMost))
		t.result.Hash = hash(&gotLeast, &gotMost)
		return nil
	})
}

// scoresCase is a PageScores of sequences of keys in pages, none of them
// shared.
type scoresCase struct {
	heads, kvHeads, dim, size int
	queries, lens             []int
	query, key                tensor.DType
	scale                     float32
	spare                     int // columns of Out beyond the most pages of a sequence
	extreme                   bool
	layout                    Layout
	seed                      uint64
}

// pages is the number of pages of sequence s.
func (c *scoresCase) pages(s int) int { return (c.lens[s] + c.size - 1) / c.size }

// bounds are the extremes of page n of sequence s, for a KV head and feature.
func (c *scoresCase) bounds(keys []float32, s, n, head, d int) (lo, hi float32) {
	for j := n * c.size; j < min((n+1)*c.size, c.lens[s]); j++ {
		if v := c.at(keys, s, j, head, d); j == n*c.size {
			lo, hi = v, v
		} else {
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	return lo, hi
}

func (c *scoresCase) at(keys []float32, s, j, head, d int) float32 {
	return keys[((sum(c.lens[:s])+j)*c.kvHeads+head)*c.dim+d]
}

// pageScores: rule 17, which is close to the formula in real numbers, bounds
// the scores of the keys of a page, and is the score of one key.
func (t *trial) pageScores(c scoresCase) {
	t.with(func(m *memory) error {
		r, total, most := newRandom(c.seed, 8), 3, c.spare
		draw := func(d tensor.DType, n int) []float32 {
			out := make([]float32, n)
			for i := range out {
				out[i] = float32(round(d, r.normal()))
			}
			return out
		}
		queries := draw(c.query, sum(c.queries)*c.heads*c.dim)
		keys := draw(c.key, sum(c.lens)*c.kvHeads*c.dim)
		if c.extreme {
			queries[0], queries[c.heads*c.dim], queries[1] = float32(math.NaN()), float32(math.Inf(1)), 0
			keys[1], keys[c.kvHeads*c.dim*c.size*2] = float32(math.Inf(-1)), float32(math.NaN())
		}
		for s := range c.lens {
			total, most = total+c.pages(s), max(most, c.pages(s)+c.spare)
		}
		a := kernel.PageScoresArgs{QueryStart: []int32{0}, Pages: kernel.BlockTable{Indptr: []int32{0}}, Scale: c.scale, Policy: t.policy}
		query, err := m.put("Query", c.query, c.layout, false, true, int64(sum(c.queries)), int64(c.heads), int64(c.dim))
		if err != nil {
			return err
		}
		query.fill(queries)
		var sides [2]*block
		for i, name := range []string{"Min", "Max"} {
			if sides[i], err = m.put(name, c.key, c.layout, false, true, int64(total), int64(c.kvHeads), int64(c.dim)); err != nil {
				return err
			}
		}
		free := r.permutation(total)
		for s := range c.lens {
			a.QueryStart = append(a.QueryStart, a.QueryStart[s]+int32(c.queries[s]))
			for n := range c.pages(s) {
				page := free[len(a.Pages.Indices)]
				a.Pages.Indices = append(a.Pages.Indices, int32(page))
				for head := range c.kvHeads {
					for d := range c.dim {
						lo, hi := c.bounds(keys, s, n, head, d)
						sides[0].row([]float32{lo}, int64(page), int64(head), int64(d))
						sides[1].row([]float32{hi}, int64(page), int64(head), int64(d))
					}
				}
			}
			a.Pages.Indptr = append(a.Pages.Indptr, int32(len(a.Pages.Indices)))
		}
		out, err := m.put("Out", tensor.F32, c.layout, true, true, int64(sum(c.queries)), int64(c.heads), int64(most))
		if err != nil {
			return err
		}
		if err := m.hands([]*block{query, sides[0], sides[1], out}, &a.Query, &a.Min, &a.Max, &a.Out); err != nil {
			return err
		}
		if err := t.backend.PageScores(&a); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		got := out.words()
		t.result.Hash = hash(&got)
		t.judgeScores(&c, queries, keys, &got, most)
		return nil
	})
}

func (t *trial) judgeScores(c *scoresCase, queries, keys []float32, got *words, most int) {
	want := words{tensor.F32, make([]uint32, len(got.bits))}
	at := 0
	for s := range c.lens {
		for r := range c.queries[s] {
			for h := range c.heads {
				q := queries[((sum(c.queries[:s])+r)*c.heads+h)*c.dim:][:c.dim]
				for n := range most {
					if want.bits[at] = math.Float32bits(float32(math.Inf(-1))); n < c.pages(s) {
						want.bits[at] = math.Float32bits(t.judgeScore(c, q, keys, s, h/(c.heads/c.kvHeads), n, got.value(at)))
					} else if !math.IsInf(got.value(at), -1) {
						t.wrong("Out: element %d is %v, want -Inf: sequence %d has %d pages", at, got.value(at), s, c.pages(s))
					}
					at++
				}
			}
		}
	}
	if t.policy == kernel.Exact {
		t.differ(differ("Out", got, &want))
	}
}

// judgeScore holds the score of a page against the real numbers and returns
// that of rule 17.
func (t *trial) judgeScore(c *scoresCase, q, keys []float32, s, head, n int, got float64) float32 {
	sum, real, size := float32(0), 0.0, 0.0
	lo, hi := make([]float32, c.dim), make([]float32, c.dim)
	for d, x := range q {
		lo[d], hi[d] = c.bounds(keys, s, n, head, d)
		sum = kernel.FMA(hi[d], max(x, 0), sum)
		a, b := float64(x)*float64(lo[d]), float64(x)*float64(hi[d])
		real += math.Max(a, b)
		size += max(math.Abs(a), math.Abs(b))
	}
	for d, x := range q {
		sum = kernel.FMA(lo[d], min(x, 0), sum)
	}
	slack := float64(c.scale) * size * float64(2*c.dim+2) * 0x1p-24
	if !finite(size) {
		return float32(sum * c.scale)
	}
	if e := math.Abs(got - float64(c.scale)*real); !(e <= slack) {
		t.wrong("Out of page %d of sequence %d is %v, want %v", n, s, got, float64(c.scale)*real)
	}
	for j := n * c.size; j < min((n+1)*c.size, c.lens[s]); j++ {
		score := 0.0
		for d, x := range q {
			score += float64(x) * float64(c.at(keys, s, j, head, d))
		}
		if score *= float64(c.scale); !(got >= score-slack) || c.size == 1 && !(got <= score+slack) {
			t.wrong("Out of page %d of sequence %d is %v, its key %d has the score %v", n, s, got, j, score)
		}
	}
	return float32(sum * c.scale)
}

// randomPages draws a PageBounds, a PageScores or a RowScores.
func randomPages(d *drawn, seed uint64) (op string, check func(*trial)) {
	types := allTypes()
	l := Layout{Gap: d.below(3), Pad: d.below(3), HeadsFirst: d.chance(30), Spread: d.below(3)}
	if d.chance(50) {
		c := boundsCase{pages: 4 + d.below(40), size: 1 + d.below(40), heads: 1 + d.below(4), dim: 1 + d.below(200), bound: tensor.F32, layout: l, seed: seed}
		if c.key = one(d, tensor.F32, tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2); c.key.Float8() {
			c.scaled = d.chance(50)
		} else if d.chance(50) {
			c.bound = c.key
		}
		return "pagebounds", func(t *trial) { t.pageBounds(c) }
	}
	c := scoresCase{kvHeads: 1 + d.below(3), dim: 1 + d.below(140), size: 1 + d.below(20), query: one(d, types[:]...), key: one(d, types[:]...),
		scale: one(d, float32(1), 0.125, 0.0883883, 7), spare: d.below(2) * d.below(80), layout: l, seed: seed}
	c.heads = c.kvHeads * one(d, 1, 1, 2, 4, 7)
	for range 1 + d.below(3) {
		c.queries, c.lens = append(c.queries, one(d, 0, 1, 1, 1, 5, 40)), append(c.lens, d.below(one(d, 10, 300, 1500)))
	}
	if d.chance(50) {
		rows := rowsCase{heads: c.heads, kvHeads: c.kvHeads, dim: c.dim, size: c.size, queries: c.queries, lens: c.lens, query: c.query, key: c.key,
			scale: c.scale, spare: c.spare, slots: d.chance(50), layout: l, seed: seed}
		if d.chance(50) {
			rows.channels = 1 + d.below(c.dim)
		}
		return "rowscores", func(t *trial) { t.rowScores(rows) }
	}
	return "pagescores", func(t *trial) { t.pageScores(c) }
}
