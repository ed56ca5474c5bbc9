package arm64

import (
	"math"

	"github.com/longctx/longctx/kernel"
)

// smallTanh is where kernel.Tanh goes from its polynomial to E.
const smallTanh = 0.625

func score() string {
	f := newFile()
	f.expTable()
	words := make([]uint32, 0, 8)
	for _, c := range kernel.TanhCoef {
		words = append(words, math.Float32bits(c))
	}
	f.table("tanh", append(words, math.Float32bits(-2*math.Log2E), math.Float32bits(smallTanh)))
	f.softCap()
	f.addProduct()
	return f.String()
}

// softCap computes both ways of kernel.Tanh and takes what each lane needs.
func (f *file) softCap() {
	const (
		vCoef, vMinus2, vSmall        = vec(0), vec(6), vec(7)
		vInv, vLimit, vAbs, vOne      = vec(8), vec(9), vec(10), coef + 5
		vX, vA, vIsSmall, vP, vXX     = vec(11), vec(12), vec(13), vec(14), vec(15)
		vZ, vR, vE, vQ, vT        vec = 16, 17, 18, 19, 20
	)
	f.function("softCapNEON", 24, `func softCapNEON(x *float32, n int, inv, limit float32)
n is a multiple of 4.`)
	f.args("x R0", "n R1")
	f.constants()
	f.op("MOVD $tanh<>(SB), R2")
	for v := vCoef; v <= vSmall; v++ {
		f.op("VLD1R.P 4(R2), [%v]", v)
	}
	f.broadcast(vInv, "inv+16(FP)")
	f.broadcast(vLimit, "limit+20(FP)")
	f.op("MOVD $0x7fffffff, R2")
	f.op("VDUP R2, %v", vAbs)
	f.label("loop")
	f.op("FMOVQ (R0), %s", vX.float())
	f.words(fmul(vX, vX, vInv))
	f.op("VAND %s, %s, %s", vAbs.bits(), vX.bits(), vA.bits())
	f.words(fcmgt(vIsSmall, vSmall, vA))
	f.note("x + x·z·P(z) with z = x·x")
	f.words(fmul(vXX, vX, vX))
	from := vCoef
	for c := vec(1); c < 6; c++ {
		to := [2]vec{vP, vT}[c%2]
		f.op("VMOV %s, %s", (vCoef + c).bits(), to.bits())
		f.op("VFMLA %v, %v, %v", vXX, from, to)
		from = to
	}
	f.words(fmul(vXX, vX, vXX))
	f.op("VMOV %s, %s", vX.bits(), vP.bits())
	f.op("VFMLA %v, %v, %v", from, vXX, vP)
	f.note("(1 − e)/(1 + e) with e = E(−2·log2(e)·|x|), and the sign of x")
	f.words(fmul(vA, vA, vMinus2))
	f.exp2([]vec{vA}, []vec{vZ}, []vec{vR}, []vec{vE}, []vec{vQ})
	f.words(fsub(vT, vOne, vE), fadd(vE, vOne, vE), fdiv(vT, vT, vE))
	f.op("VBIF %s, %s, %s", vAbs.bits(), vX.bits(), vT.bits())
	f.op("VBIT %s, %s, %s", vIsSmall.bits(), vP.bits(), vT.bits())
	f.words(fmul(vT, vT, vLimit))
	f.op("FMOVQ.P %s, 16(R0)", vT.float())
	f.op("SUB $4, R1")
	f.op("CBNZ R1, loop")
	f.op("RET")
}

func (f *file) addProduct() {
	f.function("addProductNEON", 32, `func addProductNEON(y, a, b *float32, n int)
n is a multiple of 8.`)
	f.args("y R0", "a R1", "b R2", "n R3")
	f.label("loop")
	f.op("FLDPQ (R0), (F0, F1)")
	f.op("FLDPQ.P 32(R1), (F2, F3)")
	f.op("FLDPQ.P 32(R2), (F4, F5)")
	for i := range vec(2) {
		f.op("VFMLA %v, %v, %v", 4+i, 2+i, i)
	}
	f.op("FSTPQ.P (F0, F1), 32(R0)")
	f.op("SUB $8, R3")
	f.op("CBNZ R3, loop")
	f.op("RET")
}
