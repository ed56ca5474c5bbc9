package amd64

import (
	"fmt"
	"math"
)

// memory moves registers to and from places in memory: whole, or the first
// few elements of the last.
type memory struct {
	load, store func(base string, i, x int)
}

// elements writes a loop over CX > 0 elements, unroll registers at a time,
// then one, then what is left under a mask: K7, or the highest register. R9 is
// the offset in bytes, and body handles registers 0 … n−1 from there.
func (g *gen) elements(unroll int, body func(n int, m memory)) {
	w := g.bytes()
	at := func(base string, i int) string { return fmt.Sprintf("%d(%s)(R9*1)", i*w, base) }
	whole := memory{
		load:  func(base string, i, x int) { g.p("VMOVUPS %s, %s", at(base, i), g.v(x)) },
		store: func(base string, i, x int) { g.p("VMOVUPS %s, %s", g.v(x), at(base, i)) },
	}
	few := memory{
		load:  func(base string, i, x int) { g.p("VMOVUPS.Z %s, K7, %s", at(base, i), g.v(x)) },
		store: func(base string, i, x int) { g.p("VMOVUPS %s, K7, %s", g.v(x), at(base, i)) },
	}
	if g.lanes == 8 {
		few = memory{
			load:  func(base string, i, x int) { g.p("VMASKMOVPS %s, Y15, %s", at(base, i), g.v(x)) },
			store: func(base string, i, x int) { g.p("VMASKMOVPS %s, Y15, %s", g.v(x), at(base, i)) },
		}
	}
	end, tail := g.newLabel("end"), g.newLabel("tail")
	g.p("XORQ R9, R9")
	sizes := []int{unroll, 1}
	if unroll == 1 {
		sizes = sizes[:1]
	}
	for _, n := range sizes {
		loop, next := g.newLabel("loop"), g.newLabel("next")
		g.p("SUBQ $%d, CX", n*g.lanes)
		g.p("JLT %s", next)
		g.loop(loop)
		body(n, whole)
		g.p("ADDQ $%d, R9", n*w)
		g.p("SUBQ $%d, CX", n*g.lanes)
		g.p("JGE %s", loop)
		g.label(next)
		g.p("ADDQ $%d, CX", n*g.lanes)
	}
	g.p("JEQ %s", end)
	g.label(tail)
	if g.lanes == 16 {
		g.p("MOVL $1, R10")
		g.p("SHLL CX, R10")
		g.p("DECL R10")
		g.p("KMOVW R10, K7")
	} else {
		g.p("LEAQ %s, R10", g.fewMask())
		g.p("SHLQ $2, CX")
		g.p("SUBQ CX, R10")
		g.p("VMOVUPS 32(R10), Y15")
	}
	body(1, few)
	g.label(end)
}

// fewMask is eight words of ones before eight of zeros: n elements before the
// middle begins the mask of n elements.
func (g *gen) fewMask() string {
	x := make([]uint32, 16)
	for i := range 8 {
		x[i] = math.MaxUint32
	}
	return g.words("few", x...)
}

// elementwise writes the loops over plain rows.
func (g *gen) elementwise() {
	g.fn("blend", "y *float32, x *float32, n int, fa float32, fb float32", "")
	g.load("y", "AX", "x", "BX", "n", "CX")
	g.p("VBROADCASTSS %s, %s", g.arg("fa"), g.v(8))
	g.p("VBROADCASTSS %s, %s", g.arg("fb"), g.v(9))
	g.elements(2, func(n int, m memory) {
		for i := range n {
			m.load("AX", i, i)
			m.load("BX", i, 2+i)
			g.p("VMULPS %s, %s, %s", g.v(8), g.v(i), g.v(i))
			g.p("VFMADD231PS %s, %s, %s", g.v(9), g.v(2+i), g.v(i))
			m.store("AX", i, i)
		}
	})
	g.end()

	g.fn("scaleRow", "x *float32, n int, f float32", "")
	g.load("x", "AX", "n", "CX")
	g.p("VBROADCASTSS %s, %s", g.arg("f"), g.v(8))
	g.elements(2, func(n int, m memory) {
		for i := range n {
			m.load("AX", i, i)
			g.p("VMULPS %s, %s, %s", g.v(8), g.v(i), g.v(i))
			m.store("AX", i, i)
		}
	})
	g.end()

	g.fn("finishRow", "x *float32, n int, inv float32", "")
	g.load("x", "AX", "n", "CX")
	g.p("VBROADCASTSS %s, %s", g.arg("inv"), g.v(8))
	g.zero(9)
	g.elements(2, func(n int, m memory) {
		for i := range n {
			m.load("AX", i, i)
			g.p("VMULPS %s, %s, %s", g.v(8), g.v(i), g.v(i))
			g.p("VADDPS %s, %s, %s", g.v(9), g.v(i), g.v(i))
			m.store("AX", i, i)
		}
	})
	g.end()

	g.fn("addProduct", "y *float32, a *float32, b *float32, n int", "")
	g.load("y", "AX", "a", "BX", "b", "DX", "n", "CX")
	g.elements(2, func(n int, m memory) {
		for i := range n {
			m.load("AX", i, i)
			m.load("BX", i, 2+i)
			m.load("DX", i, 4+i)
			g.p("VFMADD231PS %s, %s, %s", g.v(2+i), g.v(4+i), g.v(i))
			m.store("AX", i, i)
		}
	})
	g.end()
	g.finite()
	g.softCap()
}

// finite writes Finite: x·0 is NaN where x is not finite, and a sum keeps NaN.
func (g *gen) finite() {
	g.fn("finite", "x *float32, n int", "int")
	g.load("x", "AX", "n", "CX")
	const acc, zero, x = 4, 8, 0
	for i := range 4 {
		g.zero(acc + i)
	}
	g.zero(zero)
	g.elements(4, func(n int, m memory) {
		for i := range n {
			m.load("AX", i, x+i)
			g.p("VFMADD231PS %s, %s, %s", g.v(zero), g.v(x+i), g.v(acc+i))
		}
	})
	for i := 1; i < 4; i++ {
		g.p("VADDPS %s, %s, %s", g.v(acc+i), g.v(acc), g.v(acc))
	}
	if g.lanes == 16 {
		g.p("VCMPPS $3, %s, %s, K1", g.v(acc), g.v(acc))
		g.p("KMOVW K1, AX")
	} else {
		g.p("VCMPPS $3, %s, %s, %s", g.v(acc), g.v(acc), g.v(acc))
		g.p("VMOVMSKPS %s, AX", g.v(acc))
	}
	g.p("XORQ CX, CX")
	g.p("TESTL AX, AX")
	g.p("SETEQ CL")
	g.p("MOVQ CX, %s", g.arg("ret"))
	g.end()
}

// Bits of the constants of kernel.Tanh.
var tanhCoef = [6]float32{0.00227270485, -0.00832640193, 0.0217636339, -0.0539586246, 0.133333012, -0.333333343}

// softCap writes SoftCap. Both branches of T are computed.
func (g *gen) softCap() {
	g.fn("softCap", "x *float32, n int, inv float32, limit float32", "")
	g.load("x", "AX", "n", "CX")
	e := g.expConsts(24)
	const x, a, q, z, p, w = 0, 1, 2, 3, 4, 5
	one := g.words("one", math.Float32bits(1))
	g.elements(1, func(_ int, mem memory) {
		mem.load("AX", 0, x)
		g.p("VBROADCASTSS %s, %s", g.arg("inv"), g.v(a))
		g.p("VMULPS %s, %s, %s", g.v(a), g.v(x), g.v(x))
		g.p("VMULPS %s, %s, %s", g.v(x), g.v(x), g.v(z))
		g.p("VMOVUPS %s, %s", g.words("tanhC0", math.Float32bits(tanhCoef[0])), g.v(p))
		for i, c := range tanhCoef[1:] {
			g.p("VFMADD213PS %s, %s, %s", g.words(fmt.Sprintf("tanhC%d", i+1), math.Float32bits(c)), g.v(z), g.v(p))
		}
		g.p("VMULPS %s, %s, %s", g.v(z), g.v(x), g.v(w))
		g.p("VFMADD213PS %s, %s, %s", g.v(x), g.v(w), g.v(p)) // the polynomial's result

		sign := g.words("sign", 1<<31)
		g.p("VANDPS %s, %s, %s", g.words("magnitude", 1<<31-1), g.v(x), g.v(a))
		g.p("VANDPS %s, %s, %s", sign, g.v(x), g.v(w))
		g.p("VMOVAPS %s, %s", g.v(a), g.v(x))
		g.p("VMULPS %s, %s, %s", g.words("minus2Log2E", math.Float32bits(-2*math.Log2E)), g.v(a), g.v(a))
		g.exp2(e, []int{a}, []int{q}, []int{z}, g.masks(6, 1), false)
		g.p("VMOVUPS %s, %s", one, g.v(a))
		g.p("VADDPS %s, %s, %s", g.v(a), g.v(q), g.v(z))
		g.p("VSUBPS %s, %s, %s", g.v(q), g.v(a), g.v(a))
		g.p("VDIVPS %s, %s, %s", g.v(z), g.v(a), g.v(a))
		g.p("VORPS %s, %s, %s", g.v(w), g.v(a), g.v(a))
		small := g.words("tanhSmall", math.Float32bits(0.625))
		if g.lanes == 16 {
			g.p("VCMPPS $1, %s, %s, K1", small, g.v(x))
			g.p("VMOVAPS %s, K1, %s", g.v(p), g.v(a))
		} else {
			g.p("VCMPPS $1, %s, %s, %s", small, g.v(x), g.v(x))
			g.p("VBLENDVPS %s, %s, %s, %s", g.v(x), g.v(p), g.v(a), g.v(a))
		}
		g.p("VBROADCASTSS %s, %s", g.arg("limit"), g.v(x))
		g.p("VMULPS %s, %s, %s", g.v(x), g.v(a), g.v(a))
		mem.store("AX", 0, a)
	})
	g.end()
}
