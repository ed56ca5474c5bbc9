package arm64

import (
	"fmt"
	"math"
)

// element is a type of the rows that are loaded.
type element struct {
	name string
	size int
	// unpack widens a full register of elements into as many as it fills.
	unpack func(f *file, to []vec, from vec)
}

var elements = []element{
	{"F32", 4, nil},
	{"F16", 2, func(f *file, to []vec, from vec) { f.words(fcvtl(to[0], from), fcvtl2(to[1], from)) }},
	{"BF16", 2, func(f *file, to []vec, from vec) { f.words(shll(to[0], from), shll2(to[1], from)) }},
	{"E4M3", 1, (*file).unpackE4M3},
	{"E5M2", 1, (*file).unpackE5M2},
	{"U8", 1, (*file).unpackU8},
}

// Registers of unpacking FP8.
const (
	vHalves  vec = 26 // and 27: elements as binary16
	vMask    vec = 28 // no bit 14 of a half
	vNaN     vec = 29 // 0x7f00 in halves
	v256     vec = 30
	vNothing vec = 31
)

// unpackU8 widens unsigned bytes to 16, then 32 bits, then converts.
func (f *file) unpackU8(to []vec, from vec) {
	f.op("VUSHLL $0, V%d.B8, V%d.H8", from, vHalves)
	f.op("VUSHLL2 $0, V%d.B16, V%d.H8", from, vHalves+1)
	for i := range vec(2) {
		f.op("VUSHLL $0, V%d.H4, %v", int(vHalves+i), to[2*i])
		f.op("VUSHLL2 $0, V%d.H8, %v", int(vHalves+i), to[2*i+1])
	}
	for _, v := range to {
		f.words(ucvtf(v, v))
	}
}

func (f *file) unpackConstants(e element) {
	switch e.name {
	case "E5M2":
		f.zero(vNothing)
	case "E4M3":
		f.op("MOVD $0xbfff, R11")
		f.op("VDUP R11, V%d.H8", int(vMask))
		f.op("MOVD $0x7f00, R11")
		f.op("VDUP R11, V%d.H8", int(vNaN))
		f.op("MOVD $%#x, R11", math.Float32bits(256))
		f.op("VDUP R11, %v", v256)
	}
}

// unpackE5M2 takes an E5M2 for what it is, the upper half of a binary16.
func (f *file) unpackE5M2(to []vec, from vec) {
	f.op("VZIP1 %s, %s, %s", from.bits(), vNothing.bits(), vHalves.bits())
	f.op("VZIP2 %s, %s, %s", from.bits(), vNothing.bits(), (vHalves + 1).bits())
	for i := range vec(2) {
		f.words(fcvtl(to[2*i], vHalves+i), fcvtl2(to[2*i+1], vHalves+i))
	}
}

// unpackE4M3 puts exponent and fraction where a binary16 has them, and the
// sign into both bits above. With the lower of the two cleared that is a
// binary16 of 2⁻⁸ times the value, unless it is NaN.
func (f *file) unpackE4M3(to []vec, from vec) {
	f.words(sshll7(vHalves, from), sshll7x2(vHalves+1, from))
	for i := range vec(2) {
		h := vHalves + i
		f.op("VAND %s, %s, %s", vMask.bits(), h.bits(), h.bits())
		f.op("VADD V%d.H8, V%d.H8, V%d.H8", h, h, to[2*i])
		f.op("VCMEQ V%d.H8, V%d.H8, V%d.H8", vNaN, to[2*i], to[2*i])
		f.op("VORR %s, %s, %s", to[2*i].bits(), h.bits(), h.bits())
		f.words(fcvtl(to[2*i], h), fcvtl2(to[2*i+1], h))
		f.words(fmul(to[2*i], to[2*i], v256), fmul(to[2*i+1], to[2*i+1], v256))
	}
}

// General registers of the loads; strides in bytes.
const (
	gDst, gLd, gSrc, gStride = "R0", "R1", "R2", "R3"
	gN, gDim, gAhead         = "R4", "R5", "R6"
	gLine, gLines            = "R7", "R8"
	gLeft, gTo               = "R9", "R10"
)

func load() string {
	f := newFile()
	for _, e := range elements {
		f.rows(e)
	}
	for _, e := range elements {
		f.columns(e)
	}
	f.narrow("F16", f.narrowF16)
	f.narrow("BF16", f.narrowBF16)
	return f.String()
}

func (f *file) loadArgs(e element) {
	f.args("dst "+gDst, "ld "+gLd, "src "+gSrc, "stride "+gStride, "n "+gN, "dim "+gDim, "ahead "+gAhead)
	f.op("LSL $2, %s", gLd)
	if e.size > 1 {
		f.op("LSL $%d, %s", e.size/2, gStride)
		f.op("LSL $%d, %s", e.size/2, gAhead)
	}
	f.unpackConstants(e)
}

// prefetch asks for the line of each 64 bytes of the row ahead of the row at
// gSrc, unless ahead is 0, and adds a stride to where it asks next. A prefetch
// of an address that is not mapped does nothing.
func (f *file) prefetch(e element, name string) {
	f.op("CBZ %s, %s", gAhead, name)
	f.op("ADD %s, %s, %s", gAhead, gSrc, gLine)
	f.op("LSL $%d, %s, %s", e.size/2, gDim, gLines)
	f.label("%sahead", name)
	f.op("PRFM (%s), PLDL2STRM", gLine)
	f.op("ADD $64, %s", gLine)
	f.op("SUBS $64, %s", gLines)
	f.op("BGT %sahead", name)
	f.label("%s", name)
}

// multiple is what dim is one of.
func multiple(e element) string { return fmt.Sprint(max(8, 16/e.size)) }

// rows copies or widens: 32 elements at a time, then 8 or 16.
func (f *file) rows(e element) {
	f.function("rows"+e.name+"NEON", 56, "func rows"+e.name+`(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)
dim is a multiple of `+multiple(e)+".")
	f.loadArgs(e)
	f.label("row")
	f.prefetch(e, "copy")
	f.op("MOVD %s, %s", gSrc, gLine)
	f.op("MOVD %s, %s", gDst, gTo)
	f.op("MOVD %s, %s", gDim, gLeft)
	least := max(8, 16/e.size)
	for _, size := range []int{32, least} {
		next := "next"
		if size > least {
			next = fmt.Sprintf("by%d", least)
		}
		f.label("by%d", size)
		f.op("CMP $%d, %s", size, gLeft)
		f.op("BLT %s", next)
		to := vecs(0, size/4)
		if e.size == 4 {
			f.load(to, gLine, 0)
		} else {
			from, n := vecs(16, size*e.size/16), 4/e.size
			f.load(from, gLine, 0)
			for i, v := range from {
				e.unpack(f, to[i*n:][:n], v)
			}
		}
		f.store(to, gTo, 0)
		f.op("ADD $%d, %s", e.size*size, gLine)
		f.op("ADD $%d, %s", 4*size, gTo)
		f.op("SUB $%d, %s", size, gLeft)
		f.op("B by%d", size)
	}
	f.label("next")
	f.op("ADD %s, %s", gStride, gSrc)
	f.op("ADD %s, %s", gLd, gDst)
	f.op("SUB $1, %s", gN)
	f.op("CBNZ %s, row", gN)
	f.op("RET")
}

// columns transposes blocks of four rows by 16 bytes, before they are widened:
// so a shuffle moves 16 bytes of any type.
func (f *file) columns(e element) {
	f.function("columns"+e.name+"NEON", 56, "func columns"+e.name+`(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)
n is a multiple of 4, dim of `+multiple(e)+".")
	f.loadArgs(e)
	f.label("rows")
	f.op("MOVD %s, R11", gSrc)
	for _, r := range []int{11, 12, 13, 14} {
		f.prefetch(e, "row"+string(rune('a'+r-11)))
		if r < 14 {
			f.op("ADD %s, R%d, R%d", gStride, r, r+1)
			f.op("MOVD R%d, %s", r+1, gSrc)
		}
	}
	f.op("ADD %s, %s", gStride, gSrc)
	f.op("MOVD %s, %s", gDst, gTo)
	f.op("MOVD %s, %s", gDim, gLeft)
	f.label("block")
	from := vecs(0, 4)
	for i, v := range from {
		f.op("FMOVQ.P 16(R%d), %s", 11+i, v.float())
	}
	switch e.size {
	case 4:
		f.transpose(from, vecs(4, 4), vecs(8, 4))
	case 2:
		f.interleave("H8", from, vecs(4, 4), vecs(8, 4))
	case 1:
		f.interleave("B16", from, vecs(4, 4), vecs(8, 4))
	}
	for _, v := range vecs(8, 4) {
		to := vecs(16, 4/e.size)
		if e.unpack != nil {
			e.unpack(f, to, v)
		} else {
			to[0] = v
		}
		for _, v := range to {
			f.op("FMOVQ %s, (%s)", v.float(), gTo)
			f.op("ADD %s, %s", gLd, gTo)
		}
	}
	f.op("SUB $%d, %s", 16/e.size, gLeft)
	f.op("CBNZ %s, block", gLeft)
	f.op("ADD $16, %s", gDst)
	f.op("SUB $4, %s", gN)
	f.op("CBNZ %s, rows", gN)
	f.op("RET")
}

// transpose turns four registers of four elements: to[i] has element i of
// each. It changes mid, and to may be from.
func (f *file) transpose(from, mid, to []vec) {
	for i := 0; i < 4; i += 2 {
		f.op("VTRN1 %v, %v, %v", from[i+1], from[i], mid[i])
		f.op("VTRN2 %v, %v, %v", from[i+1], from[i], mid[i+1])
	}
	for i := range 2 {
		f.op("VTRN1 V%d.D2, V%d.D2, V%d.D2", mid[i+2], mid[i], to[i])
		f.op("VTRN2 V%d.D2, V%d.D2, V%d.D2", mid[i+2], mid[i], to[i+2])
	}
}

// interleave turns four registers of small elements: to has element 0 of each,
// then element 1 of each, and so on.
func (f *file) interleave(arrangement string, from, mid, to []vec) {
	zip := func(a, b, low, high vec) {
		f.op("VZIP1 V%[2]d.%[1]s, V%[3]d.%[1]s, V%[4]d.%[1]s", arrangement, b, a, low)
		f.op("VZIP2 V%[2]d.%[1]s, V%[3]d.%[1]s, V%[4]d.%[1]s", arrangement, b, a, high)
	}
	zip(from[0], from[2], mid[0], mid[1]) // a0 c0 a1 c1 …
	zip(from[1], from[3], mid[2], mid[3]) // b0 d0 b1 d1 …
	zip(mid[0], mid[2], to[0], to[1])
	zip(mid[1], mid[3], to[2], to[3])
}

// narrow rounds 8 elements at a time, V0 and V1, into V2.
func (f *file) narrow(name string, round func()) {
	f.function("narrow"+name+"NEON", 24, "func narrow"+name+`NEON(dst *uint16, src *float32, n int)
n is a multiple of 8.`)
	f.args("dst R0", "src R1", "n R2")
	if name == "BF16" {
		f.op("MOVD $0x7fff, R3")
		f.op("VDUP R3, %v", vec(16))
		f.op("MOVD $1, R3")
		f.op("VDUP R3, %v", vec(17))
		f.op("MOVD $0x400000, R3")
		f.op("VDUP R3, %v", vec(18))
	}
	f.label("loop")
	f.op("FLDPQ.P 32(R1), (F0, F1)")
	round()
	f.op("FMOVQ.P F2, 16(R0)")
	f.op("SUB $8, R2")
	f.op("CBNZ R2, loop")
	f.op("RET")
}

func (f *file) narrowF16() { f.words(fcvtn(2, 0), fcvtn2(2, 1)) }

// narrowBF16 adds to the bits a little less than half of the last bit that is
// kept, and one more where that bit is set; a NaN is made quiet instead.
func (f *file) narrowBF16() {
	for i := range vec(2) {
		f.op("VUSHR $16, %v, %v", i, 4+i)
		f.op("VAND %s, %s, %s", vec(17).bits(), (4 + i).bits(), (4 + i).bits())
		f.op("VADD %v, %v, %v", vec(16), 4+i, 4+i)
		f.op("VADD %v, %v, %v", i, 4+i, 4+i)
		f.words(fcmeq(6+i, i, i))
		f.op("VORR %s, %s, %s", vec(18).bits(), i.bits(), i.bits())
		f.op("VBIT %s, %s, %s", (6 + i).bits(), (4 + i).bits(), i.bits())
	}
	f.op("VUZP2 V1.H8, V0.H8, V2.H8")
}
