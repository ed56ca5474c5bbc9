package kerneltest

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// What rules 2 and 12 to 14 of package kernel say of scales and coded pages, by
// arithmetic alone.

// codedMix says which pages of a sequence are coded.
type codedMix int

const (
	codedOld codedMix = iota // full ones, but for the last two pages
	codedAll                 // all, the partly filled last one too
	codedOdd                 // every second one
)

// isCoded reports whether a page of sequence s is coded.
func (p *Problem) isCoded(s, page int) bool {
	if p.Config.Codec == kernel.NoCodec {
		return false
	}
	switch p.Coded {
	case codedAll:
		return true
	case codedOdd:
		return (s+page)%2 == 1
	}
	return page < (p.Step.KeyLens[s]+p.Config.PageSize-1)/p.Config.PageSize-2
}

// levels is the largest code.
func levels(c kernel.Codec) float32 {
	return map[kernel.Codec]float32{kernel.Int8: 255, kernel.Int4: 15}[c]
}

// codedRows are codes as inputs are laid out, with the scale and the zero that
// each has, group by group of a row.
type codedRows struct {
	codes       []uint8   // as key and value; where a page is plain, nothing
	scale, zero []float32 // as codes: of each element, so that rows and groups look alike
}

// code codes the elements of x at some indices, which are a group, and leaves
// in x what they now stand for.
func (r *codedRows) code(c kernel.Codec, x []float32, at []int) {
	scale, zero, codes := encodeGroup(c, pick(x, at))
	for i, k := range at {
		r.codes[k], r.scale[k], r.zero[k] = codes[i], scale, zero
		x[k] = decodeOne(codes[i], scale, zero)
	}
}

func pick(x []float32, at []int) []float32 {
	out := make([]float32, len(at))
	for i, k := range at {
		out[i] = x[k]
	}
	return out
}

// encodeGroup is rules 13 and 14 for a group whose scale and zero are finite.
func encodeGroup(c kernel.Codec, x []float32) (scale, zero float32, codes []uint8) {
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range x {
		lo, hi = math.Min(lo, float64(v)), math.Max(hi, float64(v))
	}
	if lo == 0 {
		lo = 0 // of either sign
	}
	if hi == 0 {
		hi = 0
	}
	zero = float32(round(tensor.F16, lo))
	span := float32(hi) - float32(lo)
	scale = float32(round(tensor.F16, float64(span/levels(c))))
	for _, v := range x {
		y := float32(0)
		if scale != 0 {
			y = float32(v-zero) / scale
		}
		codes = append(codes, uint8(math.RoundToEven(min(max(float64(y), 0), float64(levels(c))))))
	}
	return scale, zero, codes
}

// decodeOne is f32(code)·scale + zero, rounded once: the float64 is exact.
func decodeOne(code uint8, scale, zero float32) float32 {
	return float32(float64(code)*float64(scale) + float64(zero))
}

// pack is a row of codes as bytes.
func pack(c kernel.Codec, codes []uint8) []float32 {
	row := append([]byte(nil), codes...)
	if c == kernel.Int4 {
		words := len(codes) / 8
		row = row[:0]
		for w := range words {
			x := uint32(0)
			for k := range 8 {
				x |= uint32(codes[k*words+w]) << (4 * k)
			}
			row = binary.LittleEndian.AppendUint32(row, x)
		}
	}
	out := make([]float32, len(row))
	for i, b := range row {
		out[i] = float32(b)
	}
	return out
}

// store makes keys and values what they are once stored: rounded to FP8 under
// a scale, and coded.
func (in *inputs) store(p *Problem) {
	c := &p.Config
	if p.Scaled {
		for h := range c.KVHeads {
			in.keyScale = append(in.keyScale, 0.013*float32(1+h))
			in.valueScale = append(in.valueScale, 0.7/float32(1+h))
		}
		in.storedKey, in.key = roundScaled(c.KVDType, in.key, in.keyScale, c.HeadDim)
		in.storedValue, in.value = roundScaled(c.KVDType, in.value, in.valueScale, c.ValueDim)
	}
	if c.Codec == kernel.NoCodec {
		return
	}
	rows := func(x []float32) *codedRows {
		return &codedRows{make([]uint8, len(x)), make([]float32, len(x)), make([]float32, len(x))}
	}
	in.codedKey, in.codedValue = rows(in.key), rows(in.value)
	first := 0
	for s, n := range p.Step.KeyLens {
		for lo := 0; lo < n; lo += c.PageSize {
			if p.isCoded(s, lo/c.PageSize) {
				in.codePage(p, first+lo, first+min(lo+c.PageSize, n))
			}
		}
		first += n
	}
}

// codePage codes keys lo to hi−1, which are a page.
func (in *inputs) codePage(p *Problem, lo, hi int) {
	c := &p.Config
	for h := range c.KVHeads {
		for d := range c.HeadDim {
			var at []int
			for j := lo; j < hi; j++ {
				at = append(at, (j*c.KVHeads+h)*c.HeadDim+d)
			}
			in.codedKey.code(c.Codec, in.key, at)
		}
		for j := lo; j < hi; j++ {
			for g := 0; g < c.ValueDim; g += c.ValueGroup {
				var at []int
				for d := g; d < g+c.ValueGroup; d++ {
					at = append(at, (j*c.KVHeads+h)*c.ValueDim+d)
				}
				in.codedValue.code(c.Codec, in.value, at)
			}
		}
	}
}

// roundScaled rounds rows of heads of dim features to an FP8 type under a scale for
// each head: what is stored, and what that stands for.
func roundScaled(d tensor.DType, x, scale []float32, dim int) (stored, value []float32) {
	for i, v := range x {
		s := scale[i/dim%len(scale)]
		q := float32(round(d, float64(v*(1/s))))
		stored, value = append(stored, q), append(value, q*s)
	}
	return stored, value
}

// plain is the Problem with the same keys and values stored plainly.
func (p *Problem) plain(in *inputs) (*Problem, *inputs) {
	q, out := *p, *in
	q.Config.Codec, q.Config.ValueGroup, q.Config.KVDType, q.Scaled = kernel.NoCodec, 0, tensor.F32, false
	out.storedKey, out.storedValue, out.keyScale, out.valueScale, out.codedKey, out.codedValue = nil, nil, nil, nil, nil, nil
	return &q, &out
}

// fewBits are Problems whose keys and values are FP8, coded, or some of each.
func fewBits() []Problem {
	s := step([]int{40, 0, 1, 5}, []int{530, 9, 130, 66})
	rerope := []func(*attention.Config){rotated(rope(32)), masked(attention.WindowSinks(70, 4)), positioned(reRoPE(20))}
	out := []Problem{
		{Config: config(4, 2, 32, append(rerope, kvType(tensor.F8E4M3), paged(16))...), Scaled: true},
		{Config: config(4, 2, 16, kvType(tensor.F8E5M2))},
		{Config: config(4, 2, 32, append(rerope, coded(kernel.Int8, 16, 0), kvType(tensor.F16))...), Coded: codedOdd},
		{Config: config(4, 1, 32, append(rerope, coded(kernel.Int4, 100, 8), kvType(tensor.F8E4M3))...), Coded: codedOdd, Scaled: true},
		{Config: config(4, 2, 64, coded(kernel.Int4, 64, 32), scored(attention.Score{SoftCap: 5, Slopes: true})), Coded: codedAll},
	}
	for i := range out {
		out[i].Step, out[i].Seed = s, seedOf(fmt.Sprint("few bits", i))
		out[i] = *out[i].normal()
	}
	return out
}

// decoded: keys and values of few bits are what a float32 cache of the values
// they stand for is, paged as they are or not paged at all.
func (t *trial) decoded(p *Problem) {
	in := p.makeInputs()
	got := t.answer(p, in, Layout{})
	q, qin := p.plain(in)
	t.agree("decoded", t.answer(q, qin, Layout{}), got)
	q.Config.PageSize = 0
	t.agree("decoded and contiguous", t.answer(q, qin, Layout{}), got)
}

// sequencesAlone: which pages of other sequences are coded does not matter.
func (t *trial) sequencesAlone(p *Problem) {
	in := p.makeInputs()
	whole := t.answer(p, in, Layout{})
	if whole == nil {
		return
	}
	q, qin := p.plain(in)
	at := 0
	for s, n := range p.Step.QueryLens {
		one, oin := q.part(qin, s, 0, n, p.Step.KeyLens[s])
		t.agree(fmt.Sprintf("sequence %d alone", s), t.answer(one, oin, Layout{}), whole.rows(p, at, at+n))
		at += n
	}
}
