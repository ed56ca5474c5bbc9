package bf16

// amxFile writes the AMX tier. A call loads the configuration of the tiles and
// releases them before it returns: a goroutine may go on on another thread, and
// a thread with live tiles costs every context switch 8 KB.
func amxFile(g *gen) {
	g.fn("productAMX", "a", "productArgs")
	g.amxBegin()
	g.p("MOVQ productArgs_c(AX), DI")
	g.p("MOVQ productArgs_a(AX), BX")
	g.p("MOVQ productArgs_rowTiles(AX), R14")
	g.p("SHRQ $1, R14")
	g.p("CMPQ productArgs_keep(AX), $0")
	g.p("JNE keep")
	g.amxPairs("productArgs", false)
	g.p("JMP done")
	g.label("keep")
	g.amxPairs("productArgs", true)
	g.label("done")
	g.tilerelease()
	g.end()

	g.fn("attendAMX", "a", "attendArgs")
	g.amxBegin()
	g.loop("strip")
	g.p("MOVQ attendArgs_scores(AX), DI")
	g.p("MOVQ attendArgs_key(AX), BX")
	g.p("MOVQ $%d, R14", keys/32)
	g.amxPairs("attendArgs", false)
	g.softmax()
	g.p("MOVQ attendArgs_value(AX), SI")
	g.p("MOVQ attendArgs_out(AX), DI")
	g.p("MOVQ attendArgs_weights(AX), DX")
	g.p("MOVQ attendArgs_valueTiles(AX), R14")
	g.amxValues()
	g.p("MOVQ DI, attendArgs_out(AX)")
	g.nextStrip("strip")
	g.tilerelease()
	g.end()

}

// amxBegin configures eight tiles of 16 rows of 64 bytes.
func (g *gen) amxBegin() {
	config := make([]uint64, 8)
	config[0] = 1      // palette 1; no restart row
	for i := range 8 { // bytes 16–31: bytes of a row, 16 bits each
		config[2+i/4] |= 64 << (i % 4 * 16)
	}
	config[6] = 0x1010101010101010 // bytes 48–55: rows
	g.words("config", 8, config...)
	g.p("LEAQ config<>(SB), R8")
	g.ldtilecfg("R8")
	g.p("MOVQ $64, R8")
	g.p("MOVQ $128, R9")
}

// amxPairs computes R14 pairs of row tiles by two tiles of lanes: four sums in
// tmm0–3, two tiles of A in tmm4–5, two of B in tmm6–7, one load for each
// product. It takes C in DI and A in BX, both of which it moves on; the rest is
// in struct s. Part i of A meets the parts of B before parts−i.
func (g *gen) amxPairs(s string, keep bool) {
	pair, aPart, bPart, block := g.newLabel("pair"), g.newLabel("aPart"), g.newLabel("bPart"), g.newLabel("block")
	g.p("MOVQ %s_aTile(AX), R12", s)
	g.loop(pair)
	for i := range 4 {
		if keep {
			g.tileload(i, i/2*16*128+i%2*64, "DI", "R9")
		} else {
			g.tilezero(i)
		}
	}
	g.p("MOVQ BX, R13")
	g.p("MOVQ %s_aParts(AX), R11", s)
	g.label(aPart)
	g.p("MOVQ %s_b(AX), DX", s)
	g.p("MOVQ %s_bParts(AX), CX", s)
	g.p("SUBQ %s_aParts(AX), CX", s)
	g.p("ADDQ R11, CX")
	g.label(bPart)
	g.p("MOVQ R13, SI")
	g.p("MOVQ %s_blocks(AX), R10", s)
	g.loop(block)
	g.tileload(6, 0, "DX", "R8")
	g.tileload(4, 0, "SI", "R8")
	g.tileload(7, 1024, "DX", "R8")
	g.tdp(0, 4, 6)
	g.p("ADDQ R12, SI")
	g.tdp(1, 4, 7)
	g.tileload(5, 0, "SI", "R8")
	g.p("SUBQ R12, SI")
	g.tdp(2, 5, 6)
	g.p("ADDQ $1024, SI")
	g.p("ADDQ $2048, DX")
	g.tdp(3, 5, 7)
	g.p("DECQ R10")
	g.p("JNZ %s", block)
	g.p("DECQ CX")
	g.p("JNZ %s", bPart)
	g.p("ADDQ %s_aPart(AX), R13", s)
	g.p("DECQ R11")
	g.p("JNZ %s", aPart)
	for i := range 4 {
		g.tilestore(i, i/2*16*128+i%2*64, "DI", "R9")
	}
	g.p("ADDQ $%d, DI", 2*16*128)
	g.p("LEAQ (BX)(R12*2), BX")
	g.p("DECQ R14")
	g.p("JNZ %s", pair)
}

// amxValues adds values times weights to R14 row tiles of DI. The weights, at
// DX, are four tiles and stay in tmm4–7.
func (g *gen) amxValues() {
	loop := g.newLabel("values")
	for i := range 4 {
		g.tileload(4+i, 1024*i, "DX", "R8")
	}
	g.loop(loop)
	g.valueTile("DI")
	g.p("DECQ R14")
	g.p("JNZ %s", loop)
}

// valueTile adds values at SI times tmm4–7 to a row tile of out.
func (g *gen) valueTile(out string) {
	g.tileload(2, 0, "SI", "R8")
	g.tileload(0, 0, out, "R9")
	g.tileload(1, 64, out, "R9")
	g.tdp(0, 2, 4)
	g.tdp(1, 2, 5)
	g.tileload(3, 1024, "SI", "R8")
	g.p("ADDQ $2048, SI")
	g.tdp(0, 3, 6)
	g.tdp(1, 3, 7)
	g.tilestore(0, 0, out, "R9")
	g.tilestore(1, 64, out, "R9")
	g.p("ADDQ $%d, %s", 16*128, out)
}

// nextStrip moves the pointers of attendArgs on, and goes back while there are
// strips.
func (g *gen) nextStrip(loop string) {
	g.p("MOVQ attendArgs_queryStep(AX), CX")
	g.p("ADDQ CX, attendArgs_b(AX)")
	for _, f := range []string{"scale", "m", "l"} {
		g.p("ADDQ $%d, attendArgs_%s(AX)", 4*lanes, f)
	}
	g.p("MOVQ attendArgs_visibleStep(AX), CX")
	g.p("ADDQ CX, attendArgs_visible(AX)")
	g.p("DECQ attendArgs_strips(AX)")
	g.p("JNZ %s", loop)
}
