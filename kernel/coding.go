package kernel

import (
	"fmt"

	"github.com/longctx/longctx/tensor"
)

// Coding says how coded pages hold keys and values: rules 2 and 13 to 14 of the
// package comment. A coded page cannot be appended to. The zero Coding has no
// coded pages; any other has a Codec for keys and one for values, which may
// differ, as in AsymKV (Tao et al., https://arxiv.org/abs/2410.13212).
type Coding struct{ Key, Value Quantizer }

// Quantizer says how the keys, or the values, of a coded page become codes.
// The fields combine freely.
type Quantizer struct {
	Codec Codec

	// Group is how many neighbouring features of a row share a scale and a zero,
	// a divisor of the features; 0: the same feature of all slots of a page does
	// (per channel).
	Group int

	// Levels makes a code c stand for CodedPages.Levels[c] instead of c, as the
	// non-uniform quantization of KVQuant does (Hooper et al.,
	// https://arxiv.org/abs/2401.18079).
	Levels bool

	// RMS takes the root mean square of a group for its scale, and 0 for its
	// zero; the Levels are of numbers of unit variance. With Int1 and levels −1
	// and 1, a group of a whole row and rows that were projected it is QJL (Zandieh
	// et al., https://arxiv.org/abs/2406.03482).
	RMS bool

	// Outliers is the number of entries of a head of a page that are kept as F16
	// beside the codes, as in KVQuant and GEAR; PageSize·features is at most 65536
	// with them.
	Outliers int

	// Rank is the number of terms of an approximation of what coding loses in a
	// head of a page, a product of two matrices in F16, as in GEAR (Kang et al.,
	// https://arxiv.org/abs/2403.05527).
	Rank int
}

// MaxRank is the largest Quantizer.Rank.
const MaxRank = 64

// PowerIterations is how often rule 14 multiplies a vector by the error and its
// transpose to find a term of an approximation.
const PowerIterations = 4

// KIVI is the Coding of Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit
// Quantization for KV Cache", https://arxiv.org/abs/2402.02750: keys per
// channel of a page, values in groups of DefaultValueGroup features. Of NoCodec
// it is the zero Coding.
func KIVI(c Codec, valueDim int) Coding {
	if c == NoCodec {
		return Coding{}
	}
	return Coding{Key: Quantizer{Codec: c}, Value: Quantizer{Codec: c, Group: DefaultValueGroup(valueDim)}}
}

// IsZero reports whether there are no coded pages.
func (c *Coding) IsZero() bool { return *c == Coding{} }

func (c Coding) String() string {
	switch {
	case c.IsZero():
		return "none"
	case c.Key == c.Value:
		return c.Key.String()
	}
	return c.Key.String() + "+" + c.Value.String()
}

func (q Quantizer) String() string {
	s := q.Codec.String()
	if q.Group > 0 {
		s += fmt.Sprintf("/g%d", q.Group)
	}
	if q.Levels {
		s += "/levels"
	}
	if q.RMS {
		s += "/rms"
	}
	if q.Outliers > 0 {
		s += fmt.Sprintf("/outliers=%d", q.Outliers)
	}
	if q.Rank > 0 {
		s += fmt.Sprintf("/rank=%d", q.Rank)
	}
	return s
}

// quantizerRules is how many rules holds knows.
const quantizerRules = 6

// holds reports whether rule i of what a Quantizer of pages of size rows of dim
// features has to be holds; that it has a Codec is rule 0, without which there
// are no others.
func (q *Quantizer) holds(i, size, dim int) bool {
	switch i {
	case 0:
		return q.Codec > NoCodec && q.Codec <= Int1
	case 1:
		return dim%q.Codec.Multiple() == 0
	case 2:
		return q.Group >= 0 && (q.Group == 0 || dim%q.Group == 0)
	case 3:
		return !q.RMS || q.Levels
	case 4:
		entries := int64(size) * int64(dim)
		return q.Outliers == 0 || q.Outliers > 0 && entries <= 1<<16 && int64(q.Outliers) <= entries
	}
	return q.Rank >= 0 && q.Rank <= min(MaxRank, size, dim)
}

// problem says how a rule of holds is broken, for the keys or the values.
func (q *Quantizer) problem(i int, side, dimName string, size, dim int) string {
	switch i {
	case 0:
		return fmt.Sprintf("Coding.%s.Codec %v, want int8, int4, int2 or int1", side, q.Codec)
	case 1:
		return fmt.Sprintf("%s %d with Codec %v, want a multiple of %d", dimName, dim, q.Codec, q.Codec.Multiple())
	case 2:
		return fmt.Sprintf("Coding.%s.Group %d, want 0 or a divisor of %s %d", side, q.Group, dimName, dim)
	case 3:
		return fmt.Sprintf("Coding.%s.RMS without Levels, want both", side)
	case 4:
		return fmt.Sprintf("Coding.%s.Outliers %d of %d·%d entries, want 0, or at most that many of at most 65536", side, q.Outliers, size, dim)
	}
	return fmt.Sprintf("Coding.%s.Rank %d, want 0 to %d", side, q.Rank, min(MaxRank, size, dim))
}

// Problems lists what is wrong with a Coding of pages of so many tokens, with
// keys and values of so many features. It allocates only what it returns.
func (c *Coding) Problems(pageSize, headDim, valueDim int) (out []string) {
	if c.IsZero() {
		return nil
	}
	for _, s := range [...]struct {
		q             *Quantizer
		side, dimName string
		dim           int
	}{{&c.Key, "Key", "HeadDim", headDim}, {&c.Value, "Value", "ValueDim", valueDim}} {
		for i := range quantizerRules {
			if s.q.holds(i, pageSize, s.dim) {
				continue
			}
			out = append(out, s.q.problem(i, s.side, s.dimName, pageSize, s.dim))
			if i == 0 {
				break
			}
		}
	}
	return out
}

// codingProblems lists what is wrong with Coding.
func (s *Spec) codingProblems(say func(bool, string, ...any)) {
	if s.Coding.IsZero() {
		return
	}
	say(s.PageSize > 0, "Coding %v of contiguous keys, want PageSize of at least 1: a page is a group", s.Coding)
	say(!s.Backward, "Backward with Coding %v, want none: gradients of coded pages are not defined", s.Coding)
	for _, problem := range s.Coding.Problems(max(s.PageSize, 1), s.HeadDim, s.ValueDim) {
		say(false, "%s", problem)
	}
}

// CodedPages are the keys or the values of coded pages: of each, in order, the
// code, then scale and zero of its group, the low rank, and the outliers give
// the value by rule 2. The last dimension of each tensor has stride 1.
type CodedPages struct {
	Codes tensor.View // [pages, PageSize, KVHeads, Codec.RowBytes(dim)] U8

	// F16, per channel [pages, KVHeads, dim], with Group [pages, PageSize,
	// KVHeads, dim/Group].
	Scale, Zero tensor.View

	// With Levels, [KVHeads, MaxCode+1] F32, ascending and finite. All heads may
	// share a row: stride 0.
	Levels tensor.View

	// With Outliers, [pages, KVHeads, 4·Outliers] U8: of each the index
	// slot·dim + feature and the bits of its F16, little-endian, two bytes each, by
	// ascending index.
	Outliers tensor.View

	// With Rank, F16 [pages, PageSize, KVHeads, Rank] and [pages, KVHeads, Rank,
	// dim]: the approximation of what coding loses is Left·Right.
	Left, Right tensor.View
}

// CodedTensor is one of the tensors of coded pages, and what it has to be.
type CodedTensor struct {
	Name  string // of the field of CodedPages
	View  *tensor.View
	DType tensor.DType
	Rank  int // 0: there is none
	Shape [4]int64
}

// Tensors lists the tensors of p that have pages, in the order in which package
// page stores them: Codes, Scale, Zero, Outliers, Left, Right.
func (q *Quantizer) Tensors(p *CodedPages, pages, size, heads int64, dim int) [6]CodedTensor {
	groups := CodedTensor{"Scale", &p.Scale, tensor.F16, 3, [4]int64{pages, heads, int64(dim)}}
	if q.Group > 0 {
		groups.Rank, groups.Shape = 4, [4]int64{pages, size, heads, int64(dim / q.Group)}
	}
	zeros := groups
	zeros.Name, zeros.View = "Zero", &p.Zero
	all := [6]CodedTensor{
		{"Codes", &p.Codes, tensor.U8, 4, [4]int64{pages, size, heads, int64(q.Codec.RowBytes(dim))}},
		groups, zeros,
		{"Outliers", &p.Outliers, tensor.U8, 3, [4]int64{pages, heads, int64(4 * q.Outliers)}},
		{"Left", &p.Left, tensor.F16, 4, [4]int64{pages, size, heads, int64(q.Rank)}},
		{"Right", &p.Right, tensor.F16, 4, [4]int64{pages, heads, int64(q.Rank), int64(dim)}},
	}
	if q.Outliers == 0 {
		all[3].Rank = 0
	}
	if q.Rank == 0 {
		all[4].Rank, all[5].Rank = 0, 0
	}
	return all
}

// PageBytes is the memory of one head of a coded page of so many tokens.
func (q *Quantizer) PageBytes(size, dim int) int64 {
	groups := int64(dim)
	if q.Group > 0 {
		groups = int64(size) * int64(dim/q.Group)
	}
	return int64(size)*int64(q.Codec.RowBytes(dim)) + 4*groups + 4*int64(q.Outliers) + 2*int64(q.Rank)*(int64(size)+int64(dim))
}

// Views lists all tensors of p, absent ones too.
func (p *CodedPages) Views() [7]*tensor.View {
	return [7]*tensor.View{&p.Codes, &p.Scale, &p.Zero, &p.Levels, &p.Outliers, &p.Left, &p.Right}
}

// check checks the views of coded pages of dim features. side is the name of p
// in errors.
func (p *CodedPages) check(side string, q *Quantizer, size, heads int64, dim int) error {
	all := q.Tensors(p, p.Codes.Shape[0], size, heads, dim)
	for i := range all {
		if t := &all[i]; t.Rank > 0 {
			if err := checkPart(side, t); err != nil {
				return err
			}
		}
	}
	if !q.Levels {
		return nil
	}
	levels := CodedTensor{"Levels", &p.Levels, tensor.F32, 2, [4]int64{heads, int64(q.Codec.MaxCode()) + 1}}
	return checkPart(side, &levels)
}

func checkPart(side string, t *CodedTensor) error {
	v := t.View
	if !isView(v, t.DType, t.Shape[:t.Rank]...) || v.Check() != nil { // the name is joined only for an error
		return checkView(side+"."+t.Name, v, t.DType, t.Shape[:t.Rank]...)
	}
	if at := v.Rank - 1; v.Stride[at] != 1 {
		return &ShapeError{side + "." + t.Name, fmt.Sprintf("%s with stride %d of the last dimension", v.String(), v.Stride[at]), "stride 1"}
	}
	return nil
}

// Row decodes a row of a head of a page in memory of the host to the first
// features of dst: rule 2. The page lies within p, which fits q.
func (p *CodedPages) Row(q *Quantizer, dst []float32, page, slot, head int64) {
	dim := len(dst)
	codes := p.Codes.Bits8()[p.Codes.Offset+page*p.Codes.Stride[0]+slot*p.Codes.Stride[1]+head*p.Codes.Stride[2]:]
	for d := range dst {
		var scale, zero float32
		if q.Group == 0 {
			scale, zero = p.Scale.At(page, head, int64(d)), p.Zero.At(page, head, int64(d))
		} else {
			g := int64(d / q.Group)
			scale, zero = p.Scale.At(page, slot, head, g), p.Zero.At(page, slot, head, g)
		}
		code := q.Codec.At(codes, dim, d)
		if q.Levels {
			dst[d] = FMA(p.Levels.At(head, int64(code)), scale, zero)
		} else {
			dst[d] = Decode(code, scale, zero)
		}
		for k := range int64(q.Rank) {
			dst[d] = FMA(p.Left.At(page, slot, head, k), p.Right.At(page, head, k, int64(d)), dst[d])
		}
	}
	if q.Outliers == 0 {
		return
	}
	list := p.Outliers.Bits8()[p.Outliers.Offset+page*p.Outliers.Stride[0]+head*p.Outliers.Stride[1]:]
	for i := range q.Outliers {
		if at, bits := Outlier(list, i); at/dim == int(slot) {
			dst[at%dim] = tensor.F16ToF32(bits)
		}
	}
}

// Outlier is entry i of the outliers of a head of a page: its index slot·dim +
// feature, and its F16.
func Outlier(list []uint8, i int) (index int, bits uint16) {
	x := list[4*i:][:4]
	return int(x[0]) | int(x[1])<<8, uint16(x[2]) | uint16(x[3])<<8
}

// PutOutlier sets entry i of the outliers of a head of a page.
func PutOutlier(list []uint8, i, index int, bits uint16) {
	x := list[4*i:][:4]
	x[0], x[1], x[2], x[3] = uint8(index), uint8(index>>8), uint8(bits), uint8(bits>>8)
}

// Validate checks the views and pages of an encoding.
func (a *EncodeArgs) Validate() error {
	if a == nil {
		return absent("EncodeArgs")
	}
	if a.Coding.IsZero() {
		return &ValueError{"Coding", a.Coding.String(), "one with a Codec for keys and one for values"}
	}
	if err := checkCaches("Key", &a.Key, "Value", &a.Value); err != nil {
		return err
	}
	size, heads := a.Key.Shape[1], a.Key.Shape[2]
	keyDim, valueDim := a.Key.Shape[3], a.Value.Shape[3]
	if min(keyDim, valueDim) < 1 || max(keyDim, valueDim) > MaxHeadDim {
		return &ShapeError{"Key and Value", a.Key.String() + " and " + a.Value.String(), fmt.Sprintf("1 to %d features", MaxHeadDim)}
	}
	if p := a.Coding.Problems(int(size), int(keyDim), int(valueDim)); len(p) > 0 {
		return &ValueError{"Coding", a.Coding.String() + ": " + p[0], "one that fits Key " + a.Key.String() + " and Value " + a.Value.String()}
	}
	if err := checkScales(&a.Key, &a.KeyScale, &a.Value, &a.ValueScale, heads); err != nil {
		return err
	}
	if err := a.CodedKey.check("CodedKey", &a.Coding.Key, size, heads, int(keyDim)); err != nil {
		return err
	}
	if err := a.CodedValue.check("CodedValue", &a.Coding.Value, size, heads, int(valueDim)); err != nil {
		return err
	}
	if k, v := a.CodedKey.Codes.Shape[0], a.CodedValue.Codes.Shape[0]; k != v {
		return &ShapeError{"CodedValue.Codes", a.CodedValue.Codes.String(), fmt.Sprintf("%d pages as CodedKey", k)}
	}
	return a.validatePages()
}

func (a *EncodeArgs) validatePages() error {
	if err := lengthOf("Dst", len(a.Dst), len(a.Src)); err != nil {
		return err
	}
	if err := lengthOf("Encoded", len(a.Encoded), len(a.Src)); err != nil {
		return err
	}
	plain, coded := a.Key.Shape[0], a.CodedKey.Codes.Shape[0]
	for i, p := range a.Src {
		if p < 0 || int64(p) >= plain {
			return &ValueError{fmt.Sprintf("Src[%d]", i), fmt.Sprint(p), fmt.Sprintf("0 to %d", plain-1)}
		}
	}
	for i, p := range a.Dst {
		if p < 0 || int64(p) >= coded {
			return &ValueError{fmt.Sprintf("Dst[%d]", i), fmt.Sprint(p), fmt.Sprintf("0 to %d", coded-1)}
		}
		for _, q := range a.Dst[:i] { // few pages are encoded at once
			if p == q {
				return &ValueError{fmt.Sprintf("Dst[%d]", i), fmt.Sprint(p), "a page that is no other target"}
			}
		}
	}
	return nil
}
