package attention_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// selecting is a paged cache of one sequence with queries at its end.
type selecting struct {
	in          attention.Selection
	key         tensor.View
	least, most tensor.View
	pages, rows []int32
}

func newSelecting(r *rand.Rand, tokens, keys, size, heads, kvHeads, dim int) *selecting {
	fill := func(v tensor.View) tensor.View {
		x := v.F32s()
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return v
	}
	n := (keys + size - 1) / size
	s := &selecting{key: fill(tensor.New(tensor.F32, int64(n), int64(size), int64(kvHeads), int64(dim)))}
	for _, p := range r.Perm(n) {
		s.pages, s.rows = append(s.pages, int32(p)), append(s.rows, int32(min(size, keys-len(s.rows)*size)))
	}
	s.least, s.most = tensor.New(tensor.F32, int64(n), int64(kvHeads), int64(dim)), tensor.New(tensor.F32, int64(n), int64(kvHeads), int64(dim))
	s.in = attention.Selection{
		Query: fill(tensor.New(tensor.F32, int64(tokens), int64(heads), int64(dim))), QueryStart: []int32{0, int32(tokens)}, SeqLens: []int32{int32(keys)},
		Pages: kernel.BlockTable{Indptr: []int32{0, int32(n)}, Indices: s.pages}, PageSize: size, KVHeads: kvHeads, Scale: 0.25,
		Scores: tensor.New(tensor.F32, int64(tokens), int64(heads), int64(n)),
	}
	return s
}

// bound is Quest's bound of the n-th page, in float64 and from the keys.
func (s *selecting) bound(t, h, n int) (bound, largest float64) {
	g, dim := h/(int(s.in.Query.Shape[1])/s.in.KVHeads), int(s.in.Query.Shape[2])
	largest = math.Inf(-1)
	lo, hi := make([]float64, dim), make([]float64, dim)
	for slot := range int(s.rows[n]) {
		dot := 0.0
		for d := range dim {
			k, q := float64(s.key.At(int64(s.pages[n]), int64(slot), int64(g), int64(d))), float64(s.in.Query.At(int64(t), int64(h), int64(d)))
			if slot == 0 {
				lo[d], hi[d] = k, k
			}
			lo[d], hi[d] = min(lo[d], k), max(hi[d], k)
			dot += q * k
		}
		largest = max(largest, dot)
	}
	for d := range dim {
		q := float64(s.in.Query.At(int64(t), int64(h), int64(d)))
		bound += max(q*lo[d], q*hi[d])
	}
	return bound, largest
}

// wanted is the published rule, by sorting: the union over the query heads of g.
func (s *selecting) wanted(q attention.Quest, t, g int) []int32 {
	tokens, heads := int(s.in.Query.Shape[0]), int(s.in.Query.Shape[1])
	own := (int(s.in.SeqLens[0]) - tokens + t) / s.in.PageSize
	chosen := map[int32]bool{}
	for h := g * heads / s.in.KVHeads; h < (g+1)*heads/s.in.KVHeads; h++ {
		var between []int32
		score := map[int32]float64{}
		for p := 0; p <= own; p++ {
			if p < q.Sinks || p > own-q.Recent {
				chosen[int32(p)] = true
				continue
			}
			between = append(between, int32(p))
			score[int32(p)], _ = s.bound(t, h, p)
		}
		slices.SortFunc(between, func(a, b int32) int {
			if score[a] > score[b] {
				return -1
			}
			return 1
		})
		for _, p := range between[:min(len(between), q.Pages-q.Sinks-q.Recent)] {
			chosen[p] = true
		}
	}
	var out []int32
	for p := range chosen {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

func TestQuestChoosesThePagesOfTheRule(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		tokens := 1 + r.IntN(4)
		s := newSelecting(r, tokens, tokens+r.IntN(100), 1+r.IntN(9), 4, 1<<r.IntN(3), 8)
		q := attention.Quest{Sinks: r.IntN(3), Recent: 1 + r.IntN(3)}
		q.Pages = q.Sinks + q.Recent + r.IntN(6)
		if err := q.Bounds(b, s.key, s.least, s.most, s.pages, s.rows); err != nil {
			t.Fatal(err)
		}
		m, err := q.Select(b, &s.in, s.least, s.most)
		if err != nil {
			t.Fatal(err)
		}
		for g := range s.in.KVHeads {
			for tok := range tokens {
				row := g*tokens + tok
				if got, want := m.Indices[m.Indptr[row]:m.Indptr[row+1]], s.wanted(q, tok, g); !slices.Equal(got, want) {
					t.Fatalf("%+v of %d keys, pages of %d, token %d, KV head %d: pages %v, want %v", q, s.in.SeqLens[0], s.in.PageSize, tok, g, got, want)
				}
			}
		}
		// the scores are bounds
		for n := range s.pages {
			bound, largest := s.bound(0, 0, n)
			if got := float64(s.in.Scores.At(0, 0, int64(n))); got < 0.25*largest-1e-5 || math.Abs(got-0.25*bound) > 1e-5 {
				t.Fatalf("page %d: score %g, want bound %g of a largest score %g", n, got, 0.25*bound, 0.25*largest)
			}
		}
	}
}

func TestSelectorsRefuseBadParameters(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(3, 4))
	for _, q := range []attention.Quest{{}, {Pages: 1}, {Pages: 2, Recent: 1, Sinks: -1}, {Pages: 2, Recent: 2, Sinks: 1}, {Pages: 2, Recent: 3}, {Pages: math.MinInt, Recent: 1}} {
		s := newSelecting(r, 1, 20, 4, 2, 1, 8)
		if _, err := q.Select(b, &s.in, s.least, s.most); err == nil {
			t.Errorf("%+v was taken", q)
		}
	}
	for name, spoil := range map[string]func(*attention.Selection){
		"page size":     func(in *attention.Selection) { in.PageSize = 0 },
		"KV heads":      func(in *attention.Selection) { in.KVHeads = 3 },
		"no KV heads":   func(in *attention.Selection) { in.KVHeads = 0 },
		"few pages":     func(in *attention.Selection) { in.SeqLens = []int32{21} },
		"many queries":  func(in *attention.Selection) { in.QueryStart = []int32{0, 30} },
		"no sequences":  func(in *attention.Selection) { in.SeqLens = nil },
		"negative keys": func(in *attention.Selection) { in.SeqLens = []int32{-1} },
		"short scores":  func(in *attention.Selection) { in.Scores = in.Scores.Slice(2, 0, 4) },
		"no query":      func(in *attention.Selection) { in.Query = tensor.View{} },
		"scale":         func(in *attention.Selection) { in.Scale = 0 },
	} {
		s := newSelecting(r, 1, 20, 4, 2, 1, 8)
		spoil(&s.in)
		if _, err := (attention.Quest{Pages: 2, Recent: 1}).Select(b, &s.in, s.least, s.most); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

// pagedKV is one sequence in the pages of a selecting.
type pagedKV struct{ s *selecting }

func (p pagedKV) KeyStorage() kernel.KeyStorage { return kernel.PreRoPE }
func (p pagedKV) PageSize() int                 { return p.s.in.PageSize }
func (p pagedKV) KeyPositions([]int32) []int32  { return nil }
func (p pagedKV) LowerKV(dst *kernel.Batch) error {
	dst.SeqLens, dst.Pages = append(dst.SeqLens[:0], p.s.in.SeqLens...), p.s.in.Pages
	return nil
}

func TestQuestOfAllPagesIsDense(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		s := newSelecting(r, 1+r.IntN(5), 5+r.IntN(300), 1+r.IntN(40), 4, 2, 8)
		out := func(mask attention.Mask, blocks kernel.BlockSparse) []float32 {
			a, err := attention.New(b, attention.Config{Heads: 4, KVHeads: 2, HeadDim: 8, PageSize: s.in.PageSize, Mask: mask})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			tokens := s.in.Query.Shape[0]
			if err := a.Plan(attention.Step{QueryLens: []int{int(tokens)}, KV: pagedKV{s}, Blocks: blocks}); err != nil {
				t.Fatal(err)
			}
			args := kernel.Args{Query: s.in.Query, Key: s.key, Value: s.key, Out: tensor.New(tensor.F32, tokens, 4, 8)}
			if err := a.Run(&args); err != nil {
				t.Fatal(err)
			}
			return args.Out.F32s()
		}
		causalBlocks := attention.Causal()
		causalBlocks.Kinds |= kernel.MaskBlocks
		q := attention.Quest{Pages: len(s.pages) + 2, Sinks: r.IntN(2), Recent: 1 + r.IntN(2)}
		if err := q.Bounds(b, s.key, s.least, s.most, s.pages, s.rows); err != nil {
			t.Fatal(err)
		}
		m, err := q.Select(b, &s.in, s.least, s.most)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := out(causalBlocks, m), out(attention.Causal(), kernel.BlockSparse{}); !slices.Equal(got, want) {
			t.Fatalf("%+v of %d keys, pages of %d: not the bits of dense attention", q, s.in.SeqLens[0], s.in.PageSize)
		}
	}
}

// A sequence's pages do not depend on what else is in the step.
func TestQuestOfSequencesTogether(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(7, 8))
	q := attention.Quest{Pages: 4, Sinks: 1, Recent: 1}
	for range 20 {
		s := newSelecting(r, 5, 90, 1+r.IntN(9), 4, 2, 8)
		if err := q.Bounds(b, s.key, s.least, s.most, s.pages, s.rows); err != nil {
			t.Fatal(err)
		}
		// three sequences over the same pages, the middle one without queries
		all, start := s.in, []int32{0, 2, 2, 5}
		all.QueryStart, all.SeqLens = start, []int32{int32(2 + r.IntN(60)), 1, int32(3 + r.IntN(60))}
		all.Pages = kernel.BlockTable{Indptr: []int32{0}}
		for _, n := range all.SeqLens {
			all.Pages.Indices = append(all.Pages.Indices, s.pages[:(int(n)+s.in.PageSize-1)/s.in.PageSize]...)
			all.Pages.Indptr = append(all.Pages.Indptr, int32(len(all.Pages.Indices)))
		}
		got, err := q.Select(b, &all, s.least, s.most)
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range all.SeqLens {
			tokens := start[i+1] - start[i]
			one := all
			one.Query = s.in.Query.Slice(0, int64(start[i]), int64(start[i+1]))
			one.Scores = tensor.New(tensor.F32, int64(tokens), 4, int64(len(s.pages)))
			one.QueryStart, one.SeqLens = []int32{0, tokens}, []int32{n}
			pages := all.Pages.Indices[all.Pages.Indptr[i]:all.Pages.Indptr[i+1]]
			one.Pages = kernel.BlockTable{Indptr: []int32{0, int32(len(pages))}, Indices: pages}
			want, err := q.Select(b, &one, s.least, s.most)
			if err != nil {
				t.Fatal(err)
			}
			for row := range 2 * tokens {
				at := got.RowStart[i] + row
				if x, y := got.Indices[got.Indptr[at]:got.Indptr[at+1]], want.Indices[want.Indptr[row]:want.Indptr[row+1]]; !slices.Equal(x, y) {
					t.Fatalf("sequence %d, row %d: pages %v, alone %v", i, row, x, y)
				}
			}
		}
	}
}
