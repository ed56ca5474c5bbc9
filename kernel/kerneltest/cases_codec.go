package kerneltest

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// codings are Codings of all kinds for keys and values of dim features, a
// multiple of 64, in pages of at least 5 tokens.
func codings(dim int) []kernel.Coding {
	type q = kernel.Quantizer
	const int8, int4, int2, int1 = kernel.Int8, kernel.Int4, kernel.Int2, kernel.Int1
	return []kernel.Coding{
		{Key: q{Codec: int2}, Value: q{Codec: int2, Group: 32}},                                                                                    // KIVI
		{Key: q{Codec: int4}, Value: q{Codec: int1, Group: 16}},                                                                                    // AsymKV
		{Key: q{Codec: int4, Group: dim}, Value: q{Codec: int4, Group: dim / 4}},                                                                   // ZipCache
		{Key: q{Codec: int8, Group: 8}, Value: q{Codec: int8}},                                                                                     // the other way round
		{Key: q{Codec: int4, Levels: true}, Value: q{Codec: int2, Levels: true, Group: 16}},                                                        // KVQuant
		{Key: q{Codec: int2, Levels: true, Outliers: 7}, Value: q{Codec: int4, Levels: true, Group: dim, Outliers: 3}},                             // KVQuant
		{Key: q{Codec: int8, Outliers: 1}, Value: q{Codec: int1, Group: 32, Outliers: 300}},                                                        // whole groups
		{Key: q{Codec: int2, Rank: 2}, Value: q{Codec: int4, Group: 64, Rank: 3}},                                                                  // GEAR-L
		{Key: q{Codec: int4, Outliers: 6, Rank: 1}, Value: q{Codec: int2, Group: 16, Outliers: 5, Rank: 4}},                                        // GEAR
		{Key: q{Codec: int1, Levels: true, RMS: true, Group: dim}, Value: q{Codec: int8, Group: 64}},                                               // QJL
		{Key: q{Codec: int4, Levels: true, RMS: true, Group: 32}, Value: q{Codec: int8, Levels: true, RMS: true}},                                  // TurboQuant
		{Key: q{Codec: int1, Levels: true, Outliers: 9, Rank: 2, Group: 16}, Value: q{Codec: int2, Levels: true, RMS: true, Outliers: 4, Rank: 1}}, // all at once
	}
}

// codings: what a Quantizer can be beyond the Codecs that t.codec takes.
func (t *builder) codings() {
	for i, q := range codings(64) {
		add := func(name string, mix codedMix, p Problem) {
			p.Coded = mix
			t.add("attention", fmt.Sprintf("format/coding=%v/%s", q, name), p)
		}
		for _, size := range []int{5, 16, 64, 100} {
			mix := codedMix((i + size) % 3)
			add(fmt.Sprintf("pages=%d", size), mix, Problem{Config: config(4, 2, 64, quantized(size, q.Key, q.Value)), Step: ragged()})
		}
		add("dim=128/f16", codedOdd, Problem{Config: config(8, 1, 128, quantized(64, q.Key, q.Value), types(tensor.F16, tensor.F16)), Step: decodes(300, 65)})
		add("dim=64/valuedim=192/f8e4m3", codedOdd, Problem{Config: config(3, 3, 64, valueDim(192), quantized(32, q.Key, q.Value), kvType(tensor.F8E4M3)), Step: sound(), Scaled: true})
		add("pre-RoPE", codedOld, Problem{Config: config(4, 2, 64, quantized(16, q.Key, q.Value), rotated(rope(64)), positioned(reRoPE(20))), Step: ragged()})
		add(fmt.Sprintf("layout=%d", i%len(layouts)), codedAll, Problem{Config: config(4, 2, 64, quantized(17, q.Key, q.Value)), Step: sound(), Layout: layouts[i%len(layouts)]})
		stats := config(4, 2, 64, quantized(16, q.Key, q.Value))
		stats.ColumnStats = true
		t.add("columnstats", fmt.Sprintf("format/coding=%v", q), Problem{Config: stats, Step: ragged(), Coded: codedOdd})
	}
	for _, d := range []int{32, 96, 256} {
		for _, c := range []kernel.Codec{kernel.Int2, kernel.Int1} {
			t.add("attention", fmt.Sprintf("format/coding=%v/dim=%d", c, d), Problem{Config: config(4, 2, d, coded(c, 16, 0)), Step: step([]int{7, 1}, []int{90, 66}), Coded: codedOdd})
		}
	}
	infinite(t)
}

// infinite: a NaN and an infinity that are outliers reach their rows alone.
func infinite(t *builder) {
	nan, inf := float32frombits(0x7fc00000), float32frombits(0xff800000)
	q := kernel.Quantizer{Codec: kernel.Int4, Outliers: 4}
	for i, s := range []Special{{'k', 0, 50, 51, 0, 5, nan}, {'v', 2, 33, 34, 1, 3, nan}, {'v', 0, 3, 4, 1, 3, inf}} {
		t.add("attention", fmt.Sprintf("format/coding=%v/special=%d", q, i),
			Problem{Config: config(4, 2, 16, quantized(16, q, q)), Step: sound(), Coded: codedAll, Special: []Special{s}, Wild: true})
	}
}
