package cpu

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// codedTensors are coded pages of random bytes and finite scales and zeros.
func codedTensors(codec kernel.Codec, pages, size, heads, dim, group int64) kernel.CodedPages {
	rng := rand.New(rand.NewPCG(uint64(dim), uint64(group)))
	shape := []int64{pages, size, heads, dim / max(group, 1)}
	if group == 0 {
		shape = []int64{pages, heads, dim}
	}
	p := kernel.CodedPages{Codes: tensor.New(tensor.U8, pages, size, heads, int64(codec.RowBytes(int(dim)))), Scale: tensor.New(tensor.F16, shape...), Zero: tensor.New(tensor.F16, shape...)}
	for i := range p.Codes.Bits8() {
		p.Codes.Bits8()[i] = uint8(rng.Uint32())
	}
	for i := range p.Scale.Bits() {
		p.Scale.Bits()[i], p.Zero.Bits()[i] = tensor.F32ToF16(rng.Float32()*0.02), tensor.F32ToF16(2*rng.Float32()-2)
	}
	return p
}

// TestDecodeRows: the loops over rows give what the scalar functions of package
// kernel give, for any run of slots.
func TestDecodeRows(t *testing.T) {
	const pages, size, heads = 3, 9, 2
	for _, codec := range []kernel.Codec{kernel.Int8, kernel.Int4, kernel.Int2, kernel.Int1} {
		for _, dim := range []int64{8, 24, 128, 512} {
			for _, group := range []int64{0, 1, 4, dim} {
				if dim%int64(codec.Multiple()) != 0 {
					continue
				}
				p := codedTensors(codec, pages, size, heads, dim, group)
				c := readCoded(&p, kernel.Quantizer{Codec: codec, Group: int(group)}, int(dim))
				dst, columns := make([]float32, size*dim), make([]float32, size*dim)
				for page := range int64(pages) {
					for head := range int64(heads) {
						for slot := range int64(size) {
							n := int(size - slot)
							c.load(dst, int(dim), false, page, slot, n, int(head), nil)
							if group == 0 {
								c.load(columns, size, true, page, slot, n, int(head), nil)
							}
							for j := range int64(n) {
								row := p.Codes.Bits8()[p.Codes.Offset+((page*size+slot+j)*heads+head)*p.Codes.Shape[3]:]
								for d := range dim {
									index := []int64{page, head, d}
									if group > 0 {
										index = []int64{page, slot + j, head, d / group}
									}
									want := kernel.Decode(codec.At(row, int(dim), int(d)), p.Scale.At(index...), p.Zero.At(index...))
									if group == 0 && math.Float32bits(columns[d*size+j]) != math.Float32bits(dst[j*dim+d]) {
										t.Fatalf("%v dim %d: row %d feature %d is %v in columns, %v in rows", codec, dim, j, d, columns[d*size+j], dst[j*dim+d])
									}
									if got := dst[j*dim+d]; math.Float32bits(got) != math.Float32bits(want) {
										t.Fatalf("%v dim %d group %d: page %d slot %d head %d feature %d is %v, want %v", codec, dim, group, page, slot+j, head, d, got, want)
									}
								}
							}
						}
					}
				}
			}
		}
	}
}

// coding has keys per channel and values in groups.
func coding(c kernel.Codec, group int) kernel.Coding {
	return kernel.Coding{Key: kernel.Quantizer{Codec: c}, Value: kernel.Quantizer{Codec: c, Group: group}}
}

// codedStep is one planned decode over coded and FP8 pages with scales.
func codedStep(t *testing.T, b *Backend, codec kernel.Codec) (kernel.Attention, kernel.Args) {
	const heads, kvHeads, dim, size, keys, group = 4, 2, 32, 16, 600, 16
	pages := int64((keys + size - 1) / size)
	a, err := b.Attention(kernel.Spec{Heads: heads, KVHeads: kvHeads, HeadDim: dim, ValueDim: dim, DType: tensor.F32, KVDType: tensor.F8E4M3,
		PageSize: size, Coding: coding(codec, group), Terms: 1, Scale: 1})
	if err != nil {
		t.Fatal(err)
	}
	batch := &kernel.Batch{QueryStart: []int32{0, 1}, SeqLens: []int32{keys}, ScoreScale: []float32{1}, Terms: []kernel.Term{{Region: kernel.Everywhere}},
		Pages: kernel.BlockTable{Indptr: []int32{0, int32(pages)}}}
	for i := range int32(pages) {
		batch.Pages.Indices, batch.Pages.Coded = append(batch.Pages.Indices, i), append(batch.Pages.Coded, i%3 > 0)
	}
	if err := a.Plan(batch); err != nil {
		t.Fatal(err)
	}
	return a, kernel.Args{
		Query: tensor.New(tensor.F32, 1, heads, dim), Out: tensor.New(tensor.F32, 1, heads, dim), LSE: tensor.New(tensor.F32, 1, heads),
		Key: tensor.New(tensor.F8E4M3, pages, size, kvHeads, dim), Value: tensor.New(tensor.F8E4M3, pages, size, kvHeads, dim),
		KeyScale: tensor.New(tensor.F32, kvHeads), ValueScale: tensor.New(tensor.F32, kvHeads),
		CodedKey: codedTensors(codec, pages, size, kvHeads, dim, 0), CodedValue: codedTensors(codec, pages, size, kvHeads, dim, group),
	}
}

func TestCodedRunAllocatesNothing(t *testing.T) {
	b := New(Options{Workers: 1})
	defer b.Close()
	for _, codec := range []kernel.Codec{kernel.Int8, kernel.Int4, kernel.Int2, kernel.Int1} {
		a, args := codedStep(t, b, codec)
		if n := testing.AllocsPerRun(5, func() {
			if err := a.Run(&args); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%v: Run allocates %v times", codec, n)
		}
		e := kernel.EncodeArgs{Coding: coding(codec, 16), Key: args.Key, Value: args.Value, KeyScale: args.KeyScale, ValueScale: args.ValueScale,
			CodedKey: args.CodedKey, CodedValue: args.CodedValue, Src: []int32{0, 3}, Dst: []int32{2, 1}, Encoded: make([]bool, 2)}
		if n := testing.AllocsPerRun(5, func() {
			if err := b.EncodePages(&e); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%v: EncodePages allocates %v times", codec, n)
		}
	}
}

// TestCodedMemoryElsewhere: each tensor of few bits is refused on another device.
func TestCodedMemoryElsewhere(t *testing.T) {
	b := New(Options{Workers: 1})
	defer b.Close()
	a, good := codedStep(t, b, kernel.Int8)
	for i := range 8 {
		args := good
		k, v := &args.CodedKey, &args.CodedValue
		[]*tensor.View{&args.KeyScale, &args.ValueScale, &k.Codes, &k.Scale, &k.Zero, &v.Codes, &v.Scale, &v.Zero}[i].Buf = elsewhere{}
		if err := a.Run(&args); err == nil {
			t.Errorf("tensor %d on another device gave no error", i)
		}
		e := kernel.EncodeArgs{Coding: coding(kernel.Int8, 16), Key: args.Key, Value: args.Value, KeyScale: args.KeyScale, ValueScale: args.ValueScale,
			CodedKey: args.CodedKey, CodedValue: args.CodedValue, Src: []int32{0}, Dst: []int32{2}, Encoded: make([]bool, 1)}
		if err := b.EncodePages(&e); err == nil {
			t.Errorf("EncodePages: tensor %d on another device gave no error", i)
		}
	}
}
