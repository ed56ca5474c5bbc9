package arm64

import (
	"fmt"
	"math/bits"
)

// The product keeps a tile of sums in V0 … V15 and adds to all of them for one
// y after another, A times B by FMLA with an element of A: one rounding, and
// each sum a single chain. The tile is as wide as the rows are few, so that 16
// chains hide the latency of FMLA on four pipes. Counted in the main loops,
// per 16 FMLA:
//
//	rows × columns            16-byte registers loaded   all instructions
//	8 × 8   A by rows         4                          20.75
//	8 × 8   A by columns      4                          20.5
//	4 × 16  A by rows         5                          20.75
//	2 × 32  A by rows         8.5                        22.25
//	1 × 32  (8 sums)          16.5                       28

// General registers of the product; strides in bytes.
const (
	gC, gA, gB, gF       = "R0", "R1", "R2", "R3" // first element of the panel
	gLdA, gLdB, gLdC     = "R4", "R5", "R6"
	gInner, gCols        = "R7", "R8" // columns that are left
	gStart               = "R9"
	gTileC               = "R10" // first element of the tile
	gTmp, gAtB, gAtA     = "R19", "R20", "R21"
	gCount, gRows        = "R22", "R23"
	gTileB, gTileF       = "R24", "R25"
	nAtA                 = 21
	firstA, firstB   vec = 16, 24 // vector registers
	unroll               = 4      // steps of the main loop: the elements of a register
)

// panel is some rows of the product. byRow: A lies row by row, so that four
// steps of a row are loaded at once; otherwise four rows of a step.
type panel struct {
	*file
	byRow bool
	rows  int
}

// widths are the columns of the tiles for so many rows, largest first.
var widths = map[int][]int{8: {8, 4}, 4: {16, 4}, 2: {32, 16, 4}, 1: {32, 16, 4}}

func matmul() string {
	f := newFile()
	for _, byRow := range []bool{true, false} {
		name, layout := "mulByRow", "A row by row: element (x, y) is a[x·lda+y]"
		if !byRow {
			name, layout = "mulByColumn", "A column by column: element (x, y) is a[y·lda+x]"
		}
		f.function(name, 88, "func "+name+"(c, a, b, f *float32, lda, ldb, ldc, rows, inner, cols, start int)\n"+layout+".")
		f.args("c "+gC, "a "+gA, "b "+gB, "f "+gF, "lda "+gLdA, "ldb "+gLdB, "ldc "+gLdC, "rows "+gRows, "inner "+gInner)
		f.op("MOVD start+80(FP), %s", gStart)
		for _, ld := range []string{gLdA, gLdB, gLdC} {
			f.op("LSL $2, %s", ld)
		}
		for rows := 8; rows > 0; rows /= 2 {
			panel{f, byRow, rows}.write()
		}
		f.label("rows0")
		f.op("RET")
	}
	return f.String()
}

// rowA is the general register with the address of a row of A.
func rowA(r int) int {
	if r == 0 {
		return 1
	}
	return 10 + r // R11 … R17
}

// write takes panels while there are rows enough.
func (p panel) write() {
	p.label("rows%d", p.rows)
	p.op("CMP $%d, %s", p.rows, gRows)
	p.op("BLT rows%d", p.rows/2)
	if p.byRow {
		for r := 1; r < p.rows; r++ {
			p.op("ADD %s, R%d, R%d", gLdA, rowA(r-1), rowA(r))
		}
	}
	p.op("MOVD %s, %s", gC, gTileC)
	p.op("MOVD %s, %s", gB, gTileB)
	p.op("MOVD %s, %s", gF, gTileF)
	p.op("MOVD cols+72(FP), %s", gCols)
	list := widths[p.rows]
	for i, cols := range list {
		next := fmt.Sprintf("next%d", p.rows)
		if i+1 < len(list) {
			next = tileName(p.rows, list[i+1])
		}
		p.tile(cols, next)
	}
	p.label("next%d", p.rows)
	p.op("ADD %s<<%d, %s", gLdC, bits.TrailingZeros(uint(p.rows)), gC)
	if p.byRow {
		p.op("ADD %s, R%d, %s", gLdA, rowA(p.rows-1), gA)
	} else {
		p.op("ADD $%d, %s", 4*p.rows, gA)
	}
	p.op("SUB $%d, %s", p.rows, gRows)
	p.op("B rows%d", p.rows)
}

func tileName(rows, cols int) string { return fmt.Sprintf("tile%dx%d", rows, cols) }

// tile takes tiles of so many columns while there are enough, then goes on at next.
func (p panel) tile(cols int, next string) {
	name, n := tileName(p.rows, cols), cols/4
	p.label("%s", name)
	p.op("CMP $%d, %s", cols, gCols)
	p.op("BLT %s", next)
	p.begin(name, n)

	p.label("%sbegun", name)
	p.op("MOVD %s, %s", gTileB, gAtB)
	if p.byRow {
		p.op("MOVD ZR, %s", gAtA)
	} else {
		p.op("MOVD %s, %s", gA, gAtA)
	}
	p.op("LSR $2, %s, %s", gInner, gCount)
	p.op("CBZ %s, %stail", gCount, name)
	p.label("%sloop", name)
	p.steps(n, unroll)
	p.op("SUB $1, %s", gCount)
	p.op("CBNZ %s, %sloop", gCount, name)
	p.label("%stail", name)
	p.op("AND $3, %s, %s", gInner, gCount)
	p.op("CBZ %s, %sstore", gCount, name)
	p.label("%sone", name)
	p.steps(n, 1)
	p.op("SUB $1, %s", gCount)
	p.op("CBNZ %s, %sone", gCount, name)

	p.label("%sstore", name)
	p.op("MOVD %s, %s", gTileC, gTmp)
	for r := range p.rows {
		p.store(vecs(vec(r*n), n), gTmp, 0)
		if r+1 < p.rows {
			p.op("ADD %s, %s", gLdC, gTmp)
		}
	}
	for _, g := range []string{gTileC, gTileB, gTileF} {
		p.op("ADD $%d, %s", 4*cols, g)
	}
	p.op("SUB $%d, %s", cols, gCols)
	p.op("B %s", name)
}

// begin sets the sums to what they start with: Zero, Keep or Scale.
func (p panel) begin(name string, n int) {
	p.op("CBNZ %s, %skeep", gStart, name)
	p.zero(vecs(0, p.rows*n)...)
	p.op("B %sbegun", name)
	p.label("%skeep", name)
	p.op("MOVD %s, %s", gTileC, gTmp)
	for r := range p.rows {
		p.load(vecs(vec(r*n), n), gTmp, 0)
		if r+1 < p.rows {
			p.op("ADD %s, %s", gLdC, gTmp)
		}
	}
	p.op("CMP $2, %s", gStart)
	p.op("BNE %sbegun", name)
	p.load(vecs(firstB, n), gTileF, 0)
	for i := range p.rows * n {
		p.words(fmul(vec(i), vec(i), firstB+vec(i%n)))
	}
}

// steps adds the products of count y to a tile of n registers a row. B of the
// next y is loaded ahead where registers allow.
func (p panel) steps(n, count int) {
	sets := 8 / n
	loadB := func(y int) {
		p.load(vecs(firstB+vec(y%sets*n), n), gAtB, 0)
		p.op("ADD %s, %s", gLdB, gAtB)
	}
	if p.byRow {
		p.loadRowsA(count)
	}
	for y := range count {
		if y == 0 || sets == 1 {
			loadB(y)
		}
		if sets > 1 && y+1 < count {
			loadB(y + 1)
		}
		if !p.byRow {
			p.loadColumnA(y)
		}
		for r := range p.rows {
			a, element := firstA+vec(r), y
			if !p.byRow {
				a, element = p.columnA(y)+vec(r/4), r%4
			}
			for v := range n {
				p.words(fmla(vec(r*n+v), firstB+vec(y%sets*n+v), a, element))
			}
		}
	}
}

// loadRowsA loads 4 steps of each row, or 1.
func (p panel) loadRowsA(count int) {
	for r := range p.rows {
		if count == 1 {
			p.op("FMOVS (R%d)(%s), %s", rowA(r), gAtA, (firstA + vec(r)).float())
		} else {
			p.words(ldr(firstA+vec(r), rowA(r), nAtA))
		}
	}
	p.op("ADD $%d, %s", 4*count, gAtA)
}

// columnA is the first register of A for step y.
func (p panel) columnA(y int) vec { return firstA + vec(y*max(1, p.rows/4)) }

// loadColumnA loads all rows of step y.
func (p panel) loadColumnA(y int) {
	a := p.columnA(y)
	switch p.rows {
	case 1:
		p.op("FMOVS (%s), %s", gAtA, a.float())
	case 2:
		p.op("FMOVD (%s), %s", gAtA, a.float())
	default:
		p.load(vecs(a, p.rows/4), gAtA, 0)
	}
	p.op("ADD %s, %s", gLdA, gAtA)
}
