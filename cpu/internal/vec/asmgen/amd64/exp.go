package amd64

import (
	"fmt"
	"math"
)

// Bits of the constants of kernel.Exp2.
var expCoef = [6]uint32{0x3AADDD00, 0x3C1E7545, 0x3D635BAA, 0x3E75FCDE, 0x3F317215, 0x3F800000}

// exp is where the constants of E are: in registers where there are 32, else
// in memory.
type exp struct {
	shift, limit string
	c            [6]string
}

// expConsts loads the constants of E, into registers from first on.
func (g *gen) expConsts(first int) exp {
	at := func(name string, bits uint32) string {
		m := g.words(name, bits)
		if g.lanes == 8 {
			return m
		}
		g.p("VMOVUPS %s, %s", m, g.v(first))
		first++
		return g.v(first - 1)
	}
	e := exp{shift: at("expShift", math.Float32bits(12582912+127)), limit: at("expLimit", math.Float32bits(-125))}
	for i, c := range expCoef {
		e.c[i] = at("expC"+string(rune('0'+i)), c)
	}
	return e
}

// exp2 sets q = E(x) for registers x, side by side so that their chains
// overlap; x, z and m are used up. m are mask registers where there are some,
// else vector registers. masked: m already says where the result is not 0.
//
// The fraction by VREDUCEPS would be one instruction less, but it breaks ties
// to even n, where the shift breaks them to even n + 127.
func (g *gen) exp2(e exp, x, q, z, m []int, masked bool) {
	each := func(f func(i int)) {
		for i := range x {
			f(i)
		}
	}
	wide := g.lanes == 16
	// not below −125: true for NaN, which stays
	each(func(i int) {
		switch {
		case wide && masked:
			g.p("VCMPPS $5, %s, %s, K%d, K%d", e.limit, g.v(x[i]), m[i], m[i])
		case wide:
			g.p("VCMPPS $5, %s, %s, K%d", e.limit, g.v(x[i]), m[i])
		case masked:
			g.p("VCMPPS $5, %s, %s, %s", e.limit, g.v(x[i]), g.v(q[i]))
			g.p("VANDPS %s, %s, %s", g.v(q[i]), g.v(m[i]), g.v(m[i]))
		default:
			g.p("VCMPPS $5, %s, %s, %s", e.limit, g.v(x[i]), g.v(m[i]))
		}
	})
	each(func(i int) { g.p("VADDPS %s, %s, %s", e.shift, g.v(x[i]), g.v(z[i])) })
	each(func(i int) { g.p("VSUBPS %s, %s, %s", e.shift, g.v(z[i]), g.v(q[i])) })
	each(func(i int) { g.p("VSUBPS %s, %s, %s", g.v(q[i]), g.v(x[i]), g.v(x[i])) })
	each(func(i int) { g.p("VMOVUPS %s, %s", e.c[0], g.v(q[i])) })
	for _, c := range e.c[1:] {
		each(func(i int) { g.p("VFMADD213PS %s, %s, %s", c, g.v(x[i]), g.v(q[i])) })
	}
	each(func(i int) { g.p("VPSLLD $23, %s, %s", g.v(z[i]), g.v(z[i])) })
	each(func(i int) {
		if wide {
			g.p("VMULPS.Z %s, %s, K%d, %s", g.v(z[i]), g.v(q[i]), m[i], g.v(q[i]))
			return
		}
		g.p("VMULPS %s, %s, %s", g.v(z[i]), g.v(q[i]), g.v(q[i]))
		g.p("VANDPS %s, %s, %s", g.v(m[i]), g.v(q[i]), g.v(q[i]))
	})
}

// seq is n numbers from first on.
func seq(first, n int) []int {
	x := make([]int, n)
	for i := range x {
		x[i] = first + i
	}
	return x
}

// masks are n mask registers, or where there are none, vector registers from
// vector on. K0 says that nothing is masked.
func (g *gen) masks(vector, n int) []int {
	if g.lanes == 16 {
		return seq(1, n)
	}
	return seq(vector, n)
}

// mask is the name of one of them.
func (g *gen) mask(m int) string {
	if g.lanes == 16 {
		return fmt.Sprintf("K%d", m)
	}
	return g.v(m)
}

// hidden is the score of keys that are not seen: −Inf.
const hidden = 0xff800000

// visible makes a mask of the bits of one register's width: number c of those
// at memory base. It is mask register m, or vector register m.
func (g *gen) visible(base string, c, m int) {
	if g.lanes == 16 {
		g.p("KMOVW %d(%s), K%d", 2*c, base, m)
		return
	}
	var bits [8]uint32
	for i := range bits {
		bits[i] = 1 << (c%4*8 + i)
	}
	w := g.words("bits"+string(rune('0'+c%4)), bits[:]...)
	g.p("VPBROADCASTD %d(%s), %s", c/4*4, base, g.v(m))
	g.p("VPAND %s, %s, %s", w, g.v(m), g.v(m))
	g.p("VPCMPEQD %s, %s, %s", w, g.v(m), g.v(m))
}

// scored sets t = mem·scale, and where mask m hides it, −Inf: register hid.
func (g *gen) scored(mem string, scale, hid, m, t int) {
	if g.lanes == 16 {
		g.p("VMOVAPS %s, %s", g.v(hid), g.v(t))
		g.p("VMULPS %s, %s, K%d, %s", mem, g.v(scale), m, g.v(t))
		return
	}
	g.p("VMULPS %s, %s, %s", mem, g.v(scale), g.v(t))
	g.p("VBLENDVPS %s, %s, %s, %s", g.v(m), g.v(t), g.v(hid), g.v(t))
}

// max sets top = t > top ? t : top, which skips NaN.
func (g *gen) max(t, top int) { g.p("VMAXPS %s, %s, %s", g.v(top), g.v(t), g.v(top)) }

// negate changes the sign of a register.
func (g *gen) negate(x int) {
	g.p("VPXOR%s %s, %s, %s", g.suffixD(), g.words("sign", 1<<31), g.v(x), g.v(x))
}

// suffixD is the D that the 512-bit forms of bitwise instructions have.
func (g *gen) suffixD() string {
	if g.lanes == 16 {
		return "D"
	}
	return ""
}
