package kernel

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/tensor"
)

// Codec says how coded pages hold keys and values: as codes of few bits with a
// scale and a zero for each group, the keys of a page per channel, the values
// per token (Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for
// KV Cache", https://arxiv.org/abs/2402.02750). A coded page cannot be appended
// to. Rules 2, 13 and 14 of the package comment say what is
// computed.
type Codec uint8

const (
	NoCodec Codec = iota // every page is plain
	Int8                 // codes 0 to 255, feature d in byte d of its row
	Int4                 // codes 0 to 15, two a byte, in the order of RowBytes
)

func (c Codec) String() string { return name(c, "none", "int8", "int4") }

// Levels is the largest code, 255 or 15.
func (c Codec) Levels() uint8 {
	if c == Int4 {
		return 15
	}
	return 255
}

// RowBytes is the number of bytes of a row of dim features. A row of Int4,
// whose dim is a multiple of 8, is dim/8 little-endian words of 32 bits; bits
// 4k to 4k+3 of word w hold feature k·(dim/8) + w, so that one shift and one
// mask of neighbouring words give neighbouring features.
func (c Codec) RowBytes(dim int) int {
	if c == Int4 {
		return dim / 2
	}
	return dim
}

// At is the code of feature d in a row of dim features.
func (c Codec) At(row []byte, dim, d int) uint8 {
	if c != Int4 {
		return row[d]
	}
	at, shift := nibble(dim, d)
	return row[at] >> shift & 15
}

// Put sets the code of feature d in a row of dim features.
func (c Codec) Put(row []byte, dim, d int, code uint8) {
	if c != Int4 {
		row[d] = code
		return
	}
	at, shift := nibble(dim, d)
	row[at] = row[at]&^(15<<shift) | code<<shift
}

func nibble(dim, d int) (at int, shift uint) {
	k, w := d/(dim/8), d%(dim/8)
	return 4*w + k/2, uint(4 * (k % 2))
}

// Group gives the scale and the zero of a group whose values lie between lo
// and hi, as bits of F16: rule 13. It is not ok where one of them is no finite
// F16, as an infinity or a NaN in the group makes them.
func (c Codec) Group(lo, hi float32) (scale, zero uint16, ok bool) {
	lo, hi = lo+0, hi+0 // −0 becomes +0: which zero is the least must not matter
	zero = tensor.F32ToF16(lo)
	scale = tensor.F32ToF16((hi - lo) / float32(c.Levels()))
	const inf = 0x7c00
	return scale, zero, zero&inf != inf && scale&inf != inf
}

// Encode is the code of x in a group of the given scale and zero: rule 14.
func (c Codec) Encode(x, scale, zero float32) uint8 {
	if scale == 0 {
		return 0
	}
	y := (x - zero) / scale
	return uint8(math.RoundToEven(float64(min(max(y, 0), float32(c.Levels())))))
}

// Decode is the value of a code. The product is exact, a code having 8 bits
// and a scale 11: fused or not, the sum is the one rounding.
func Decode(code uint8, scale, zero float32) float32 {
	return float32(float32(code)*scale) + zero
}

// DefaultValueGroup is 64, or valueDim where that is no multiple of 64.
func DefaultValueGroup(valueDim int) int {
	if valueDim%64 == 0 {
		return 64
	}
	return valueDim
}

// codecProblems lists what is wrong with Codec and ValueGroup.
func (s *Spec) codecProblems(say func(bool, string, ...any)) {
	say(s.Codec <= Int4, "Codec %d, want none, int8 or int4", s.Codec)
	if s.Codec == NoCodec {
		say(s.ValueGroup == 0, "ValueGroup %d without Codec, want 0", s.ValueGroup)
		return
	}
	say(s.PageSize > 0, "Codec %v of contiguous keys, want PageSize of at least 1: a page is a group", s.Codec)
	say(!s.Backward, "Backward with Codec %v, want none: gradients of coded pages are not defined", s.Codec)
	say(s.ValueGroup >= 1 && s.ValueDim%max(s.ValueGroup, 1) == 0, "ValueGroup %d, want a divisor of ValueDim %d", s.ValueGroup, s.ValueDim)
	if s.Codec == Int4 {
		say(s.HeadDim%8 == 0, "HeadDim %d with Codec int4, want a multiple of 8", s.HeadDim)
		say(s.ValueDim%8 == 0, "ValueDim %d with Codec int4, want a multiple of 8", s.ValueDim)
	}
}

// codedNames are the names of coded pages in errors, whole so that a check that
// passes joins no strings.
type codedNames struct{ codes, scale, zero string }

var (
	codedKeyNames   = codedNames{"CodedKey.Codes", "CodedKey.Scale", "CodedKey.Zero"}
	codedValueNames = codedNames{"CodedValue.Codes", "CodedValue.Scale", "CodedValue.Zero"}
)

// check checks the views of coded pages of dim features. With groups 0 there is
// a scale for each channel of a page, as keys have it, else so many for each
// head of a token.
func (p *CodedPages) check(names *codedNames, c Codec, size, heads int64, dim int, groups int64) error {
	pages := p.Codes.Shape[0]
	if err := checkView(names.codes, &p.Codes, tensor.U8, pages, size, heads, int64(c.RowBytes(dim))); err != nil {
		return err
	}
	for _, v := range [...]struct {
		name string
		view *tensor.View
	}{{names.scale, &p.Scale}, {names.zero, &p.Zero}} {
		var err error
		if groups == 0 {
			err = checkView(v.name, v.view, tensor.F16, pages, heads, int64(dim))
		} else {
			err = checkView(v.name, v.view, tensor.F16, pages, size, heads, groups)
		}
		if err != nil {
			return err
		}
	}
	for _, v := range [...]struct {
		name string
		view *tensor.View
	}{{names.codes, &p.Codes}, {names.scale, &p.Scale}, {names.zero, &p.Zero}} {
		if at := v.view.Rank - 1; v.view.Stride[at] != 1 {
			return &ShapeError{v.name, fmt.Sprintf("%s with stride %d of the last dimension", v.view.String(), v.view.Stride[at]), "stride 1"}
		}
	}
	return nil
}

// Validate checks the views and pages of an encoding.
func (a *EncodeArgs) Validate() error {
	if a == nil {
		return absent("EncodeArgs")
	}
	if a.Codec == NoCodec || a.Codec > Int4 {
		return &ValueError{"Codec", a.Codec.String(), "int8 or int4"}
	}
	if err := checkCaches("Key", &a.Key, "Value", &a.Value); err != nil {
		return err
	}
	size, heads := a.Key.Shape[1], a.Key.Shape[2]
	keyDim, valueDim := a.Key.Shape[3], a.Value.Shape[3]
	if min(keyDim, valueDim) < 1 || max(keyDim, valueDim) > MaxHeadDim {
		return &ShapeError{"Key and Value", a.Key.String() + " and " + a.Value.String(), fmt.Sprintf("1 to %d features", MaxHeadDim)}
	}
	if a.Codec == Int4 && (keyDim%8 != 0 || valueDim%8 != 0) {
		return &ShapeError{"Key and Value", a.Key.String() + " and " + a.Value.String(), "multiples of 8 features for int4"}
	}
	if err := checkScales(&a.Key, &a.KeyScale, &a.Value, &a.ValueScale, heads); err != nil {
		return err
	}
	if err := a.CodedKey.check(&codedKeyNames, a.Codec, size, heads, int(keyDim), 0); err != nil {
		return err
	}
	groups := a.CodedValue.Scale.Shape[3]
	if groups < 1 || valueDim%groups != 0 {
		return &ShapeError{"CodedValue.Scale", a.CodedValue.Scale.String(), fmt.Sprintf("a number of groups that divides %d features", valueDim)}
	}
	if err := a.CodedValue.check(&codedValueNames, a.Codec, size, heads, int(valueDim), groups); err != nil {
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

// checkScales checks the scales of FP8 keys and values.
func checkScales(key, keyScale, value, valueScale *tensor.View, heads int64) error {
	if err := checkScale("KeyScale", key, keyScale, heads); err != nil {
		return err
	}
	return checkScale("ValueScale", value, valueScale, heads)
}

func checkScale(name string, rows, scale *tensor.View, heads int64) error {
	if scale.IsZero() && scale.Rank == 0 {
		return nil
	}
	if !rows.DType.Float8() {
		return &ValueError{name, scale.String(), fmt.Sprintf("no tensor: scales are for f8e4m3 and f8e5m2, not %v", rows.DType)}
	}
	return checkView(name, scale, tensor.F32, heads)
}

// checkCaches checks two tensors of pages of one shape but for the features,
// of types that keys and values are stored in.
func checkCaches(keyName string, key *tensor.View, valueName string, value *tensor.View) error {
	for _, c := range [...]struct {
		name  string
		cache *tensor.View
	}{{keyName, key}, {valueName, value}} {
		v := c.cache
		if err := checkView(c.name, v, v.DType, v.Shape[0], v.Shape[1], v.Shape[2], v.Shape[3]); err != nil {
			return err
		}
		if !stored(v.DType) {
			return &ShapeError{c.name, v.String(), "f32, f16, bf16, f8e4m3 or f8e5m2"}
		}
	}
	for d := range 3 {
		if key.Shape[d] != value.Shape[d] {
			return &ShapeError{valueName, value.String(), "pages, page size and heads of " + keyName + " " + key.String()}
		}
	}
	return nil
}

// wide reports whether d is a type that activations have.
func wide(d tensor.DType) bool { return d == tensor.F32 || d == tensor.F16 || d == tensor.BF16 }

// stored reports whether d is a type that plain keys and values have.
func stored(d tensor.DType) bool { return wide(d) || d.Float8() }
