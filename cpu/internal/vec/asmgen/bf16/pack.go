package bf16

// packFile writes what brings operands into the order of the tiles.
func packFile(g *gen) {
	g.packKey()
	g.packKeyF32()
	g.packValue()
	g.packPairs()
	g.fn0("cpuid", "leaf, subleaf uint32", "eax, ebx, ecx, edx uint32", 24)
	g.p("MOVL leaf+0(FP), AX")
	g.p("MOVL subleaf+4(FP), CX")
	g.p("CPUID")
	for i, r := range []string{"AX", "BX", "CX", "DX"} {
		g.p("MOVL %s, e%cx+%d(FP)", r, "abcd"[i], 8+4*i)
	}
	g.p("RET")
}

// checkBegin, check and checkEnd find whether an exponent of words is all ones.
func (g *gen) checkBegin() {
	g.p("VPBROADCASTD %s, Z30", g.words("exponent", 4, 0x7f807f80))
	g.p("VPXORD Z31, Z31, Z31")
}

func (g *gen) check(z, t int) {
	g.p("VPANDD Z%d, Z30, Z%d", z, t)
	g.p("VPMAXUW Z%d, Z31, Z31", t)
}

func (g *gen) checkEnd() {
	g.p("VPCMPEQW Z30, Z31, K1")
	g.p("KTESTD K1, K1")
	g.p("SETEQ packArgs_finite(AX)")
}

// packKey copies 64 rows of packArgs into row tiles.
func (g *gen) packKey() {
	g.fn("packKeyAVX512", "a", "packArgs")
	g.p("MOVQ packArgs_src(AX), SI")
	g.p("MOVQ packArgs_dst(AX), DI")
	g.p("MOVQ packArgs_ld(AX), R9")
	g.p("MOVQ packArgs_blocks(AX), R10")
	g.p("MOVQ R10, R8") // from the end of a row tile's first rows to the next tile
	g.p("SHLQ $10, R8")
	g.p("SUBQ $1024, R8")
	g.checkBegin()
	g.p("MOVQ $%d, R11", keys/16)
	g.label("tile")
	g.p("MOVQ $16, R12")
	g.label("row")
	g.p("MOVQ SI, BX")
	g.p("MOVQ DI, DX")
	g.p("MOVQ R10, CX")
	g.loop("block")
	g.p("VMOVDQU64 (BX), Z0")
	g.check(0, 1)
	g.p("VMOVDQU64 Z0, (DX)")
	g.p("ADDQ $64, BX")
	g.p("ADDQ $1024, DX")
	g.p("DECQ CX")
	g.p("JNZ block")
	g.p("ADDQ R9, SI")
	g.p("ADDQ $64, DI")
	g.p("DECQ R12")
	g.p("JNZ row")
	g.p("ADDQ R8, DI")
	g.p("DECQ R11")
	g.p("JNZ tile")
	g.checkEnd()
	g.end()
}

// packKeyF32 rounds or splits 64 rows of float32.
func (g *gen) packKeyF32() {
	g.fn("packKeyF32AVX512", "a", "packArgs")
	g.p("MOVQ packArgs_src(AX), SI")
	g.p("MOVQ packArgs_dst(AX), DI")
	g.p("MOVQ packArgs_ld(AX), R9")
	g.p("MOVQ packArgs_blocks(AX), R10")
	g.p("MOVQ packArgs_part(AX), R13")
	g.p("MOVQ R10, R8")
	g.p("SHLQ $10, R8")
	g.p("SUBQ $1024, R8")
	g.splitBegin()
	g.p("MOVQ $%d, R11", keys/16)
	g.label("tile")
	g.p("MOVQ $16, R12")
	g.label("row")
	g.p("MOVQ SI, BX")
	g.p("MOVQ DI, DX")
	g.p("MOVQ R10, CX")
	g.loop("block")
	g.p("VMOVUPS (BX), Z0")
	g.p("VMOVUPS 64(BX), Z1")
	g.split("DX", false)
	g.p("ADDQ $128, BX")
	g.p("ADDQ $1024, DX")
	g.p("DECQ CX")
	g.p("JNZ block")
	g.p("ADDQ R9, SI")
	g.p("ADDQ $64, DI")
	g.p("DECQ R12")
	g.p("JNZ row")
	g.p("ADDQ R8, DI")
	g.p("DECQ R11")
	g.p("JNZ tile")
	g.end()
}

func (g *gen) splitBegin() {
	g.p("VPBROADCASTD %s, Z30", g.words("high", 4, 0xffff0000))
	g.p("VPBROADCASTD %s, Z29", g.words("half", 4, 0x8000))
	g.broadcast(28, "largest", 0x1.fep127)
	g.broadcast(27, "least", -0x1.fep127)
	g.p("VMOVDQU64 %s, Z%d", g.words("pairs", 2, pairOrder()...), zPairs)
}

// split writes Z0 and Z1 as BF16 to base: rounded if packArgs.parts is 1, else
// in three parts, R13 bytes apart, whose sum they are. As pairs, the words of
// one are beside those of the other.
func (g *gen) split(base string, pairs bool) {
	one, done := g.newLabel("one"), g.newLabel("done")
	write := func(high, low int, to string) {
		g.cvt2(4, high, low)
		if pairs {
			g.p("VPERMW Z4, Z%d, Z4", zPairs)
		}
		g.p("VMOVDQU64 Z4, %s", to)
	}
	g.p("CMPQ packArgs_parts(AX), $1")
	g.p("JEQ %s", one)
	for part := range 2 {
		to := "(" + base + ")"
		if part > 0 {
			to += "(R13*1)"
		}
		for z := range 2 {
			g.p("VPADDD Z%d, Z29, Z%d", z, 2+z)
			g.p("VPANDD Z%d, Z30, Z%d", 2+z, 2+z)
			g.p("VMINPS Z28, Z%d, Z%d", 2+z, 2+z) // NaN: Z28
			g.p("VMAXPS Z27, Z%d, Z%d", 2+z, 2+z)
			g.p("VSUBPS Z%d, Z%d, Z%d", 2+z, z, z)
		}
		write(3, 2, to)
	}
	write(1, 0, "("+base+")(R13*2)")
	g.p("JMP %s", done)
	g.label(one)
	write(1, 0, "("+base+")")
	g.label(done)
}

// packPairs packs blocks of 32 rows of 32 lanes of float32 as operand B.
func (g *gen) packPairs() {
	g.fn("packPairsAVX512", "a", "packArgs")
	g.p("MOVQ packArgs_src(AX), SI")
	g.p("MOVQ packArgs_dst(AX), DI")
	g.p("MOVQ packArgs_blocks(AX), R10")
	g.p("MOVQ packArgs_part(AX), R13")
	g.splitBegin()
	g.label("block")
	g.p("MOVQ $16, CX")
	g.loop("pair")
	g.p("LEAQ 1024(DI), DX")
	g.p("VMOVUPS (SI), Z0")
	g.p("VMOVUPS 128(SI), Z1")
	g.split("DI", true)
	g.p("VMOVUPS 64(SI), Z0")
	g.p("VMOVUPS 192(SI), Z1")
	g.split("DX", true)
	g.p("ADDQ $256, SI")
	g.p("ADDQ $64, DI")
	g.p("DECQ CX")
	g.p("JNZ pair")
	g.p("ADDQ $1024, DI")
	g.p("DECQ R10")
	g.p("JNZ block")
	g.end()
}

// packValue transposes 64 rows: eight words of 32 rows at a time, in registers
// whose 128-bit lane L holds row 8L + r.
func (g *gen) packValue() {
	g.fn("packValueAVX512", "a", "packArgs")
	g.p("MOVQ packArgs_src(AX), SI")
	g.p("MOVQ packArgs_dst(AX), DI")
	g.p("MOVQ packArgs_ld(AX), R9")
	g.p("LEAQ (R9)(R9*2), R10")
	g.p("LEAQ (R9)(R9*4), R11")
	g.p("LEAQ (R10)(R9*4), R12")
	g.checkBegin()
	g.p("MOVQ $%d, R13", keys/32)
	g.label("keys")
	g.p("MOVQ DI, R8")
	g.p("MOVQ packArgs_blocks(AX), R14")
	g.p("ADDQ R14, R14") // tiles of 16 features
	g.p("MOVQ SI, BX")
	g.loop("tile")
	for half := range 2 {
		g.transpose(16*half, 512*half)
	}
	g.p("ADDQ $32, BX")
	g.p("ADDQ $2048, R8")
	g.p("DECQ R14")
	g.p("JNZ tile")
	g.p("MOVQ R9, CX")
	g.p("SHLQ $5, CX")
	g.p("ADDQ CX, SI")
	g.p("ADDQ $1024, DI")
	g.p("DECQ R13")
	g.p("JNZ keys")
	g.checkEnd()
	g.end()
}

// transpose turns 32 rows × 8 words at src(BX) into 8 rows × 32 at dst(R8).
func (g *gen) transpose(src, dst int) {
	index := []string{"", "(R9*1)", "(R9*2)", "(R10*1)", "(R9*4)", "(R11*1)", "(R10*2)", "(R12*1)"}
	g.p("MOVQ BX, DX")
	g.p("LEAQ (DX)(R9*8), CX")
	for r, x := range index {
		g.p("VMOVDQU %d(DX)%s, X%d", src, x, r)
		g.p("VINSERTI32X4 $1, %d(CX)%s, Z%d, Z%d", src, x, r, r)
	}
	g.p("LEAQ (CX)(R9*8), DX")
	g.p("LEAQ (DX)(R9*8), CX")
	for r, x := range index {
		g.p("VINSERTI32X4 $2, %d(DX)%s, Z%d, Z%d", src, x, r, r)
		g.p("VINSERTI32X4 $3, %d(CX)%s, Z%d, Z%d", src, x, r, r)
		g.check(r, 16+r)
	}
	unpack := func(width string, a, b, low, high int) {
		g.p("VPUNPCKL%s Z%d, Z%d, Z%d", width, b, a, low)
		g.p("VPUNPCKH%s Z%d, Z%d, Z%d", width, b, a, high)
	}
	for i := 0; i < 8; i += 2 { // 8+i: features 0–3 of keys i, i+1; 9+i: 4–7
		unpack("WD", i, i+1, 8+i, 9+i)
	}
	for i := 0; i < 8; i += 4 { // features in twos, of four keys
		unpack("DQ", 8+i, 10+i, i, i+1)
		unpack("DQ", 9+i, 11+i, i+2, i+3)
	}
	for i := range 4 {
		unpack("QDQ", i, 4+i, 8+2*i, 9+2*i)
		g.p("VMOVDQU64 Z%d, %d(R8)", 8+2*i, dst+128*i)
		g.p("VMOVDQU64 Z%d, %d(R8)", 9+2*i, dst+128*i+64)
	}
}
