package amd64

import "math"

// What a decayGroup of package vec has, in bytes: where the boundaries of its two
// halves are, masks of queries for 64-bit and 32-bit lanes, and the same in bits.
const (
	groupBase   = 0
	groupWide   = 16
	groupNarrow = 80
	groupBits   = 112
	groupSize   = 120

	rolesGroups = 64 // groups follow indices of boundaries
)

// decays writes Decays, a register of tokens after another: two halves of
// differences in binary64, their exponentials, the product. A mask says which
// tokens are queries.
//
// Predicted for AVX-512 some 34 instructions a register, 12 cycles.
func (g *gen) decays() {
	g.fn("decays", "w *float32, e *float32, q *float32, k *float32, sums *float64, rows int, groups int, shift int, roles *decayRoles", "")
	g.load("w", "DI", "e", "SI", "q", "AX", "k", "BX", "sums", "CX", "rows", "DX", "groups", "R8", "shift", "R9", "roles", "R10")
	wide := g.lanes == 16
	const x, mid, t, y, f, q, z, m, index = 0, 1, 2, 3, 4, 6, 7, 8, 9 // f and f+1 are halves
	e := g.expConsts(24)
	g.p("SHLQ $3, R9")
	g.p("NEGQ R9")
	g.p("VMOVUPS (R10), %s", g.v(index))
	g.p("ADDQ $%d, R10", rolesGroups)
	g.loop("row")
	g.p("MOVQ R8, R11")
	g.p("MOVQ R10, R13")
	g.p("XORQ R12, R12")
	g.loop("group")
	g.p("LEAQ 8(CX)(R12*2), R14")
	if wide {
		g.p("KMOVW %d(R13), K1", groupBits)
	}
	for half := range 2 {
		at := half * g.bytes()
		g.p("MOVQ %d(R13), R15", groupBase+8*half)
		g.p("VMOVUPD %d(R14), %s", at, g.v(x))
		if wide {
			if half == 1 {
				g.p("KSHIFTRW $8, K1, K3")
			}
			role := []string{"K1", "K3"}[half]
			g.p("VMOVUPD %d(R14)(R9*1), %s, %s", at, role, g.v(x))
			g.p("VPERMPD (CX)(R15*1), %s, %s", g.v(index), g.v(mid))
			g.p("VSUBPD %s, %s, %s", g.v(x), g.v(mid), g.v(t))
			g.p("VSUBPD %s, %s, %s, %s", g.v(mid), g.v(x), role, g.v(t))
			g.p("VCVTPD2PS %s, Y%d", g.v(t), f+half)
			continue
		}
		g.p("VMOVUPD %d(R13), %s", groupWide+32*half, g.v(m))
		g.p("VMOVUPD %d(R14)(R9*1), %s", at, g.v(y))
		g.p("VBLENDVPD %s, %s, %s, %s", g.v(m), g.v(y), g.v(x), g.v(x))
		g.p("VPERMPS (CX)(R15*1), %s, %s", g.v(index), g.v(mid))
		g.p("VSUBPD %s, %s, %s", g.v(x), g.v(mid), g.v(t))
		g.p("VSUBPD %s, %s, %s", g.v(mid), g.v(x), g.v(y))
		g.p("VBLENDVPD %s, %s, %s, %s", g.v(m), g.v(y), g.v(t), g.v(t))
		g.p("VCVTPD2PSY %s, X%d", g.v(t), f+half)
	}
	if wide {
		g.p("VINSERTF64X4 $1, Y%d, Z%d, %s", f+1, f, g.v(f))
		g.exp2(e, []int{f}, []int{q}, []int{z}, []int{2}, false)
	} else {
		g.p("VINSERTF128 $1, X%d, Y%d, %s", f+1, f, g.v(f))
		g.exp2(e, []int{f}, []int{q}, []int{z}, []int{m}, false)
	}
	g.p("VMOVUPS (BX)(R12*1), %s", g.v(x))
	if wide {
		g.p("VMOVUPS (AX)(R12*1), K1, %s", g.v(x))
	} else {
		g.p("VMOVUPS %d(R13), %s", groupNarrow, g.v(m))
		g.p("VMOVUPS (AX)(R12*1), %s", g.v(y))
		g.p("VBLENDVPS %s, %s, %s, %s", g.v(m), g.v(y), g.v(x), g.v(x))
	}
	g.p("VMULPS %s, %s, %s", g.v(q), g.v(x), g.v(x))
	g.p("VMOVUPS %s, (SI)(R12*1)", g.v(q))
	g.p("VMOVUPS %s, (DI)(R12*1)", g.v(x))
	g.p("ADDQ $%d, R12", g.bytes())
	g.p("ADDQ $%d, R13", groupSize)
	g.p("DECQ R11")
	g.p("JNE group")
	for _, r := range []string{"DI", "SI", "AX", "BX"} {
		g.p("ADDQ $%d, %s", 4*tileKeys, r)
	}
	g.p("ADDQ $%d, CX", 8*(tileKeys+1))
	g.p("DECQ DX")
	g.p("JNE row")
	g.end()
}

// gates writes the rows that a scan makes of gates, and of factors.
func (g *gen) gates() {
	g.fn("limitGates", "x *float32, n int", "")
	g.load("x", "AX", "n", "CX")
	g.p("VMOVUPS %s, %s", g.words("log2e", math.Float32bits(math.Log2E)), g.v(8))
	g.p("VMOVUPS %s, %s", g.words("gateFloor", math.Float32bits(-128)), g.v(9))
	g.zero(10)
	g.elements(1, func(_ int, m memory) {
		m.load("AX", 0, 0)
		g.p("VMULPS %s, %s, %s", g.v(8), g.v(0), g.v(0))
		g.p("VMAXPS %s, %s, %s", g.v(0), g.v(9), g.v(0)) // of NaN and of zeros the second
		g.p("VMINPS %s, %s, %s", g.v(0), g.v(10), g.v(0))
		m.store("AX", 0, 0)
	})
	g.end()

	g.fn("multiply", "y *float32, a *float32, b *float32, n int", "")
	g.load("y", "AX", "a", "BX", "b", "DX", "n", "CX")
	g.elements(2, func(n int, m memory) {
		for i := range n {
			m.load("BX", i, i)
			m.load("DX", i, 2+i)
			g.p("VMULPS %s, %s, %s", g.v(2+i), g.v(i), g.v(i))
			m.store("AX", i, i)
		}
	})
	g.end()
}
