package kerneltest

import (
	"fmt"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

func (t *builder) gradient(name string, p Problem) {
	p.Config.Backward = true
	t.add("backward", name, p)
}

// gradients: backward cases. Each checks Run too.
func (t *builder) gradients() {
	s := step([]int{20, 0, 1, 5, 3}, []int{70, 5, 66, 20, 2})
	ok := step([]int{20, 0, 1, 5}, []int{70, 5, 66, 20})
	plain := func(name string, c attention.Config, s attention.Step) {
		t.gradient(name, Problem{Config: c, Step: s, RelBias: 20})
	}
	for _, h := range [][2]int{{1, 1}, {4, 4}, {4, 2}, {7, 1}} {
		plain(fmt.Sprintf("heads=%d/kvheads=%d", h[0], h[1]), config(h[0], h[1], 16), s)
	}
	for _, d := range []int{1, 2, 26, 64, 128, 512} {
		plain(fmt.Sprintf("dim=%d", d), config(2, 1, d), step([]int{9, 2}, []int{9, 66}))
	}
	plain("dim=24/valuedim=16", config(2, 1, 24, valueDim(16)), ok)
	plain("dim=5/valuedim=33", config(2, 1, 5, valueDim(33)), ok)
	for _, n := range []int{1, 63, 64, 65, 130} {
		plain(fmt.Sprintf("prefill/tokens=%d", n), config(2, 1, 16), prefill(n))
	}
	plain("extend/queries=20/keys=530", config(2, 1, 16), extend(20, 530))
	plain("extend/queries=3/keys=1100", config(2, 1, 8), extend(3, 1100))
	for _, d := range allTypes() {
		for _, kv := range allTypes() {
			plain(fmt.Sprintf("types/%v/%v", d, kv), config(4, 2, 16, types(d, kv)), s)
		}
	}
	t.gradient("dout-f32", Problem{Config: config(4, 2, 16, types(tensor.BF16, tensor.BF16)), Step: s, DOutF32: true})
	t.gradient("dlse", Problem{Config: config(4, 2, 16), Step: s, WithDLSE: true})
	t.gradient("dlse/sinklogit", Problem{Config: config(4, 2, 16, scored(attention.Score{SinkLogit: true})), Step: s, WithDLSE: true})
	for i, l := range layouts {
		t.gradient(fmt.Sprintf("layout=%d", i), Problem{Config: config(4, 2, 16), Step: s, Layout: l, WithDLSE: true})
	}

	docs, trees, sparse := ok, ok, s
	docs.Documents = append(documents(60, 10), append(documents(5), append(documents(30, 36), documents(17, 3)...)...)...)
	trees.Tree = tree(7, ok.QueryLens)
	sparse.Blocks = blocks(8, s, 8, 16, 2, true)
	prefix := s
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
		plain("mask/"+m.name, config(4, 2, 16, masked(m.mask)), m.step)
	}
	for _, m := range []struct {
		name string
		attention.Score
	}{
		{"softcap", attention.Score{SoftCap: 2}}, {"slopes", attention.Score{Slopes: true}}, {"relbias", attention.Score{RelBias: true, RelBiasStart: -5}},
		{"prefixbias", attention.Score{PrefixBias: true}}, {"sinklogit", attention.Score{SinkLogit: true}}, {"logn", attention.Score{LogN: 10}},
		{"all", attention.Score{SoftCap: 5, LogN: 20, Slopes: true, RelBias: true, PrefixBias: true, SinkLogit: true}},
	} {
		plain("score/"+m.name, config(4, 2, 16, scored(m.Score)), ok)
	}
	plain("score/all/bidirectional", config(4, 2, 16, masked(attention.Bidirectional()), scored(attention.Score{SoftCap: 5, Slopes: true, RelBias: true, PrefixBias: true, SinkLogit: true})), ok)
	for _, r := range []struct {
		name string
		r    rotary
	}{
		{"half-split", rope(16)}, {"interleaved", rope(16, interleaved)}, {"partial", rope(6)},
		{"factor", rope(16, func(r *kernel.Rotation) { r.Factor = 1.3 })}, {"xpos", rope(16, xpos)},
	} {
		plain("rotation/"+r.name+"/pre-rope", config(4, 2, 16, rotated(r.r)), s)
		plain("rotation/"+r.name+"/post-rope", config(4, 2, 16, rotated(r.r), postRoPE), s)
	}
	for _, p := range []positions{reRoPE(10), leaky(12, 0.125), selfExtend(12, 4), dualChunk(16, 24), partial()} {
		plain("positions/"+p.name, config(4, 2, 16, rotated(rope(16)), positioned(p)), s)
		plain("positions/"+p.name+"/window-sinks", config(4, 2, 16, rotated(rope(12, interleaved)), positioned(p), masked(attention.WindowSinks(20, 3)), types(tensor.F32, tensor.BF16)), s)
	}
	nan := float32frombits(0x7fc00000)
	t.gradient("masked-nan", Problem{Config: config(4, 2, 16, masked(attention.Window(20))), Step: step([]int{1, 5}, []int{70, 90}),
		Special: []Special{{'k', 0, 0, 50, -1, -1, nan}, {'v', 0, 0, 50, -1, -1, nan}, {'k', 1, 0, 66, -1, -1, nan}, {'v', 1, 0, 66, -1, -1, nan}}})
	t.gradient("large-logits", Problem{Config: config(4, 2, 16), Step: s, Spread: 30, Wild: true})
}
