package amd64

import "fmt"

// take writes Take.
func (g *gen) take() {
	g.fn("take", "s *float32, raw *float32, keys int, scale *float32, visible *uint32", "")
	g.load("s", "AX", "raw", "DX", "keys", "CX", "scale", "SI", "visible", "BX")
	const t, scale = 0, 4
	n := stripLanes / g.lanes
	m := g.masks(8, n)
	for c := range n {
		g.p("VMOVUPS %d(SI), %s", c*g.bytes(), g.v(scale+c))
	}
	g.loop("key")
	for c := range n {
		at := c * g.bytes()
		g.visible("BX", c, m[c])
		g.p("VMULPS %d(DX), %s, %s", at, g.v(scale+c), g.v(t+c))
		if g.lanes == 16 {
			g.p("VMOVUPS %s, K%d, %d(AX)", g.v(t+c), m[c], at)
		} else {
			g.p("VMASKMOVPS %s, %s, %d(AX)", g.v(t+c), g.v(m[c]), at)
		}
	}
	g.p("ADDQ $%d, AX", stripBytes)
	g.p("ADDQ $%d, DX", stripBytes)
	g.p("ADDQ $4, BX")
	g.p("DECQ CX")
	g.p("JNE key")
	g.end()
}

// mergeStrip writes MergeStrip: the factors of all lanes, then the outputs.
func (g *gen) mergeStrip() {
	g.fn("mergeStrip", "m *float32, l *float32, o *float32, pm *float32, pl *float32, po *float32, dim int", "")
	g.load("m", "AX", "l", "BX", "o", "CX", "pm", "DX", "pl", "SI", "po", "DI", "dim", "R8")
	e := g.expConsts(24)
	n := stripLanes / g.lanes
	const a, b, top, q, z, m = 8, 9, 10, 11, 12, 13 // and the factors before
	mask := g.masks(m, 1)
	fa, fb := seq(0, n), seq(n, n)
	for c := range n {
		at := c * g.bytes()
		g.p("VMOVUPS %d(AX), %s", at, g.v(a))
		g.p("VMOVUPS %d(DX), %s", at, g.v(b))
		// of two zeros +0: the bits that both orders of the maximum have; of NaN, NaN
		g.p("VMAXPS %s, %s, %s", g.v(a), g.v(b), g.v(top))
		g.p("VMAXPS %s, %s, %s", g.v(b), g.v(a), g.v(q))
		g.p("VANDPS %s, %s, %s", g.v(q), g.v(top), g.v(top))
		if g.lanes == 16 {
			g.p("VCMPPS $3, %s, %s, K1", g.v(a), g.v(b))
			g.p("VADDPS %s, %s, K1, %s", g.v(a), g.v(b), g.v(top))
		} else {
			g.p("VCMPPS $3, %s, %s, %s", g.v(a), g.v(b), g.v(q))
			g.p("VORPS %s, %s, %s", g.v(q), g.v(top), g.v(top))
		}
		g.p("VMOVUPS %s, %d(AX)", g.v(top), at)
		g.p("VSUBPS %s, %s, %s", g.v(top), g.v(a), g.v(a))
		g.p("VSUBPS %s, %s, %s", g.v(top), g.v(b), g.v(b))
		g.exp2(e, []int{a}, fa[c:c+1], []int{z}, mask, false)
		g.exp2(e, []int{b}, fb[c:c+1], []int{z}, mask, false)
		g.p("VMULPS %d(BX), %s, %s", at, g.v(fa[c]), g.v(q))
		g.p("VFMADD231PS %d(SI), %s, %s", at, g.v(fb[c]), g.v(q))
		g.p("VMOVUPS %s, %d(BX)", g.v(q), at)
	}
	g.p("TESTQ R8, R8")
	g.p("JLE end")
	g.loop("feature")
	for c := range n {
		at, x := c*g.bytes(), 8+c
		g.p("VMULPS %d(CX), %s, %s", at, g.v(fa[c]), g.v(x))
		g.p("VFMADD231PS %d(DI), %s, %s", at, g.v(fb[c]), g.v(x))
		g.p("VMOVUPS %s, %d(CX)", g.v(x), at)
	}
	g.p("ADDQ $%d, CX", stripBytes)
	g.p("ADDQ $%d, DI", stripBytes)
	g.p("DECQ R8")
	g.p("JNE feature")
	g.label("end")
	g.end()
}

// finishStrip writes FinishStrip.
func (g *gen) finishStrip() {
	g.fn("finishStrip", "o *float32, l *float32, dim int", "")
	g.load("o", "AX", "l", "BX", "dim", "CX")
	const inv, x, zero, one = 0, 4, 12, 13
	n := stripLanes / g.lanes
	seen := g.masks(8, n)
	g.zero(zero)
	g.p("VMOVUPS %s, %s", g.words("one", 0x3f800000), g.v(one))
	for c := range n {
		g.p("VMOVUPS %d(BX), %s", c*g.bytes(), g.v(x))
		g.p("VDIVPS %s, %s, %s", g.v(x), g.v(one), g.v(inv+c))
		g.p("VCMPPS $4, %s, %s, %s", g.v(zero), g.v(x), g.mask(seen[c])) // l is not 0
	}
	g.p("TESTQ CX, CX")
	g.p("JLE end")
	g.loop("feature")
	for c := range n {
		mem, x := fmt.Sprintf("%d(AX)", c*g.bytes()), x+c
		if g.lanes == 16 {
			g.p("VMULPS.Z %s, %s, K%d, %s", mem, g.v(inv+c), seen[c], g.v(x))
		} else {
			g.p("VMULPS %s, %s, %s", mem, g.v(inv+c), g.v(x))
			g.p("VANDPS %s, %s, %s", g.v(seen[c]), g.v(x), g.v(x))
		}
		g.p("VADDPS %s, %s, %s", g.v(zero), g.v(x), g.v(x))
		g.p("VMOVUPS %s, %s", g.v(x), mem)
	}
	g.p("ADDQ $%d, AX", stripBytes)
	g.p("DECQ CX")
	g.p("JNE feature")
	g.label("end")
	g.end()
}

// rotate writes Rotate for each layout: the number of pairs done is the most
// that fill registers, or all.
func (g *gen) rotate() {
	// half-split: the two sides of a pair are in registers of their own
	g.fn("rotateHalf", "x *float32, y *float32, cos *float32, sin *float32, n int, inverse int", "")
	g.load("x", "AX", "y", "BX", "cos", "DX", "sin", "SI", "n", "CX", "inverse", "DI")
	g.p("TESTQ DI, DI")
	g.p("JNE inverse")
	for _, inverse := range []bool{false, true} {
		minus, plus := "VFMSUB213PS", "VFMADD213PS"
		if inverse {
			g.label("inverse")
			minus, plus = plus, minus
		}
		g.elements(1, func(_ int, m memory) {
			const x, y, cos, sin, xs, ys = 0, 1, 2, 3, 4, 5
			m.load("AX", 0, x)
			m.load("BX", 0, y)
			m.load("DX", 0, cos)
			m.load("SI", 0, sin)
			g.p("VMULPS %s, %s, %s", g.v(sin), g.v(x), g.v(xs))
			g.p("VMULPS %s, %s, %s", g.v(sin), g.v(y), g.v(ys))
			g.p("%s %s, %s, %s", minus, g.v(ys), g.v(cos), g.v(x))
			g.p("%s %s, %s, %s", plus, g.v(xs), g.v(cos), g.v(y))
			m.store("AX", 0, x)
			m.store("BX", 0, y)
		})
		g.end()
	}

	// interleaved: pairs lie side by side, so each angle is needed twice
	g.fn("rotatePairs", "x *float32, cos *float32, sin *float32, n int, inverse int", "")
	g.load("x", "AX", "cos", "DX", "sin", "SI", "n", "CX", "inverse", "DI")
	half, twice := "Y", make([]uint32, g.lanes)
	if g.lanes == 8 {
		half = "X"
	}
	for i := range twice {
		twice[i] = uint32(i / 2)
	}
	const x, swapped, cos, sin, index = 0, 1, 2, 3, 4
	g.p("VMOVUPS %s, %s", g.words("twice", twice...), g.v(index))
	g.p("TESTQ DI, DI")
	g.p("JNE inverse")
	for _, inverse := range []bool{false, true} {
		op, loop := "VFMADDSUB213PS", g.newLabel("loop")
		if inverse {
			g.label("inverse")
			op = "VFMSUBADD213PS"
		}
		g.loop(loop)
		g.p("VMOVUPS (DX), %s%d", half, cos)
		g.p("VMOVUPS (SI), %s%d", half, sin)
		g.p("VPERMPS %s, %s, %s", g.v(cos), g.v(index), g.v(cos))
		g.p("VPERMPS %s, %s, %s", g.v(sin), g.v(index), g.v(sin))
		g.p("VMOVUPS (AX), %s", g.v(x))
		g.p("VPERMILPS $0xb1, %s, %s", g.v(x), g.v(swapped))
		g.p("VMULPS %s, %s, %s", g.v(sin), g.v(swapped), g.v(swapped))
		g.p("%s %s, %s, %s", op, g.v(swapped), g.v(cos), g.v(x))
		g.p("VMOVUPS %s, (AX)", g.v(x))
		g.p("ADDQ $%d, AX", g.bytes())
		g.p("ADDQ $%d, DX", g.bytes()/2)
		g.p("ADDQ $%d, SI", g.bytes()/2)
		g.p("SUBQ $%d, CX", g.lanes/2)
		g.p("JGT %s", loop)
		g.end()
	}
}
