package kernel

import (
	"encoding/binary"
	"math"

	"github.com/longctx/longctx/tensor"
)

// Codec is the width of the codes of coded pages.
type Codec uint8

const (
	NoCodec Codec = iota // not coded
	Int8                 // codes 0 to 255, feature d in byte d of its row
	Int4                 // codes 0 to 15, in the order of RowBytes
	Int2                 // codes 0 to 3, likewise
	Int1                 // codes 0 and 1, likewise
)

func (c Codec) String() string { return name(c, "none", "int8", "int4", "int2", "int1") }

// Bits is the width of a code, 0 of NoCodec.
func (c Codec) Bits() int {
	if c == NoCodec || c > Int1 {
		return 0
	}
	return 16 >> c
}

// MaxCode is the largest code: 255, 15, 3 or 1.
func (c Codec) MaxCode() uint8 { return uint8(1<<c.Bits() - 1) }

// Multiple is what the number of features of a row has to be a multiple of:
// the codes of a word, 8, 16 or 32, and 1 of Int8.
func (c Codec) Multiple() int {
	if c <= Int8 {
		return 1
	}
	return 32 / c.Bits()
}

// RowBytes is the number of bytes of a row of dim features. A row of b < 8 bits
// a code is W = dim·b/32 little-endian words of 32 bits; bits b·k to b·k+b−1 of
// word w hold feature k·W + w, so that one shift and one mask of neighbouring
// words give neighbouring features.
func (c Codec) RowBytes(dim int) int { return dim * c.Bits() / 8 }

// At is the code of feature d in a row of dim features.
func (c Codec) At(row []byte, dim, d int) uint8 {
	if c == Int8 {
		return row[d]
	}
	at, shift := c.place(dim, d)
	return row[at] >> shift & c.MaxCode()
}

// Put sets the code of feature d in a row of dim features.
func (c Codec) Put(row []byte, dim, d int, code uint8) {
	if c == Int8 {
		row[d] = code
		return
	}
	at, shift := c.place(dim, d)
	row[at] = row[at]&^(c.MaxCode()<<shift) | code<<shift
}

// Pack sets a row to the codes of all its features.
func (c Codec) Pack(row []byte, codes []uint8) {
	if c == Int8 {
		copy(row, codes)
		return
	}
	n, bits := c.Multiple(), c.Bits()
	words := len(codes) / n
	for w := range words {
		x := uint32(0)
		for k := n - 1; k >= 0; k-- {
			x = x<<bits | uint32(codes[k*words+w])
		}
		binary.LittleEndian.PutUint32(row[4*w:], x)
	}
}

// place is the byte of a feature and the bit of that byte at which it begins.
func (c Codec) place(dim, d int) (at int, shift uint) {
	words := dim / c.Multiple()
	bit := d / words * c.Bits()
	return 4*(d%words) + bit/8, uint(bit % 8)
}

// Group gives the scale and the zero of a group whose values lie between lo
// and hi, as bits of F16: rule 13. It is not ok where one of them is no finite
// F16, as an infinity or a NaN in the group makes them.
func (c Codec) Group(lo, hi float32) (scale, zero uint16, ok bool) {
	lo, hi = lo+0, hi+0 // −0 becomes +0: which zero is the least must not matter
	zero = tensor.F32ToF16(lo)
	scale = tensor.F32ToF16((hi - lo) / float32(c.MaxCode()))
	return scale, zero, finite16(zero) && finite16(scale)
}

// finite16 reports whether bits of F16 are a finite number.
func finite16(h uint16) bool { return h&0x7c00 != 0x7c00 }

// Encode is the code of x in a group of the given scale and zero: rule 14.
func (c Codec) Encode(x, scale, zero float32) uint8 {
	if scale == 0 {
		return 0
	}
	y := (x - zero) / scale
	if !(y > 0) {
		return 0
	}
	if n := float32(c.MaxCode()); y > n {
		y = n
	}
	return uint8(math.Float32bits(y + 1<<23)) // whose last bit is 1: the sum is rounded to nearest even
}

// Decode is the value of a code without a table of levels. The product is
// exact, a code having 8 bits and a scale 11: fused or not, the sum is the one
// rounding.
func Decode(code uint8, scale, zero float32) float32 {
	return float32(float32(code)*scale) + zero
}

// EncodeLevel is the code of the level nearest to x in a group of the given
// scale and zero, of two as near the even one: rule 14. Levels ascend.
func EncodeLevel(levels []float32, x, scale, zero float32) uint8 {
	if scale == 0 {
		return 0
	}
	y, code := (x-zero)/scale, 0
	for c := range levels[1:] {
		middle := (levels[c] + levels[c+1]) * 0.5
		if y > middle || y == middle && c%2 == 1 {
			code = c + 1
		}
	}
	return uint8(code)
}

// DefaultValueGroup is 64, or valueDim where that is no multiple of 64.
func DefaultValueGroup(valueDim int) int {
	if valueDim%64 == 0 {
		return 64
	}
	return valueDim
}
