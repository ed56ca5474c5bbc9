package amd64

import "fmt"

// mulAdd writes MulAdd: C += A·B in tiles of rows × vectors whose sums stay in
// registers over the whole inner dimension. Each step loads the vectors of one
// row of B, and for each row of A broadcasts one element, from memory so that
// it takes no port of the multipliers. Strides are free, so K rows, V columns
// and weights all run in the same loops: element i of a column of A is at
// multiples 1, 2, 4 of the row stride, or of 3, 5, 7 times it.
//
// With elements of 16 bits in B, which its loads widen, it is MulAdd16. Each
// step then fetches as much of other memory as it reads of B: prefetches in a
// burst would wait for one another, and the loop for them.
func (g *gen) mulAdd(of source) {
	if of.size == 4 {
		g.fn("mulAdd", "c *float32, crow int, a *float32, arow int, acol int, b *float32, brow int, rows int, inner int, cols int, start int, f *float32", "")
	} else {
		g.fn("mulAdd"+of.name, "c *float32, crow int, a *float32, arow int, acol int, b *uint16, brow int, rows int, inner int, cols int, start int, next *uint16, nextrow int, half int", "")
	}
	g.load("arow", "SI", "acol", "DI", "brow", "R8", "crow", "R15", "cols", "R14")
	for _, r := range []string{"SI", "DI", "R15"} {
		g.p("SHLQ $2, %s", r)
	}
	g.p("SHLQ $%d, R8", map[int]int{4: 2, 2: 1}[of.size])
	g.p("LEAQ (SI)(SI*2), R9")
	blocks := g.blocks()
	if of.size == 4 {
		g.p("LEAQ (SI)(SI*4), R10")
		g.p("LEAQ (R9)(SI*4), R11")
	} else {
		blocks = g.blocks16()
	}
	for _, b := range blocks {
		g.block(of, b)
	}
	g.end()
}

// A block is some columns: a number of vectors, and the tiles that its rows are
// cut into, the largest first.
type block struct {
	vectors int
	tiles   []tile
	below   int // used only for fewer rows than that; 0: always
}

// tile is a number of rows, used while at least from are left.
type tile struct {
	rows, from int
	unroll     int // steps of a turn of the loop
	straight   int // steps without a loop, where the columns of A lie apart
}

func (g *gen) blocks() []block {
	few := []tile{{4, 4, 1, 0}, {2, 2, 1, 0}, {1, 1, 1, 0}}
	if g.lanes == 16 {
		return []block{
			{4, []tile{{6, 24, 2, 0}, {4, 4, 2, 0}, {2, 2, 1, 0}, {1, 1, 1, 0}}, 0},
			{2, append([]tile{{8, 8, 8, tileKeys}}, few...), 0},
			{1, append([]tile{{8, 8, 1, 0}}, few...), 0},
		}
	}
	return []block{
		{4, few[1:], 4},
		{2, append([]tile{{6, 6, 1, 0}}, few...), 0},
		{1, append([]tile{{8, 8, 1, 0}}, few...), 0},
	}
}

// blocks16 are those of MulAdd16, whose B is widened again for each tile: few
// rows are the rule. Eight rows in one tile were 1.15 times as fast, in decode
// of eight heads to a KV head, as in two of four.
func (g *gen) blocks16() []block {
	one := []tile{{1, 1, 2, 0}}
	four := []tile{{4, 4, 2, 0}, {2, 2, 2, 0}, {1, 1, 2, 0}}
	if g.lanes == 16 {
		eight := append([]tile{{8, 8, 2, 0}}, four...)
		return []block{{8, one, 2}, {4, four, 8}, {2, eight, 0}, {1, eight, 0}}
	}
	return []block{{4, one, 2}, {2, four, 0}, {1, four, 0}}
}

// block writes the loop over blocks of this width.
func (g *gen) block(of source, b block) {
	width := b.vectors * g.lanes
	loop, done := fmt.Sprintf("cols%d", width), fmt.Sprintf("cols%dend", width)
	g.label(loop)
	if b.below > 0 {
		g.p("CMPQ %s, $%d", g.arg("rows"), b.below)
		g.p("JGE %s", done)
	}
	g.p("CMPQ R14, $%d", width)
	g.p("JLT %s", done)
	g.load("a", "AX", "c", "DX", "rows", "R13")
	if of.size < 4 {
		g.p("MOVQ $%d, R11", width)
		g.load("half", "CX", "nextrow", "R10")
		g.p("SHRQ CX, R11")
		g.p("TESTQ R10, R10")
		g.p("CMOVQEQ R11, R10")
		g.p("SHLQ $1, R10")
	}
	for _, t := range b.tiles {
		again, next := fmt.Sprintf("tile%dx%d", t.rows, width), fmt.Sprintf("tile%dx%dend", t.rows, width)
		g.label(again)
		g.p("CMPQ R13, $%d", t.from)
		g.p("JLT %s", next)
		g.tile(of, t, b.vectors)
		g.p("SUBQ $%d, R13", t.rows)
		g.p("JMP %s", again)
		g.label(next)
	}
	if of.size < 4 {
		g.p("MOVQ $%d, CX", of.size*width)
		g.p("CMPQ %s, $0", g.arg("nextrow"))
		g.p("JNE %srow", done)
		g.load("inner", "CX")
		g.p("IMULQ R10, CX")
		g.label(done + "row")
		g.p("ADDQ CX, %s", g.arg("next"))
	}
	g.p("ADDQ $%d, %s", 4*width, g.arg("c"))
	g.p("ADDQ $%d, %s", of.size*width, g.arg("b"))
	if of.size == 4 {
		g.p("ADDQ $%d, %s", 4*width, g.arg("f"))
	}
	g.p("SUBQ $%d, R14", width)
	g.p("JMP %s", loop)
	g.label(done)
}

// tile writes one tile of n vectors: AX is its first row of A and DX that of
// C, and both move on.
func (g *gen) tile(of source, t tile, n int) {
	store := g.newLabel("store")
	g.tileStart(of, t, n)
	g.p("MOVQ AX, R12")
	g.load("b", "BX", "inner", "CX")
	if of.size < 4 {
		g.load("next", "R11")
	}
	rows := rowOf
	if of.size < 4 && t.rows > 4 { // R10 and R11 are taken
		rows = rowOf16
		g.p("LEAQ (R12)(SI*1), R15")
	}
	step := func() {
		g.step(of, rows[:t.rows], n)
		if of.size < 4 {
			g.p("ADDQ R10, R11")
		}
		if rows == rowOf16 {
			g.p("ADDQ DI, R15")
		}
		g.p("ADDQ R8, BX")
		g.p("ADDQ DI, R12")
	}
	if t.straight > 0 {
		looped := g.newLabel("looped")
		g.p("CMPQ DI, $4")
		g.p("JEQ %s", looped)
		g.p("SUBQ $%d, CX", t.straight)
		g.p("JLT %s", looped+"back")
		for range t.straight {
			step()
		}
		g.p("JMP %s", looped) // with what is left
		g.label(looped + "back")
		g.p("ADDQ $%d, CX", t.straight)
		g.label(looped)
	}
	if t.unroll > 1 {
		loop, odd := g.newLabel("loop"), g.newLabel("odd")
		g.p("SUBQ $%d, CX", t.unroll)
		g.p("JLT %s", odd)
		g.loop(loop)
		for range t.unroll {
			step()
		}
		g.p("SUBQ $%d, CX", t.unroll)
		g.p("JGE %s", loop)
		g.label(odd)
		g.p("ADDQ $%d, CX", t.unroll)
	}
	g.p("TESTQ CX, CX")
	g.p("JLE %s", store)
	loop := g.newLabel("loop")
	g.loop(loop)
	step()
	g.p("DECQ CX")
	g.p("JNE %s", loop)

	g.label(store)
	if rows == rowOf16 {
		g.load("crow", "R15")
		g.p("SHLQ $2, R15")
	}
	g.eachVector(t, n, "DX", func(mem, acc string, _ int) { g.p("VMOVUPS %s, %s", acc, mem) })
	if t.rows == 6 {
		g.p("LEAQ (AX)(SI*4), AX")
		g.p("LEAQ (AX)(SI*2), AX")
	} else {
		g.p("LEAQ (AX)(SI*%d), AX", t.rows)
	}
}

// eachVector calls f for the sums of the tile and their places in C, whose
// rows begin at register c, which moves on.
func (g *gen) eachVector(t tile, n int, c string, f func(mem, acc string, i int)) {
	for x := range t.rows {
		for i := range n {
			f(fmt.Sprintf("%d(%s)", i*g.bytes(), c), g.v(x*n+i), i)
		}
		g.p("ADDQ R15, %s", c)
	}
}

// tileStart writes what the sums begin with.
func (g *gen) tileStart(of source, t tile, n int) {
	keep, scale, start := g.newLabel("keep"), g.newLabel("scale"), g.newLabel("start")
	g.load("start", "CX")
	g.p("CMPQ CX, $1")
	g.p("JEQ %s", keep)
	if of.size == 4 {
		g.p("JGT %s", scale)
	}
	for i := range t.rows * n {
		g.zero(i)
	}
	g.p("JMP %s", start)
	g.label(keep)
	g.p("MOVQ DX, R12")
	g.eachVector(t, n, "R12", func(mem, acc string, _ int) { g.p("VMOVUPS %s, %s", mem, acc) })
	if of.size != 4 {
		g.label(start)
		return
	}
	g.p("JMP %s", start)
	g.label(scale)
	g.p("MOVQ DX, R12")
	g.load("f", "CX")
	f := t.rows * n
	for i := range n {
		g.p("VMOVUPS %d(CX), %s", i*g.bytes(), g.v(f+i))
	}
	g.eachVector(t, n, "R12", func(mem, acc string, i int) { g.p("VMULPS %s, %s, %s", mem, g.v(f+i), acc) })
	g.label(start)
}

// step writes the products of one element of each row of A.
func (g *gen) step(of source, rows []string, n int) {
	first := len(rows) * n // free registers: vectors of B, then broadcast elements
	spare := g.regs - first - n
	if spare < 1 {
		panic(fmt.Sprintf("amd64: tile of %d × %d vectors leaves no register", len(rows), n))
	}
	for i := range n {
		at := i * g.lanes * of.size
		of.widen(g, fmt.Sprintf("%d(BX)", at), first+i, -1)
		if of.size < 4 && at%64 == 0 {
			g.p("PREFETCHT1 %d(R11)", at)
		}
	}
	for x, at := range rows {
		e := g.v(first + n + x%spare)
		g.p("VBROADCASTSS %s, %s", at, e)
		for i := range n {
			g.p("VFMADD231PS %s, %s, %s", e, g.v(first+i), g.v(x*n+i))
		}
	}
}

// rowOf addresses the rows of a tile of A from the running pointer R12.
var rowOf = [...]string{"(R12)", "(R12)(SI*1)", "(R12)(SI*2)", "(R12)(R9*1)", "(R12)(SI*4)", "(R12)(R10*1)", "(R12)(R9*2)", "(R12)(R11*1)"}

// rowOf16 is rowOf with R15 a row later.
var rowOf16 = [...]string{"(R12)", "(R12)(SI*1)", "(R12)(SI*2)", "(R12)(R9*1)", "(R12)(SI*4)", "(R15)(SI*4)", "(R12)(R9*2)", "(R15)(R9*2)"}
