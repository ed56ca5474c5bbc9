package vec

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

var trials = flag.Int("trials", 400, "random trials of each leaf loop and variant")

// leaf is an exported function: set draws its operands and returns the call.
type leaf struct {
	name string
	set  func(m *memory) func()
}

// leaves are all of them. Results that are no operands are written to one.
var leaves = []leaf{
	{"MulAdd", setMulAdd},
	{"MulAdd16", setMulAdd16},
	{"Turn16", setTurn16},
	{"SoftmaxStrip", setSoftmaxStrip},
	{"SoftmaxRows", setSoftmaxRows},
	{"Take", setTake},
	{"MergeStrip", setMergeStrip},
	{"Blend", setBlend},
	{"ScaleRow", setScaleRow},
	{"FinishStrip", setFinishStrip},
	{"FinishRow", setFinishRow},
	{"Finite", setFinite},
	{"RowsF32", setMoveF32(RowsF32, false)},
	{"ColumnsF32", setMoveF32(ColumnsF32, true)},
	{"Rows16", setMove16(Rows16, false)},
	{"Columns16", setMove16(Columns16, true)},
	{"Rows8", setMove8(Rows8, false)},
	{"Columns8", setMove8(Columns8, true)},
	{"Channels", setChannels},
	{"Tokens", setTokens},
	{"ChannelProduct", setChannelProduct},
	{"TokenProduct", setTokenProduct},
	{"GroupProduct", setGroupProduct},
	{"Narrow16", setNarrow16},
	{"SoftCap", setSoftCap},
	{"AddProduct", setAddProduct},
	{"Rotate", setRotate},
	{"Gradient", setGradient},
	{"Decays", setDecays},
	{"Gates", setGates},
	{"Multiply", setMultiply},
}

// upTo is a number from 1 to n, often a round one.
func upTo(r *rand.Rand, n int) int {
	switch x := 1 + r.IntN(n); r.IntN(3) {
	case 0:
		return x
	case 1:
		return max(x&^15, 1)
	default:
		return max(x&^7, 1)
	}
}

func anyValues(r *rand.Rand) values { return values(r.IntN(int(valueModes))) }

// matrix is an operand of n elements in the order of memory, rows × cols.
func (m *memory) matrix(rows, cols int, v values) Matrix {
	ld := cols + m.r.IntN(3)*m.r.IntN(20)
	return Matrix{X: m.floats((rows-1)*ld+cols, v), Row: ld, Col: 1}
}

func setMulAdd(m *memory) func() {
	r, v := m.r, anyValues(m.r)
	rows, inner, cols := upTo(r, 70), upTo(r, 140), upTo(r, 150)
	switch r.IntN(8) {
	case 0: // as for decode
		rows, inner, cols = upTo(r, 16), upTo(r, 64), upTo(r, 256)
	case 1: // as for a strip
		cols = Lanes
	case 2:
		inner = r.IntN(3)
	case 3:
		rows = 1 + r.IntN(4)
	}
	var a Matrix
	switch n := max(inner, 1); r.IntN(3) {
	case 0:
		a = m.matrix(rows, n, v)
	case 1: // transposed
		a = m.matrix(n, rows, v)
		a.Row, a.Col = a.Col, a.Row
	case 2: // neither side is contiguous
		a.Col = 1 + r.IntN(3)
		a.Row = n*a.Col + r.IntN(5)
		a.X = m.floats((rows-1)*a.Row+(n-1)*a.Col+1, v)
	}
	b, c := m.matrix(max(inner, 1), cols, v), m.matrix(rows, cols, v)
	start, f := Start(r.IntN(3)), m.floats(cols, v)
	return func() { MulAdd(kernel.Exact, c, a, b, rows, inner, cols, start, f) }
}

func setMulAdd16(m *memory) func() {
	r, v := m.r, anyValues(m.r)
	rows, inner, cols, dtype := upTo(r, 16), upTo(r, 140), upTo(r, 270), sixteen(r)
	switch r.IntN(4) {
	case 0:
		rows = 1 + r.IntN(2)
	case 1:
		inner = r.IntN(3)
	}
	n := max(inner, 1)
	a, c := m.matrix(rows, n, v), m.matrix(rows, cols, v)
	if r.IntN(4) == 0 {
		a = m.matrix(n, rows, v)
		a.Row, a.Col = a.Col, a.Row
	}
	b := Matrix16{Row: cols + r.IntN(3)*r.IntN(20), DType: dtype}
	b.X = m.halves((n-1)*b.Row+cols, v, dtype)
	start, next := Start(r.IntN(2)), Next{Row: r.IntN(2) * r.IntN(1000), Half: r.IntN(2) == 0}
	if r.IntN(2) == 0 {
		next.X = b.X[r.IntN(len(b.X)):]
	}
	return func() { MulAdd16(kernel.Exact, c, a, b, rows, inner, cols, start, next) }
}

func setTurn16(m *memory) func() {
	n, dim, stride, ld, ahead, size := shape(m.r, true)
	if m.r.IntN(2) == 0 {
		n, dim = (n+15)&^15, (dim+31)&^31
		ld = n + m.r.IntN(40)
		stride, size = dim+m.r.IntN(2)*m.r.IntN(300), (dim-1)*ld+n
	}
	dst, src := place[uint16](m, anyBits, size), place[uint16](m, anyBits, (n-1)*stride+dim)
	for i := range src {
		src[i] = uint16(m.r.Uint32())
	}
	var next, later []uint16
	if m.r.IntN(2) == 0 {
		next, later = src, dst[:m.r.IntN(2)]
	}
	return func() { Turn16(dst, ld, src, stride, n, dim, ahead, next, later) }
}

// softmax is the state of n rows: scale, m, l, f. l is never below 0, and m
// never -Inf.
func (m *memory) softmax(n int, v values) (scale, top, l, f []float32) {
	scale, top, l, f = m.floats(n, normal), m.floats(n, v), m.floats(n, v), m.floats(n, v)
	for i := range n {
		l[i] = float32(math.Abs(float64(l[i])))
		if top[i] == Hidden || m.r.IntN(2) == 0 {
			top[i] = kernel.MaxStart
		}
		switch {
		case v == halves: // the largest score is often 0, so that the others reach E as they are
			scale[i] = 1
			if m.r.IntN(2) == 0 {
				top[i] = 2
			}
		case m.r.IntN(2) == 0:
			scale[i] *= 30
		case v == special && m.r.IntN(8) == 0:
			scale[i] = float32(math.NaN())
		}
	}
	return scale, top, l, f
}

func setSoftmaxStrip(m *memory) func() {
	keys, v := upTo(m.r, Stride), anyValues(m.r)
	s := m.floats(keys*Lanes, v)
	scale, top, l, f := m.softmax(Lanes, v)
	var visible []uint32
	if m.r.IntN(2) == 0 {
		visible = place[uint32](m, anyBits, keys)
		fillWords(m.r, visible)
	}
	return func() { SoftmaxStrip(kernel.Exact, s, keys, scale, visible, top, l, f) }
}

// fillWords draws masks: random, all, none, or as a causal mask has them.
func fillWords[T uint32 | uint64](r *rand.Rand, x []T) {
	mode, edge := r.IntN(4), r.IntN(64)
	for i := range x {
		switch mode {
		case 0:
			x[i] = T(r.Uint64())
		case 1:
			x[i] = ^T(0)
		case 2:
			x[i] = 0
		default:
			x[i] = ^T(0) << max(0, i-edge)
		}
	}
}

func setSoftmaxRows(m *memory) func() {
	rows, v := 1+m.r.IntN(20), anyValues(m.r)
	s := m.floats(rows*Stride, v)
	scale, top, l, f := m.softmax(rows, v)
	visible := place[uint64](m, anyBits, rows)
	fillWords(m.r, visible)
	return func() { SoftmaxRows(kernel.Exact, s, rows, scale, visible, top, l, f) }
}

func setTake(m *memory) func() {
	keys, v := upTo(m.r, Stride), anyValues(m.r)
	s, raw, scale := m.floats(keys*Lanes, v), m.floats(keys*Lanes, v), m.floats(Lanes, v)
	visible := place[uint32](m, anyBits, keys)
	fillWords(m.r, visible)
	return func() { Take(s, raw, keys, scale, visible) }
}

func setMergeStrip(m *memory) func() {
	dim, v := upTo(m.r, 130), anyValues(m.r)
	_, top, l, _ := m.softmax(Lanes, v)
	_, ptop, pl, _ := m.softmax(Lanes, v)
	o, po := m.floats(dim*Lanes, v), m.floats(dim*Lanes, v)
	return func() { MergeStrip(kernel.Exact, top, l, o, ptop, pl, po, dim) }
}

func setBlend(m *memory) func() {
	n, v := upTo(m.r, 270), anyValues(m.r)
	y, x, f := m.floats(n, v), m.floats(n+m.r.IntN(3), v), m.floats(2, v)
	return func() { Blend(kernel.Exact, y, x, f[0], f[1]) }
}

func setScaleRow(m *memory) func() {
	v := anyValues(m.r)
	x, f := m.floats(upTo(m.r, 270), v), m.floats(1, v)
	return func() { ScaleRow(x, f[0]) }
}

func setFinishStrip(m *memory) func() {
	dim, v := upTo(m.r, 130), anyValues(m.r)
	o, l := m.floats(dim*Lanes, v), m.floats(Lanes, v)
	for i := range l {
		if m.r.IntN(4) == 0 {
			l[i] = 0
		}
	}
	return func() { FinishStrip(o, l, dim) }
}

func setFinishRow(m *memory) func() {
	v := anyValues(m.r)
	o, l := m.floats(upTo(m.r, 270), v), m.floats(1, v)
	return func() { FinishRow(o, l[0]) }
}

func setFinite(m *memory) func() {
	x, ok := m.floats(m.r.IntN(600), normal), place[uint32](m, anyBits, 1)
	if len(x) > 0 && m.r.IntN(2) == 0 {
		x[m.r.IntN(len(x))] = [3]float32{float32(math.NaN()), Hidden, -Hidden}[m.r.IntN(3)]
	}
	return func() {
		ok[0] = 0
		if Finite(x) {
			ok[0] = 1
		}
	}
}

// shape is that of rows to be moved, with the distances between rows.
func shape(r *rand.Rand, columns bool) (n, dim, stride, ld, ahead, size int) {
	n, dim = upTo(r, 70), upTo(r, 260)
	stride, ld = dim+r.IntN(2)*r.IntN(300), dim+r.IntN(40)
	if r.IntN(8) == 0 {
		stride = 0 // the same row again and again
	}
	size = (n-1)*ld + dim
	if columns {
		ld = n + r.IntN(40)
		size = (dim-1)*ld + n
	}
	return n, dim, stride, ld, r.IntN(3) * (r.IntN(1<<20) - 1<<19), size
}

func setMoveF32(f func(dst []float32, ld int, src []float32, stride, n, dim, ahead int), columns bool) func(m *memory) func() {
	return func(m *memory) func() {
		n, dim, stride, ld, ahead, size := shape(m.r, columns)
		v := anyValues(m.r)
		dst, src := m.floats(size, v), m.floats((n-1)*stride+dim, v)
		return func() { f(dst, ld, src, stride, n, dim, ahead) }
	}
}

func sixteen(r *rand.Rand) tensor.DType { return [2]tensor.DType{tensor.F16, tensor.BF16}[r.IntN(2)] }

func setMove16(f func(dst []float32, ld int, src []uint16, dtype tensor.DType, stride, n, dim, ahead int), columns bool) func(m *memory) func() {
	return func(m *memory) func() {
		n, dim, stride, ld, ahead, size := shape(m.r, columns)
		dtype := sixteen(m.r)
		dst, src := m.floats(size, normal), m.halves((n-1)*stride+dim, anyValues(m.r), dtype)
		if m.r.IntN(2) == 0 { // any bits, subnormals among them
			for i := range src {
				src[i] = uint16(m.r.Uint32())
			}
		}
		return func() { f(dst, ld, src, dtype, stride, n, dim, ahead) }
	}
}

func setMove8(f func(dst []float32, ld int, src []uint8, dtype tensor.DType, stride, n, dim, ahead int), columns bool) func(m *memory) func() {
	return func(m *memory) func() {
		n, dim, stride, ld, ahead, size := shape(m.r, columns)
		dtype := [2]tensor.DType{tensor.F8E4M3, tensor.F8E5M2}[m.r.IntN(2)]
		dst, src := m.floats(size, normal), place[uint8](m, anyBits, (n-1)*stride+dim)
		for i := range src {
			src[i] = uint8(m.r.Uint32())
		}
		return func() { f(dst, ld, src, dtype, stride, n, dim, ahead) }
	}
}

// codes draws rows of codes of a random kind.
func (m *memory) codes(n, dim int) (codec kernel.Codec, stride int, codes []uint8) {
	codec = kernel.Int8
	if c := kernel.Codec(1 + m.r.IntN(4)); dim%c.Multiple() == 0 {
		codec = c
	}
	bytes := codec.RowBytes(dim)
	stride = bytes + m.r.IntN(2)*m.r.IntN(100)
	codes = place[uint8](m, anyBits, (n-1)*stride+bytes)
	for i := range codes {
		codes[i] = uint8(m.r.Uint32())
	}
	return codec, stride, codes
}

// levels draws a table for codes, at times.
func (m *memory) levels(codec kernel.Codec) []float32 {
	if m.r.IntN(2) == 0 {
		return nil
	}
	return m.floats(int(codec.MaxCode())+1, normal)
}

func setChannels(m *memory) func() {
	n, dim, columns := upTo(m.r, 70), upTo(m.r, 300), m.r.IntN(2) == 0
	codec, stride, codes := m.codes(n, dim)
	ld := dim + m.r.IntN(20)
	size := (n-1)*ld + dim
	if columns {
		ld = n + m.r.IntN(20)
		size = (dim-1)*ld + n
	}
	v := anyValues(m.r)
	dst, scale, zero, levels := m.floats(size, normal), m.halves(dim, v, tensor.F16), m.halves(dim, v, tensor.F16), m.levels(codec)
	return func() { Channels(dst, ld, columns, codes, codec, stride, n, dim, scale, zero, levels) }
}

func setTokens(m *memory) func() {
	n, group := upTo(m.r, 70), 8*(1+m.r.IntN(16))
	if m.r.IntN(2) == 0 {
		group = 8 << m.r.IntN(5)
	}
	dim := group * (1 << m.r.IntN(4))
	codec, stride, codes := m.codes(n, dim)
	ld, groups, v := dim+m.r.IntN(20), dim/group, anyValues(m.r)
	scaleStride, zeroStride := groups+m.r.IntN(3), groups+m.r.IntN(3)
	dst, levels := m.floats((n-1)*ld+dim, normal), m.levels(codec)
	scale, zero := m.halves((n-1)*scaleStride+groups, v, tensor.F16), m.halves((n-1)*zeroStride+groups, v, tensor.F16)
	return func() {
		Tokens(dst, ld, codes, codec, stride, n, dim, group, scale, scaleStride, zero, zeroStride, levels)
	}
}

func setChannelProduct(m *memory) func() {
	r, v := m.r, anyValues(m.r)
	rows, n, dim := upTo(r, 16), upTo(r, Stride), 64*(1+r.IntN(8))
	if r.IntN(4) == 0 {
		dim = upTo(r, kernel.MaxHeadDim)
	}
	codec, stride, codes := m.codes(n, dim)
	x := &Codes{Codec: codec, X: codes, Row: stride, Levels: m.levels(codec), Scale: m.halves(dim, v, tensor.F16), Zero: m.halves(dim, v, tensor.F16)}
	m.aheads(x)
	a, c := m.matrix(rows, dim, v), m.matrix(rows, n, v)
	return func() { ChannelProduct(c, a, x, rows, n, dim, &codeScratch) }
}

func setTokenProduct(m *memory) func() {
	r, v := m.r, anyValues(m.r)
	rows, n, group := upTo(r, 16), upTo(r, Stride), 16<<r.IntN(4)
	dim := group * (1 + r.IntN(kernel.MaxHeadDim/group))
	if r.IntN(2) == 0 {
		dim = min(kernel.MaxHeadDim, max(group, 128)<<r.IntN(3))
	}
	codec, stride, codes := m.codes(n, dim)
	groups := dim / group
	x := &Codes{Codec: codec, X: codes, Row: stride, Levels: m.levels(codec), Group: group, ScaleRow: groups + r.IntN(2)*r.IntN(9), ZeroRow: groups + r.IntN(2)*r.IntN(9)}
	x.Scale, x.Zero = m.halves((n-1)*x.ScaleRow+groups, v, tensor.F16), m.halves((n-1)*x.ZeroRow+groups, v, tensor.F16)
	m.aheads(x)
	a, c := m.matrix(rows, n, v), m.matrix(rows, dim, v)
	return func() { TokenProduct(c, a, x, rows, n, dim, &codeScratch) }
}

func setGroupProduct(m *memory) func() {
	r, v := m.r, anyValues(m.r)
	rows, n, group := upTo(r, 16), upTo(r, Stride), 16<<r.IntN(4)
	dim := group * (1 + r.IntN(kernel.MaxHeadDim/group))
	if r.IntN(2) == 0 {
		dim = min(kernel.MaxHeadDim, max(group, 128)<<r.IntN(3))
	}
	codec, stride, codes := m.codes(n, dim)
	groups := dim / group
	x := &Codes{Codec: codec, X: codes, Row: stride, Levels: m.levels(codec), Group: group, ScaleRow: groups + r.IntN(2)*r.IntN(9), ZeroRow: groups + r.IntN(2)*r.IntN(9)}
	x.Scale, x.Zero = m.halves((n-1)*x.ScaleRow+groups, v, tensor.F16), m.halves((n-1)*x.ZeroRow+groups, v, tensor.F16)
	m.aheads(x)
	a, c := m.matrix(rows, dim, v), m.matrix(rows, n, v)
	return func() { ChannelProduct(c, a, x, rows, n, dim, &codeScratch) }
}

var codeScratch CodeScratch

// aheads says that any memory will be wanted.
func (m *memory) aheads(x *Codes) {
	x.Next, x.Later = x.X[:m.r.IntN(len(x.X)+1)], x.X[m.r.IntN(len(x.X)+1):]
	for _, a := range []*int{&x.AheadScale, &x.AheadZero} {
		*a = m.r.IntN(3) * (m.r.IntN(1<<20) - 1<<19)
	}
}

func setSoftCap(m *memory) func() {
	v := anyValues(m.r)
	x, f := m.floats(upTo(m.r, 100), v), m.floats(2, normal)
	if m.r.IntN(2) == 0 {
		f[0] = 0.625 // where the branches of the tangent meet
	}
	return func() { SoftCap(x, f[0], f[1]) }
}

func setAddProduct(m *memory) func() {
	n, v := upTo(m.r, 270), anyValues(m.r)
	y, a, b := m.floats(n, v), m.floats(n, v), m.floats(n+m.r.IntN(3), v)
	return func() { AddProduct(kernel.Exact, y, a, b) }
}

func setDecays(m *memory) func() {
	r, v := m.r, anyValues(m.r)
	rows, n, h, shift := upTo(r, 20), upTo(r, Stride), 1<<r.IntN(8)>>1, r.IntN(2)
	size := (rows-1)*Stride + (n+15)&^15
	w, e, q, k := m.floats(size, v), m.floats(size, v), m.floats(size, v), m.floats(size, v)
	if r.IntN(4) == 0 {
		w = [][]float32{q, k}[r.IntN(2)]
	}
	g := place[float64](m, binary64, rows*gateRow)
	x := make([]float32, rows*Stride)
	anyValues(r).fill(r, x)
	for i := range x { // of one sign, mostly within what E does not make 0
		x[i] = -float32(math.Abs(float64(x[i]))) / float32(int(1)<<r.IntN(8))
	}
	Gates(g, x, rows, n)
	return func() { Decays(kernel.Exact, w, e, q, k, g, rows, n, h, shift) }
}

func setGates(m *memory) func() {
	rows, n := upTo(m.r, 20), upTo(m.r, Stride)
	g, x := place[float64](m, binary64, rows*gateRow), m.floats((rows-1)*Stride+n, anyValues(m.r))
	for i := range x {
		if m.r.IntN(4) > 0 {
			x[i] = -float32(math.Abs(float64(x[i])))
		}
	}
	return func() { Gates(g, x, rows, n) }
}

func setMultiply(m *memory) func() {
	n, v := upTo(m.r, 270), anyValues(m.r)
	y, a, b := m.floats(n, v), m.floats(n, v), m.floats(n+m.r.IntN(3), v)
	if m.r.IntN(2) == 0 {
		y = [][]float32{a, b[:n]}[m.r.IntN(2)]
	}
	return func() { Multiply(y, a, b) }
}

func setNarrow16(m *memory) func() {
	n, dtype, v := upTo(m.r, 270), sixteen(m.r), anyValues(m.r)
	src, dst := m.floats(n, v), m.halves(n, normal, dtype)
	if m.r.IntN(2) == 0 { // near a tie, of every exponent
		for i := range src {
			u := m.r.Uint32()
			tie := uint32(0x8000)
			if dtype == tensor.F16 {
				tie = 0x1000
			}
			src[i] = math.Float32frombits(u&^(2*tie-1) | tie + u%3 - 1)
		}
	}
	return func() { Narrow16(dst, src, dtype) }
}

func setRotate(m *memory) func() {
	half, v := upTo(m.r, 128), anyValues(m.r)
	x, cos, sin := m.floats(2*half+m.r.IntN(2)*m.r.IntN(40), v), m.floats(half, v), m.floats(half, v)
	layout, inverse := kernel.RotaryLayout(m.r.IntN(2)), m.r.IntN(2) == 0
	return func() { Rotate(x, cos, sin, layout, inverse, kernel.Exact) }
}

func setGradient(m *memory) func() {
	v := anyValues(m.r)
	s, dp, g := m.floats(Stride, v), m.floats(Stride, v), m.floats(Stride, v)
	f, visible := m.floats(2, v), place[uint64](m, anyBits, 1)
	if v == halves {
		f[0] = 0
	}
	fillWords(m.r, visible)
	return func() { Gradient(kernel.Exact, s, dp, g, f[0], f[1], visible[0]) }
}

// compare runs one trial with the generic version and with variant v.
func (l *leaf) compare(m *memory, seed uint64, v Variant) error {
	before := Active()
	defer Use(before)
	var want [][]byte
	for _, v := range []Variant{Generic, v} {
		if _, err := Use(v); err != nil {
			return err
		}
		m.reset(seed)
		call := l.set(m)
		call()
		if v == Generic {
			want = m.snapshot()
		}
	}
	if operand, element, got, want, differ := m.differ(want); differ {
		return fmt.Errorf("%s seed %d: variant %v: operand %d element %d is %#x, want %#x", l.name, seed, v, operand, element, got, want)
	}
	return nil
}

// Every variant gives the bits of the generic version and touches nothing else.
func TestVariantsGiveTheSameBits(t *testing.T) {
	n := *trials
	if testing.Short() {
		n /= 4
	}
	for i := range leaves {
		l := &leaves[i]
		t.Run(l.name, func(t *testing.T) {
			m := newMemory(t)
			for _, v := range Variants()[1:] {
				for seed := range uint64(n) {
					if err := l.compare(m, seed, v); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// The comparison must see a wrong bit, a wrong sign of zero, and a write beyond.
func TestCompareSeesFaults(t *testing.T) {
	m := newMemory(t)
	for name, fault := range map[string]func(x []float32){
		"bit":    func(x []float32) { x[3] = math.Float32frombits(math.Float32bits(x[3]) ^ 1) },
		"sign":   func(x []float32) { x[4] = float32(math.Copysign(0, -1)) },
		"NaN":    func(x []float32) { x[5] = float32(math.NaN()) },
		"before": func([]float32) { m.used[0].region[0]++ },
		"after":  func([]float32) { b := m.used[0].region; b[len(b)-1]++ },
	} {
		for seed := range uint64(4) { // at either end of the region
			m.reset(seed)
			x := m.floats(16, normal)
			x[4] = 0
			s := m.snapshot()
			if _, _, _, _, differ := m.differ(s); differ {
				t.Fatalf("%s: differs before", name)
			}
			fault(x)
			if _, _, _, _, differ := m.differ(s); !differ {
				t.Errorf("%s is not seen, seed %d", name, seed)
			}
		}
	}
}

func FuzzVariants(f *testing.F) {
	for i := range leaves {
		f.Add(uint8(i), uint64(1))
	}
	f.Fuzz(func(t *testing.T, i uint8, seed uint64) {
		m := newMemory(t)
		l := &leaves[int(i)%len(leaves)]
		for _, v := range Variants()[1:] {
			if err := l.compare(m, seed, v); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Each element is one chain of kernel.FMA, in every variant.
func TestMulAddIsAChainOfFMA(t *testing.T) {
	before := Active()
	defer Use(before)
	m := newMemory(t)
	for _, v := range Variants() {
		Use(v)
		for seed := range uint64(60) {
			m.reset(seed)
			r, mode := m.r, values(seed%uint64(valueModes))
			rows, inner, cols := 1+r.IntN(9), r.IntN(70), 1+r.IntN(70)
			a, b, c := m.matrix(rows, max(inner, 1), mode), m.matrix(max(inner, 1), cols, mode), m.matrix(rows, cols, mode)
			f, start := m.floats(cols, mode), Start(seed%3)
			old := append([]float32(nil), c.X...)
			MulAdd(kernel.Exact, c, a, b, rows, inner, cols, start, f)
			for x := range rows {
				for i := range cols {
					var want float32
					switch start {
					case Keep:
						want = old[x*c.Row+i]
					case Scale:
						want = old[x*c.Row+i] * f[i]
					}
					for y := range inner {
						want = kernel.FMA(a.X[x*a.Row+y*a.Col], b.X[y*b.Row+i], want)
					}
					got := c.X[x*c.Row+i]
					if math.Float32bits(got) != math.Float32bits(want) && (got == got || want == want) {
						t.Fatalf("%v, mode %d, start %d, %d×%d×%d: element %d,%d is %x, want %x", v, mode, start, rows, inner, cols, x, i, got, want)
					}
				}
			}
		}
	}
}
