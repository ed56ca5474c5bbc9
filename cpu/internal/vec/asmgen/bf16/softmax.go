package bf16

import (
	"fmt"
	"math"
)

const (
	lanes = 32 // rows of a strip
	keys  = 64 // keys of a tile
)

// Registers of the softmax.
const (
	zScale  = 16 // and 17: scale of both halves of the lanes
	zMax    = 18 // and 19: −m
	zSum    = 20 // and 21: l
	zPart   = 12 // and 13: sum of the tile's weights
	zLow    = 23
	zPairs  = 24
	zCoef   = 25 // 25–30
	zFactor = 14 // and 15: f
)

// coef gives 2^r for r in [0, 1), within 2^−23 before rounding: the polynomial
// of package kernel, which is for [−1/2, 1/2], moved by 1/2.
var coef = [6]uint32{0x3af5e13b, 0x3c134192, 0x3d64b208, 0x3e75e97a, 0x3f317289, 0x3f7ffffe}

// pairOrder lays words of two rows side by side.
func pairOrder() []uint64 {
	var order []uint64
	for i := range 16 {
		order = append(order, uint64(i), uint64(i+16))
	}
	return order
}

func (g *gen) broadcast(z int, name string, x float32) {
	g.p("VBROADCASTSS %s, Z%d", g.words(name, 4, uint64(math.Float32bits(x))), z)
}

// exp2 replaces registers x by 2^x, with temporaries t, two for each, and masks
// K4 and up. What is below −126 becomes 0, as does, if masked, what these masks
// leave out: a subnormal would take VSCALEFPS a hundred times as long. NaN stays.
func (g *gen) exp2(x, t []int, masked bool) {
	each := func(f func(i int)) {
		for i := range x {
			f(i)
		}
	}
	u := t[len(x):]
	each(func(i int) { // not less than
		if masked {
			g.p("VCMPPS $5, Z%d, Z%d, K%d, K%d", zLow, x[i], 4+i, 4+i)
		} else {
			g.p("VCMPPS $5, Z%d, Z%d, K%d", zLow, x[i], 4+i)
		}
	})
	each(func(i int) { g.p("VREDUCEPS $9, Z%d, Z%d", x[i], t[i]) }) // x − ⌊x⌋
	each(func(i int) { g.p("VMOVAPS Z%d, Z%d", zCoef, u[i]) })
	for c := 1; c < 6; c++ {
		each(func(i int) { g.p("VFMADD213PS Z%d, Z%d, Z%d", zCoef+c, t[i], u[i]) })
	}
	each(func(i int) { g.p("VSCALEFPS.Z Z%d, Z%d, K%d, Z%d", x[i], u[i], 4+i, x[i]) })
}

// softmax takes a tile of scores into the running softmax of a strip, and
// writes its weights as operand B. It uses the fields of attendArgs.
func (g *gen) softmax() {
	masked, ready := g.newLabel("masked"), g.newLabel("weights")
	g.softmaxBegin()
	g.p("TESTQ R11, R11")
	g.p("JNZ %s", masked)
	g.maximum(false)
	g.rescale()
	g.weights(false)
	g.p("JMP %s", ready)
	g.label(masked)
	g.maximum(true)
	g.rescale()
	g.weights(true)
	g.label(ready)
	g.storeSums()
}

// softmaxBegin loads pointers and constants: scores DI, weights DX, m CX, l
// R10, visible R11.
func (g *gen) softmaxBegin() {
	g.p("MOVQ attendArgs_scores(AX), DI")
	g.p("MOVQ attendArgs_weights(AX), DX")
	g.p("MOVQ attendArgs_scale(AX), SI")
	g.p("MOVQ attendArgs_m(AX), CX")
	g.p("MOVQ attendArgs_l(AX), R10")
	g.p("MOVQ attendArgs_visible(AX), R11")
	g.broadcast(zLow, "low", -126)
	for i, c := range coef {
		g.p("VBROADCASTSS %s, Z%d", g.words(fmt.Sprintf("coef%d", i), 4, uint64(c)), zCoef+i)
	}
	g.p("VMOVDQU64 %s, Z%d", g.words("pairs", 2, pairOrder()...), zPairs)
	for h := range 2 {
		g.p("VMOVUPS %d(SI), Z%d", 64*h, zScale+h)
	}
}

// storeSums writes l. The weights of a tile are added up before they are added
// to l, which loses less over long rows.
func (g *gen) storeSums() {
	for h := range 2 {
		g.p("VADDPS Z%d, Z%d, Z%d", zPart+h, zSum+h, zSum+h)
		g.p("VMOVUPS Z%d, %d(R10)", zSum+h, 64*h)
	}
}

// maximum leaves the largest scaled score, or m, in Z0 and Z1.
func (g *gen) maximum(masked bool) {
	loop := g.newLabel("maximum")
	for i := range 8 {
		g.p("VMOVUPS %d(CX), Z%d", i%2*64, i)
	}
	g.p("MOVQ $%d, BX", keys/4)
	g.p("MOVQ DI, R12")
	if masked {
		g.p("MOVQ R11, R13")
	}
	g.loop(loop)
	for i := range 8 {
		g.p("VMULPS %d(R12), Z%d, Z%d", 64*i, zScale+i%2, 8+i%4)
		if masked {
			g.p("KMOVW %d(R13), K1", 2*i)
			g.p("VMAXPS Z%d, Z%d, K1, Z%d", i, 8+i%4, i) // NaN: the sum so far
		} else {
			g.p("VMAXPS Z%d, Z%d, Z%d", i, 8+i%4, i)
		}
	}
	g.p("ADDQ $512, R12")
	if masked {
		g.p("ADDQ $16, R13")
	}
	g.p("DECQ BX")
	g.p("JNZ %s", loop)
	for n := 4; n >= 2; n /= 2 {
		for i := range n {
			g.p("VMAXPS Z%d, Z%d, Z%d", i, i+n, i)
		}
	}
}

// rescale moves m to the maximum where that is larger by more than slack, and
// multiplies sums and outputs by f where it did.
func (g *gen) rescale() {
	same, loop := g.newLabel("same"), g.newLabel("rescale")
	g.broadcast(12, "slack", slack)
	g.broadcast(13, "one", 1)
	for h := range 2 {
		g.p("VMOVUPS %d(CX), Z%d", 64*h, 2+h)
		g.p("VMOVUPS %d(R10), Z%d", 64*h, zSum+h)
		g.p("VADDPS Z%d, Z12, Z%d", 2+h, 4+h)
		g.p("VCMPPS $14, Z%d, Z%d, K%d", 4+h, h, 2+h) // greater than
		g.p("VPXORD Z%d, Z%d, Z%d", zMax+h, zMax+h, zMax+h)
		g.p("VSUBPS Z%d, Z%d, Z%d", 2+h, zMax+h, zMax+h)
	}
	g.p("KORTESTW K2, K3")
	g.p("JZ %s", same)
	for h := range 2 {
		g.p("VPXORD Z%d, Z%d, Z%d", 4+h, 4+h, 4+h)
		g.p("VSUBPS Z%d, Z%d, K%d, Z%d", h, 4+h, 2+h, zMax+h)
		g.p("VMOVUPS Z%d, K%d, %d(CX)", h, 2+h, 64*h)
		g.p("VSUBPS Z%d, Z%d, Z%d", h, 2+h, 2+h)
	}
	g.exp2([]int{2, 3}, []int{4, 5, 6, 7}, false)
	for h := range 2 {
		g.p("VMOVAPS Z13, Z%d", zFactor+h)
		g.p("VMOVAPS Z%d, K%d, Z%d", 2+h, 2+h, zFactor+h)
		g.p("VMULPS Z%d, Z%d, Z%d", zFactor+h, zSum+h, zSum+h)
	}
	g.p("MOVQ attendArgs_valueTiles(AX), BX")
	g.p("SHLQ $2, BX")
	g.p("MOVQ attendArgs_out(AX), R12")
	g.loop(loop)
	for i := range 8 {
		g.p("VMULPS %d(R12), Z%d, Z%d", 64*i, zFactor+i%2, i)
	}
	for i := range 8 {
		g.p("VMOVUPS Z%d, %d(R12)", i, 64*i)
	}
	g.p("ADDQ $512, R12")
	g.p("DECQ BX")
	g.p("JNZ %s", loop)
	g.label(same)
}

// slack is how far scores may exceed m, in units of log 2, before m moves.
const slack = 8

// weights turns scores into weights.
func (g *gen) weights(masked bool) {
	loop := g.newLabel("pair")
	g.p("MOVQ $%d, BX", keys/2)
	g.p("MOVQ attendArgs_out(AX), R12")
	g.p("MOVQ attendArgs_b(AX), CX")
	g.p("ADDQ attendArgs_queryStep(AX), CX")
	for h := range 2 {
		g.p("VPXORD Z%d, Z%d, Z%d", zPart+h, zPart+h, zPart+h)
	}
	g.loop(loop)
	for i := range 4 { // the next strip's queries
		g.p("PREFETCHT0 %d(CX)", 64*i)
	}
	g.p("ADDQ $256, CX")
	g.weightPair(masked)
	g.p("DECQ BX")
	g.p("JNZ %s", loop)
}

// weightPair turns the scores of two keys at DI into weights at DX, and adds
// them to the sums. BX counts pairs down from 32. It prefetches the outputs at
// R12, which the next step adds to.
func (g *gen) weightPair(masked bool) {
	next := g.newLabel("half")
	x, t := []int{0, 1, 2, 3}, []int{4, 5, 6, 7, 8, 9, 10, 11}
	for i := range x { // key i/2, half i%2
		g.p("VMOVUPS %d(DI), Z%d", 64*i, x[i])
		g.p("VFMADD213PS Z%d, Z%d, Z%d", zMax+i%2, zScale+i%2, x[i])
		if masked {
			g.p("KMOVW %d(R11), K%d", 2*i, 4+i)
		}
	}
	for i := range 8 {
		g.p("PREFETCHT0 %d(R12)", 64*i)
	}
	g.exp2(x, t, masked)
	for i := range x {
		g.p("VADDPS Z%d, Z%d, Z%d", x[i], zPart+i%2, zPart+i%2)
	}
	for h := range 2 {
		g.cvt2(t[h], x[2+h], x[h])
		g.p("VPERMW Z%d, Z%d, Z%d", t[h], zPairs, t[h])
		g.p("VMOVDQU64 Z%d, %d(DX)", t[h], 1024*h)
	}
	g.p("ADDQ $512, R12")
	g.p("ADDQ $256, DI")
	g.p("ADDQ $64, DX")
	if masked {
		g.p("ADDQ $8, R11")
	}
	g.p("CMPQ BX, $%d", keys/4+1)
	g.p("JNE %s", next)
	g.p("ADDQ $1024, DX") // from the last row of a tile of B to the tile after the next
	g.label(next)
}
