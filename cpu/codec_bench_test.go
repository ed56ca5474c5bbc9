package cpu

import (
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// benchCodings are Codings of 128 features in pages of 64 tokens, among them
// those of named methods. Outliers are 1 % of the entries.
var benchCodings = []struct {
	name   string
	coding kernel.Coding
}{
	{"f16", kernel.Coding{}},
	{"int8", kernel.KIVI(kernel.Int8, 128)},
	{"int4", kernel.KIVI(kernel.Int4, 128)},
	{"int2", kernel.KIVI(kernel.Int2, 128)},
	{"int1", kernel.KIVI(kernel.Int1, 128)},
	{"int4+int2", kernel.Coding{Key: kernel.Quantizer{Codec: kernel.Int4}, Value: kernel.Quantizer{Codec: kernel.Int2, Group: 64}}},
	{"int4-levels", kernel.Coding{Key: kernel.Quantizer{Codec: kernel.Int4, Levels: true}, Value: kernel.Quantizer{Codec: kernel.Int4, Group: 128, Levels: true}}},
	{"int4-token", kernel.Coding{Key: kernel.Quantizer{Codec: kernel.Int4, Group: 128}, Value: kernel.Quantizer{Codec: kernel.Int4, Group: 128}}},
	{"int1-token", kernel.Coding{Key: kernel.Quantizer{Codec: kernel.Int1, Group: 128, Levels: true, RMS: true}, Value: kernel.Quantizer{Codec: kernel.Int2, Group: 64}}}, // QJL
	{"int4-outliers", kernel.Coding{Key: kernel.Quantizer{Codec: kernel.Int4, Levels: true, Outliers: 82}, Value: kernel.Quantizer{Codec: kernel.Int4, Group: 128, Levels: true, Outliers: 82}}},
	{"int4-rank", kernel.Coding{Key: kernel.Quantizer{Codec: kernel.Int4, Rank: 2}, Value: kernel.Quantizer{Codec: kernel.Int4, Group: 64, Rank: 2}}},
	{"int2-outliers-rank", kernel.Coding{Key: kernel.Quantizer{Codec: kernel.Int2, Outliers: 82, Rank: 2}, Value: kernel.Quantizer{Codec: kernel.Int2, Group: 64, Outliers: 82, Rank: 2}}},
}

const benchHeads, benchKVHeads, benchDim, benchPage = 32, 8, 128, 64

// benchPages are pages of F16 elements about 0, in memory head by head.
func benchPages(pages int64) tensor.View {
	rng := rand.New(rand.NewPCG(1, 2))
	v := tensor.New(tensor.F16, pages, benchKVHeads, benchPage, benchDim).Swap(1, 2)
	for i, x := 0, v.Bits(); i < len(x); i++ {
		x[i] = tensor.F32ToF16(float32(rng.NormFloat64()))
	}
	return v
}

// benchCoded are coded pages, in memory head by head.
func benchCoded(q kernel.Quantizer, pages int64) (p kernel.CodedPages) {
	for _, t := range q.Tensors(&p, pages, benchPage, benchKVHeads, benchDim) {
		switch s := t.Shape; t.Rank {
		case 3:
			*t.View = tensor.New(t.DType, s[0], s[1], s[2])
		case 4:
			*t.View = tensor.New(t.DType, s[0], s[2], s[1], s[3]).Swap(1, 2)
		}
	}
	if q.Levels {
		n := int64(q.Codec.MaxCode()) + 1
		p.Levels = tensor.New(tensor.F32, benchKVHeads, n)
		for i := range p.Levels.F32s() {
			p.Levels.F32s()[i] = float32(int64(i)%n) * 0.99
		}
	}
	return p
}

// benchEncoding codes the same four pages to all there are.
func benchEncoding(c kernel.Coding, pages int32) *kernel.EncodeArgs {
	e := &kernel.EncodeArgs{Coding: c, Key: benchPages(4), Value: benchPages(4), CodedKey: benchCoded(c.Key, int64(pages)), CodedValue: benchCoded(c.Value, int64(pages)), Encoded: make([]bool, pages)}
	for i := range pages {
		e.Src, e.Dst = append(e.Src, i%4), append(e.Dst, i)
	}
	return e
}

// BenchmarkDecodeCodings is a decode step of one sequence over coded pages.
func BenchmarkDecodeCodings(b *testing.B) {
	const keys = 1 << 14
	backend := New(Options{Workers: 1})
	defer backend.Close()
	for _, c := range benchCodings {
		b.Run(c.name, func(b *testing.B) {
			a, err := backend.Attention(kernel.Spec{Heads: benchHeads, KVHeads: benchKVHeads, HeadDim: benchDim, ValueDim: benchDim, DType: tensor.F16, KVDType: tensor.F16,
				PageSize: benchPage, Coding: c.coding, Terms: 1, Scale: 1})
			if err != nil {
				b.Fatal(err)
			}
			pages := int32(keys / benchPage)
			batch := &kernel.Batch{QueryStart: []int32{0, 1}, SeqLens: []int32{keys}, ScoreScale: []float32{0.1}, Terms: []kernel.Term{{Region: kernel.Everywhere}},
				Pages: kernel.BlockTable{Indptr: []int32{0, pages}}}
			for i := range pages {
				batch.Pages.Indices = append(batch.Pages.Indices, i)
			}
			args := &kernel.Args{Query: tensor.New(tensor.F16, 1, benchHeads, benchDim), Out: tensor.New(tensor.F16, 1, benchHeads, benchDim)}
			if c.coding.IsZero() {
				args.Key, args.Value = benchPages(int64(pages)), benchPages(int64(pages))
			} else {
				batch.Pages.Coded = make([]bool, pages)
				for i := range batch.Pages.Coded {
					batch.Pages.Coded[i] = true
				}
				e := benchEncoding(c.coding, pages)
				if err := backend.EncodePages(e); err != nil || !e.Encoded[0] {
					b.Fatalf("%v, %v", err, e.Encoded[0])
				}
				args.Key, args.Value, args.CodedKey, args.CodedValue = e.Key, e.Value, e.CodedKey, e.CodedValue
			}
			if err := a.Plan(batch); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := a.Run(args); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*keys/b.Elapsed().Seconds()/1e6, "Mkeys/s")
		})
	}
}

// BenchmarkEncodePages codes pages of 8 KV heads.
func BenchmarkEncodePages(b *testing.B) {
	backend := New(Options{Workers: 1})
	defer backend.Close()
	for _, c := range benchCodings[1:] {
		b.Run(c.name, func(b *testing.B) {
			e := benchEncoding(c.coding, 4)
			for b.Loop() {
				if err := backend.EncodePages(e); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/4*1e3, "ms/page")
		})
	}
}
