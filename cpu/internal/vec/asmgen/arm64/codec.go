package arm64

// codec decodes pages: bytes are widened by the loads of type U8, nibbles
// here; then x·scale + zero in place, which one FMLA does: the product of a
// code and a binary16 is exact.
func codec() string {
	f := newFile()
	f.rowsU4()
	f.affineRows()
	f.affineGroups()
	return f.String()
}

func (f *file) rowsU4() {
	const vWords, vMask, vX = vec(0), vec(16), vec(4)
	f.function("rowsU4NEON", 48, `func rowsU4NEON(dst *float32, ld int, src *uint8, stride, n, words int)
Nibble k of 32-bit word w of a row goes to dst[k·words+w]; words is a multiple
of 4.`)
	f.args("dst R0", "ld R1", "src R2", "stride R3", "n R4", "words R5")
	f.op("LSL $2, R1")
	f.op("LSL $2, R5, R6")
	f.op("MOVD $15, R7")
	f.op("VDUP R7, %v", vMask)
	f.label("row")
	f.op("MOVD R0, R8")
	f.op("MOVD R2, R9")
	f.op("MOVD R5, R10")
	f.label("words")
	f.op("FMOVQ.P 16(R9), %s", vWords.float())
	f.op("MOVD R8, R11")
	for k := range 8 {
		x := vX + vec(k)
		switch k {
		case 0:
			f.op("VAND %s, %s, %s", vMask.bits(), vWords.bits(), x.bits())
		case 7:
			f.op("VUSHR $28, %v, %v", vWords, x)
		default:
			f.op("VUSHR $%d, %v, %v", 4*k, vWords, x)
			f.op("VAND %s, %s, %s", vMask.bits(), x.bits(), x.bits())
		}
		f.words(ucvtf(x, x))
		f.op("FMOVQ %s, (R11)", x.float())
		f.op("ADD R6, R11")
	}
	f.op("ADD $16, R8")
	f.op("SUB $4, R10")
	f.op("CBNZ R10, words")
	f.op("ADD R1, R0")
	f.op("ADD R3, R2")
	f.op("SUB $1, R4")
	f.op("CBNZ R4, row")
	f.op("RET")
}

func (f *file) affineRows() {
	f.function("affineRowsNEON", 48, `func affineRowsNEON(x *float32, ld, n, dim int, scale, zero *float32)
Feature d of each row has scale[d] and zero[d]; dim is a multiple of 8.`)
	f.args("x R0", "ld R1", "n R2", "dim R3", "scale R4", "zero R5")
	f.op("LSL $2, R1")
	f.label("row")
	f.op("MOVD R0, R6")
	f.op("MOVD R4, R7")
	f.op("MOVD R5, R8")
	f.op("MOVD R3, R9")
	f.label("features")
	f.op("FLDPQ (R6), (F0, F1)")
	f.op("FLDPQ.P 32(R7), (F2, F3)")
	f.op("FLDPQ.P 32(R8), (F4, F5)")
	for i := range vec(2) {
		f.op("VFMLA %v, %v, %v", i, 2+i, 4+i)
	}
	f.op("FSTPQ.P (F4, F5), 32(R6)")
	f.op("SUB $8, R9")
	f.op("CBNZ R9, features")
	f.op("ADD R1, R0")
	f.op("SUB $1, R2")
	f.op("CBNZ R2, row")
	f.op("RET")
}

func (f *file) affineGroups() {
	f.function("affineGroupsNEON", 72, `func affineGroupsNEON(x *float32, ld, n, groups, group int, scale *uint16, scaleStride int, zero *uint16, zeroStride int)
Each group of features of each row has a scale and a zero, binary16, those of a
row strides after those of the row before; group is a multiple of 4.`)
	f.args("x R0", "ld R1", "n R2", "groups R3", "group R4", "scale R5", "scaleStride R8", "zero R9", "zeroStride R10")
	f.op("LSL $2, R1")
	f.op("LSL $1, R8")
	f.op("LSL $1, R10")
	f.label("row")
	f.op("MOVD R0, R6")
	f.op("MOVD R5, R11")
	f.op("MOVD R9, R12")
	f.op("MOVD R3, R13")
	f.label("group")
	f.op("VLD1R.P 2(R11), [V2.H8]")
	f.op("VLD1R.P 2(R12), [V4.H8]")
	f.words(fcvtl(2, 2), fcvtl(4, 4))
	f.op("MOVD R4, R7")
	f.label("features")
	f.op("FMOVQ (R6), F0")
	f.op("VMOV %s, %s", vec(4).bits(), vec(1).bits())
	f.op("VFMLA %v, %v, %v", vec(2), vec(0), vec(1))
	f.op("FMOVQ.P F1, 16(R6)")
	f.op("SUB $4, R7")
	f.op("CBNZ R7, features")
	f.op("SUB $1, R13")
	f.op("CBNZ R13, group")
	f.op("ADD R1, R0")
	f.op("ADD R8, R5")
	f.op("ADD R10, R9")
	f.op("SUB $1, R2")
	f.op("CBNZ R2, row")
	f.op("RET")
}
