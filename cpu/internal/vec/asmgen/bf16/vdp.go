package bf16

// vdpFile writes the AVX-512 tier: 8 rows by 32 lanes of sums in Z0–15, pairs
// of A broadcast from memory.
func vdpFile(g *gen) {
	g.fn("productVDP", "a", "productArgs")
	g.p("MOVQ productArgs_c(AX), DI")
	g.p("MOVQ productArgs_a(AX), BX")
	g.p("MOVQ productArgs_rowTiles(AX), R14")
	g.p("CMPQ productArgs_keep(AX), $0")
	g.p("JNE keep")
	g.vdpTiles("productArgs", false)
	g.end()
	g.label("keep")
	g.vdpTiles("productArgs", true)
	g.end()

	g.fn("attendVDP", "a", "attendArgs")
	g.loop("strip")
	g.p("MOVQ attendArgs_scores(AX), DI")
	g.p("MOVQ attendArgs_key(AX), BX")
	g.p("MOVQ $%d, R14", keys/16)
	g.vdpTiles("attendArgs", false)
	g.softmax()
	g.vdpValues()
	g.nextStrip("strip")
	g.end()
}

// vdpTiles computes R14 row tiles by 32 lanes, with the loops of amxPairs.
func (g *gen) vdpTiles(s string, keep bool) {
	half, aPart, bPart := g.newLabel("half"), g.newLabel("aPart"), g.newLabel("bPart")
	g.p("ADDQ R14, R14")
	g.p("MOVQ $512, R9") // to the other half of the row tile
	g.p("MOVQ %s_aTile(AX), R12", s)
	g.p("SUBQ R9, R12")
	g.loop(half)
	g.vdpSums(keep)
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
	g.vdpBlocks()
	g.p("DECQ CX")
	g.p("JNZ %s", bPart)
	g.p("ADDQ %s_aPart(AX), R13", s)
	g.p("DECQ R11")
	g.p("JNZ %s", aPart)
	g.vdpStore()
	g.p("ADDQ R9, BX")
	g.p("XCHGQ R9, R12")
	g.p("DECQ R14")
	g.p("JNZ %s", half)
}

func (g *gen) vdpSums(keep bool) {
	for i := range 16 {
		if keep {
			g.p("VMOVUPS %d(DI), Z%d", 64*i, i)
		} else {
			g.p("VPXORD Z%d, Z%d, Z%d", i, i, i)
		}
	}
}

func (g *gen) vdpStore() {
	for i := range 16 {
		g.p("VMOVUPS Z%d, %d(DI)", i, 64*i)
	}
	g.p("ADDQ $%d, DI", 16*64)
}

// vdpBlocks adds R10 blocks of 32 to the sums, from SI and DX.
func (g *gen) vdpBlocks() {
	block, four := g.newLabel("block"), g.newLabel("four")
	g.label(block)
	g.p("MOVQ $4, R8")
	g.loop(four)
	for pair := range 4 {
		z := 16 + pair%2*2
		for h := range 2 {
			g.p("VMOVDQU64 %d(DX), Z%d", pair*64+h*1024, z+h)
		}
		for i := range 16 {
			g.dpBroadcast(i, z+i%2, i/2*64+pair*4, "SI")
		}
	}
	g.p("ADDQ $16, SI")
	g.p("ADDQ $256, DX")
	g.p("DECQ R8")
	g.p("JNZ %s", four)
	g.p("ADDQ $%d, SI", 1024-4*16)
	g.p("ADDQ $%d, DX", 2048-4*256)
	g.p("DECQ R10")
	g.p("JNZ %s", block)
}

// vdpValues adds values times weights to the outputs of a strip.
func (g *gen) vdpValues() {
	loop := g.newLabel("values")
	g.p("MOVQ attendArgs_value(AX), BX")
	g.p("MOVQ attendArgs_out(AX), DI")
	g.p("MOVQ attendArgs_valueTiles(AX), R14")
	g.p("ADDQ R14, R14")
	g.p("MOVQ $512, R9")
	g.p("MOVQ $%d, R12", keys/32*1024-512)
	g.loop(loop)
	g.vdpSums(true)
	g.p("MOVQ BX, SI")
	g.p("MOVQ attendArgs_weights(AX), DX")
	g.p("MOVQ $%d, R10", keys/32)
	g.vdpBlocks()
	g.vdpStore()
	g.p("ADDQ R9, BX")
	g.p("XCHGQ R9, R12")
	g.p("DECQ R14")
	g.p("JNZ %s", loop)
	g.p("MOVQ DI, attendArgs_out(AX)")
}
