package kerneltest

import (
	"fmt"
	"slices"
	"sync"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Cases is the table: every case, grouped by Op.
func Cases() []Case { return slices.Clone(table()) }

var table = sync.OnceValue(func() []Case {
	t := new(builder)
	t.lengths()
	t.shapes()
	t.types()
	t.paging()
	t.batches()
	t.masks()
	t.scores()
	t.rotations()
	t.positions()
	t.extremes()
	t.formats()
	t.gradients()
	t.columnStats()
	t.identities()
	t.statsIdentities()
	t.operations()
	t.pageOperations()
	t.gathers(kernel.Exact)
	t.topK(kernel.Exact)
	t.distill()
	t.rowOperations()
	t.swaps(kernel.Exact)
	t.scans()
	t.scanGradients()
	t.errors()
	slices.SortStableFunc(t.cases, func(a, b Case) int { return slices.Index(ops, a.Op) - slices.Index(ops, b.Op) })
	return t.cases
})

// ops are the values of Case.Op, in the order of Cases.
var ops = []string{"attention", "backward", "columnstats", "columnmax", "identity", "append", "encode", "copy", "rotate", "merge", "pagebounds", "pagescores", "gather", "topk", "rowscores", "codescores", "scores", "scoreloss", "scan", "scanbackward", "swap", "errors"}

type builder struct{ cases []Case }

// layouts are taken in turn by the cases that name none.
var layouts = []Layout{
	{},
	{Gap: 1},
	{Gap: 3, Pad: 2},
	{HeadsFirst: true},
	{HeadsFirst: true, Gap: 2, Pad: 1},
}

func (t *builder) add(op, name string, p Problem) {
	p.Seed = seedOf(op + "/" + name)
	if p.Layout == (Layout{}) {
		p.Layout = layouts[p.Seed%uint64(len(layouts))]
	}
	cost := 0.0
	n := p.normal()
	for s, q := range n.Step.QueryLens {
		cost += float64(q*n.Step.KeyLens[s]) * float64(n.Config.Heads*(n.Config.HeadDim+n.Config.ValueDim))
	}
	if n.Config.Backward {
		cost *= 4
	}
	t.cases = append(t.cases, Case{Op: op, Name: name, Slow: cost > 2e7, Problem: &p, expected: new(expected)})
}

func (t *builder) attention(name string, c attention.Config, s attention.Step) {
	t.add("attention", name, Problem{Config: c, Step: s})
}

// config is a small causal Config, changed by edits.
func config(heads, kvHeads, dim int, edits ...func(*attention.Config)) attention.Config {
	c := attention.Config{Heads: heads, KVHeads: kvHeads, HeadDim: dim, Mask: attention.Causal()}
	for _, e := range edits {
		e(&c)
	}
	return c
}

func types(d, kv tensor.DType) func(*attention.Config) {
	return func(c *attention.Config) { c.DType, c.KVDType = d, kv }
}

func valueDim(n int) func(*attention.Config) { return func(c *attention.Config) { c.ValueDim = n } }
func paged(n int) func(*attention.Config)    { return func(c *attention.Config) { c.PageSize = n } }

func masked(m attention.Mask) func(*attention.Config) {
	return func(c *attention.Config) { c.Mask = m }
}

func scored(s attention.Score) func(*attention.Config) {
	return func(c *attention.Config) { c.Score = s }
}

func step(queries, keys []int) attention.Step {
	return attention.Step{QueryLens: queries, KeyLens: keys}
}

func prefill(n int) attention.Step       { return step([]int{n}, []int{n}) }
func extend(q, k int) attention.Step     { return step([]int{q}, []int{k}) }
func decodes(keys ...int) attention.Step { return step(slices.Repeat([]int{1}, len(keys)), keys) }
func allTypes() [3]tensor.DType          { return [3]tensor.DType{tensor.F32, tensor.F16, tensor.BF16} }
func both(m, n attention.Mask) attention.Mask {
	out, err := m.And(n)
	if err != nil {
		panic("kerneltest: internal error: " + err.Error())
	}
	return out
}

// mixed is a batch of everything: a prefill, a sequence that waits, a decode, a
// chunk of a prefill, queries without keys, and more queries than keys.
func mixed() attention.Step {
	return step([]int{9, 0, 1, 5, 3, 7}, []int{9, 70, 130, 20, 0, 3})
}

// sound is mixed without sequences of fewer keys than queries, which some masks
// do not define.
func sound() attention.Step { return step([]int{70, 0, 1, 5}, []int{70, 30, 130, 20}) }

// lengths: a tile is 64 keys, a chunk 512.
func (t *builder) lengths() {
	c := config(2, 1, 16)
	for _, n := range []int{1, 63, 64, 65, 511, 512, 513, 700, 1100} {
		t.attention(fmt.Sprintf("decode/keys=%d", n), c, decodes(n))
		t.attention(fmt.Sprintf("extend/queries=5/keys=%d", n), c, extend(5, n))
	}
	for _, n := range []int{1, 2, 63, 64, 65, 129, 513} {
		t.attention(fmt.Sprintf("prefill/tokens=%d", n), c, prefill(n))
	}
	t.attention("prefill/tokens=1100", config(1, 1, 8), prefill(1100))
	t.attention("chunk/queries=64/keys=577", config(2, 2, 32), extend(64, 577))
	t.attention("decode/keys=4099", c, decodes(4099))
}

func (t *builder) shapes() {
	for _, h := range [][2]int{{1, 1}, {4, 4}, {4, 2}, {8, 1}, {7, 7}, {14, 2}, {71, 1}} {
		t.attention(fmt.Sprintf("heads=%d/kvheads=%d/prefill", h[0], h[1]), config(h[0], h[1], 8), extend(19, 90))
		t.attention(fmt.Sprintf("heads=%d/kvheads=%d/decode", h[0], h[1]), config(h[0], h[1], 16), decodes(67, 530))
	}
	for _, d := range []int{1, 2, 3, 26, 32, 64, 80, 96, 128, 256, 512} {
		t.attention(fmt.Sprintf("dim=%d/prefill", d), config(2, 1, d), prefill(70))
		t.attention(fmt.Sprintf("dim=%d/decode", d), config(4, 2, d), decodes(150))
		t.attention(fmt.Sprintf("dim=%d/bf16", d), config(4, 2, d, types(tensor.BF16, tensor.BF16), paged(16)), step([]int{1, 6}, []int{80, 70}))
	}
	for _, d := range [][2]int{{24, 16}, {192, 128}, {16, 24}, {1, 65}, {17, 1}, {8, 512}, {576, 512}} {
		t.attention(fmt.Sprintf("dim=%d/valuedim=%d", d[0], d[1]), config(4, 2, d[0], valueDim(d[1])), step([]int{21, 1}, []int{66, 66}))
	}
}

func (t *builder) types() {
	for _, d := range allTypes() {
		for _, kv := range allTypes() {
			t.attention(fmt.Sprintf("types/%v/%v/contiguous", d, kv), config(4, 2, 32, types(d, kv)), mixed())
			t.attention(fmt.Sprintf("types/%v/%v/paged", d, kv), config(4, 2, 64, types(d, kv), paged(16)), mixed())
		}
	}
}

func (t *builder) paging() {
	for _, n := range []int{1, 3, 16, 17, 64, 600} {
		for _, d := range allTypes() {
			t.attention(fmt.Sprintf("pages=%d/%v", n, d), config(4, 2, 16, types(tensor.F32, d), paged(n)), step([]int{1, 17, 0, 1, 2}, []int{530, 65, 5, 1, 0}))
		}
	}
	c, s := config(4, 2, 16, paged(17)), step([]int{3, 1}, []int{40, 70})
	for i, l := range layouts {
		t.add("attention", fmt.Sprintf("layout=%d/paged", i), Problem{Config: c, Step: s, Layout: l})
	}
	t.add("attention", "layout=features-apart/contiguous", Problem{Config: config(4, 2, 16), Step: s, Layout: Layout{Spread: 2, Gap: 1}})
	t.add("attention", "layout=features-apart/paged", Problem{Config: config(4, 2, 16, paged(16), types(tensor.BF16, tensor.F16)), Step: s, Layout: Layout{Spread: 3}})
}

func (t *builder) batches() {
	t.attention("batch/mixed", config(4, 2, 16), mixed())
	t.attention("batch/nothing-to-ask", config(4, 2, 16), step([]int{0, 0}, []int{5, 0}))
	t.attention("batch/nothing-to-ask/long", config(4, 2, 16), step([]int{0}, []int{600}))
	t.attention("batch/no-keys", config(2, 1, 16), step([]int{2, 1}, []int{0, 0}))
	t.attention("batch/more-queries-than-keys", config(2, 1, 16), step([]int{70, 9}, []int{3, 8}))
	t.attention("batch/more-queries-than-keys/bidirectional", config(2, 1, 16, masked(attention.Bidirectional())), step([]int{70, 9}, []int{3, 8}))
	many := make([]int, 40)
	for i := range many {
		many[i] = 1 + i*i%97
	}
	t.attention("batch/forty-decodes", config(4, 1, 16), decodes(many...))
	t.add("attention", "batch/without-lse", Problem{Config: config(4, 2, 16), Step: mixed(), WithoutLSE: true})
	s := attention.Step{QueryLens: []int{20, 7}}
	t.attention("batch/key-lengths-left-out", config(4, 2, 16), s)
}

func (t *builder) scores() {
	s := step([]int{1, 70, 0, 3}, []int{130, 70, 4, 90})
	for _, m := range []struct {
		name string
		attention.Score
	}{
		{"softcap=30", attention.Score{SoftCap: 30}},
		{"softcap=0.5", attention.Score{SoftCap: 0.5}},
		{"slopes", attention.Score{Slopes: true}},
		{"relbias", attention.Score{RelBias: true, RelBiasStart: -20}},
		{"relbias/from=5", attention.Score{RelBias: true, RelBiasStart: 5}},
		{"prefixbias", attention.Score{PrefixBias: true}},
		{"sinklogit", attention.Score{SinkLogit: true}},
		{"logn=16", attention.Score{LogN: 16}},
		{"all", attention.Score{SoftCap: 5, LogN: 20, Slopes: true, RelBias: true, RelBiasStart: -7, PrefixBias: true, SinkLogit: true}},
	} {
		for _, mask := range []struct {
			name string
			attention.Mask
		}{{"causal", attention.Causal()}, {"bidirectional", attention.Bidirectional()}} {
			c := config(4, 2, 16, scored(m.Score), masked(mask.Mask))
			t.add("attention", "score/"+m.name+"/"+mask.name, Problem{Config: c, Step: s, RelBias: 33})
			c.DType, c.KVDType, c.PageSize = tensor.BF16, tensor.BF16, 16
			t.add("attention", "score/"+m.name+"/"+mask.name+"/bf16-paged", Problem{Config: c, Step: s, RelBias: 33})
		}
	}
	empty := step([]int{3, 5, 1}, []int{0, 2, 600})
	t.attention("score/sinklogit/rows-without-keys", config(4, 2, 16, scored(attention.Score{SinkLogit: true})), empty)
	t.attention("score/scale", config(4, 2, 16, func(c *attention.Config) { c.Scale = -0.7 }), s)
	t.add("attention", "score/relbias/one-entry", Problem{Config: config(2, 2, 16, scored(attention.Score{RelBias: true})), Step: s, RelBias: 1})
	t.add("attention", "score/all/long", Problem{Config: config(2, 1, 16, scored(attention.Score{
		SoftCap: 20, LogN: 100, Slopes: true, RelBias: true, PrefixBias: true, SinkLogit: true})), Step: step([]int{2, 9}, []int{1100, 513}), RelBias: 300})
}

// extremes: values at the edge of the formats, and what is not a number.
func (t *builder) extremes() {
	nan, inf := float32frombits(0x7fc00000), float32frombits(0x7f800000)
	causal, s := config(4, 2, 16), step([]int{70, 3}, []int{130, 70})
	at := func(tensor byte, seq, lo, hi, head, feature int, v float32) Special {
		return Special{tensor, seq, lo, hi, head, feature, v}
	}
	add := func(name string, c attention.Config, s attention.Step, spread float64, wild bool, special ...Special) {
		t.add("attention", "extreme/"+name, Problem{Config: c, Step: s, Spread: spread, Wild: wild, Special: special})
	}
	add("large-logits", causal, s, 100, true)
	add("larger-logits", config(4, 2, 64), s, 1000, true)
	add("large-logits/softcap", config(4, 2, 16, scored(attention.Score{SoftCap: 50})), s, 100, true)
	add("large-logits/f16", config(4, 2, 16, types(tensor.F16, tensor.F16)), s, 60, true)
	add("all-zero", causal, s, 0, false, at('q', 0, 0, 70, -1, -1, 0), at('k', 1, 0, 70, -1, -1, 0), at('v', 0, 0, 130, 1, -1, 0))
	add("subnormal-keys", causal, s, 1, false, at('k', 0, 0, 130, -1, -1, 0x1p-140), at('q', 0, 0, 70, -1, -1, 0x1p100))
	add("subnormal-values", causal, s, 1, false, at('v', 0, 0, 130, -1, -1, 0x1p-140), at('v', 1, 0, 70, 0, -1, 0x1p-147))
	add("subnormal-f16", config(4, 2, 16, types(tensor.F16, tensor.F16)), s, 1, false, at('v', 0, 0, 130, -1, -1, 0x3p-24), at('k', 1, 0, 70, -1, 3, 0x1p-24))
	add("negative-zero", causal, s, 1, false, at('v', 0, 0, 130, -1, -1, float32frombits(0x80000000)))

	add("nan-key", causal, s, 1, false, at('k', 0, 100, 101, 0, 5, nan))
	add("nan-key/paged-bf16", config(4, 2, 16, paged(16), types(tensor.BF16, tensor.BF16)), s, 1, false, at('k', 0, 100, 101, 0, 5, nan))
	add("nan-value", causal, s, 1, false, at('v', 0, 100, 101, 1, 2, nan))
	add("nan-query", causal, s, 1, false, at('q', 0, 7, 8, 3, 0, nan))
	add("nan-key/first-tile", causal, s, 1, false, at('k', 0, 0, 1, 0, 0, nan))
	add("nan-key/last", causal, decodes(600, 600), 1, false, at('k', 1, 599, 600, 0, 0, nan))
	add("infinite-key", causal, s, 1, false, at('k', 0, 100, 101, 0, 5, inf), at('k', 0, 110, 111, 1, 5, -inf))
	add("minus-infinite-scores", config(2, 1, 1), s, 1, false, at('k', 0, 3, 90, -1, -1, -inf), at('q', 0, 0, 70, -1, -1, 1))
	add("infinite-value", causal, s, 1, false, at('v', 0, 100, 101, 0, 5, inf), at('v', 1, 68, 69, 1, 5, -inf))
	add("infinite-query", causal, s, 1, false, at('q', 1, 1, 2, 0, 0, inf))
	add("infinite-f16", config(4, 2, 16, types(tensor.F16, tensor.F16)), s, 1, false, at('v', 0, 100, 101, 0, 5, inf), at('k', 1, 69, 70, -1, -1, nan))

	window := config(4, 2, 16, masked(attention.Window(20)))
	add("masked-nan/window", window, step([]int{1, 5}, []int{200, 90}), 1, false,
		at('k', 0, 0, 180, -1, -1, nan), at('v', 0, 0, 180, -1, -1, nan), at('k', 1, 0, 66, -1, -1, inf), at('v', 1, 0, 66, -1, -1, nan))
	add("masked-nan/window/long", window, extend(2, 1100), 1, false, at('k', 0, 0, 1079, -1, -1, nan), at('v', 0, 0, 1079, -1, -1, nan))
	add("masked-nan/behind", config(4, 2, 16, masked(attention.Mask{Regions: []kernel.Region{{Diff: kernel.Range{Lo: 5, Hi: kernel.MaxBound}, Key: kernel.All}}})),
		extend(30, 100), 1, false, at('k', 0, 95, 100, -1, -1, nan), at('v', 0, 95, 100, -1, -1, nan))
	docs := attention.Step{QueryLens: []int{5}, KeyLens: []int{100}, Documents: documents(40, 30, 30)}
	add("masked-nan/documents", config(4, 2, 16, masked(attention.Documents())), docs, 1, false, at('k', 0, 0, 70, -1, -1, nan), at('v', 0, 0, 70, -1, -1, nan))

	below := []Special{at('q', 0, 0, 9, -1, -1, 1e16), at('k', 0, 0, 70, -1, -1, -1e16), at('q', 1, 1, 2, 0, -1, 1e16), at('k', 1, 0, 70, 0, -1, -1e16)}
	add("scores-below-1e30", causal, step([]int{9, 3}, []int{70, 70}), 1, true, below...)
	add("scores-below-1e30/sinklogit", config(4, 2, 16, scored(attention.Score{SinkLogit: true})), step([]int{9, 3}, []int{70, 70}), 1, true, below...)
	add("scores-below-1e30/two-chunks", causal, decodes(600), 1, true, at('q', 0, 0, 1, -1, -1, 1e16), at('k', 0, 0, 520, -1, -1, -1e16), at('k', 0, 520, 600, -1, -1, 1e-16))
}
