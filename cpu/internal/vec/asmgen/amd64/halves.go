package amd64

// columnPairs writes Columns of a 16-bit type with 32 features a block, for
// AVX-512: half as many shuffles an element as by turning what is widened.
// BF16 pairs are turned as words of 32 bits, and each half of a word is a
// float32 but for zeros. F16 needs its elements side by side again.
func (g *gen) columnPairs(s source) {
	g.fn("columnPairs"+s.name, loadParams, "")
	g.loadArgs(s)
	const n, features = 16, 32
	g.label("rows")
	g.rowMask()
	g.p("MOVQ AX, R9")
	g.p("MOVQ DX, R10")
	g.load("dim", "R12")
	g.loop("block")
	g.p("MOVQ R9, R11")
	for i := range n {
		g.p("VMOVUPS (R11), %s", g.v(i))
		g.p("PREFETCHT1 (R11)(R8*1)")
		if i < n-1 {
			g.p("CMPQ R13, $%d", i+1)
			g.p("JEQ loaded")
			g.p("ADDQ SI, R11")
		}
	}
	g.label("loaded")
	if s.name == "BF16" {
		g.turn()
		g.p("VMOVUPS %s, %s", g.words("upper", 0xffff0000), g.v(31))
		for i := range n {
			g.p("VPSLLD $16, %s, %s", g.v(i), g.v(16))
			g.p("VMOVUPS %s, K7, (R10)", g.v(16))
			g.p("VPANDD %s, %s, %s", g.v(31), g.v(i), g.v(17))
			g.p("VMOVUPS %s, K7, (R10)(DI*1)", g.v(17))
			g.p("LEAQ (R10)(DI*2), R10")
		}
	} else {
		g.turnHalves()
		g.storeHalves()
	}
	g.p("ADDQ $64, R9")
	g.p("SUBQ $%d, R12", features)
	g.p("JLE next")
	g.p("CMPQ R12, $%d", features)
	g.p("JGE block")
	g.p("SUBQ $%d, R12", features) // begin earlier, by −R12
	g.p("LEAQ (R9)(R12*2), R9")
	g.p("IMULQ DI, R12")
	g.p("ADDQ R12, R10")
	g.p("MOVQ $%d, R12", features)
	g.p("JMP block")
	g.label("next")
	g.nextRows("rows")
	g.end()
}

// turn16 writes Turn16, for rows in whole registers of float32 and features in
// whole registers of 16 bits.
func (g *gen) turn16() {
	g.fn("turn16", "dst *uint16, ld int, src *uint16, stride int, n int, dim int, ahead int, next *uint16, later *uint16", "")
	g.load("dst", "DX", "ld", "DI", "src", "AX", "stride", "SI", "n", "R13", "ahead", "R8", "next", "R14", "later", "R11", "dim", "CX")
	for _, r := range []string{"DI", "SI", "R8"} {
		g.p("SHLQ $1, %s", r)
	}
	// A prefetch that must walk the page tables holds up those behind it.
	g.p("MOVQ CX, BX")
	g.p("SHRQ $1, BX")
	g.p("TESTQ R14, R14")
	g.p("JEQ rows")
	g.p("IMULQ R13, CX")
	g.p("MOVQ R14, R9")
	g.label("page")
	g.p("PREFETCHT1 (R9)")
	g.p("PREFETCHT1 (R11)")
	g.p("ADDQ $4096, R9")
	g.p("ADDQ $4096, R11")
	g.p("SUBQ $2048, CX")
	g.p("JGT page")
	n := g.lanes // rows of a block; it has twice as many features
	g.label("rows")
	g.p("MOVQ AX, R9")
	g.p("MOVQ DX, R10")
	g.load("dim", "R12")
	g.loop("block")
	// a line of next for each row of the first half of the features
	g.p("MOVQ $%d, R15", 4*n)
	g.p("XORQ CX, CX")
	g.p("CMPQ R12, BX")
	g.p("CMOVQLE CX, R15")
	g.p("LEAQ (R9)(R8*1), CX")
	g.p("CMPQ %s, $0", g.arg("next"))
	g.p("CMOVQEQ CX, R14")
	g.p("CMOVQEQ SI, R15")
	g.p("MOVQ R9, R11")
	for i := range n {
		g.p("VMOVUPS (R11), %s", g.v(i))
		g.p("PREFETCHT1 (R14)")
		g.p("ADDQ SI, R11")
		g.p("ADDQ R15, R14")
	}
	g.p("LEAQ (R10)(DI*8), CX")
	if n == 16 {
		g.turnHalves()
		for part := range 2 {
			for q := range 8 {
				g.p("VMOVUPS Y%d, (R10)", 8*part+q)
				g.p("VEXTRACTI64X4 $1, Z%d, (CX)", 8*part+q)
				g.p("ADDQ DI, R10")
				g.p("ADDQ DI, CX")
			}
			g.p("MOVQ CX, R10")
			g.p("LEAQ (R10)(DI*8), CX")
		}
	} else {
		g.turnEights()
		for _, q := range halfOrder { // a permutation that is its own inverse
			g.p("VMOVUPS X%d, (R10)", 8+q)
			g.p("VEXTRACTI128 $1, Y%d, (CX)", 8+q)
			g.p("ADDQ DI, R10")
			g.p("ADDQ DI, CX")
		}
		g.p("MOVQ CX, R10")
	}
	g.p("ADDQ $%d, R9", 4*n)
	g.p("SUBQ $%d, R12", 2*n)
	g.p("JGT block")
	g.p("MOVQ SI, CX")
	g.p("SHLQ $%d, CX", map[int]int{16: 4, 8: 3}[n])
	g.p("ADDQ CX, AX")
	g.p("ADDQ $%d, DX", 2*n)
	g.p("SUBQ $%d, R13", n)
	g.p("JGT rows")
	g.end()
}

// turnEights brings eights of rows of 16-bit elements together, within the
// quarters (or halves) of registers: it takes pairs, fours and eights of
// registers 0 … lanes−1 to lanes … 2·lanes−1. Register lanes + 8·k + i has rows
// 8·k … 8·k+7 of columns halfOrder[i], that plus 8, and so on.
func (g *gen) turnEights() {
	n := g.lanes
	for _, level := range []struct {
		lo, hi   string
		distance int
		from, to int
	}{{"VPUNPCKLWD", "VPUNPCKHWD", 1, 0, n}, {"VPUNPCKLDQ", "VPUNPCKHDQ", 2, n, 0}, {"VPUNPCKLQDQ", "VPUNPCKHQDQ", 4, 0, n}} {
		d := level.distance
		for i := range n {
			if i&d != 0 {
				continue
			}
			a, b := g.v(level.from+i), g.v(level.from+i+d)
			g.p("%s %s, %s, %s", level.lo, b, a, g.v(level.to+i))
			g.p("%s %s, %s, %s", level.hi, b, a, g.v(level.to+i+d))
		}
	}
}

// turnHalves transposes 16 rows of 32 elements of 16 bits in registers 0 … 15:
// register q then has columns q and q + 8, and register 8 + q columns q + 16
// and q + 24.
func (g *gen) turnHalves() {
	g.turnEights()
	g.p("VMOVUPS %s, %s", g.words("quarters01", 0, 0, 1, 0, 8, 0, 9, 0, 2, 0, 3, 0, 10, 0, 11, 0), g.v(0))
	g.p("VMOVUPS %s, %s", g.words("quarters23", 4, 0, 5, 0, 12, 0, 13, 0, 6, 0, 7, 0, 14, 0, 15, 0), g.v(8))
	for i, q := range halfOrder {
		if q != 0 {
			g.p("VMOVAPS %s, %s", g.v(0), g.v(q))
			g.p("VMOVAPS %s, %s", g.v(8), g.v(8+q))
			g.p("VPERMI2Q %s, %s, %s", g.v(24+i), g.v(16+i), g.v(q))
			g.p("VPERMI2Q %s, %s, %s", g.v(24+i), g.v(16+i), g.v(8+q))
		}
	}
	g.p("VPERMI2Q %s, %s, %s", g.v(24), g.v(16), g.v(0))
	g.p("VPERMI2Q %s, %s, %s", g.v(24), g.v(16), g.v(8))
}

// halfOrder is the column, modulo 8, of each register after three levels: a
// level leaves the low half of its elements where they are and puts the high
// half at its distance, so that the bits of the number come in reverse.
var halfOrder = [8]int{0, 4, 2, 6, 1, 5, 3, 7}

// storeHalves widens the turned columns and stores them at R10, which moves
// on. Widening from memory takes one instruction where the upper half of a
// register takes three: rows that are stored whole serve as that memory.
func (g *gen) storeHalves() {
	g.p("LEAQ (R10)(DI*8), CX")
	g.p("CMPQ R13, $16")
	g.p("JLT few")
	for part := range 2 {
		g.p("MOVQ R10, R11")
		for q := range 8 {
			g.p("VMOVUPS %s, (R11)", g.v(8*part+q))
			g.p("ADDQ DI, R11")
		}
		for range 8 {
			g.p("VCVTPH2PS 32(R10), Z17")
			g.p("VCVTPH2PS (R10), Z16")
			g.p("VMOVUPS Z17, (CX)")
			g.p("VMOVUPS Z16, (R10)")
			g.p("ADDQ DI, CX")
			g.p("ADDQ DI, R10")
		}
		g.p("MOVQ CX, R10")
		g.p("LEAQ (R10)(DI*8), CX")
	}
	g.p("JMP stored")
	g.label("few")
	for part := range 2 {
		for q := range 8 {
			x := 8*part + q
			g.p("VEXTRACTI64X4 $1, Z%d, Y17", x)
			g.p("VCVTPH2PS Y%d, Z16", x)
			g.p("VCVTPH2PS Y17, Z17")
			g.p("VMOVUPS Z16, K7, (R10)")
			g.p("VMOVUPS Z17, K7, (CX)")
			g.p("ADDQ DI, CX")
			g.p("ADDQ DI, R10")
		}
		g.p("MOVQ CX, R10")
		g.p("LEAQ (R10)(DI*8), CX")
	}
	g.label("stored")
}
