package amd64

import (
	"fmt"
	"math"
)

// source is a type of elements in memory: widen makes float32 of a register's
// number of them, and may use register tmp.
type source struct {
	name  string
	size  int
	widen func(g *gen, mem string, x, tmp int)
}

var sources = []source{
	{"F32", 4, func(g *gen, mem string, x, _ int) { g.p("VMOVUPS %s, %s", mem, g.v(x)) }},
	{"F16", 2, func(g *gen, mem string, x, _ int) { g.p("VCVTPH2PS %s, %s", mem, g.v(x)) }},
	{"BF16", 2, func(g *gen, mem string, x, _ int) {
		g.p("VPMOVZXWD %s, %s", mem, g.v(x))
		g.p("VPSLLD $16, %s, %s", g.v(x), g.v(x))
	}},
	{"E4M3", 1, widenE4M3},
	{"E5M2", 1, func(g *gen, mem string, x, _ int) {
		h := g.half(x)
		g.p("VPMOVZXBW %s, %s", mem, h)
		g.p("VPSLLW $8, %s, %s", h, h)
		g.p("VCVTPH2PS %s, %s", h, g.v(x))
	}},
}

// half is the name of the lower half of register x.
func (g *gen) half(x int) string {
	if g.lanes == 16 {
		return fmt.Sprintf("Y%d", x)
	}
	return fmt.Sprintf("X%d", x)
}

// widenE4M3 goes through F16, whose exponent has one bit more and another
// bias: that is a factor of 2⁸. The code of NaN would be 480.
func widenE4M3(g *gen, mem string, x, tmp int) {
	h := g.half(x)
	bits := g.words("e4m3", 0xbfffbfff)
	g.p("VPMOVZXBW %s, %s", mem, h)
	g.p("VPSLLW $8, %s, %s", h, h)
	g.p("VPSRAW $1, %s, %s", h, h)
	g.p("VPAND %s, %s, %s", bits, h, h) // the sign came twice
	g.p("VCVTPH2PS %s, %s", h, g.v(x))
	g.p("VMULPS %s, %s, %s", g.words("two8", math.Float32bits(256)), g.v(x), g.v(x))
	g.p("VANDPS %s, %s, %s", g.words("magnitude", 1<<31-1), g.v(x), g.v(tmp))
	nan := g.words("f480", math.Float32bits(480))
	if g.lanes == 16 {
		g.p("VCMPPS $0, %s, %s, K1", nan, g.v(tmp))
		g.p("VPTERNLOGD $255, %[1]s, %[1]s, K1, %[1]s", g.v(x))
		return
	}
	g.p("VCMPPS $0, %s, %s, %s", nan, g.v(tmp), g.v(tmp))
	g.p("VORPS %s, %s, %s", g.v(tmp), g.v(x), g.v(x))
}

// loads writes the functions that move and widen tiles.
func (g *gen) loads() {
	for _, s := range sources {
		g.rows(s)
		g.columns(s)
		if g.lanes == 16 && s.size == 2 {
			g.columnPairs(s)
		}
	}
	g.turn16()
}

const loadParams = "dst *float32, ld int, src unsafe.Pointer, stride int, n int, dim int, ahead int"

// loadArgs loads them, in bytes.
func (g *gen) loadArgs(s source) {
	g.load("dst", "DX", "ld", "DI", "src", "AX", "stride", "SI", "n", "R13", "ahead", "R8")
	g.p("SHLQ $2, DI")
	for size := s.size; size > 1; size /= 2 {
		g.p("SHLQ $1, SI")
		g.p("SHLQ $1, R8")
	}
}

// rows writes Rows of one type. A row is at least one register long; its last
// elements are done in a register that begins earlier.
func (g *gen) rows(s source) {
	g.fn("rows"+s.name, loadParams, "")
	g.loadArgs(s)
	line := 64 / s.size // elements of a cache line, fetched ahead together
	vectors := func(n int) {
		for i := range n {
			s.widen(g, fmt.Sprintf("%d(R9)", i*g.lanes*s.size), i%4, 4+i%4)
			g.p("VMOVUPS %s, %d(R10)", g.v(i%4), i*g.bytes())
		}
		g.p("ADDQ $%d, R9", n*g.lanes*s.size)
		g.p("ADDQ $%d, R10", n*g.bytes())
	}
	g.label("row")
	g.p("MOVQ AX, R9")
	g.p("MOVQ DX, R10")
	g.load("dim", "CX")
	g.p("SUBQ $%d, CX", line)
	g.p("JLT few")
	g.loop("line")
	g.p("PREFETCHT1 (R9)(R8*1)")
	vectors(line / g.lanes)
	g.p("SUBQ $%d, CX", line)
	g.p("JGE line")
	g.label("few")
	g.p("ADDQ $%d, CX", line)
	g.p("JEQ next")
	g.p("PREFETCHT1 (R9)(R8*1)")
	g.p("SUBQ $%d, CX", g.lanes)
	g.p("JLT tail")
	g.label("one")
	vectors(1)
	g.p("SUBQ $%d, CX", g.lanes)
	g.p("JGE one")
	g.label("tail")
	g.p("CMPQ CX, $%d", -g.lanes)
	g.p("JEQ next")
	g.p("LEAQ (R10)(CX*4), R10") // back by what is missing
	g.p("LEAQ (R9)(CX*%d), R9", s.size)
	vectors(1)
	g.label("next")
	g.p("ADDQ SI, AX")
	g.p("ADDQ DI, DX")
	g.p("DECQ R13")
	g.p("JNE row")
	g.end()
}

// columns writes Columns of one type: square blocks are turned in registers.
// What the registers of missing rows hold is not stored; the last block of a
// row that is no multiple begins earlier.
func (g *gen) columns(s source) {
	g.fn("columns"+s.name, loadParams, "")
	g.loadArgs(s)
	n := g.lanes
	g.label("rows")
	g.rowMask()
	g.p("MOVQ AX, R9")
	g.p("MOVQ DX, R10")
	g.load("dim", "R12")
	g.loop("block")
	g.p("MOVQ R9, R11")
	for i := range n {
		s.widen(g, "(R11)", i, n)
		g.p("PREFETCHT1 (R11)(R8*1)")
		if i < n-1 {
			g.p("CMPQ R13, $%d", i+1)
			g.p("JEQ loaded")
			g.p("ADDQ SI, R11")
		}
	}
	g.label("loaded")
	g.turn()
	g.storeColumns()
	g.p("ADDQ $%d, R9", n*s.size)
	g.p("SUBQ $%d, R12", n)
	g.p("JLE next")
	g.p("CMPQ R12, $%d", n)
	g.p("JGE block")
	g.p("SUBQ $%d, R12", n) // begin earlier, by −R12
	g.p("LEAQ (R9)(R12*%d), R9", s.size)
	g.p("IMULQ DI, R12")
	g.p("ADDQ R12, R10")
	g.p("MOVQ $%d, R12", n)
	g.p("JMP block")
	g.label("next")
	g.nextRows("rows")
	g.end()
}

// rowMask makes the mask of R13 rows, of a register at most: K7, or at R15.
func (g *gen) rowMask() {
	some := g.newLabel("some")
	g.p("MOVQ $%d, CX", g.lanes)
	g.p("CMPQ R13, CX")
	g.p("JGE %s", some)
	g.p("MOVQ R13, CX")
	g.label(some)
	if g.lanes == 16 {
		g.p("MOVL $1, R15")
		g.p("SHLL CX, R15")
		g.p("DECL R15")
		g.p("KMOVW R15, K7")
		return
	}
	g.p("LEAQ %s, R15", g.fewMask())
	g.p("SHLQ $2, CX")
	g.p("SUBQ CX, R15")
	g.p("ADDQ $32, R15")
}

// nextRows goes on to the next rows, a register of them.
func (g *gen) nextRows(loop string) {
	g.p("MOVQ SI, CX")
	g.p("SHLQ $%d, CX", map[int]int{16: 4, 8: 3}[g.lanes])
	g.p("ADDQ CX, AX")
	g.p("ADDQ $%d, DX", g.bytes())
	g.p("SUBQ $%d, R13", g.lanes)
	g.p("JGT %s", loop)
}

// turn transposes the square block in registers 0 … lanes−1; column i is then
// in register column(i). Quarters of a register stay what they are while pairs
// and then fours of rows are brought together; then quarters change places.
func (g *gen) turn() {
	n := g.lanes
	for i := 0; i < n; i += 2 {
		g.p("VUNPCKLPS %s, %s, %s", g.v(i+1), g.v(i), g.v(n+i))
		g.p("VUNPCKHPS %s, %s, %s", g.v(i+1), g.v(i), g.v(n+i+1))
	}
	for i := 0; i < n; i += 4 {
		for k := range 2 {
			g.p("VUNPCKLPD %s, %s, %s", g.v(n+i+2+k), g.v(n+i+k), g.v(i+2*k))
			g.p("VUNPCKHPD %s, %s, %s", g.v(n+i+2+k), g.v(n+i+k), g.v(i+2*k+1))
		}
	}
	if n == 8 {
		for q := range 4 {
			g.p("VPERM2F128 $0x20, %s, %s, %s", g.v(4+q), g.v(q), g.v(n+q))
			g.p("VPERM2F128 $0x31, %s, %s, %s", g.v(4+q), g.v(q), g.v(n+4+q))
		}
		return
	}
	for q := range 4 {
		for k := 0; k < n; k += 8 {
			g.p("VSHUFF32X4 $0x88, %s, %s, %s", g.v(k+4+q), g.v(k+q), g.v(n+k+q))
			g.p("VSHUFF32X4 $0xdd, %s, %s, %s", g.v(k+4+q), g.v(k+q), g.v(n+k+4+q))
		}
	}
	for q := range 4 {
		g.p("VSHUFF32X4 $0x88, %s, %s, %s", g.v(n+8+q), g.v(n+q), g.v(q))
		g.p("VSHUFF32X4 $0xdd, %s, %s, %s", g.v(n+8+q), g.v(n+q), g.v(8+q))
		g.p("VSHUFF32X4 $0x88, %s, %s, %s", g.v(n+12+q), g.v(n+4+q), g.v(4+q))
		g.p("VSHUFF32X4 $0xdd, %s, %s, %s", g.v(n+12+q), g.v(n+4+q), g.v(12+q))
	}
}

// column is the register of column i after turn.
func (g *gen) column(i int) int {
	if g.lanes == 8 {
		return 8 + i
	}
	return i
}

// storeColumns stores the columns at R10, DI apart, and moves R10 on.
func (g *gen) storeColumns() {
	all, done := g.newLabel("all"), g.newLabel("stored")
	if g.lanes == 8 {
		g.p("CMPQ R13, $8")
		g.p("JGE %s", all)
		g.p("VMOVUPS (R15), Y0")
	}
	for i := range g.lanes {
		x := g.column(i)
		if g.lanes == 16 {
			g.p("VMOVUPS %s, K7, (R10)", g.v(x))
		} else {
			g.p("VMASKMOVPS %s, Y0, (R10)", g.v(x))
		}
		g.p("ADDQ DI, R10")
	}
	if g.lanes == 16 {
		return
	}
	g.p("JMP %s", done)
	g.label(all)
	for i := range g.lanes {
		x := g.column(i)
		g.p("VMOVUPS %s, (R10)", g.v(x))
		g.p("ADDQ DI, R10")
	}
	g.label(done)
}
