package amd64

import "fmt"

const (
	stripLanes = 32 // rows of a strip
	stripBytes = 4 * stripLanes
	tileKeys   = 64
	rowBytes   = 4 * tileKeys
)

// softmaxStrip writes SoftmaxStrip, one register of lanes after another, or two
// together where there are registers for it: the scores and their maximum in
// four chains, then the weights.
//
// The port limit of AVX-512 for 64 keys is 960 cycles: 15 instructions for each
// of 128 registers, two a cycle.
func (g *gen) softmaxStrip() {
	g.fn("softmaxStrip", "s *float32, keys int, scale *float32, visible *uint32, m *float32, l *float32, f *float32", "")
	g.load("scale", "DX", "m", "SI", "l", "DI", "f", "R8")
	e := g.expConsts(24)
	g.load("visible", "BX")
	g.p("TESTQ BX, BX")
	g.p("JNE masked")
	together := g.lanes / 8
	for _, masked := range []bool{false, true} {
		if masked {
			g.label("masked")
		}
		for c := 0; c < stripLanes/g.lanes; c += together {
			g.stripGroups(e, c, together, masked)
		}
		g.end()
	}
}

// stripGroups writes the softmax of n registers of lanes from number c on.
func (g *gen) stripGroups(e exp, c, n int, masked bool) {
	const top, t, mask, hid, scale = 1, 5, 9, 13, 14
	at := func(i int) int { return (c + i) * g.bytes() }
	for i := range n {
		g.p("VMOVUPS %d(DX), %s", at(i), g.v(scale+i))
		for k := i; k < 4; k += n {
			g.p("VMOVUPS %d(SI), %s", at(i), g.v(top+k))
		}
	}
	if masked {
		g.p("VMOVUPS %s, %s", g.words("hidden", hidden), g.v(hid))
	}
	m := g.masks(mask, 4)
	g.keyLoops(4/n, masked, func(keys int) {
		for k := range keys * n {
			j, i := k/n, k%n
			mem := fmt.Sprintf("%d(AX)", j*stripBytes+at(i))
			if masked {
				g.visible("BX", j*stripLanes/g.lanes+c+i, m[k])
				g.scored(mem, scale+i, hid, m[k], t+k)
			} else {
				g.p("VMULPS %s, %s, %s", mem, g.v(scale+i), g.v(t+k))
			}
			g.p("VMOVUPS %s, %s", g.v(t+k), mem)
			g.max(t+k, top+k)
		}
	})
	for k := 2; k >= n; k /= 2 { // chain k+i into chain i
		for i := range k {
			g.max(top+k+i, top+i)
		}
	}

	// −m', f = E(m − m') and l = l·f
	neg, l, x, u := 0, n, 2*n, 2*n
	for i := range n { // from above, for neg and top overlap
		g.p("VMOVAPS %s, %s", g.v(top+i), g.v(t+i))
	}
	for i := range n {
		g.zero(neg + i)
		g.p("VADDPS %s, %s, %s", g.v(t+i), g.v(neg+i), g.v(neg+i)) // −0 becomes +0
		g.p("VMOVUPS %d(SI), %s", at(i), g.v(x+i))
		g.p("VMOVUPS %s, %d(SI)", g.v(neg+i), at(i))
		g.p("VSUBPS %s, %s, %s", g.v(neg+i), g.v(x+i), g.v(x+i))
	}
	g.exp2(e, seq(x, n), seq(x+u, n), seq(x+2*u, n), g.masks(x+3*u, n), false)
	for i := range n {
		g.p("VMOVUPS %s, %d(R8)", g.v(x+u+i), at(i))
		g.p("VMULPS %d(DI), %s, %s", at(i), g.v(x+u+i), g.v(l+i))
		g.negate(neg + i)
	}

	g.keyLoops(2, false, func(keys int) {
		k := keys * n
		x, q, z, m := seq(x, k), seq(x+u, k), seq(x+2*u, k), g.masks(x+3*u, k)
		mem := func(k int) string { return fmt.Sprintf("%d(AX)", k/n*stripBytes+at(k%n)) }
		for k := range k {
			g.p("VADDPS %s, %s, %s", mem(k), g.v(neg+k%n), g.v(x[k]))
		}
		g.exp2(e, x, q, z, m, false)
		for k := range k {
			g.p("VMOVUPS %s, %s", g.v(q[k]), mem(k))
			g.p("VADDPS %s, %s, %s", g.v(q[k]), g.v(l+k%n), g.v(l+k%n))
		}
	})
	for i := range n {
		g.p("VMOVUPS %s, %d(DI)", g.v(l+i), at(i))
	}
}

// keyLoops writes a loop over the keys of a strip, n at a time, and one over
// those that are left: AX runs over s, BX over visible.
func (g *gen) keyLoops(n int, masked bool, body func(n int)) {
	many, few, one, end := g.newLabel("many"), g.newLabel("few"), g.newLabel("one"), g.newLabel("end")
	advance := func(n int) {
		g.p("ADDQ $%d, AX", n*stripBytes)
		if masked {
			g.p("ADDQ $%d, BX", 4*n)
		}
	}
	g.load("s", "AX", "keys", "CX")
	if masked {
		g.load("visible", "BX")
	}
	g.p("SUBQ $%d, CX", n)
	g.p("JLT %s", few)
	g.loop(many)
	body(n)
	advance(n)
	g.p("SUBQ $%d, CX", n)
	g.p("JGE %s", many)
	g.label(few)
	g.p("ADDQ $%d, CX", n)
	g.p("JEQ %s", end)
	g.label(one)
	body(1)
	advance(1)
	g.p("DECQ CX")
	g.p("JNE %s", one)
	g.label(end)
}
