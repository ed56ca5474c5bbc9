package arm64

func state() string {
	f := newFile()
	f.expTable()
	f.mergeStrip()
	f.blend()
	f.scaleRow()
	f.finishStrip()
	f.finishRow()
	f.finite()
	f.rotate()
	return f.String()
}

func (f *file) mergeStrip() {
	const vFA, vFB, vM, vPM, vTop = vec(0), vec(8), vec(16), vec(17), vec(18)
	f.function("mergeStripNEON", 56, "func mergeStripNEON(m, l, o, pm, pl, po *float32, dim int)")
	f.args("m R0", "l R1", "o R2", "pm R3", "pl R4", "po R5", "dim R6")
	f.constants()
	z, r, p := vecs(19, 1), vecs(20, 1), vecs(21, 1)
	for i := range vec(lanes / 4) {
		f.op("FMOVQ %d(R0), %s", 16*i, vM.float())
		f.op("FMOVQ %d(R3), %s", 16*i, vPM.float())
		f.words(fmax(vTop, vM, vPM), fsub(vM, vM, vTop), fsub(vPM, vPM, vTop))
		f.op("FMOVQ %s, %d(R0)", vTop.float(), 16*i)
		f.exp2(vecs(vM, 1), z, r, vecs(vFA+i, 1), p)
		f.exp2(vecs(vPM, 1), z, r, vecs(vFB+i, 1), p)
		f.op("FMOVQ %d(R1), %s", 16*i, vM.float())
		f.op("FMOVQ %d(R4), %s", 16*i, vPM.float())
		f.words(fmul(vM, vM, vFA+i))
		f.op("VFMLA %v, %v, %v", vPM, vFB+i, vM)
		f.op("FMOVQ %s, %d(R1)", vM.float(), 16*i)
	}
	f.op("CBZ R6, done")
	f.label("feature")
	for half := range 2 {
		o, po := vecs(16, 4), vecs(20, 4)
		f.load(o, "R2", 64*half)
		f.load(po, "R5", 64*half)
		for i := range vec(4) {
			f.words(fmul(o[i], o[i], vFA+vec(4*half)+i))
		}
		for i := range vec(4) {
			f.op("VFMLA %v, %v, %v", po[i], vFB+vec(4*half)+i, o[i])
		}
		f.store(o, "R2", 64*half)
	}
	f.op("ADD $%d, R2", 4*lanes)
	f.op("ADD $%d, R5", 4*lanes)
	f.op("SUB $1, R6")
	f.op("CBNZ R6, feature")
	f.label("done")
	f.op("RET")
}

// alongRow works on n elements, R2: 16, 4 and 1 at a time.
func (f *file) alongRow(step func(size int)) {
	next := map[int]int{16: 4, 4: 1, 1: 0}
	for _, size := range []int{16, 4, 1} {
		f.label("by%d", size)
		f.op("CMP $%d, R2", size)
		f.op("BLT by%d", next[size])
		step(size)
		f.op("SUB $%d, R2", size)
		f.op("B by%d", size)
	}
	f.label("by0")
	f.op("RET")
}

func (f *file) blend() {
	f.function("blendNEON", 32, "func blendNEON(y, x *float32, n int, fa, fb float32)")
	f.args("y R0", "x R1", "n R2")
	f.broadcast(30, "fa+24(FP)")
	f.broadcast(31, "fb+28(FP)")
	f.alongRow(func(size int) {
		if size == 1 {
			f.op("FMOVS (R0), F0")
			f.op("FMOVS.P 4(R1), F4")
			f.op("FMULS F30, F0, F0")
			f.op("FMADDS F31, F0, F4, F0") // Fm, Fa, Fn, Fd: Fa + Fn·Fm
			f.op("FMOVS.P F0, 4(R0)")
			return
		}
		y, x := vecs(0, size/4), vecs(4, size/4)
		f.load(y, "R0", 0)
		f.load(x, "R1", 0)
		for i := range y {
			f.words(fmul(y[i], y[i], 30))
			f.op("VFMLA %v, %v, %v", x[i], vec(31), y[i])
		}
		f.store(y, "R0", 0)
		f.op("ADD $%d, R0", 4*size)
		f.op("ADD $%d, R1", 4*size)
	})
}

func (f *file) scaleRow() {
	f.function("scaleRowNEON", 24, "func scaleRowNEON(x *float32, factor float32, n int)")
	f.op("MOVD x+0(FP), R0")
	f.op("MOVD n+16(FP), R2")
	f.broadcast(31, "factor+8(FP)")
	f.alongRow(func(size int) {
		if size == 1 {
			f.op("FMOVS (R0), F0")
			f.op("FMULS F31, F0, F0")
			f.op("FMOVS.P F0, 4(R0)")
			return
		}
		x := vecs(0, size/4)
		f.load(x, "R0", 0)
		for i := range x {
			f.words(fmul(x[i], x[i], 31))
		}
		f.store(x, "R0", 0)
		f.op("ADD $%d, R0", 4*size)
	})
}

func (f *file) finishStrip() {
	const vInv, vNone, vO, vZero, vOne = vec(0), vec(8), vec(16), vec(24), vec(25)
	f.function("finishStripNEON", 24, "func finishStripNEON(o, l *float32, dim int)")
	f.args("o R0", "l R1", "dim R2")
	f.zero(vZero)
	f.op("FMOVS $1.0, %s", vOne.float())
	f.op("VDUP V%d.S[0], %v", int(vOne), vOne)
	f.load(vecs(vInv, 8), "R1", 0)
	for i := range vec(8) {
		f.words(fcmeq0(vNone+i, vInv+i), fdiv(vInv+i, vOne, vInv+i))
	}
	f.op("CBZ R2, done")
	f.label("feature")
	f.load(vecs(vO, 8), "R0", 0)
	for i := range vec(8) {
		f.words(fmul(vO+i, vO+i, vInv+i))
	}
	for i := range vec(8) {
		f.words(fadd(vO+i, vO+i, vZero), bic(vO+i, vO+i, vNone+i))
	}
	f.store(vecs(vO, 8), "R0", 0)
	f.op("ADD $%d, R0", 4*lanes)
	f.op("SUB $1, R2")
	f.op("CBNZ R2, feature")
	f.label("done")
	f.op("RET")
}

func (f *file) finishRow() {
	f.function("finishRowNEON", 24, "func finishRowNEON(o *float32, inv float32, n int)")
	f.op("MOVD o+0(FP), R0")
	f.op("MOVD n+16(FP), R2")
	f.broadcast(31, "inv+8(FP)")
	f.zero(30)
	f.alongRow(func(size int) {
		if size == 1 {
			f.op("FMOVS (R0), F0")
			f.op("FMULS F31, F0, F0")
			f.op("FADDS F30, F0, F0")
			f.op("FMOVS.P F0, 4(R0)")
			return
		}
		o := vecs(0, size/4)
		f.load(o, "R0", 0)
		for _, v := range o {
			f.words(fmul(v, v, 31), fadd(v, v, 30))
		}
		f.store(o, "R0", 0)
		f.op("ADD $%d, R0", 4*size)
	})
}

func (f *file) finite() {
	f.function("greatestNEON", 20, `func greatestNEON(x *float32, n int) uint32
The greatest of the bits without the sign, shifted left by 1, of n elements, a
multiple of 16.`)
	f.args("x R0", "n R1")
	f.zero(vecs(16, 4)...)
	f.op("CBZ R1, done")
	f.label("loop")
	f.load(vecs(0, 4), "R0", 0)
	for i := range vec(4) {
		f.op("VADD %v, %v, %v", i, i, i)
		f.op("VUMAX %v, %v, %v", i, 16+i, 16+i)
	}
	f.op("ADD $64, R0")
	f.op("SUB $16, R1")
	f.op("CBNZ R1, loop")
	f.label("done")
	f.op("VUMAX %v, %v, %v", vec(16), vec(17), vec(16))
	f.op("VUMAX %v, %v, %v", vec(18), vec(19), vec(18))
	f.op("VUMAX %v, %v, %v", vec(16), vec(18), vec(16))
	f.words(umaxv(16, 16))
	f.op("FMOVS F16, ret+16(FP)")
	f.op("RET")
}

// rotate flips the sign of sin for the inverse: −(b·(−s)) is b·s to the bit.
func (f *file) rotate() {
	const vA, vB, vC, vS, vX, vY, vMinus, vFlip = vec(0), vec(1), vec(2), vec(3), vec(4), vec(5), vec(6), vec(7)
	start := func() {
		f.op("MOVD $0x80000000, R6")
		f.op("VDUP R6, %v", vMinus)
		f.op("VDUP R5, %v", vFlip)
	}
	turn := func() {
		f.op("FMOVQ.P 16(R2), %s", vC.float())
		f.op("FMOVQ.P 16(R3), %s", vS.float())
		f.op("VEOR %s, %s, %s", vFlip.bits(), vS.bits(), vS.bits())
		f.words(fmul(vX, vB, vS), fmul(vY, vA, vS))
		f.op("VEOR %s, %s, %s", vMinus.bits(), vX.bits(), vX.bits())
		f.op("VFMLA %v, %v, %v", vA, vC, vX)
		f.op("VFMLA %v, %v, %v", vB, vC, vY)
	}
	f.function("rotateHalvesNEON", 48, `func rotateHalvesNEON(x, y, cos, sin *float32, n, flip int)
Pairs (x[k], y[k]); n is a multiple of 4. flip is added to the bits of sin.`)
	f.args("x R0", "y R1", "cos R2", "sin R3", "n R4", "flip R5")
	start()
	f.label("loop")
	f.op("FMOVQ (R0), %s", vA.float())
	f.op("FMOVQ (R1), %s", vB.float())
	turn()
	f.op("FMOVQ.P %s, 16(R0)", vX.float())
	f.op("FMOVQ.P %s, 16(R1)", vY.float())
	f.op("SUB $4, R4")
	f.op("CBNZ R4, loop")
	f.op("RET")

	f.function("rotatePairsNEON", 40, `func rotatePairsNEON(x, cos, sin *float32, n, flip int)
Pairs (x[2k], x[2k+1]).`)
	f.args("x R0", "cos R2", "sin R3", "n R4", "flip R5")
	start()
	f.label("loop")
	f.op("VLD2 (R0), [%v, %v]", vA, vB)
	turn()
	f.op("VST2.P [%v, %v], 32(R0)", vX, vY)
	f.op("SUB $4, R4")
	f.op("CBNZ R4, loop")
	f.op("RET")
}
