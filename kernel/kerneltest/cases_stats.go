package kerneltest

import (
	"fmt"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/tensor"
)

// columnStats: cases of ColumnStats. Each checks Run too. A block of queries is
// 128 rows, a tile 64 keys.
func (t *builder) columnStats() {
	add := func(name string, c attention.Config, s attention.Step, edits ...func(*Problem)) {
		c.ColumnStats = true
		p := Problem{Config: c, Step: s, RelBias: 20}
		for _, e := range edits {
			e(&p)
		}
		op := "columnstats"
		if p.Maximum {
			op = "columnmax"
		}
		t.add(op, name, p)
	}
	power := func(n int) func(*Problem) { return func(p *Problem) { p.Power = n } }
	window := func(n int) func(*Problem) { return func(p *Problem) { p.Window = n } }
	s := mixed()
	for _, n := range []int{1, 2} {
		for _, w := range []int{0, 1, 3, 6, 100} {
			add(fmt.Sprintf("power=%d/window=%d", n, w), config(4, 2, 16), s, power(n), window(w))
		}
	}
	for _, n := range []int{1, 63, 64, 65, 127, 128, 129, 300} {
		add(fmt.Sprintf("prefill/tokens=%d", n), config(2, 1, 16), prefill(n))
	}
	for _, w := range []int{1, 63, 127, 128, 129, 171, 172, 173, 299} {
		add(fmt.Sprintf("prefill/tokens=300/window=%d", w), config(2, 2, 8), prefill(300), window(w), power(2-w%2))
	}
	for _, n := range []int{1, 64, 65, 513, 1100} {
		add(fmt.Sprintf("decode/keys=%d", n), config(4, 1, 16), decodes(n))
		add(fmt.Sprintf("extend/queries=5/keys=%d", n), config(2, 1, 16), extend(5, n), window(3), power(2))
	}
	for _, h := range [][2]int{{1, 1}, {8, 1}, {7, 7}, {14, 2}} {
		add(fmt.Sprintf("heads=%d/kvheads=%d", h[0], h[1]), config(h[0], h[1], 8), step([]int{19, 1}, []int{90, 67}))
	}
	for _, d := range []int{1, 3, 26, 64, 128, 512} {
		add(fmt.Sprintf("dim=%d", d), config(2, 1, d), step([]int{20, 1}, []int{70, 66}))
	}
	add("dim=24/valuedim=5", config(2, 1, 24, valueDim(5)), s)
	t.columnMaxima(add, power, window)
	t.columnTypes(add, power)
	t.columnScores(add, power)
	t.columnExtremes(add, power, window)
}

// columnMaxima: the largest weight in place of the sum.
func (t *builder) columnMaxima(add addStats, power, window func(int) func(*Problem)) {
	most := func(p *Problem) { p.Maximum = true }
	for _, w := range []int{0, 1, 100, 128, 200} {
		add(fmt.Sprintf("prefill/tokens=300/window=%d", w), config(4, 2, 16), prefill(300), most, window(w), power(1+w/200))
	}
	add("mixed", config(4, 2, 16), mixed(), most)
	add("types/bf16/f16/paged", config(4, 2, 32, types(tensor.BF16, tensor.F16), paged(16)), mixed(), most)
	for _, codec := range bothCodecs() {
		add(fmt.Sprintf("format/%v", codec), config(4, 2, 16, coded(codec, 16, 8), kvType(tensor.BF16)), ragged(), most)
	}
	add("mask/window", config(4, 2, 16, masked(attention.Window(10))), mixed(), most)
	add("extreme/nan-query", config(4, 2, 16), step([]int{70, 3}, []int{130, 70}), most, func(p *Problem) { p.Special = []Special{{'q', 0, 7, 8, 3, 0, float32frombits(0x7fc00000)}} })
	add("extreme/no-keys", config(4, 2, 16), step([]int{2, 1}, []int{0, 0}), most)
}

type addStats func(name string, c attention.Config, s attention.Step, edits ...func(*Problem))

func (t *builder) columnTypes(add addStats, power func(int) func(*Problem)) {
	s := mixed()
	for _, d := range allTypes() {
		for _, kv := range allTypes() {
			add(fmt.Sprintf("types/%v/%v", d, kv), config(4, 2, 16, types(d, kv)), s)
			add(fmt.Sprintf("types/%v/%v/paged", d, kv), config(4, 2, 32, types(d, kv), paged(16)), s, power(2))
		}
	}
	for _, n := range []int{1, 17, 64, 600} {
		add(fmt.Sprintf("pages=%d", n), config(4, 2, 16, paged(n)), step([]int{1, 17, 0, 1, 2}, []int{530, 65, 5, 1, 0}))
	}
	for i, l := range layouts {
		for _, page := range []int{0, 17} {
			add(fmt.Sprintf("layout=%d/page=%d", i, page), config(4, 2, 16, paged(page)), step([]int{3, 1}, []int{40, 70}), func(p *Problem) { p.Layout = l })
		}
	}
	add("layout=features-apart", config(4, 2, 16, types(tensor.BF16, tensor.F16)), s, func(p *Problem) { p.Layout = Layout{Spread: 3, Gap: 1} })
	for _, d := range fp8() {
		for _, scale := range []bool{false, true} {
			add(fmt.Sprintf("format/%v/scaled=%v", d, scale), config(4, 2, 32, kvType(d), paged(16)), ragged(), func(p *Problem) { p.Scaled = scale })
		}
	}
	for _, codec := range bothCodecs() {
		for mix, name := range []string{"old", "all", "odd"} {
			add(fmt.Sprintf("format/%v/%s", codec, name), config(4, 2, 16, coded(codec, 16, 8), kvType(tensor.BF16)), ragged(),
				func(p *Problem) { p.Coded = codedMix(mix) })
		}
		add(fmt.Sprintf("format/%v/pages=100/pre-RoPE", codec), config(4, 2, 32, coded(codec, 100, 0), rotated(rope(32)), positioned(reRoPE(20))), ragged())
	}
}

func (t *builder) columnScores(add addStats, power func(int) func(*Problem)) {
	s, ok := step([]int{20, 0, 1, 5, 3}, []int{70, 5, 66, 20, 2}), sound()
	docs, trees, sparse, prefix := ok, ok, s, s
	docs.Documents = append(documents(60, 10), append(documents(30), append(documents(100, 30), documents(17, 3)...)...)...)
	trees.Tree = tree(7, ok.QueryLens)
	sparse.Blocks = blocks(8, s, 8, 16, 2, true)
	prefix.PrefixLens = []int{60, 0, 9, 12, 1}
	for _, m := range []struct {
		name string
		mask attention.Mask
		step attention.Step
	}{
		{"bidirectional", attention.Bidirectional(), s}, {"window", attention.Window(10), s}, {"window-sinks", attention.WindowSinks(10, 3), s},
		{"chunked", attention.Chunked(16), s}, {"prefix-lm", attention.PrefixLM(), prefix}, {"documents", both(attention.Documents(), attention.Causal()), docs},
		{"tree", attention.Tree(), trees}, {"blocks", attention.Blocks(), sparse},
	} {
		add("mask/"+m.name, config(4, 2, 16, masked(m.mask)), m.step)
		add("mask/"+m.name+"/paged", config(4, 2, 16, masked(m.mask), paged(16)), m.step, power(2))
	}
	all := attention.Score{SoftCap: 5, LogN: 20, Slopes: true, RelBias: true, RelBiasStart: -7, PrefixBias: true, SinkLogit: true}
	for _, m := range []struct {
		name string
		attention.Score
	}{
		{"softcap", attention.Score{SoftCap: 2}}, {"slopes", attention.Score{Slopes: true}}, {"relbias", attention.Score{RelBias: true, RelBiasStart: -5}},
		{"prefixbias", attention.Score{PrefixBias: true}}, {"sinklogit", attention.Score{SinkLogit: true}}, {"logn", attention.Score{LogN: 10}}, {"all", all},
	} {
		add("score/"+m.name, config(4, 2, 16, scored(m.Score)), ok)
	}
	add("score/all/bidirectional/paged", config(4, 2, 16, masked(attention.Bidirectional()), scored(all), paged(16)), ok, power(2))
	for _, r := range []struct {
		name string
		r    rotary
	}{{"half-split", rope(16)}, {"interleaved", rope(16, interleaved)}, {"partial", rope(6)}, {"xpos", rope(16, xpos)}} {
		add("rotation/"+r.name+"/pre-rope", config(4, 2, 16, rotated(r.r)), s)
		add("rotation/"+r.name+"/post-rope", config(4, 2, 16, rotated(r.r), postRoPE), s)
	}
	for _, p := range []positions{reRoPE(10), leaky(12, 0.125), selfExtend(12, 4), dualChunk(16, 24), partial()} {
		add("positions/"+p.name, config(4, 2, 16, rotated(rope(16)), positioned(p)), s)
		add("positions/"+p.name+"/all-scores", config(4, 2, 16, rotated(rope(12, interleaved)), positioned(p), scored(all)), ok)
	}
	// with gradients beside them
	add("backward", config(4, 2, 16, scored(all), func(c *attention.Config) { c.Backward = true }), ok)
}

func (t *builder) columnExtremes(add addStats, power, window func(int) func(*Problem)) {
	nan, inf := float32frombits(0x7fc00000), float32frombits(0x7f800000)
	s := step([]int{70, 3}, []int{130, 70})
	special := func(x ...Special) func(*Problem) { return func(p *Problem) { p.Special = x } }
	wild := func(p *Problem) { p.Wild, p.Spread = true, 60 }
	c := config(4, 2, 16)
	add("extreme/large-logits", c, s, wild)
	add("extreme/large-logits/power=2", c, s, wild, power(2))
	add("extreme/all-zero", c, s, special(Special{'q', 0, 0, 70, -1, -1, 0}))
	add("extreme/nan-key", c, s, special(Special{'k', 0, 100, 101, 0, 5, nan}))
	add("extreme/nan-query", c, s, special(Special{'q', 0, 7, 8, 3, 0, nan}))
	add("extreme/nan-query/before-the-window", c, s, special(Special{'q', 0, 7, 8, 3, 0, nan}), window(62))
	add("extreme/infinite-query", c, s, special(Special{'q', 1, 1, 2, 0, 0, inf}), power(2))
	add("extreme/nan-value", c, s, special(Special{'v', 0, 100, 101, 1, 2, nan}))
	add("extreme/masked-nan", config(4, 2, 16, masked(attention.Window(20))), step([]int{1, 5}, []int{200, 90}),
		special(Special{'k', 0, 0, 180, -1, -1, nan}, Special{'k', 1, 0, 66, -1, -1, inf}))
	add("extreme/no-keys", c, step([]int{2, 1}, []int{0, 0}))
	add("extreme/more-queries-than-keys", c, step([]int{70, 9}, []int{3, 8}))
	below := special(Special{'q', 0, 0, 9, -1, -1, 1e16}, Special{'k', 0, 0, 70, -1, -1, -1e16})
	add("extreme/scores-below-1e30", c, step([]int{9, 3}, []int{70, 70}), below, wild)
	add("extreme/scores-below-1e30/sinklogit", config(4, 2, 16, scored(attention.Score{SinkLogit: true})), step([]int{9, 3}, []int{70, 70}), below, wild)
}

// statsIdentities: what cannot matter to ColumnStats, and what its sums are.
func (t *builder) statsIdentities() {
	for i, p := range usual() {
		p.Config.ColumnStats = true
		each := func(name string, check func(*trial, *Problem)) {
			t.identity(fmt.Sprintf("columnstats/%s/%d", name, i), func(t *trial) { p := p; check(t, &p) })
		}
		each("page-size", (*trial).pageSizes)
		each("layout", (*trial).sameLayouts)
		each("repeated-kv-heads", (*trial).repeatedHeads)
		each("equal-terms", (*trial).equalTerms)
		each("sequence-alone", (*trial).statsAlone)
		each("window", (*trial).statsWindows)
		each("chunked-prefill", (*trial).statsChunks)
		t.operation("identity", fmt.Sprintf("columnstats/run-to-run/%d", i), func(t *trial) { p := p; t.runToRun(&p) })
		if !p.Config.Score.SinkLogit {
			t.operation("identity", fmt.Sprintf("columnstats/sums-to-one/%d", i), func(t *trial) { p := p; t.statsTotal(&p) })
		}
	}
}

// statsAlone: a sequence's sums depend on no other sequence.
func (t *trial) statsAlone(p *Problem) {
	in, heads := p.makeInputs(), p.Config.Heads
	whole := t.answer(p, in, Layout{})
	if whole == nil {
		return
	}
	q0, k0 := 0, 0
	for s, n := range p.Step.QueryLens {
		keys := p.Step.KeyLens[s]
		q, qin := p.part(in, s, 0, n, keys)
		want := whole.rows(p, q0, q0+n)
		want.stats = whole.stats.slice(k0*heads, (k0+keys)*heads)
		t.agree(fmt.Sprintf("sequence %d alone", s), t.answer(q, qin, Layout{}), want)
		q0, k0 = q0+n, k0+keys
	}
}

// statsWindows: the sums of the last queries are those of a step of these
// queries alone, and a window of all is none.
func (t *trial) statsWindows(p *Problem) {
	const tokens, keys = 200, 230
	for i, w := range []int{1, 3, 72, 73, 128, 199, 200, 1000} {
		q := *p
		q.Step, q.Window, q.Power = extend(tokens, keys), w, 1+i%2
		in := q.makeInputs()
		got := t.answer(&q, in, Layout{})
		part, pin := q.part(in, 0, max(tokens-w, 0), tokens, keys)
		part.Window = 0
		if alone := t.answer(part, pin, Layout{}); got != nil && alone != nil {
			t.differ(differ(fmt.Sprintf("ColumnStats of the last %d", w), &got.stats, &alone.stats))
		}
	}
}

// statsChunks: the sums of the chunks of a prefill add up to those of the
// prefill, but for the rounding of the additions.
func (t *trial) statsChunks(p *Problem) {
	const tokens = 150
	q := *p
	q.Step = prefill(tokens)
	in := q.makeInputs()
	whole := t.answer(&q, in, Layout{})
	if whole == nil {
		return
	}
	for _, size := range []int{17, 64, 100} {
		sums := make([]float64, len(whole.stats.bits))
		for lo := 0; lo < tokens; lo += size {
			hi := min(lo+size, tokens)
			part, pin := q.part(in, 0, lo, hi, hi)
			a := t.answer(part, pin, Layout{})
			if a == nil {
				return
			}
			for i := range a.stats.bits {
				sums[i] += a.stats.value(i)
			}
		}
		for i, want := range sums {
			if e := whole.stats.value(i) - want; !(e*e <= 1e-12*(1+want)*(1+want)) {
				t.wrong("ColumnStats: element %d is %v, by chunks of %d it is %v", i, whole.stats.value(i), size, want)
			}
		}
	}
}

// statsTotal: the weights of a query sum to 1, so those of a sequence sum to
// the number of its queries that see a key.
func (t *trial) statsTotal(p *Problem) {
	for _, p.Window = range []int{1, 3, 0} {
		a := t.answer(p, p.makeInputs(), Layout{})
		if a == nil {
			return
		}
		at := 0
		for s, keys := range p.Step.KeyLens {
			want := float64(p.Step.QueryLens[s])
			if p.Window > 0 {
				want = min(want, float64(p.Window))
			}
			for h := range p.Config.Heads {
				sum := 0.0
				for j := range keys {
					sum += a.stats.value((at+j)*p.Config.Heads + h)
				}
				if e := sum - want; !(e*e <= 1e-11*(1+want)) {
					t.wrong("ColumnStats of sequence %d, head %d and the last %d queries sum to %v, want %v", s, h, p.Window, sum, want)
				}
			}
			at += keys
		}
	}
}
