package bf16

import (
	"math"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

const (
	Lanes  = 32              // rows of a strip
	Keys   = kernel.TileSize // keys of a tile
	MaxDim = 512             // features of a head
	Exact  = 3               // parts that hold a float32 exactly
)

// Fits reports whether heads of dim features can be computed here.
func Fits(dim int) bool { return dim > 0 && dim <= MaxDim && dim%32 == 0 }

// Multiply is the product of packed operands, with sums in float32 in a free
// order:
//
//	c[x·Lanes+i] (+)= Σ a[x,y] · b[y,i]   for x < rows, i < Lanes, y < inner
//
// rows and inner are multiples of 32; keep says whether c is added to. a has
// aParts parts and b bParts ≥ aParts: part i of a meets the parts of b before
// bParts−i, which leaves out what is below the last bit of float32.
func Multiply(c []float32, a, b []uint16, rows, inner, aParts, bParts int, keep bool) {
	checkParts(aParts, bParts)
	c, a, b = c[:rows*Lanes], a[:aParts*rows*inner], b[:bParts*inner*Lanes]
	if !Fits(inner) || rows <= 0 || rows%32 != 0 {
		panic("bf16: rows and inner are positive multiples of 32")
	}
	if current() == Go {
		multiplyGo(c, a, b, rows, inner, aParts, bParts, keep)
		return
	}
	args := productArgs{
		c: &c[0], a: &a[0], b: &b[0], rowTiles: uintptr(rows / 16), blocks: uintptr(inner / 32),
		aTile: uintptr(inner * 32), aPart: uintptr(rows * inner * 2), aParts: uintptr(aParts), bParts: uintptr(bParts),
	}
	if keep {
		args.keep = 1
	}
	product(&args)
}

// productArgs are the arguments of a product in assembly. Steps are in bytes.
type productArgs struct {
	c                            *float32
	a, b                         *uint16
	rowTiles, blocks             uintptr // rows/16, inner/32
	aTile, aPart, aParts, bParts uintptr
	keep                         uintptr
}

func checkParts(a, b int) {
	if a != 1 && a != Exact || b != 1 && b != Exact || a > b {
		panic("bf16: an operand has 1 or 3 parts, and the first no more than the second")
	}
}

// atA is where element (x, y) of a packed operand A lies, atB that of B.
func atA(x, y, inner int) int {
	return (x/16*(inner/32)+y/32)*512 + x%16*32 + y%32
}

func atB(y, i int) int {
	return (y/32*2+i/16)*512 + y%32/2*32 + i%16*2 + y%2
}

func multiplyGo(c []float32, a, b []uint16, rows, inner, aParts, bParts int, keep bool) {
	for x := range rows {
		for i := range Lanes {
			sum := 0.0
			for p := range aParts {
				for q := range bParts - p {
					for y := range inner {
						u := tensor.BF16ToF32(a[p*rows*inner+atA(x, y, inner)])
						w := tensor.BF16ToF32(b[q*inner*Lanes+atB(y, i)])
						sum += float64(u) * float64(w)
					}
				}
			}
			if keep {
				sum += float64(c[x*Lanes+i])
			}
			c[x*Lanes+i] = float32(sum)
		}
	}
}

// split is part p of x in so many parts. Each part but the last is the rest
// rounded to BF16, ties away from 0, and kept finite: an infinity or a NaN ends
// up in the last.
func split(x float32, parts, p int) uint16 {
	const largest = 0x1.fep127
	for range p {
		x -= upper(x, largest)
	}
	if p < parts-1 {
		x = upper(x, largest)
	}
	return tensor.F32ToBF16(x)
}

func upper(x, largest float32) float32 {
	y := math.Float32frombits((math.Float32bits(x) + 0x8000) & 0xffff0000)
	if !(y <= largest) {
		return largest
	}
	return max(y, -largest)
}

// PackPairs packs src[y·Lanes+i], dim × Lanes, as operand B: the queries of a
// strip, or weights (dim = Keys). With one part elements are rounded to BF16;
// Exact parts add up to the float32 (what is below 2⁻¹²⁶ aside). Part p begins
// at dst[p·dim·Lanes].
func PackPairs(dst []uint16, src []float32, dim, parts int) {
	checkParts(1, parts)
	src, dst = src[:dim*Lanes], dst[:parts*dim*Lanes]
	if current() != Go {
		pack(packPairs, &packArgs{dst: &dst[0], src: unsafe.Pointer(&src[0]), blocks: uintptr(dim / 32), parts: uintptr(parts), part: uintptr(dim * Lanes * 2)})
		return
	}
	for p := range parts {
		for y := range dim {
			for i := range Lanes {
				dst[p*dim*Lanes+atB(y, i)] = split(src[y*Lanes+i], parts, p)
			}
		}
	}
}

// packArgs are the arguments of packing in assembly. Steps are in bytes.
type packArgs struct {
	dst    *uint16
	src    unsafe.Pointer
	ld     uintptr // between rows of src
	blocks uintptr // features/32
	parts  uintptr
	part   uintptr
	finite bool
}

// PackKey packs Keys rows of dim features, src[j·ld+d], as operand A, and
// reports whether all are finite. The caller fills up a tile with fewer keys:
// zeros, hidden from every row.
func PackKey(dst, src []uint16, ld, dim int) (finite bool) {
	src, dst = src[:(Keys-1)*ld+dim], dst[:Keys*dim]
	if current() != Go {
		a := packArgs{dst: &dst[0], src: unsafe.Pointer(&src[0]), ld: uintptr(ld * 2), blocks: uintptr(dim / 32)}
		pack(packKey, &a)
		return a.finite
	}
	finite = true
	for j := range Keys {
		for d, x := range src[j*ld:][:dim] {
			dst[atA(j, d, dim)] = x
			finite = finite && x&0x7f80 != 0x7f80
		}
	}
	return finite
}

// PackKeyF32 is PackKey for float32, such as keys that were rotated, in one
// part or Exact. Part p begins at dst[p·Keys·dim].
func PackKeyF32(dst []uint16, src []float32, ld, dim, parts int) {
	checkParts(1, parts)
	src, dst = src[:(Keys-1)*ld+dim], dst[:parts*Keys*dim]
	if current() != Go {
		pack(packKeyF32, &packArgs{dst: &dst[0], src: unsafe.Pointer(&src[0]), ld: uintptr(ld * 4), blocks: uintptr(dim / 32), parts: uintptr(parts), part: uintptr(Keys * dim * 2)})
		return
	}
	for p := range parts {
		for j := range Keys {
			for d, x := range src[j*ld:][:dim] {
				dst[p*Keys*dim+atA(j, d, dim)] = split(x, parts, p)
			}
		}
	}
}

// PackValue packs Keys rows of dim features, src[j·ld+d], as the transposed
// operand A, features × Keys, and reports whether all are finite.
func PackValue(dst, src []uint16, ld, dim int) (finite bool) {
	src, dst = src[:(Keys-1)*ld+dim], dst[:Keys*dim]
	if current() != Go {
		a := packArgs{dst: &dst[0], src: unsafe.Pointer(&src[0]), ld: uintptr(ld * 2), blocks: uintptr(dim / 32)}
		pack(packValue, &a)
		return a.finite
	}
	finite = true
	for j := range Keys {
		for d, x := range src[j*ld:][:dim] {
			dst[atA(d, j, Keys)] = x
			finite = finite && x&0x7f80 != 0x7f80
		}
	}
	return finite
}

// packing names a way to pack.
type packing uint8

const (
	packKey packing = iota
	packKeyF32
	packValue
	packPairs
)
