package amd64

import "fmt"

// Registers of fewRows beside those of codeRows.
const (
	fewLevels, fewHigh = 8, 9 // sixteen levels: in one register, or in two
	fewShift, fewStep  = 10, 11
	fewRow             = 12 // a row of few words
	fewTemp            = 13
)

// fewRows writes Channels to rows, or Tokens, for codes of four bits or less
// that stand for levels. With as many words as a register has lanes, rows have
// that many or more, and are taken a register at a time; rows of so many fewer
// are repeated to fill one, and lanes says how much higher the codes of each
// lie.
func (g *gen) fewRows(words int, tokens bool) {
	common := "dst *float32, ld int, codes *uint8, stride int, n int, width int, step int, lanes *uint32, levels *float32, "
	if tokens {
		g.fn(fmt.Sprintf("tokensFew%d", words), common+"group int, groups int, scale *uint16, scaleStride int, zero *uint16, zeroStride int", "")
	} else {
		g.fn(fmt.Sprintf("channelsFew%d", words), common+"scale *float32, zero *float32", "")
	}
	g.load("dst", "DX", "ld", "DI", "codes", "AX", "stride", "SI", "n", "R13", "levels", "CX")
	g.p("SHLQ $2, DI")
	g.p("VMOVUPS (CX), %s", g.v(fewLevels))
	if g.lanes == 8 {
		g.p("VMOVUPS 32(CX), %s", g.v(fewHigh))
	}
	g.p("VPBROADCASTD %s, %s", g.arg("step"), g.v(fewStep))
	if tokens {
		g.groupMask()
	}
	g.label("row")
	g.p("MOVQ DX, R10")
	g.load("scale", "BX", "zero", "R8", "lanes", "CX")
	g.p("VMOVUPS (CX), %s", g.v(fewShift))
	if tokens {
		g.rowGroups()
	}
	if words == g.lanes {
		g.fewWide(tokens)
	} else {
		repeat := "VBROADCASTI128"
		if g.lanes == 16 {
			repeat = map[int]string{8: "VBROADCASTI64X4", 4: "VBROADCASTI32X4"}[words]
		}
		g.p(repeat+" (AX), %s", g.v(fewRow))
		g.fewNarrow(tokens)
	}
	g.p("ADDQ SI, AX")
	g.p("ADDQ DI, DX")
	if tokens {
		g.nextGroups()
	}
	g.p("DECQ R13")
	g.p("JNE row")
	g.end()
}

// fewWide writes a row, part by part: the codes from the same bit on of all
// words.
func (g *gen) fewWide(tokens bool) {
	part, loop, filled := g.newLabel("part"), g.newLabel("vector"), g.newLabel("filled")
	g.p("XORL R14, R14") // bits of a word that are done
	g.label(part)
	g.p("MOVQ AX, R9")
	g.load("width", "CX")
	g.p("SUBQ $%d, CX", g.lanes)
	vector := func() {
		g.p("VMOVUPS (R9), %s", g.v(codeX))
		g.fewVector(codeX, tokens)
		g.p("ADDQ $%d, R9", g.bytes())
	}
	g.label(loop)
	vector()
	g.p("SUBQ $%d, CX", g.lanes)
	g.p("JGE %s", loop)
	if !tokens { // the last ones begin earlier, by what is missing
		g.p("CMPQ CX, $%d", -g.lanes)
		g.p("JEQ %s", filled)
		for _, r := range []string{"R9", "R10", "BX", "R8"} {
			g.p("LEAQ (%s)(CX*4), %s", r, r)
		}
		vector()
		g.label(filled)
	}
	g.p("VPADDD %s, %s, %s", g.v(fewStep), g.v(fewShift), g.v(fewShift))
	g.p("ADDQ %s, R14", g.arg("step"))
	g.p("CMPQ R14, $32")
	g.p("JLT %s", part)
}

// fewNarrow writes a row that is in a register: width is the number of
// registers that its values fill.
func (g *gen) fewNarrow(tokens bool) {
	loop := g.newLabel("vector")
	g.load("width", "CX")
	g.label(loop)
	g.fewVector(fewRow, tokens)
	g.p("VPADDD %s, %s, %s", g.v(fewStep), g.v(fewShift), g.v(fewShift))
	g.p("DECQ CX")
	g.p("JNE %s", loop)
}

// fewVector writes a register of values at R10: the codes of register from.
func (g *gen) fewVector(from int, tokens bool) {
	const x, scale, zero = codeX, codeScale, codeZero
	if tokens {
		g.groupStart()
	}
	g.p("VPSRLVD %s, %s, %s", g.v(fewShift), g.v(from), g.v(x))
	if g.lanes == 16 {
		g.p("VPERMPS %s, %s, %s", g.v(fewLevels), g.v(x), g.v(x))
	} else { // the index has three bits, the fourth chooses
		g.p("VPERMPS %s, %s, %s", g.v(fewLevels), g.v(x), g.v(fewTemp))
		g.p("VPERMPS %s, %s, %s", g.v(fewHigh), g.v(x), g.v(codeNibble))
		g.p("VPSLLD $28, %s, %s", g.v(x), g.v(x))
		g.p("VBLENDVPS %s, %s, %s, %s", g.v(x), g.v(codeNibble), g.v(fewTemp), g.v(x))
	}
	if tokens {
		g.p("VFMADD213PS %s, %s, %s", g.v(zero), g.v(scale), g.v(x))
		g.p("SUBQ $%d, R11", g.lanes)
	} else {
		g.p("VMOVUPS (BX), %s", g.v(scale))
		g.p("VFMADD213PS (R8), %s, %s", g.v(scale), g.v(x))
		g.p("ADDQ $%d, BX", g.bytes())
		g.p("ADDQ $%d, R8", g.bytes())
	}
	g.p("VMOVUPS %s, (R10)", g.v(x))
	g.p("ADDQ $%d, R10", g.bytes())
}
