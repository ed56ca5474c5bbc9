package amd64

import "fmt"

// mulAdd writes MulAdd: C += A·B in tiles of rows × vectors whose sums stay in
// registers over the whole inner dimension. Each step loads the vectors of one
// row of B, and for each row of A broadcasts one element, from memory so that
// it takes no port of the multipliers. Strides are free, so K rows, V columns
// and weights all run in the same loop: element i of a column of A is at
// multiples 1, 2, 4, 8 of the row stride, or of 3, 5, 7, 9, 11 times it.
func (g *gen) mulAdd() {
	g.fn("mulAdd", "c *float32, crow int, a *float32, arow int, acol int, b *float32, brow int, rows int, inner int, cols int, start int, f *float32", "")
	g.load("arow", "SI", "acol", "DI", "brow", "R8", "crow", "R15", "cols", "R14")
	for _, r := range []string{"SI", "DI", "R8", "R15"} {
		g.p("SHLQ $2, %s", r)
	}
	g.p("LEAQ (SI)(SI*2), R9")
	g.p("LEAQ (SI)(SI*4), R10")
	g.p("LEAQ (R9)(SI*4), R11")
	for _, b := range g.blocks() {
		b.write(g)
	}
	g.end()
}

// columns is a block of columns: its vectors, and the numbers of rows of its
// tiles, the first repeated, each other half of the one before.
type columns struct {
	vectors int
	rows    []int
	below   int // used only for fewer rows than that; 0: always
}

func (g *gen) blocks() []columns {
	if g.lanes == 16 {
		return []columns{{4, []int{4, 2, 1}, 0}, {2, []int{8, 4, 2, 1}, 0}, {1, []int{8, 4, 2, 1}, 0}}
	}
	return []columns{{4, []int{2, 1}, 4}, {2, []int{6, 4, 2, 1}, 0}, {1, []int{8, 4, 2, 1}, 0}}
}

// write writes the loop over blocks of this width.
func (b columns) write(g *gen) {
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
	for i, rows := range b.rows {
		tile, next := fmt.Sprintf("tile%dx%d", rows, width), fmt.Sprintf("tile%dx%dend", rows, width)
		g.label(tile)
		g.p("CMPQ R13, $%d", rows)
		g.p("JLT %s", next)
		b.tile(g, rows)
		g.p("SUBQ $%d, R13", rows)
		if i == 0 {
			g.p("JMP %s", tile)
		}
		g.label(next)
	}
	for _, p := range []string{"c", "b", "f"} {
		g.p("ADDQ $%d, %s", 4*width, g.arg(p))
	}
	g.p("SUBQ $%d, R14", width)
	g.p("JMP %s", loop)
	g.label(done)
}

// tile writes one tile: AX is its first row of A and DX that of C, and both
// move on.
func (b columns) tile(g *gen, rows int) {
	n, w := b.vectors, g.bytes()
	acc := func(x, i int) string { return g.v(x*n + i) }
	each := func(f func(x, i int)) {
		for x := range rows {
			for i := range n {
				f(x, i)
			}
		}
	}
	keep, scale, loop, start, store := g.newLabel("keep"), g.newLabel("scale"), g.newLabel("loop"), g.newLabel("start"), g.newLabel("store")

	// what the sums begin with
	g.load("start", "CX")
	g.p("CMPQ CX, $1")
	g.p("JEQ %s", keep)
	g.p("JGT %s", scale)
	each(func(x, i int) { g.zero(x*n + i) })
	g.p("JMP %s", start)
	g.label(keep)
	g.p("MOVQ DX, R12")
	each(func(x, i int) {
		g.p("VMOVUPS %d(R12), %s", i*w, acc(x, i))
		if i == n-1 {
			g.p("ADDQ R15, R12")
		}
	})
	g.p("JMP %s", start)
	g.label(scale)
	g.p("MOVQ DX, R12")
	g.load("f", "CX")
	for i := range n {
		g.p("VMOVUPS %d(CX), %s", i*w, g.v(rows*n+i))
	}
	each(func(x, i int) {
		g.p("VMULPS %d(R12), %s, %s", i*w, g.v(rows*n+i), acc(x, i))
		if i == n-1 {
			g.p("ADDQ R15, R12")
		}
	})

	g.label(start)
	g.p("MOVQ AX, R12")
	g.load("b", "BX", "inner", "CX")
	g.p("TESTQ CX, CX")
	g.p("JLE %s", store)
	g.loop(loop)
	b.step(g, rows)
	g.p("ADDQ R8, BX")
	g.p("ADDQ DI, R12")
	g.p("DECQ CX")
	g.p("JNE %s", loop)

	g.label(store)
	each(func(x, i int) {
		g.p("VMOVUPS %s, %d(DX)", acc(x, i), i*w)
		if i == n-1 {
			g.p("ADDQ R15, DX")
		}
	})
	switch rows {
	case 12, 6:
		g.p("LEAQ (AX)(SI*%d), AX", rows/3*2)
		g.p("LEAQ (AX)(SI*%d), AX", rows/3)
	default:
		g.p("LEAQ (AX)(SI*%d), AX", rows)
	}
}

// step writes the products of one element of each row of A.
func (b columns) step(g *gen, rows int) {
	n := b.vectors
	first := rows * n // free registers: vectors of B, then broadcast elements
	spare := g.regs - first - n
	if spare < 1 {
		panic(fmt.Sprintf("amd64: tile of %d × %d vectors leaves no register", rows, n))
	}
	for i := range n {
		g.p("VMOVUPS %d(BX), %s", i*g.bytes(), g.v(first+i))
	}
	for x := range rows {
		e := g.v(first + n + x%spare)
		g.p("VBROADCASTSS %s, %s", rowOf(x), e)
		for i := range n {
			g.p("VFMADD231PS %s, %s, %s", e, g.v(first+i), g.v(x*n+i))
		}
	}
}

// rowOf addresses row x of A from the running pointer R12.
func rowOf(x int) string {
	return [...]string{"(R12)", "(R12)(SI*1)", "(R12)(SI*2)", "(R12)(R9*1)", "(R12)(SI*4)", "(R12)(R10*1)", "(R12)(R9*2)", "(R12)(R11*1)"}[x]
}
