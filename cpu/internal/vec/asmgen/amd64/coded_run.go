package amd64

import "fmt"

// Registers of channelRun beside 16 sums and pairX. Two of A take turns.
const (
	runLevels, runShift, runScale = 20, 21, 22 // scales are 22 … 25
	runA                          = 26
	runZero                       = 28 // … 31
)

// channelRun adds to C = A·X what neighbouring features of one group give, for
// keys side by side in words that were turned: the codes from bit shift on of so
// many words. Each key has a scale and a zero.
func (g *gen) channelRun() {
	g.fn("channelRun", "c *float32, crow int, a *float32, arow int, t *uint32, trow int, levels *float32, shift int, scale *float32, zero *float32, rows int, words int, keys int, next *uint8, nextstep int", "")
	g.load("arow", "SI", "trow", "R8", "crow", "R15", "keys", "R14", "levels", "CX", "nextstep", "DI")
	for _, r := range []string{"SI", "R8", "R15"} {
		g.p("SHLQ $2, %s", r)
	}
	g.p("LEAQ (SI)(SI*2), R9")
	g.p("VMOVUPS (CX), Z%d", runLevels)
	g.p("VPBROADCASTD %s, Z%d", g.arg("shift"), runShift)
	for _, n := range []int{4, 1} {
		loop, done := fmt.Sprintf("keys%d", 16*n), fmt.Sprintf("keys%dend", 16*n)
		g.label(loop)
		g.p("CMPQ R14, $%d", 16*n)
		g.p("JLT %s", done)
		g.load("a", "AX", "c", "DX", "rows", "R13", "scale", "R11", "zero", "R12")
		for i := range n {
			g.p("VMOVUPS %d(R11), Z%d", 64*i, runScale+i)
			g.p("VMOVUPS %d(R12), Z%d", 64*i, runZero+i)
		}
		for _, rows := range []int{4, 2, 1} {
			again, next := fmt.Sprintf("tile%dx%d", rows, n), fmt.Sprintf("tile%dx%dend", rows, n)
			g.label(again)
			g.p("CMPQ R13, $%d", rows)
			g.p("JLT %s", next)
			g.runTile(rows, n)
			g.p("SUBQ $%d, R13", rows)
			g.p("JMP %s", again)
			g.label(next)
		}
		for _, x := range []string{"c", "t", "scale", "zero"} {
			g.p("ADDQ $%d, %s", 64*n, g.arg(x))
		}
		g.p("SUBQ $%d, R14", 16*n)
		g.p("JMP %s", loop)
		g.label(done)
	}
	g.end()
}

func (g *gen) runTile(rows, n int) {
	g.p("MOVQ DX, R11")
	for x := range rows {
		for i := range n {
			g.p("VMOVUPS %d(R11), Z%d", 64*i, x*n+i)
		}
		g.p("ADDQ R15, R11")
	}
	g.p("MOVQ AX, R12")
	g.load("next", "R10", "t", "BX", "words", "CX")
	loop := g.newLabel("word")
	g.loop(loop)
	g.p("PREFETCHT1 (R10)")
	g.p("ADDQ DI, R10")
	for i := range n {
		x := pairX + i
		g.p("VMOVUPS %d(BX), Z%d", 64*i, x)
		g.p("VPSRLVD Z%d, Z%d, Z%d", runShift, x, x)
		g.p("VPERMPS Z%d, Z%d, Z%d", runLevels, x, x)
		g.p("VFMADD213PS Z%d, Z%d, Z%d", runZero+i, runScale+i, x)
	}
	for r, place := range []string{"(R12)", "(R12)(SI*1)", "(R12)(SI*2)", "(R12)(R9*1)"}[:rows] {
		g.p("VBROADCASTSS %s, Z%d", place, runA+r%2)
		for i := range n {
			g.p("VFMADD231PS Z%d, Z%d, Z%d", runA+r%2, pairX+i, r*n+i)
		}
	}
	g.p("ADDQ $4, R12")
	g.p("ADDQ R8, BX")
	g.p("DECQ CX")
	g.p("JNE %s", loop)
	for x := range rows {
		for i := range n {
			g.p("VMOVUPS Z%d, %d(DX)", x*n+i, 64*i)
		}
		g.p("ADDQ R15, DX")
	}
	g.p("LEAQ (AX)(SI*%d), AX", rows)
}
