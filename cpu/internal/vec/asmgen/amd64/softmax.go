package amd64

import "fmt"

const (
	stripLanes = 32 // rows of a strip
	stripBytes = 4 * stripLanes
	tileKeys   = 64
	rowBytes   = 4 * tileKeys
)

// softmaxStrip writes SoftmaxStrip, one register of lanes after another: the
// scores and their maximum in four chains of keys, then the weights.
func (g *gen) softmaxStrip() {
	g.fn("softmaxStrip", "s *float32, keys int, scale *float32, visible *uint32, m *float32, l *float32, f *float32", "")
	g.load("scale", "DX", "m", "SI", "l", "DI", "f", "R8")
	e := g.expConsts(24)
	g.load("visible", "BX")
	g.p("TESTQ BX, BX")
	g.p("JNE masked")
	for c := range stripLanes / g.lanes {
		g.stripGroup(e, c, false)
	}
	g.end()
	g.label("masked")
	for c := range stripLanes / g.lanes {
		g.stripGroup(e, c, true)
	}
	g.end()
}

// stripGroup writes the softmax of register c of the lanes.
func (g *gen) stripGroup(e exp, c int, masked bool) {
	const scale, top, t, mask, hid = 0, 1, 5, 9, 13
	at := c * g.bytes()
	g.p("VMOVUPS %d(DX), %s", at, g.v(scale))
	for i := range 4 {
		g.p("VMOVUPS %d(SI), %s", at, g.v(top+i))
	}
	if masked {
		g.p("VMOVUPS %s, %s", g.words("hidden", hidden), g.v(hid))
	}
	m := g.masks(mask, 4)
	g.keyLoops(4, masked, func(n int) {
		for j := range n {
			mem := fmt.Sprintf("%d(AX)", j*stripBytes+at)
			if masked {
				m := m[j]
				g.visible("BX", 2*j*(16/g.lanes)+c, m)
				g.scored(mem, scale, hid, m, t+j)
			} else {
				g.p("VMULPS %s, %s, %s", mem, g.v(scale), g.v(t+j))
			}
			g.p("VMOVUPS %s, %s", g.v(t+j), mem)
			g.max(t+j, top+j)
		}
	})
	g.max(top+1, top)
	g.max(top+3, top+2)
	g.max(top+2, top)

	// f = E(m − m'), l = l·f, and −m'
	const neg, l = 0, 1
	x, q, z := seq(2, 1), seq(6, 1), seq(10, 1)
	g.zero(neg)
	g.p("VADDPS %s, %s, %s", g.v(neg), g.v(top), g.v(neg)) // −0 becomes +0
	g.p("VMOVUPS %d(SI), %s", at, g.v(x[0]))
	g.p("VMOVUPS %s, %d(SI)", g.v(neg), at)
	g.p("VSUBPS %s, %s, %s", g.v(neg), g.v(x[0]), g.v(x[0]))
	g.exp2(e, x, q, z, g.masks(14, 1), false)
	g.p("VMOVUPS %s, %d(R8)", g.v(q[0]), at)
	g.p("VMULPS %d(DI), %s, %s", at, g.v(q[0]), g.v(l))
	g.negate(neg)

	unroll := 2
	if g.lanes == 16 {
		unroll = 4
	}
	g.keyLoops(unroll, false, func(n int) {
		x, q, z, m := seq(2, n), seq(2+unroll, n), seq(2+2*unroll, n), g.masks(2+3*unroll, n)
		for j := range n {
			g.p("VADDPS %d(AX), %s, %s", j*stripBytes+at, g.v(neg), g.v(x[j]))
		}
		g.exp2(e, x, q, z, m, false)
		for j := range n {
			g.p("VMOVUPS %s, %d(AX)", g.v(q[j]), j*stripBytes+at)
			g.p("VADDPS %s, %s, %s", g.v(q[j]), g.v(l), g.v(l))
		}
	})
	g.p("VMOVUPS %s, %d(DI)", g.v(l), at)
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
