package amd64

import "fmt"

// softmaxRows writes SoftmaxRows, for up to eight rows together: the sum of a
// row is one chain over its keys, and chains of several rows overlap.
func (g *gen) softmaxRows() {
	g.fn("softmaxRows", "s *float32, rows int, scale *float32, visible *uint64, m *float32, l *float32, f *float32", "")
	g.load("s", "AX", "rows", "CX", "scale", "DX", "visible", "BX", "m", "SI", "l", "DI", "f", "R8")
	e := g.expConsts(24)
	groups := []int{4, 2, 1}
	if g.lanes == 16 {
		groups = []int{8, 4, 2, 1}
	}
	for i, n := range groups {
		group, next := fmt.Sprintf("group%d", n), fmt.Sprintf("group%dend", n)
		g.label(group)
		g.p("CMPQ CX, $%d", n)
		g.p("JLT %s", next)
		g.rowGroup(e, n)
		g.p("ADDQ $%d, AX", n*rowBytes)
		g.p("ADDQ $%d, BX", 8*n)
		for _, r := range []string{"DX", "SI", "DI", "R8"} {
			g.p("ADDQ $%d, %s", 4*n, r)
		}
		g.p("SUBQ $%d, CX", n)
		if i == 0 {
			g.p("JMP %s", group)
		}
		g.label(next)
	}
	g.end()
}

// rowGroup writes the softmax of n rows.
func (g *gen) rowGroup(e exp, n int) {
	loop := g.newLabel("scores")
	g.p("MOVQ AX, R9")
	g.p("XORQ R10, R10")
	g.loop(loop)
	g.rowScores()
	g.nextRow(loop, n)

	// f = E(m − m') and l = l·f for the n rows side by side; f holds m'
	const old, top, z = 0, 1, 2
	g.moveFew("SI", old, n, true)
	g.moveFew("R8", top, n, true)
	g.moveFew("SI", top, n, false)
	g.p("VSUBPS %s, %s, %s", g.v(top), g.v(old), g.v(old))
	g.exp2(e, []int{old}, []int{top}, []int{z}, g.masks(3, 1), false)
	g.moveFew("R8", top, n, false)
	g.moveFew("DI", old, n, true)
	g.p("VMULPS %s, %s, %s", g.v(top), g.v(old), g.v(old))
	g.moveFew("DI", old, n, false)

	loop = g.newLabel("weights")
	g.p("MOVQ AX, R9")
	g.p("XORQ R10, R10")
	g.loop(loop)
	g.rowWeights(e)
	g.nextRow(loop, n)

	// the sums
	loop = g.newLabel("sums")
	for r := range n {
		g.p("VMOVSS %d(DI), X%d", 4*r, r)
	}
	g.p("MOVQ AX, R9")
	g.p("MOVQ $%d, R10", tileKeys/4)
	g.loop(loop)
	for j := range 4 {
		for r := range n {
			g.p("VADDSS %d(R9), X%d, X%d", r*rowBytes+4*j, r, r)
		}
	}
	g.p("ADDQ $16, R9")
	g.p("DECQ R10")
	g.p("JNE %s", loop)
	for r := range n {
		g.p("VMOVSS X%d, %d(DI)", r, 4*r)
	}
}

// nextRow ends a loop over n rows: R9 runs over s, R10 counts.
func (g *gen) nextRow(loop string, n int) {
	g.p("ADDQ $%d, R9", rowBytes)
	g.p("INCQ R10")
	g.p("CMPQ R10, $%d", n)
	g.p("JLT %s", loop)
}

// rowScores scales and hides the scores of a row and leaves its maximum in f.
func (g *gen) rowScores() {
	const scale, top, t, mask, hid = 0, 1, 5, 9, 13
	g.p("VBROADCASTSS (DX)(R10*4), %s", g.v(scale))
	g.p("VBROADCASTSS (SI)(R10*4), %s", g.v(top))
	for i := 1; i < 4; i++ {
		g.p("VMOVAPS %s, %s", g.v(top), g.v(top+i))
	}
	g.p("VMOVUPS %s, %s", g.words("hidden", hidden), g.v(hid))
	g.p("LEAQ (BX)(R10*8), R11")
	for c := range tileKeys / g.lanes {
		mem, i := fmt.Sprintf("%d(R9)", c*g.bytes()), c%4
		m := g.masks(mask, 4)[i]
		g.visible("R11", c, m)
		g.scored(mem, scale, hid, m, t+i)
		g.p("VMOVUPS %s, %s", g.v(t+i), mem)
		g.max(t+i, top+i)
	}
	g.max(top+1, top)
	g.max(top+3, top+2)
	g.max(top+2, top)
	// across the register
	const half = top + 1
	if g.lanes == 16 {
		g.p("VEXTRACTF64X4 $1, Z%d, Y%d", top, half)
		g.p("VMAXPS Y%d, Y%d, Y%d", half, top, top)
	}
	g.p("VEXTRACTF128 $1, Y%d, X%d", top, half)
	g.p("VMAXPS X%d, X%d, X%d", half, top, top)
	g.p("VPERMILPS $0x4e, X%d, X%d", top, half)
	g.p("VMAXPS X%d, X%d, X%d", half, top, top)
	g.p("VPERMILPS $0xb1, X%d, X%d", top, half)
	g.p("VMAXPS X%d, X%d, X%d", half, top, top)
	g.zero(half)
	g.p("VADDSS X%d, X%d, X%d", half, top, top) // −0 becomes +0
	g.p("VMOVSS X%d, (R8)(R10*4)", top)
}

// rowWeights turns the scores of a row into weights.
func (g *gen) rowWeights(e exp) {
	const neg = 0
	n := 2
	if g.lanes == 16 {
		n = 4
	}
	x, q, z, m := seq(1, n), seq(1+n, n), seq(1+2*n, n), g.masks(1+3*n, n)
	g.p("VBROADCASTSS (SI)(R10*4), %s", g.v(neg))
	g.negate(neg)
	g.p("LEAQ (BX)(R10*8), R11")
	for c := 0; c < tileKeys/g.lanes; c += n {
		at := func(i int) int { return (c + i) * g.bytes() }
		for i := range n {
			g.visible("R11", c+i, m[i])
			g.p("VADDPS %d(R9), %s, %s", at(i), g.v(neg), g.v(x[i]))
		}
		g.exp2(e, x, q, z, m, true)
		for i := range n {
			g.p("VMOVUPS %s, %d(R9)", g.v(q[i]), at(i))
		}
	}
}

// moveFew loads or stores the first n elements of a register; a load clears
// the others.
func (g *gen) moveFew(base string, x, n int, load bool) {
	op, reg := map[int]string{1: "VMOVSS", 2: "VMOVSD", 4: "VMOVUPS", 8: "VMOVUPS"}[n], fmt.Sprintf("X%d", x)
	if n == 8 {
		reg = fmt.Sprintf("Y%d", x)
	}
	if load {
		g.p("%s (%s), %s", op, base, reg)
	} else {
		g.p("%s %s, (%s)", op, reg, base)
	}
}

// gradient writes Gradient.
func (g *gen) gradient() {
	g.fn("gradient", "s *float32, dp *float32, out *float32, visible *uint64, lse float32, delta float32", "")
	g.load("s", "AX", "dp", "DX", "out", "SI", "visible", "BX")
	const neg, delta = 0, 15
	e := g.expConsts(24)
	g.p("VBROADCASTSS %s, %s", g.arg("lse"), g.v(neg))
	g.negate(neg)
	n := 2
	if g.lanes == 16 {
		n = 4
		g.p("VBROADCASTSS %s, %s", g.arg("delta"), g.v(delta+8))
	}
	x, q, z, m := seq(1, n), seq(1+n, n), seq(1+2*n, n), g.masks(1+3*n, n)
	for c := 0; c < tileKeys/g.lanes; c += n {
		at := func(i int) int { return (c + i) * g.bytes() }
		for i := range n {
			g.visible("BX", c+i, m[i])
			g.p("VADDPS %d(AX), %s, %s", at(i), g.v(neg), g.v(x[i]))
		}
		g.exp2(e, x, q, z, m, true)
		for i := range n {
			g.p("VMOVUPS %s, %d(AX)", g.v(q[i]), at(i))
			g.p("VMOVUPS %d(DX), %s", at(i), g.v(x[i]))
			g.visible("BX", c+i, m[i]) // again: a weight of 0 leaves the sign of g
			if g.lanes == 16 {
				g.p("VSUBPS %s, %s, %s", g.v(delta+8), g.v(x[i]), g.v(x[i]))
				g.p("VMULPS.Z %s, %s, K%d, %s", g.v(x[i]), g.v(q[i]), m[i], g.v(x[i]))
			} else {
				g.p("VBROADCASTSS %s, %s", g.arg("delta"), g.v(z[i]))
				g.p("VSUBPS %s, %s, %s", g.v(z[i]), g.v(x[i]), g.v(x[i]))
				g.p("VMULPS %s, %s, %s", g.v(x[i]), g.v(q[i]), g.v(x[i]))
				g.p("VANDPS %s, %s, %s", g.v(m[i]), g.v(x[i]), g.v(x[i]))
			}
			g.p("VMOVUPS %s, %d(SI)", g.v(x[i]), at(i))
		}
	}
	g.end()
}
