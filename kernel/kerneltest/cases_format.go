package kerneltest

import (
	"fmt"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// fp8 are the 8-bit types of keys and values.
func fp8() [2]tensor.DType { return [2]tensor.DType{tensor.F8E4M3, tensor.F8E5M2} }

func kvType(d tensor.DType) func(*attention.Config) {
	return func(c *attention.Config) { c.KVDType = d }
}

// coded has pages of size tokens coded, keys per channel and values in groups;
// 0: the default.
func coded(codec kernel.Codec, size, group int) func(*attention.Config) {
	if group == 0 {
		group = defaultGroup
	}
	return quantized(size, kernel.Quantizer{Codec: codec}, kernel.Quantizer{Codec: codec, Group: group})
}

// defaultGroup stands for kernel.DefaultValueGroup.
const defaultGroup = -1

func quantized(size int, key, value kernel.Quantizer) func(*attention.Config) {
	return func(c *attention.Config) { c.PageSize, c.Coding = size, kernel.Coding{Key: key, Value: value} }
}

func bothCodecs() [2]kernel.Codec { return [2]kernel.Codec{kernel.Int8, kernel.Int4} }

// ragged is mixed with sequences of several chunks and of one page.
func ragged() attention.Step {
	return step([]int{9, 0, 1, 5, 3, 7, 1}, []int{9, 70, 530, 200, 0, 3, 64})
}

// formats: keys and values of few bits. A tile is 64 keys, a chunk 512.
func (t *builder) formats() {
	t.float8()
	for _, codec := range bothCodecs() {
		t.codec(codec)
	}
	t.codings()
}

func (t *builder) float8() {
	nan := float32frombits(0x7fc00000)
	for _, d := range fp8() {
		for _, scale := range []bool{false, true} {
			add := func(name string, s attention.Step, c attention.Config, special ...Special) {
				name = fmt.Sprintf("format/%v/scaled=%v/%s", d, scale, name)
				t.add("attention", name, Problem{Config: c, Step: s, Scaled: scale, Special: special})
			}
			add("contiguous", ragged(), config(4, 2, 32, kvType(d)))
			add("paged", ragged(), config(4, 2, 32, kvType(d), paged(16)))
			add("bf16/paged", ragged(), config(8, 1, 64, types(tensor.BF16, d), paged(17)))
			add("dim=19/valuedim=33", ragged(), config(6, 3, 19, valueDim(33), kvType(d), paged(64)))
			add("pre-RoPE", ragged(), config(4, 2, 32, kvType(d), paged(16), rotated(rope(32)), positioned(reRoPE(20))))
			add("post-RoPE/window", ragged(), config(4, 2, 32, kvType(d), rotated(rope(16, interleaved)), postRoPE, masked(attention.WindowSinks(40, 4))))
			add("features-apart", sound(), config(2, 2, 16, kvType(d), paged(16)))
			t.cases[len(t.cases)-1].Problem.Layout = Layout{Spread: 3, Gap: 1}
			add("nan-key", sound(), config(4, 2, 16, kvType(d)), Special{'k', 0, 50, 51, 0, 5, nan})
			add("nan-value", sound(), config(4, 2, 16, kvType(d), paged(16)), Special{'v', 0, 50, 51, 1, -1, nan})
		}
		t.attention(fmt.Sprintf("format/%v/decode", d), config(8, 2, 128, kvType(d), paged(16)), decodes(1100, 513))
	}
}

func (t *builder) codec(codec kernel.Codec) {
	add := func(name string, mix codedMix, s attention.Step, c attention.Config, edits ...func(*Problem)) {
		p := Problem{Config: c, Step: s, Coded: mix}
		for _, e := range edits {
			e(&p)
		}
		t.add("attention", fmt.Sprintf("format/%v/%s", codec, name), p)
	}
	// pages below a tile, of a tile, above it, and across it
	for _, size := range []int{1, 8, 16, 17, 64, 100, 128, 600} {
		for mix, name := range []string{"old", "all", "odd"} {
			add(fmt.Sprintf("pages=%d/%s", size, name), codedMix(mix), ragged(), config(4, 2, 16, coded(codec, size, 8)))
		}
	}
	for _, n := range []int{1, 63, 64, 65, 511, 512, 513, 1100} {
		add(fmt.Sprintf("decode/keys=%d", n), codedAll, decodes(n), config(4, 1, 16, coded(codec, 64, 0)))
		add(fmt.Sprintf("extend/queries=5/keys=%d", n), codedOdd, extend(5, n), config(2, 2, 8, coded(codec, 32, 0)))
	}
	for _, d := range []int{8, 16, 24, 40, 64, 96, 128, 256, 512} {
		add(fmt.Sprintf("dim=%d", d), codedOdd, step([]int{7, 1}, []int{90, 66}), config(4, 2, d, coded(codec, 16, 0)))
	}
	for _, h := range [][2]int{{1, 1}, {4, 4}, {8, 1}, {14, 2}} {
		add(fmt.Sprintf("heads=%d/kvheads=%d", h[0], h[1]), codedOld, step([]int{19, 1}, []int{90, 530}), config(h[0], h[1], 16, coded(codec, 16, 0)))
	}
	for _, g := range []int{1, 2, 5, 8, 40} {
		add(fmt.Sprintf("valuegroup=%d", g), codedAll, sound(), config(4, 2, 24, valueDim(40), coded(codec, 16, g)))
	}
	for _, d := range []tensor.DType{tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2} {
		add(fmt.Sprintf("plain-pages=%v", d), codedOdd, ragged(), config(4, 2, 32, coded(codec, 16, 0), types(tensor.BF16, d)))
	}
	add("plain-pages=f8e4m3/scaled", codedOdd, ragged(), config(4, 2, 32, coded(codec, 16, 0), kvType(tensor.F8E4M3)), func(p *Problem) { p.Scaled = true })
	for i, l := range layouts {
		add(fmt.Sprintf("layout=%d", i), codedOdd, sound(), config(4, 2, 16, coded(codec, 16, 8)), func(p *Problem) { p.Layout = l })
	}
	add("layout=features-apart", codedOdd, sound(), config(4, 2, 16, coded(codec, 16, 8)), func(p *Problem) { p.Layout = Layout{Spread: 2, Pad: 3} })
	add("pre-RoPE/half-split", codedOdd, ragged(), config(4, 2, 32, coded(codec, 16, 0), rotated(rope(32))))
	add("pre-RoPE/interleaved/partial", codedAll, ragged(), config(4, 2, 32, coded(codec, 64, 0), rotated(rope(12, interleaved))))
	add("pre-RoPE/rerope", codedOdd, ragged(), config(4, 2, 32, coded(codec, 17, 0), rotated(rope(32)), positioned(reRoPE(20))))
	add("post-RoPE", codedAll, ragged(), config(4, 2, 32, coded(codec, 64, 0), rotated(rope(32)), postRoPE))
	add("window", codedOdd, ragged(), config(4, 2, 16, coded(codec, 16, 0), masked(attention.WindowSinks(40, 4))))
	add("bidirectional/scores", codedOld, sound(), config(4, 2, 16, coded(codec, 16, 0), masked(attention.Bidirectional()),
		scored(attention.Score{SoftCap: 5, Slopes: true, SinkLogit: true})))
	// groups without spread, at the ends of F16, and too narrow for a scale
	for _, v := range []struct {
		name  string
		value float32
	}{{"constant", 3}, {"zero", 0}, {"largest", 65504}, {"subnormal", 0x1p-130}, {"narrow", 1 + 0x1p-23}} {
		add("extreme/"+v.name, codedAll, sound(), config(2, 1, 16, coded(codec, 16, 8)), func(p *Problem) {
			p.Wild = true
			p.Special = []Special{{'k', 0, 16, 32, -1, -1, v.value}, {'v', 0, 16, 40, -1, -1, v.value}, {'k', 2, 33, 34, -1, 2, -v.value}, {'v', 2, 33, 34, 0, 3, -v.value}}
		})
	}
}
