package arm64

import (
	"math"

	"github.com/longctx/longctx/kernel"
)

// Registers of E(x), loaded by constants.
const (
	shift vec = 24 // kernel.Exp2Shift
	coef  vec = 25 // kernel.Exp2Coef
	limit vec = 31 // −125
)

const (
	lanes  = 32 // of a strip, vec.Lanes
	stride = kernel.TileSize
)

const minusInf uint32 = 0xff800000

// expTable and bitTable are constants of the functions that follow.
func (f *file) expTable() {
	words := []uint32{math.Float32bits(kernel.Exp2Shift)}
	for _, c := range kernel.Exp2Coef {
		words = append(words, math.Float32bits(c))
	}
	f.table("exp2", append(words, math.Float32bits(-125)))
}

func (f *file) bitTable() {
	bit := make([]uint32, lanes)
	for i := range bit {
		bit[i] = 1 << i
	}
	f.table("bit", bit)
}

// constants loads what exp2 needs; it changes R26.
func (f *file) constants() {
	f.op("MOVD $exp2<>(SB), R26")
	for v := shift; v <= limit; v++ {
		f.op("VLD1R.P 4(R26), [%v]", v)
	}
}

// exp2 is kernel.Exp2 of the registers x, which it changes, into q. It needs as
// many registers in each of z, r and p.
func (f *file) exp2(x, z, r, q, p []vec) {
	each := func(do func(i int)) {
		for i := range x {
			do(i)
		}
	}
	each(func(i int) { f.words(fadd(z[i], x[i], shift)) })
	each(func(i int) { f.words(fsub(r[i], z[i], shift)) })
	each(func(i int) { f.words(fsub(r[i], x[i], r[i])) })
	each(func(i int) { f.words(fcmgt(x[i], limit, x[i])) }) // false for NaN, which stays
	from := vecs(coef, len(x))
	for i := range from {
		from[i] = coef
	}
	for c := 1; c < 6; c++ {
		to := q
		if c%2 == 0 {
			to = p
		}
		each(func(i int) { f.op("VMOV %s, %s", (coef + vec(c)).bits(), to[i].bits()) })
		each(func(i int) { f.op("VFMLA %v, %v, %v", r[i], from[i], to[i]) })
		from = to
	}
	each(func(i int) { f.op("VSHL $23, %v, %v", z[i], z[i]) })
	each(func(i int) { f.words(fmul(q[i], q[i], z[i])) })
	each(func(i int) { f.words(bic(q[i], q[i], x[i])) })
}

func softmax() string {
	f := newFile()
	f.expTable()
	f.bitTable()
	f.softmaxStrip()
	f.softmaxRows()
	f.sumRows()
	f.take()
	f.gradient()
	return f.String()
}

// softmaxStrip takes 16 lanes at a time, so that all stays in registers.
func (f *file) softmaxStrip() {
	const vM, vScale, vWord, vHidden, vBit, vT, vSeen = vec(0), vec(4), vec(8), vec(11), vec(12), vec(16), vec(20)
	f.function("softmaxStripNEON", 56, "func softmaxStripNEON(s *float32, keys int, scale *float32, visible *uint32, m, l, f *float32)")
	f.args("s R0", "keys R1", "scale R2", "visible R3", "m R4", "l R5", "f R6")
	f.constants()
	f.op("MOVD $bit<>(SB), R7")
	f.load(vecs(vBit, 4), "R7", 0)
	f.op("MOVD $%#x, R7", minusInf)
	f.op("VDUP R7, %v", vHidden)
	f.op("MOVD $2, R7")

	f.label("half")
	f.load(vecs(vM, 4), "R4", 0)
	f.load(vecs(vScale, 4), "R2", 0)
	f.op("MOVD R0, R8")
	f.op("MOVD R1, R9")
	f.op("CBZ R3, all")
	f.op("MOVD R3, R10")
	f.label("some")
	f.op("VLD1R.P 4(R10), [%v]", vWord)
	f.scoreStep(vM, vScale, vT, vSeen, func() {
		for i := range vec(4) {
			f.op("VCMTST %v, %v, %v", vBit+i, vWord, vSeen+i)
			f.op("VBIF %s, %s, %s", (vSeen + i).bits(), vHidden.bits(), (vT + i).bits())
		}
	})
	f.op("CBNZ R9, some")
	f.op("B weights")
	f.label("all")
	f.scoreStep(vM, vScale, vT, vSeen, func() {})
	f.op("CBNZ R9, all")

	f.label("weights")
	f.zero(vWord)
	for i := range vec(4) {
		f.words(fadd(vM+i, vM+i, vWord)) // −0 made +0
	}
	f.note("f = E(m − m'), l = l·f")
	const vTop, vL = vM, vec(4)
	x, z, r, q, p := vecs(16, 2), vecs(18, 2), vecs(20, 2), vecs(22, 2), vecs(9, 2)
	f.load(vecs(vL, 4), "R5", 0)
	for i := range vec(2) {
		f.load(x, "R4", 32*int(i))
		for k := range vec(2) {
			f.words(fsub(x[k], x[k], vTop+2*i+k))
		}
		f.exp2(x, z, r, q, p)
		f.store(q, "R6", 32*int(i))
		for k := range vec(2) {
			f.words(fmul(vL+2*i+k, vL+2*i+k, q[k]))
		}
	}
	f.store(vecs(vTop, 4), "R4", 0)
	f.op("MOVD R0, R8")
	f.op("MOVD R1, R9")
	f.label("weight")
	for i := range vec(2) {
		f.load(x, "R8", 32*int(i))
		for k := range vec(2) {
			f.words(fsub(x[k], x[k], vTop+2*i+k))
		}
		f.exp2(x, z, r, q, p)
		f.store(q, "R8", 32*int(i))
		for k := range vec(2) {
			f.words(fadd(vL+2*i+k, vL+2*i+k, q[k]))
		}
	}
	f.op("ADD $%d, R8", 4*lanes)
	f.op("SUB $1, R9")
	f.op("CBNZ R9, weight")
	f.store(vecs(vL, 4), "R5", 0)

	f.op("SUBS $1, R7")
	f.op("BEQ done")
	for i := range vec(4) {
		f.op("VSHL $16, %v, %v", vBit+i, vBit+i)
	}
	for _, g := range []string{"R0", "R2", "R4", "R5", "R6"} {
		f.op("ADD $64, %s", g)
	}
	f.op("B half")
	f.label("done")
	f.op("RET")
}

// scoreStep scales the products of one key, R8, hides what hide does, and takes
// the greater into the maximum. It counts R9 down.
func (f *file) scoreStep(m, scale, t, seen vec, hide func()) {
	f.load(vecs(t, 4), "R8", 0)
	for i := range vec(4) {
		f.words(fmul(t+i, t+i, scale+i))
	}
	hide()
	f.store(vecs(t, 4), "R8", 0)
	for i := range vec(4) {
		f.words(fcmgt(seen+i, t+i, m+i)) // as t > m: NaN leaves m
		f.op("VBIT %s, %s, %s", (seen + i).bits(), (t + i).bits(), (m + i).bits())
	}
	f.op("ADD $%d, R8", 4*lanes)
	f.op("SUB $1, R9")
}

// softmaxRows writes the weights and l·f; sumRows then adds the weights to l.
func (f *file) softmaxRows() {
	const vTop, vScale, vWord, vBit, vHidden, vSeen, vT = vec(0), vec(4), vec(5), vec(6), vec(7), vec(12), vec(16)
	f.function("softmaxRowsNEON", 56, `func softmaxRowsNEON(s *float32, rows int, scale *float32, visible *uint64, m, l, f *float32)
All but the sum: l = l·f.`)
	f.args("s R0", "rows R1", "scale R2", "visible R3", "m R4", "l R5", "f R6")
	f.constants()
	f.op("MOVD $bit<>(SB), R7")
	f.op("VLD1 (R7), [%v]", vBit)
	f.op("MOVD $%#x, R7", minusInf)
	f.op("VDUP R7, %v", vHidden)

	f.label("row")
	f.op("VLD1R (R4), [%v]", vTop)
	for i := range vec(3) {
		f.op("VMOV %s, %s", vTop.bits(), (vTop + 1 + i).bits())
	}
	f.op("VLD1R.P 4(R2), [%v]", vScale)
	f.op("MOVD R0, R8")
	f.op("MOVD.P 8(R3), R9")
	f.op("MOVD R9, R10")
	f.op("MOVD $%d, R7", stride/16)
	f.label("scores")
	f.seen(vSeen, vWord, vBit, 4)
	f.load(vecs(vT, 4), "R8", 0)
	for i := range vec(4) {
		f.words(fmul(vT+i, vT+i, vScale))
		f.op("VBIF %s, %s, %s", (vSeen + i).bits(), vHidden.bits(), (vT + i).bits())
	}
	f.store(vecs(vT, 4), "R8", 0)
	for i := range vec(4) {
		f.words(fcmgt(vSeen+i, vT+i, vTop+i))
		f.op("VBIT %s, %s, %s", (vSeen + i).bits(), (vT + i).bits(), (vTop + i).bits())
	}
	f.op("ADD $64, R8")
	f.op("SUB $1, R7")
	f.op("CBNZ R7, scores")
	f.topOfRow(vTop, vSeen, vT)
	f.op("VDUP V%d.S[0], %v", int(vTop), vTop)
	x, z, r, q, p := vecs(16, 2), vecs(18, 2), vecs(20, 2), vecs(22, 2), vecs(2, 2)
	f.op("FMOVS (R4), %s", x[0].float())
	f.words(fsub(x[0], x[0], vTop))
	f.exp2(x[:1], z, r, q, p)
	f.op("FMOVS %s, (R4)", vTop.float())
	f.op("FMOVS %s, (R6)", q[0].float())
	f.op("FMOVS (R5), %s", x[0].float())
	f.op("FMULS %s, %s, %s", q[0].float(), x[0].float(), x[0].float())
	f.op("FMOVS %s, (R5)", x[0].float())
	f.op("MOVD R10, R9")
	f.op("MOVD R0, R8")
	f.op("MOVD $%d, R7", stride/16)
	f.label("weight")
	f.seen(vSeen, vWord, vBit, 4)
	for i := range 2 {
		f.load(x, "R8", 32*i)
		f.words(fsub(x[0], x[0], vTop), fsub(x[1], x[1], vTop))
		f.exp2(x, z, r, q, p)
		for k := range vec(2) {
			f.op("VAND %s, %s, %s", (vSeen + vec(2*i) + k).bits(), q[k].bits(), q[k].bits())
		}
		f.store(q, "R8", 32*i)
	}
	f.op("ADD $64, R8")
	f.op("SUB $1, R7")
	f.op("CBNZ R7, weight")

	f.op("MOVD R8, R0")
	for _, g := range []string{"R4", "R5", "R6"} {
		f.op("ADD $4, %s", g)
	}
	f.op("SUB $1, R1")
	f.op("CBNZ R1, row")
	f.op("RET")
}

// seen turns the low 4·n bits of R9 into masks of n registers and shifts them out.
func (f *file) seen(masks, word, bit vec, n int) {
	f.op("VDUP R9, %v", word)
	for i := range vec(n) {
		f.op("VCMTST %v, %v, %v", bit, word, masks+i)
		if int(i)+1 < n {
			f.op("VUSHR $4, %v, %v", word, word)
		}
	}
	f.op("LSR $%d, R9", 4*n)
}

// topOfRow reduces four registers to the lowest lane of the first.
func (f *file) topOfRow(top, mask, t vec) {
	larger := func(a, b vec) {
		f.words(fcmgt(mask, b, a))
		f.op("VBIT %s, %s, %s", mask.bits(), b.bits(), a.bits())
	}
	larger(top, top+1)
	larger(top+2, top+3)
	larger(top, top+2)
	for _, bytes := range []int{8, 4} {
		f.op("VEXT $%d, %s, %s, %s", bytes, top.bits(), top.bits(), t.bits())
		larger(top, t)
	}
	f.zero(t)
	f.words(fadd(top, top, t)) // −0 made +0, whichever came first
}

// sumRows adds along the keys: four rows side by side after a transposition,
// the others one by one.
func (f *file) sumRows() {
	f.function("sumRowsNEON", 24, `func sumRowsNEON(s *float32, rows int, l *float32)
l[r] = l[r] + s[r·Stride+j] for j = 0 … Stride−1, one after another.`)
	f.args("s R0", "rows R1", "l R2")
	f.label("four")
	f.op("CMP $4, R1")
	f.op("BLT one")
	f.op("FMOVQ (R2), F16")
	f.op("MOVD $%d, R7", stride/4)
	for r := 1; r < 4; r++ {
		f.op("ADD $%d, R0, R%d", 4*stride*r, 2+r)
	}
	f.label("keys")
	for r := range 4 {
		f.op("FMOVQ.P 16(R%d), F%d", []int{0, 3, 4, 5}[r], r)
	}
	f.transpose(vecs(0, 4), vecs(4, 4), vecs(0, 4))
	for i := range vec(4) {
		f.words(fadd(16, 16, i))
	}
	f.op("SUB $1, R7")
	f.op("CBNZ R7, keys")
	f.op("FMOVQ.P F16, 16(R2)")
	f.op("MOVD R5, R0")
	f.op("SUB $4, R1")
	f.op("B four")

	f.label("one")
	f.op("CBZ R1, done")
	f.op("FMOVS (R2), F16")
	f.op("MOVD $%d, R7", stride/8)
	f.label("key")
	for i := range 8 {
		f.op("FMOVS %d(R0), F%d", 4*i, i)
	}
	for i := range 8 {
		f.op("FADDS F%d, F16, F16", i)
	}
	f.op("ADD $32, R0")
	f.op("SUB $1, R7")
	f.op("CBNZ R7, key")
	f.op("FMOVS.P F16, 4(R2)")
	f.op("SUB $1, R1")
	f.op("B one")
	f.label("done")
	f.op("RET")
}

func (f *file) take() {
	const vScale, vBit, vWord, vRaw, vS, vSeen = vec(0), vec(8), vec(16), vec(18), vec(20), vec(22)
	f.function("takeNEON", 40, "func takeNEON(s, raw *float32, keys int, scale *float32, visible *uint32)")
	f.args("s R0", "raw R1", "keys R2", "scale R3", "visible R4")
	f.op("MOVD $bit<>(SB), R5")
	f.load(vecs(vScale, 8), "R3", 0)
	f.load(vecs(vBit, 8), "R5", 0)
	f.label("key")
	f.op("VLD1R.P 4(R4), [%v]", vWord)
	for i := vec(0); i < 8; i += 2 {
		f.load(vecs(vRaw, 2), "R1", 16*int(i))
		f.load(vecs(vS, 2), "R0", 16*int(i))
		for k := range vec(2) {
			f.words(fmul(vRaw+k, vRaw+k, vScale+i+k))
			f.op("VCMTST %v, %v, %v", vBit+i+k, vWord, vSeen+k)
			f.op("VBIT %s, %s, %s", (vSeen + k).bits(), (vRaw + k).bits(), (vS + k).bits())
		}
		f.store(vecs(vS, 2), "R0", 16*int(i))
	}
	f.op("ADD $%d, R0", 4*lanes)
	f.op("ADD $%d, R1", 4*lanes)
	f.op("SUB $1, R2")
	f.op("CBNZ R2, key")
	f.op("RET")
}

func (f *file) gradient() {
	const vLSE, vDelta, vWord, vBit, vSeen, vDP = vec(0), vec(1), vec(2), vec(3), vec(4), vec(6)
	f.function("gradientNEON", 40, "func gradientNEON(s, dp, grad *float32, lse, delta float32, visible uint64)")
	f.args("s R0", "dp R1", "grad R2") // g alone is a register
	f.broadcast(vLSE, "lse+24(FP)")
	f.broadcast(vDelta, "delta+28(FP)")
	f.op("MOVD visible+32(FP), R9")
	f.constants()
	f.op("MOVD $bit<>(SB), R7")
	f.op("VLD1 (R7), [%v]", vBit)
	f.op("MOVD $%d, R7", stride/8)
	x, z, r, q, p := vecs(16, 2), vecs(18, 2), vecs(20, 2), vecs(22, 2), vecs(8, 2)
	f.label("keys")
	f.seen(vSeen, vWord, vBit, 2)
	f.load(x, "R0", 0)
	f.words(fsub(x[0], x[0], vLSE), fsub(x[1], x[1], vLSE))
	f.exp2(x, z, r, q, p)
	f.op("FLDPQ.P 32(R1), (%s, %s)", vDP.float(), (vDP + 1).float())
	for k := range vec(2) {
		f.words(fsub(vDP+k, vDP+k, vDelta), fmul(vDP+k, q[k], vDP+k))
		f.op("VAND %s, %s, %s", (vSeen + k).bits(), q[k].bits(), q[k].bits())
		f.op("VAND %s, %s, %s", (vSeen + k).bits(), (vDP + k).bits(), (vDP + k).bits())
	}
	f.op("FSTPQ.P (%s, %s), 32(R0)", q[0].float(), q[1].float())
	f.op("FSTPQ.P (%s, %s), 32(R2)", vDP.float(), (vDP + 1).float())
	f.op("SUB $1, R7")
	f.op("CBNZ R7, keys")
	f.op("RET")
}
