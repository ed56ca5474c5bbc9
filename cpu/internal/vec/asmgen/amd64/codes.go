package amd64

// code is a kind of codes: INT8 has a byte for each feature; INT4 has 32-bit
// words, and nibble k of word w is feature k·words + w.
type code struct {
	name  string
	int4  bool
	bytes int // of what fills a register
}

func (g *gen) codes() []code {
	return []code{{"Int8", false, g.lanes}, {"Int4", true, g.bytes()}}
}

// decode writes the functions for coded pages.
func (g *gen) decode() {
	for _, c := range g.codes() {
		g.codeRows(c, false)
		g.codeRows(c, true)
		g.codeColumns(c)
	}
	for words := g.lanes; words >= 4; words /= 2 {
		g.fewRows(words, false)
		g.fewRows(words, true)
	}
	g.narrow()
}

// codeRows writes Channels to rows, or Tokens. The scales and zeros of
// channels are float32, one for each feature, those of tokens F16, one for
// each group, which is a multiple of a register.
func (g *gen) codeRows(c code, tokens bool) {
	if tokens {
		g.fn("tokens"+c.name, "dst *float32, ld int, codes *uint8, stride int, n int, width int, group int, groups int, scale *uint16, scaleStride int, zero *uint16, zeroStride int", "")
	} else {
		g.fn("channels"+c.name, "dst *float32, ld int, codes *uint8, stride int, n int, width int, scale *float32, zero *float32", "")
	}
	g.load("dst", "DX", "ld", "DI", "codes", "AX", "stride", "SI", "n", "R13")
	g.p("SHLQ $2, DI")
	if c.int4 {
		g.p("VMOVUPS %s, %s", g.words("nibble", 15), g.v(codeNibble))
	}
	if tokens {
		g.groupMask()
	}
	g.label("row")
	g.p("MOVQ DX, R10")
	g.load("scale", "BX", "zero", "R8")
	if tokens {
		g.rowGroups()
	}
	parts := 1
	if c.int4 {
		parts = 8
	}
	for k := range parts {
		g.codePart(c, k, tokens)
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

// Registers of codeRows. With 32 of them the scales of a row are widened
// together, and codeGroup says which is next.
const (
	codeX, codeScale, codeZero, codeNibble    = 0, 1, 2, 3
	codeScales, codeZeros, codeGroup, codeOne = 4, 5, 6, 7
)

// codePart writes nibble k of a row of INT4, or a row of INT8.
func (g *gen) codePart(c code, k int, tokens bool) {
	const x, scale, zero = codeX, codeScale, codeZero
	vector := func() {
		if tokens {
			g.groupStart()
		}
		switch {
		case !c.int4:
			g.p("VPMOVZXBD (R9), %s", g.v(x))
		case k == 0:
			g.p("VPAND%s (R9), %s, %s", g.suffixD(), g.v(codeNibble), g.v(x))
		default:
			g.p("VMOVUPS (R9), %s", g.v(x))
			g.p("VPSRLD $%d, %s, %s", 4*k, g.v(x), g.v(x))
			if k < 7 {
				g.p("VPAND%s %s, %s, %s", g.suffixD(), g.v(codeNibble), g.v(x), g.v(x))
			}
		}
		g.p("VCVTDQ2PS %s, %s", g.v(x), g.v(x))
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
		g.p("ADDQ $%d, R9", c.bytes)
		g.p("ADDQ $%d, R10", g.bytes())
	}
	loop, filled := g.newLabel("vector"), g.newLabel("filled")
	g.p("MOVQ AX, R9")
	g.load("width", "CX")
	g.p("SUBQ $%d, CX", g.lanes)
	g.label(loop)
	vector()
	g.p("SUBQ $%d, CX", g.lanes)
	g.p("JGE %s", loop)
	if !tokens { // the last ones begin earlier, by what is missing
		g.p("CMPQ CX, $%d", -g.lanes)
		g.p("JEQ %s", filled)
		g.p("LEAQ (R9)(CX*%d), R9", c.bytes/g.lanes)
		for _, r := range []string{"R10", "BX", "R8"} {
			g.p("LEAQ (%s)(CX*4), %s", r, r)
		}
		vector()
		g.label(filled)
	}
}

// groupMask prepares for rowGroups.
func (g *gen) groupMask() {
	if g.lanes < 16 {
		return
	}
	g.load("groups", "CX")
	g.p("MOVL $1, R15")
	g.p("SHLL CX, R15")
	g.p("DECL R15")
	g.p("KMOVW R15, K6")
	g.p("VMOVUPS %s, %s", g.words("oneBit", 1), g.v(codeOne))
}

// rowGroups begins the groups of a row, whose scales and zeros are at BX and R8.
func (g *gen) rowGroups() {
	g.p("XORQ R11, R11") // features left of the group
	if g.lanes == 16 {
		g.p("VCVTPH2PS.Z (BX), K6, %s", g.v(codeScales))
		g.p("VCVTPH2PS.Z (R8), K6, %s", g.v(codeZeros))
		g.zero(codeGroup)
	}
}

// nextGroups goes on to the scales and zeros of the next row.
func (g *gen) nextGroups() {
	for _, s := range []string{"scale", "zero"} {
		g.load(s+"Stride", "CX")
		g.p("SHLQ $1, CX")
		g.p("ADDQ CX, %s", g.arg(s))
	}
}

// groupStart loads the scale and zero of the next group where one begins.
func (g *gen) groupStart() {
	same := g.newLabel("same")
	g.p("TESTQ R11, R11")
	g.p("JNE %s", same)
	if g.lanes == 16 {
		g.p("VPERMPS %s, %s, %s", g.v(codeScales), g.v(codeGroup), g.v(codeScale))
		g.p("VPERMPS %s, %s, %s", g.v(codeZeros), g.v(codeGroup), g.v(codeZero))
		g.p("VPADDD %s, %s, %s", g.v(codeOne), g.v(codeGroup), g.v(codeGroup))
	} else {
		for _, x := range []struct {
			base string
			to   int
		}{{"BX", codeScale}, {"R8", codeZero}} {
			g.p("MOVWLZX (%s), R12", x.base)
			g.p("VMOVD R12, X%d", x.to)
			g.p("VCVTPH2PS X%d, X%d", x.to, x.to)
			g.p("VBROADCASTSS X%d, %s", x.to, g.v(x.to))
			g.p("ADDQ $2, %s", x.base)
		}
	}
	g.load("group", "R11")
	g.label(same)
}

// codeColumns writes Channels to columns. Words of 32 bits are turned whole and
// taken apart after, so that the four or eight features in them share one
// transposition.
func (g *gen) codeColumns(c code) {
	g.fn("channelColumns"+c.name, "dst *float32, ld int, codes *uint8, stride int, n int, width int, scale *float32, zero *float32", "")
	g.load("dst", "DX", "ld", "DI", "codes", "AX", "stride", "SI", "n", "R13")
	g.p("SHLQ $2, DI")
	n, mask := g.lanes, 31
	if n == 8 {
		mask = 4
	}
	g.label("rows")
	g.rowMask()
	g.p("MOVQ AX, R9")
	g.p("MOVQ DX, R10")
	g.load("width", "R12", "scale", "BX", "zero", "R8")
	g.loop("block")
	g.p("MOVQ R9, R11")
	for i := range n {
		g.p("VMOVUPS (R11), %s", g.v(i))
		if i < n-1 {
			g.p("CMPQ R13, $%d", i+1)
			g.p("JEQ loaded")
			g.p("ADDQ SI, R11")
		}
	}
	g.label("loaded")
	g.turn()
	per := n // codes of a register, counted as width counts them
	if c.int4 {
		g.p("VMOVUPS %s, %s", g.words("nibble", 15), g.v(mask))
		g.int4Columns(mask)
	} else {
		per = 4 * n
		g.p("VMOVUPS %s, %s", g.words("byte", 255), g.v(mask))
		var parts []part
		for k := range per {
			parts = append(parts, part{k / 4, k % 4 * 8, 8})
		}
		g.codeColumn(parts, mask)
	}
	for _, r := range []string{"BX", "R8"} {
		g.p("ADDQ $%d, %s", 4*per, r)
	}
	g.p("ADDQ $%d, R9", g.bytes())
	g.p("SUBQ $%d, R12", per)
	g.p("JLE next")
	g.p("CMPQ R12, $%d", per)
	g.p("JGE block")
	g.p("SUBQ $%d, R12", per) // begin earlier, by −R12
	g.p("LEAQ (R9)(R12*%d), R9", g.bytes()/per)
	g.p("LEAQ (BX)(R12*4), BX")
	g.p("LEAQ (R8)(R12*4), R8")
	g.p("IMULQ DI, R12")
	g.p("ADDQ R12, R10")
	g.p("MOVQ $%d, R12", per)
	g.p("JMP block")
	g.label("next")
	g.nextRows("rows")
	g.end()
}

// int4Columns stores the eight features of each word, which lie as many
// features apart as there are words.
func (g *gen) int4Columns(mask int) {
	g.p("MOVQ R10, R14")
	for k := range 8 {
		var parts []part
		for i := range g.lanes {
			parts = append(parts, part{i, 4 * k, 4})
		}
		g.codeColumn(parts, mask)
		if k == 7 {
			break
		}
		g.load("width", "CX")
		g.p("LEAQ (BX)(CX*4), BX")
		g.p("LEAQ (R8)(CX*4), R8")
		g.p("IMULQ DI, CX")
		g.p("ADDQ CX, R14")
		g.p("MOVQ R14, R10")
	}
	// back to the first of the eight
	g.load("width", "CX")
	g.p("IMULQ $7, CX")
	g.p("MOVQ CX, R11")
	g.p("SHLQ $2, R11")
	g.p("SUBQ R11, BX")
	g.p("SUBQ R11, R8")
	g.p("IMULQ DI, CX")
	g.p("SUBQ CX, R10")
}

// part is some bits of the words of a turned column.
type part struct{ column, shift, bits int }

// codeColumn makes parts of the turned codes float32 and stores them at R10,
// DI apart. Register mask has that many ones.
func (g *gen) codeColumn(parts []part, mask int) {
	x, scale := 16, 17
	if g.lanes == 8 {
		x, scale = 1, 2
	}
	widen := func(i int, p part) {
		from := g.column(p.column)
		if p.shift > 0 {
			g.p("VPSRLD $%d, %s, %s", p.shift, g.v(from), g.v(x))
			from = x
		}
		if p.shift+p.bits < 32 {
			g.p("VPAND%s %s, %s, %s", g.suffixD(), g.v(mask), g.v(from), g.v(x))
		}
		g.p("VCVTDQ2PS %s, %s", g.v(x), g.v(x))
		g.p("VBROADCASTSS %d(BX), %s", 4*i, g.v(scale))
		if g.lanes == 16 {
			g.p("VFMADD213PS.BCST %d(R8), %s, %s", 4*i, g.v(scale), g.v(x))
		} else {
			g.p("VBROADCASTSS %d(R8), %s", 4*i, g.v(scale+1))
			g.p("VFMADD213PS %s, %s, %s", g.v(scale+1), g.v(scale), g.v(x))
		}
	}
	if g.lanes == 16 {
		for i, p := range parts {
			widen(i, p)
			g.p("VMOVUPS %s, K7, (R10)", g.v(x))
			g.p("ADDQ DI, R10")
		}
		return
	}
	all, done := g.newLabel("all"), g.newLabel("stored")
	g.p("CMPQ R13, $8")
	g.p("JGE %s", all)
	g.p("VMOVUPS (R15), Y0")
	for i, p := range parts {
		widen(i, p)
		g.p("VMASKMOVPS %s, Y0, (R10)", g.v(x))
		g.p("ADDQ DI, R10")
	}
	g.p("JMP %s", done)
	g.label(all)
	for i, p := range parts {
		widen(i, p)
		g.p("VMOVUPS %s, (R10)", g.v(x))
		g.p("ADDQ DI, R10")
	}
	g.label(done)
}

// narrow writes Narrow16 of a register at least; the last elements begin
// earlier.
func (g *gen) narrow() {
	const x, t, bit, nan = 0, 1, 2, 3
	d := g.suffixD()
	for _, name := range []string{"F16", "BF16"} {
		g.fn("narrow"+name, "dst *uint16, src *float32, n int", "")
		g.load("dst", "DX", "src", "AX", "n", "CX")
		vector := func() {
			g.p("VMOVUPS (AX), %s", g.v(x))
			if name == "F16" {
				g.p("VCVTPS2PH $0, %s, (DX)", g.v(x))
				return
			}
			g.p("VPSRLD $16, %s, %s", g.v(x), g.v(t))
			g.p("VPAND%s %s, %s, %s", d, g.words("oneBit", 1), g.v(t), g.v(bit))
			g.p("VPADDD %s, %s, %s", g.words("almostHalf", 0x7fff), g.v(bit), g.v(bit))
			g.p("VPADDD %s, %s, %s", g.v(bit), g.v(x), g.v(bit))
			g.p("VPSRLD $16, %s, %s", g.v(bit), g.v(bit))
			g.p("VPOR%s %s, %s, %s", d, g.words("quiet", 0x40), g.v(t), g.v(t))
			if g.lanes == 16 {
				g.p("VCMPPS $3, %s, %s, K1", g.v(x), g.v(x))
				g.p("VMOVAPS %s, K1, %s", g.v(t), g.v(bit))
				g.p("VPMOVDW %s, (DX)", g.v(bit))
				return
			}
			g.p("VCMPPS $3, %s, %s, %s", g.v(x), g.v(x), g.v(nan))
			g.p("VBLENDVPS %s, %s, %s, %s", g.v(nan), g.v(t), g.v(bit), g.v(bit))
			g.p("VPACKUSDW %s, %s, %s", g.v(bit), g.v(bit), g.v(bit))
			g.p("VPERMQ $8, %s, %s", g.v(bit), g.v(bit))
			g.p("VMOVUPS X%d, (DX)", bit)
		}
		g.p("SUBQ $%d, CX", g.lanes)
		g.loop("vector")
		vector()
		g.p("ADDQ $%d, AX", g.bytes())
		g.p("ADDQ $%d, DX", g.bytes()/2)
		g.p("SUBQ $%d, CX", g.lanes)
		g.p("JGE vector")
		g.p("CMPQ CX, $%d", -g.lanes)
		g.p("JEQ done")
		g.p("LEAQ (AX)(CX*4), AX")
		g.p("LEAQ (DX)(CX*2), DX")
		vector()
		g.label("done")
		g.end()
	}
}
