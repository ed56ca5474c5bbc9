package vec

import (
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Matrix is a matrix in memory: element (x, y) is X[x·Row+y·Col].
type Matrix struct {
	X        []float32
	Row, Col int
}

// Start is what a sum of products begins with.
type Start uint8

const (
	Zero  Start = iota // +0
	Keep               // what C holds
	Scale              // what C holds times f of its column, rounded
)

// MulAdd is the matrix product with a fixed order:
//
//	C[x,i] = fma(A[x,y], B[y,i], ·)  for y = 0 … inner−1, one after another
//
// from start, for rows × cols elements. C.Col and B.Col are 1. It is the
// product of queries and keys, of weights and values, and all of the gradients.
func MulAdd(p kernel.Policy, c, a, b Matrix, rows, inner, cols int, start Start, f []float32) {
	if rows <= 0 || cols <= 0 {
		return
	}
	_ = c.X[(rows-1)*c.Row+cols-1]
	if inner > 0 {
		_, _ = a.X[(rows-1)*a.Row+(inner-1)*a.Col], b.X[(inner-1)*b.Row+cols-1]
	}
	if start == Scale {
		f = f[:cols]
	}
	done := mulAdd(&c, &a, &b, rows, inner, cols, start, f)
	if done == cols {
		return
	}
	c.X, b.X = c.X[done:], b.X[done:]
	if start == Scale {
		f = f[done:]
	}
	mulAddGeneric(!fused(p), &c, &a, &b, rows, inner, cols-done, start, f)
}

// Matrix16 is a matrix of F16 or BF16 elements: element (x, y) is X[x·Row+y].
type Matrix16 struct {
	X     []uint16
	Row   int
	DType tensor.DType
}

// Next is memory that will be wanted soon, to be fetched while a product is
// computed, and as much as B has: rows that are Row elements apart, or with 0
// one line after another. It may end earlier.
type Next struct {
	X   []uint16
	Row int
}

// MulAdd16 is MulAdd with elements of B that it widens. start is Zero or Keep.
func MulAdd16(p kernel.Policy, c, a Matrix, b Matrix16, rows, inner, cols int, start Start, next Next) {
	if rows <= 0 || cols <= 0 {
		return
	}
	_ = c.X[(rows-1)*c.Row+cols-1]
	if inner > 0 {
		_, _ = a.X[(rows-1)*a.Row+(inner-1)*a.Col], b.X[(inner-1)*b.Row+cols-1]
	}
	if len(next.X) == 0 {
		next = Next{b.X, b.Row}
	}
	done := mulAdd16(&c, &a, &b, rows, inner, cols, start, next)
	if done == cols {
		return
	}
	if start == Zero {
		for x := range rows {
			clear(c.X[x*c.Row+done:][:cols-done])
		}
	}
	var memory [64]float32
	for i := done; i < cols; i += len(memory) {
		n := min(len(memory), cols-i)
		to := Matrix{X: c.X[i:], Row: c.Row}
		for y := range inner {
			b.DType.ToF32s(memory[:n], b.X[y*b.Row+i:][:n])
			mulAddGeneric(!fused(p), &to, &Matrix{X: a.X[y*a.Col:], Row: a.Row, Col: a.Col}, &Matrix{X: memory[:], Row: n}, rows, 1, n, Keep, nil)
		}
	}
}

// Multiplies16 reports whether MulAdd16 and Turn16 are assembly. Otherwise it
// is faster to widen a tile first.
func Multiplies16() bool { return multiplies16() }

// mulAddGeneric keeps two rows by four columns of sums in registers.
func mulAddGeneric(fast bool, c, a, b *Matrix, rows, inner, cols int, start Start, f []float32) {
	for x := range rows {
		cx := c.X[x*c.Row:][:cols]
		switch start {
		case Zero:
			clear(cx)
		case Scale:
			for i, y := range f {
				cx[i] *= y
			}
		}
	}
	x := 0
	for ; fast && x+2 <= rows; x += 2 {
		twoRowsFast(c, a, b, x, inner, cols)
	}
	for ; x < rows; x++ {
		ax := a.X[x*a.Row:]
		cx := c.X[x*c.Row:][:cols]
		i := 0
		for ; i+4 <= cols; i += 4 {
			if fast || !fourExact(cx[i:i+4:i+4], ax, a.Col, b.X[i:], b.Row, inner) {
				for k := i; k < i+4; k++ {
					cx[k] = chain(fast, cx[k], ax, a.Col, b.X[k:], b.Row, inner)
				}
			}
		}
		for ; i < cols; i++ {
			cx[i] = chain(fast, cx[i], ax, a.Col, b.X[i:], b.Row, inner)
		}
	}
}

// chain is one sum.
func chain(fast bool, c float32, a []float32, sa int, b []float32, sb, inner int) float32 {
	for y := range inner {
		if fast {
			c += float32(a[y*sa] * b[y*sb])
		} else {
			c = kernel.FMA(a[y*sa], b[y*sb], c)
		}
	}
	return c
}

func twoRowsFast(c, a, b *Matrix, x, inner, cols int) {
	c0, c1 := c.X[x*c.Row:][:cols], c.X[(x+1)*c.Row:][:cols]
	a0, a1 := a.X[x*a.Row:], a.X[(x+1)*a.Row:]
	i := 0
	for ; i+4 <= cols; i += 4 {
		s0, s1, s2, s3 := c0[i], c0[i+1], c0[i+2], c0[i+3]
		t0, t1, t2, t3 := c1[i], c1[i+1], c1[i+2], c1[i+3]
		for y, at, bt := 0, 0, i; y < inner; y, at, bt = y+1, at+a.Col, bt+b.Row {
			z := b.X[bt:][:4:4]
			u, w := a0[at], a1[at]
			s0 += float32(z[0] * u)
			t0 += float32(z[0] * w)
			s1 += float32(z[1] * u)
			t1 += float32(z[1] * w)
			s2 += float32(z[2] * u)
			t2 += float32(z[2] * w)
			s3 += float32(z[3] * u)
			t3 += float32(z[3] * w)
		}
		c0[i], c0[i+1], c0[i+2], c0[i+3] = s0, s1, s2, s3
		c1[i], c1[i+1], c1[i+2], c1[i+3] = t0, t1, t2, t3
	}
	for ; i < cols; i++ {
		c0[i] = chain(true, c0[i], a0, a.Col, b.X[i:], b.Row, inner)
		c1[i] = chain(true, c1[i], a1, a.Col, b.X[i:], b.Row, inner)
	}
}

// fourExact does four sums side by side. They stay in float64 registers but
// hold float32 values: each step is kernel.FMA, spelled out so that the four
// chains overlap. Where a float64 sum may not be rounded directly (about one
// step in 2²⁹ of random data) it leaves c alone and returns false: a call to
// kernel.FMA in the loop would cost its registers.
func fourExact(c, a []float32, sa int, b []float32, sb, inner int) bool {
	c = c[:4]
	s0, s1, s2, s3 := float64(c[0]), float64(c[1]), float64(c[2]), float64(c[3])
	good := true
	for y, at, bt := 0, 0, 0; y < inner; y, at, bt = y+1, at+sa, bt+sb {
		z := b[bt:][:4:4]
		x := float64(a[at])
		var ok bool
		if s0, ok = step(float64(z[0]), x, s0); !ok {
			good = false
		}
		if s1, ok = step(float64(z[1]), x, s1); !ok {
			good = false
		}
		if s2, ok = step(float64(z[2]), x, s2); !ok {
			good = false
		}
		if s3, ok = step(float64(z[3]), x, s3); !ok {
			good = false
		}
	}
	if good {
		c[0], c[1], c[2], c[3] = float32(s0), float32(s1), float32(s2), float32(s3)
	}
	return good
}

// step is one fused multiply-add on a float64 that holds a float32, and
// whether the plain rounding was right.
func step(a, b, c float64) (float64, bool) {
	p := a * b // exact
	s := p + c
	u := math.Float64bits(s)
	ok := true
	if u&0x1fffffff == 0x10000000 {
		t := s - p // a true tie is rounded to even either way
		ok = (p-(s-t))+(c-t) == 0
	}
	if u<<1-1 < 898<<53-1 { // float32(s) would be subnormal; 0 wraps and passes
		ok = false
	}
	return float64(float32(s)), ok
}

// fused says whether multiply-adds are: only the Fast policy in generic Go does
// without. Beside assembly, which always fuses, what is left to Go must round
// alike, or sums that cancel would not.
func fused(p kernel.Policy) bool { return p == kernel.Exact || active != Generic }

// FMA is kernel.FMA, in the generic version under the Fast policy with two
// roundings.
func FMA(p kernel.Policy, a, b, c float32) float32 {
	if !fused(p) {
		return float32(a*b) + c
	}
	return kernel.FMA(a, b, c)
}
