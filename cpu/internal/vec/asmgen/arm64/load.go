package arm64

// element is a type of the rows that are loaded.
type element struct {
	name string
	size int
	low  func(d, n vec) inst // widens the lower four of eight
	high func(d, n vec) inst // and the upper four
}

var elements = []element{
	{"F32", 4, nil, nil},
	{"F16", 2, fcvtl, fcvtl2},
	{"BF16", 2, shll, shll2},
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
	return f.String()
}

func (f *file) loadArgs(e element) {
	f.args("dst "+gDst, "ld "+gLd, "src "+gSrc, "stride "+gStride, "n "+gN, "dim "+gDim, "ahead "+gAhead)
	f.op("LSL $2, %s", gLd)
	f.op("LSL $%d, %s", e.size/2, gStride)
	f.op("LSL $%d, %s", e.size/2, gAhead)
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

// rows copies or widens: 16 elements at a time, then 8 or 4 as a register of
// the type holds.
func (f *file) rows(e element) {
	f.function("rows"+e.name+"NEON", 56, "func rows"+e.name+`(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)
dim is a multiple of 8.`)
	f.loadArgs(e)
	f.label("row")
	f.prefetch(e, "copy")
	f.op("MOVD %s, %s", gSrc, gLine)
	f.op("MOVD %s, %s", gDst, gTo)
	f.op("MOVD %s, %s", gDim, gLeft)
	for _, size := range []int{32, 8} {
		next := map[int]string{32: "by8", 8: "next"}[size]
		f.label("by%d", size)
		f.op("CMP $%d, %s", size, gLeft)
		f.op("BLT %s", next)
		to := vecs(0, size/4)
		if e.size == 4 {
			f.load(to, gLine, 0)
		} else {
			from := vecs(16, size/8)
			f.load(from, gLine, 0)
			for i, v := range from {
				f.words(e.low(to[2*i], v), e.high(to[2*i+1], v))
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

// columns transposes blocks of four rows by four float32 or eight 16-bit
// features, the latter before they are widened: half the shuffles.
func (f *file) columns(e element) {
	f.function("columns"+e.name+"NEON", 56, "func columns"+e.name+`(dst *float32, ld int, src unsafe.Pointer, stride, n, dim, ahead int)
n is a multiple of 4, dim of 8.`)
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
	to := vecs(16, 16/e.size)
	if e.size == 4 {
		f.transpose(from, vecs(4, 4), to)
	} else {
		f.transposeHalves(from, vecs(4, 4), vecs(8, 4))
		for i := range vec(4) {
			f.words(e.low(to[2*i], 8+i), e.high(to[2*i+1], 8+i))
		}
	}
	for _, v := range to {
		f.op("FMOVQ %s, (%s)", v.float(), gTo)
		f.op("ADD %s, %s", gLd, gTo)
	}
	f.op("SUB $%d, %s", len(to), gLeft)
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

// transposeHalves turns four registers of eight 16-bit elements: the lower
// half of to[i] has element 2i of each, the upper half element 2i+1.
func (f *file) transposeHalves(from, mid, to []vec) {
	zip := func(a, b, low, high vec) {
		f.op("VZIP1 V%d.H8, V%d.H8, V%d.H8", b, a, low)
		f.op("VZIP2 V%d.H8, V%d.H8, V%d.H8", b, a, high)
	}
	zip(from[0], from[2], mid[0], mid[1]) // a0 c0 a1 c1 …
	zip(from[1], from[3], mid[2], mid[3]) // b0 d0 b1 d1 …
	zip(mid[0], mid[2], to[0], to[1])
	zip(mid[1], mid[3], to[2], to[3])
}
