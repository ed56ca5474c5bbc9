package amd64

import "fmt"

// Products of few rows with codes, for AVX-512, which turn each code into
// float32 just before it is multiplied. A code of four bits has sixteen values,
// which fill a register: finding one is a permutation, where shifting, masking,
// converting and scaling would be four instructions. The values of a code of two
// bits or one fill it by repetition, so that the bits of the codes above, which
// the permutation takes for part of the index, do not matter.
//
// Tried before: decoding a tile to float32 and multiplying that, which writes
// and reads 64 KB a tile, more than the first-level cache has.
func (g *gen) codedProducts() {
	if g.lanes != 16 {
		return
	}
	g.turnWords()
	g.codeTables()
	g.channelProduct(true)
	g.channelProduct(false)
	g.channelRun()
	for _, words := range []int{16, 8, 4} {
		g.tokenProduct(words)
	}
	g.tokenProduct(0)
}

// turnWords transposes 32-bit words, sixteen rows of sixteen at a time. Of rows
// of fewer words the rest is zeros.
func (g *gen) turnWords() {
	g.fn("turnWords", "dst *uint32, ld int, src *uint8, stride int, n int, words int, next *uint8, later *uint8", "")
	g.load("dst", "DX", "ld", "DI", "src", "AX", "stride", "SI", "n", "R13", "words", "CX", "next", "R8", "later", "R9")
	g.p("SHLQ $2, DI")
	g.p("MOVL $-1, R12")
	g.p("CMPQ CX, $16")
	g.p("JGE whole")
	g.p("MOVL $1, R12")
	g.p("SHLL CX, R12")
	g.p("DECL R12")
	g.label("whole")
	g.p("KMOVW R12, K1")
	// A prefetch that must walk the page tables holds up those behind it.
	g.p("IMULQ R13, CX")
	g.label("page")
	g.p("PREFETCHT1 (R8)")
	g.p("PREFETCHT1 (R9)")
	g.p("ADDQ $4096, R8")
	g.p("ADDQ $4096, R9")
	g.p("SUBQ $1024, CX")
	g.p("JGT page")
	g.label("rows")
	g.p("MOVQ AX, R9")
	g.p("MOVQ DX, R10")
	g.load("words", "R12")
	g.loop("block")
	g.p("MOVQ R9, R11")
	for i := range 16 {
		g.p("VMOVUPS.Z (R11), K1, Z%d", i)
		g.p("ADDQ SI, R11")
	}
	g.turn()
	for i := range 16 {
		g.p("VMOVUPS Z%d, (R10)", g.column(i))
		g.p("ADDQ DI, R10")
	}
	g.p("ADDQ $64, R9")
	g.p("SUBQ $16, R12")
	g.p("JGT block")
	g.p("MOVQ SI, CX")
	g.p("SHLQ $4, CX")
	g.p("ADDQ CX, AX")
	g.p("ADDQ $64, DX")
	g.p("SUBQ $16, R13")
	g.p("JGT rows")
	g.end()
}

// codeTables writes what sixteen levels are under each scale and zero.
func (g *gen) codeTables() {
	g.fn("codeTables", "dst *float32, levels *float32, scale *float32, zero *float32, n int", "")
	g.load("dst", "DX", "scale", "AX", "zero", "BX", "n", "CX")
	g.load("levels", "R8")
	g.p("VMOVUPS (R8), Z31")
	g.loop("next")
	g.p("VBROADCASTSS (AX), Z0")
	g.p("VFMADD213PS.BCST (BX), Z31, Z0")
	g.p("VMOVUPS Z0, (DX)")
	g.p("ADDQ $4, AX")
	g.p("ADDQ $4, BX")
	g.p("ADDQ $64, DX")
	g.p("DECQ CX")
	g.p("JNE next")
	g.end()
}

// Registers of the products beside 16 sums.
const (
	pairX     = 16 // … 19: values of codes
	pairTable = 20 // values, or scale
	pairZero  = 21
	pairShift = 22 // … 25
	pairMask  = 26
	pairA     = 28 // … 31: elements of A
)

// multiply writes the products of n vectors of values with rows rows of A at
// register base, SI apart; R9 is three times that.
func (g *gen) multiply(base string, rows, n int) {
	place := [4]string{"(%s)", "(%s)(SI*1)", "(%s)(SI*2)", "(%s)(R9*1)"}
	for r := range rows {
		g.p("VBROADCASTSS "+place[r]+", Z%d", base, pairA+r)
		for i := range n {
			g.p("VFMADD231PS Z%d, Z%d, Z%d", pairA+r, pairX+i, r*n+i)
		}
	}
}

// channelProduct writes C = A·X for keys side by side in words that were
// turned: features in order are the codes of so many bits at the bottom of all
// words, then those above them, or the bytes of each word.
func (g *gen) channelProduct(few bool) {
	name, params := "Int8", "scale *float32, zero *float32, "
	if few {
		name, params = "Few", "table *float32, bits int, nextstep int, "
	}
	g.fn("channelProduct"+name, "c *float32, crow int, a *float32, arow int, t *uint32, trow int, "+params+"rows int, words int, keys int, next *uint8", "")
	g.load("arow", "SI", "trow", "R8", "crow", "R15", "keys", "R14")
	for _, r := range []string{"SI", "R8", "R15"} {
		g.p("SHLQ $2, %s", r)
	}
	g.p("LEAQ (SI)(SI*2), R9")
	if few {
		g.p("VPBROADCASTD %s, Z%d", g.arg("bits"), pairMask)
	} else {
		g.p("VMOVUPS %s, Z%d", g.words("byte", 255), pairMask)
	}
	for _, n := range []int{4, 1} {
		loop, done := fmt.Sprintf("keys%d", 16*n), fmt.Sprintf("keys%dend", 16*n)
		g.label(loop)
		g.p("CMPQ R14, $%d", 16*n)
		g.p("JLT %s", done)
		g.load("a", "AX", "c", "DX", "rows", "R13")
		for _, rows := range []int{4, 2, 1} {
			again, next := fmt.Sprintf("tile%dx%d", rows, n), fmt.Sprintf("tile%dx%dend", rows, n)
			g.label(again)
			g.p("CMPQ R13, $%d", rows)
			g.p("JLT %s", next)
			g.channelTile(few, rows, n)
			g.p("SUBQ $%d, R13", rows)
			g.p("JMP %s", again)
			g.label(next)
		}
		g.p("ADDQ $%d, %s", 64*n, g.arg("c"))
		g.p("ADDQ $%d, %s", 64*n, g.arg("t"))
		g.p("SUBQ $%d, R14", 16*n)
		g.p("JMP %s", loop)
		g.label(done)
	}
	g.end()
}

func (g *gen) channelTile(few bool, rows, n int) {
	for i := range rows * n {
		g.zero(i)
	}
	g.p("MOVQ AX, R12")
	g.load("next", "R10", "t", "BX", "words", "CX")
	loop := g.newLabel("word")
	if few {
		g.load("table", "R11")
		g.zero(pairShift)
		g.p("XORL DI, DI") // bits of a word that are done
		part := g.newLabel("part")
		g.label(part)
		g.load("t", "BX", "words", "CX")
		g.loop(loop)
		g.p("PREFETCHT1 (R10)")
		g.p("ADDQ %s, R10", g.arg("nextstep"))
		g.p("VMOVUPS (R11), Z%d", pairTable)
		for i := range n {
			g.p("VMOVUPS %d(BX), Z%d", 64*i, pairX+i)
			g.p("VPSRLVD Z%d, Z%d, Z%d", pairShift, pairX+i, pairX+i)
			g.p("VPERMPS Z%d, Z%d, Z%d", pairTable, pairX+i, pairX+i)
		}
		g.multiply("R12", rows, n)
		g.p("ADDQ $64, R11")
		g.p("ADDQ $4, R12")
		g.p("ADDQ R8, BX")
		g.p("DECQ CX")
		g.p("JNE %s", loop)
		g.p("VPADDD Z%d, Z%d, Z%d", pairMask, pairShift, pairShift)
		g.p("ADDQ %s, DI", g.arg("bits"))
		g.p("CMPQ DI, $32")
		g.p("JLT %s", part)
	} else {
		g.load("scale", "R11", "zero", "DI")
		g.loop(loop)
		for b := range 4 {
			g.p("PREFETCHT1 %d(R10)", 64*b)
			g.p("VBROADCASTSS %d(R11), Z%d", 4*b, pairTable)
			g.p("VBROADCASTSS %d(DI), Z%d", 4*b, pairZero)
			for i := range n {
				x := pairX + i
				switch b {
				case 0:
					g.p("VPANDD %d(BX), Z%d, Z%d", 64*i, pairMask, x)
				case 3:
					g.p("VPSRLD $24, %d(BX), Z%d", 64*i, x)
				default:
					g.p("VPSRLD $%d, %d(BX), Z%d", 8*b, 64*i, x)
					g.p("VPANDD Z%d, Z%d, Z%d", pairMask, x, x)
				}
				g.p("VCVTDQ2PS Z%d, Z%d", x, x)
				g.p("VFMADD213PS Z%d, Z%d, Z%d", pairZero, pairTable, x)
			}
			g.multiply("R12", rows, n)
			g.p("ADDQ $4, R12")
		}
		g.p("ADDQ $256, R10")
		g.p("ADDQ $16, R11")
		g.p("ADDQ $16, DI")
		g.p("ADDQ R8, BX")
		g.p("DECQ CX")
		g.p("JNE %s", loop)
	}
	for x := range rows {
		for i := range n {
			g.p("VMOVUPS Z%d, %d(DX)", x*n+i, 64*i)
		}
		g.p("ADDQ R15, DX")
	}
	g.p("LEAQ (AX)(SI*%d), AX", rows)
}

// zeroAt is how many bytes after a scale of a token its zero lies.
const zeroAt = 8192

// tokenProduct writes C += A·X for four vectors of features, cstep elements
// apart: the codes from bit shift on of sixteen words, or 64 bytes. A row of
// fewer words is repeated to fill a register, and lanes says how much higher the
// codes of each lie. The values of the group of each vector lie offset bytes
// into a row of the table; of bytes these are scale and zero.
func (g *gen) tokenProduct(words int) {
	name, lanes := "Int8", ""
	if words > 0 {
		name, lanes = fmt.Sprintf("Few%d", words), "lanes *uint32, "
	}
	g.fn("tokenProduct"+name, "c *float32, crow int, cstep int, a *float32, arow int, codes *uint8, stride int, table *float32, tablerow int, offset *int, shift *uint32, "+lanes+"rows int, n int, next *uint8, nextstep int", "")
	g.load("arow", "SI", "stride", "R8", "tablerow", "R15", "offset", "CX")
	g.p("SHLQ $2, SI")
	g.p("LEAQ (SI)(SI*2), R9")
	offsets := [4]string{"DI", "R12", "R13", "R14"}
	for i, r := range offsets {
		g.p("MOVQ %d(CX), %s", 8*i, r)
	}
	if words > 0 {
		g.load("shift", "CX", "lanes", "DX")
		for i := range 4 {
			g.p("VPBROADCASTD %d(CX), Z%d", 4*i, pairShift+i)
			g.p("VPADDD (DX), Z%d, Z%d", pairShift+i, pairShift+i)
		}
	}
	g.p("SHLQ $2, %s", g.arg("cstep"))
	g.p("SHLQ $2, %s", g.arg("crow"))
	for _, rows := range []int{4, 2, 1} {
		again, next := fmt.Sprintf("tile%d", rows), fmt.Sprintf("tile%dend", rows)
		g.label(again)
		g.p("CMPQ %s, $%d", g.arg("rows"), rows)
		g.p("JLT %s", next)
		sums := func(format string) {
			g.load("c", "DX", "cstep", "R10", "crow", "CX")
			g.p("LEAQ (R10)(R10*2), R11")
			for x := range rows {
				for i, place := range []string{"(DX)", "(DX)(R10*1)", "(DX)(R10*2)", "(DX)(R11*1)"} {
					g.p(format, place, 4*x+i)
				}
				g.p("ADDQ CX, DX")
			}
		}
		sums("VMOVUPS %s, Z%d")
		g.load("a", "AX", "codes", "BX", "table", "R11", "n", "CX", "next", "R10")
		loop := g.newLabel("key")
		g.loop(loop)
		g.p("PREFETCHT1 (R10)")
		g.p("ADDQ %s, R10", g.arg("nextstep"))
		if words > 0 {
			g.p(map[int]string{16: "VMOVUPS", 8: "VBROADCASTI64X4", 4: "VBROADCASTI32X4"}[words]+" (BX), Z%d", pairTable)
		}
		for i, at := range offsets {
			x := pairX + i
			if words > 0 {
				g.p("VPSRLVD Z%d, Z%d, Z%d", pairShift+i, pairTable, x)
				g.p("VPERMPS (R11)(%s*1), Z%d, Z%d", at, x, x)
				continue
			}
			g.p("VPMOVZXBD %d(BX), Z%d", 16*i, x)
			g.p("VBROADCASTSS (R11)(%s*1), Z%d", at, pairTable)
			g.p("VCVTDQ2PS Z%d, Z%d", x, x)
			g.p("VFMADD213PS.BCST %d(R11)(%s*1), Z%d, Z%d", zeroAt, at, pairTable, x)
		}
		g.multiply("AX", rows, 4)
		g.p("ADDQ $4, AX")
		g.p("ADDQ R8, BX")
		g.p("ADDQ R15, R11")
		g.p("DECQ CX")
		g.p("JNE %s", loop)
		sums("VMOVUPS Z%[2]d, %[1]s")
		g.p("MOVQ DX, %s", g.arg("c"))
		g.p("LEAQ (SI*%d), CX", rows)
		g.p("ADDQ CX, %s", g.arg("a"))
		g.p("SUBQ $%d, %s", rows, g.arg("rows"))
		g.p("JMP %s", again)
		g.label(next)
	}
	g.end()
}
