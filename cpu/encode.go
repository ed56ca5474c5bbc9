package cpu

import (
	"math"
	"slices"
	"sync"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Coding of pages: rules 13 and 14 of package kernel.

// EncodePages codes plain pages.
func (b *Backend) EncodePages(a *kernel.EncodeArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Key, &a.Value, &a.KeyScale, &a.ValueScale); err != nil {
		return err
	}
	if err := codedOnHost(&a.CodedKey, &a.CodedValue); err != nil {
		return err
	}
	key, value := readKeys(&a.Key, &a.KeyScale, &a.CodedKey, a.Coding.Key), readKeys(&a.Value, &a.ValueScale, &a.CodedValue, a.Coding.Value)
	size, heads := int(a.Key.Shape[1]), int(a.Key.Shape[2])
	n := int64(len(a.Src)) * int64(heads)
	if b.pool.workers > 1 && n > 1 && n*int64(size)*int64(key.n+value.n) >= opShare {
		t := &encoding{key, value, a.Src, a.Dst, size, heads, make([]bool, n), &b.encoders}
		b.pool.do(&job{}, t, n)
		for i := range a.Src {
			a.Encoded[i] = !slices.Contains(t.encoded[i*heads:][:heads], false)
		}
		return nil
	}
	e := b.encoders.get()
	defer b.encoders.put(e)
	for i := range a.Src {
		src, dst := int64(a.Src[i]), int64(a.Dst[i])
		ok := true
		for h := 0; h < heads && ok; h++ {
			ok = e.encode(&key, src, dst, size, h) && e.encode(&value, src, dst, size, h)
		}
		a.Encoded[i] = ok
	}
	return nil
}

// encoding codes a head of a page an item.
type encoding struct {
	key, value  reader
	src, dst    []int32
	size, heads int
	encoded     []bool // [pages·heads]
	encoders    *free[encoder]
}

func (t *encoding) item(_ int, i int64) {
	e := t.encoders.get()
	defer t.encoders.put(e)
	page, head := i/int64(t.heads), int(i)%t.heads
	src, dst := int64(t.src[page]), int64(t.dst[page])
	t.encoded[i] = e.encode(&t.key, src, dst, t.size, head) && e.encode(&t.value, src, dst, t.size, head)
}

func codedOnHost(pages ...*kernel.CodedPages) error {
	for _, p := range pages {
		views := p.Views()
		if err := onHost(views[:]...); err != nil {
			return err
		}
	}
	return nil
}

// encoder is the memory in which a head of a page is coded.
type encoder struct {
	page, head int64 // the target
	size, dim  int
	perRow     int // groups of a row
	width      int // features of a group that follow one another
	next       int // groups from those of a row to those of the next; 0: the same

	x           []float32 // [size][dim] the values
	taken       []bool    // [size·dim] which are outliers; empty: none
	lo, hi      []float32 // [groups] of the rest
	count       []float32 // [groups]
	scale, zero []float32 // [groups] as they are stored
	row         [kernel.MaxHeadDim]uint8
	middles     [255]float32 // between levels
	levels      int

	best []uint64 // candidates for outliers: the measure, above the complement of the index

	lost, turned []float32 // [size][dim], [dim][size] what coding loses
	left, right  []float32 // [size], [dim] a term of its approximation
}

// free holds what was used and can be used again. It keeps all of it, for a
// sync.Pool may drop some, and a decode loop allocates nothing.
type free[T any] struct {
	mu   sync.Mutex
	list []*T
}

func (f *free[T]) get() *T {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.list); n > 0 {
		x := f.list[n-1]
		f.list = f.list[:n-1]
		return x
	}
	return new(T)
}

func (f *free[T]) put(x *T) {
	f.mu.Lock()
	f.list = append(f.list, x)
	f.mu.Unlock()
}

// encode codes a head of a page. It reports whether that can be coded.
func (e *encoder) encode(r *reader, src, dst int64, size, head int) bool {
	c := &r.coded
	e.page, e.head, e.size, e.dim = dst, int64(head), size, r.n
	e.perRow, e.width, e.next = e.dim, 1, 0
	if c.Group > 0 {
		e.perRow, e.width, e.next = e.dim/c.Group, c.Group, e.dim/c.Group
	}
	groups := e.perRow + (size-1)*e.next
	e.x = grown(e.x, size*e.dim)
	r.loadScaled(e.x, e.dim, false, r.offset+src*r.row+int64(head)*r.head, r.slot, size, 0, head)
	for _, x := range []*[]float32{&e.lo, &e.hi, &e.count, &e.scale, &e.zero} {
		*x = grown(*x, groups)
	}
	e.taken = e.taken[:0]
	if c.Outliers > 0 && !e.takeOutliers(c) {
		return false
	}
	if c.RMS {
		e.meanSquares()
	} else {
		e.bounds()
	}
	if !e.setGroups(c) {
		return false
	}
	e.codes(c)
	return c.Rank == 0 || e.lowRank(c)
}

func grown[T any](x []T, n int) []T { return slices.Grow(x[:0], n)[:n] }

// isTaken reports whether an entry is an outlier.
func (e *encoder) isTaken(at int) bool { return len(e.taken) > 0 && e.taken[at] }

// bounds finds the least and the largest value of each group.
func (e *encoder) bounds() {
	for g := range e.lo {
		e.lo[g], e.hi[g], e.count[g] = float32(math.Inf(1)), float32(math.Inf(-1)), 0
	}
	for slot := range e.size {
		at, g := slot*e.dim, slot*e.next
		for i := range e.perRow {
			lo, hi, n := e.lo[g+i], e.hi[g+i], e.count[g+i]
			for _, x := range e.x[at : at+e.width] {
				if !e.isTaken(at) {
					lo, hi, n = min(lo, x), max(hi, x), n+1 // NaN stays
				}
				at++
			}
			e.lo[g+i], e.hi[g+i], e.count[g+i] = lo, hi, n
		}
	}
}

// meanSquares leaves the sum of squares of each group in lo.
func (e *encoder) meanSquares() {
	clear(e.lo)
	clear(e.count)
	for slot := range e.size {
		at, g := slot*e.dim, slot*e.next
		for i := range e.perRow {
			for _, x := range e.x[at : at+e.width] {
				if !e.isTaken(at) {
					e.lo[g+i], e.count[g+i] = kernel.FMA(x, x, e.lo[g+i]), e.count[g+i]+1
				}
				at++
			}
		}
	}
}

// setGroups stores the scale and the zero of each group.
func (e *encoder) setGroups(c *codedPages) bool {
	rows := e.size
	if e.next == 0 {
		rows = 1
	}
	for row := range rows {
		scale, zero := c.scale[c.inScale.at(e.page, int64(row), int(e.head)):], c.zero[c.inZero.at(e.page, int64(row), int(e.head)):]
		for i := range e.perRow {
			g, ok := row*e.next+i, true
			switch {
			case e.count[g] == 0:
				scale[i], zero[i] = 0, 0
			case c.RMS:
				scale[i], zero[i] = tensor.F32ToF16(float32(math.Sqrt(float64(e.lo[g]/e.count[g])))), 0
				ok = scale[i]&0x7c00 != 0x7c00
			default:
				scale[i], zero[i], ok = c.Codec.Group(e.lo[g], e.hi[g])
			}
			if !ok {
				return false
			}
			e.scale[g], e.zero[g] = tensor.F16ToF32(scale[i]), tensor.F16ToF32(zero[i])
		}
	}
	return true
}

// codes stores the codes, and with a Rank what they lose.
func (e *encoder) codes(c *codedPages) {
	levels := c.table(int(e.head))
	if c.Rank > 0 {
		e.lost = grown(e.lost, e.size*e.dim)
	}
	e.setMiddles(levels)
	row := e.row[:e.dim]
	for slot := range e.size {
		for i := range e.perRow {
			scale, zero := e.scale[slot*e.next+i], e.zero[slot*e.next+i]
			for d := i * e.width; d < (i+1)*e.width; d++ {
				switch x := e.x[slot*e.dim+d]; {
				case e.isTaken(slot*e.dim + d):
					row[d] = 0
				case levels != nil:
					row[d] = e.level(x, scale, zero)
				default:
					row[d] = c.Codec.Encode(x, scale, zero)
				}
			}
		}
		c.Codec.Pack(c.codes[c.inCodes.at(e.page, int64(slot), int(e.head)):], row)
		if c.Rank > 0 {
			e.loss(slot, levels)
		}
	}
}

// setMiddles finds what lies halfway from each level to the next.
func (e *encoder) setMiddles(levels []float32) {
	for i := 1; i < len(levels); i++ {
		e.middles[i-1] = (levels[i-1] + levels[i]) * 0.5
	}
	e.levels = len(levels)
}

// level is kernel.EncodeLevel: many levels by halves, few one by one, without a
// branch that is hard to foretell.
func (e *encoder) level(x, scale, zero float32) uint8 {
	if scale == 0 {
		return 0
	}
	y, code := (x-zero)/scale, 0 // code: how many middles y is above
	if e.levels <= 16 {
		for _, m := range e.middles[:e.levels-1] {
			if y > m {
				code++
			}
		}
	} else {
		for n := e.levels / 2; n > 0; n /= 2 {
			if y > e.middles[code+n-1] {
				code += n
			}
		}
	}
	if code < e.levels-1 && y == e.middles[code] && code%2 == 1 {
		code++
	}
	return uint8(code)
}

// loss sets what the codes of a row lose.
func (e *encoder) loss(slot int, levels []float32) {
	for d, code := range e.row[:e.dim] {
		at, g := slot*e.dim+d, slot*e.next+d/e.width
		value := kernel.Decode(code, e.scale[g], e.zero[g])
		if levels != nil {
			value = kernel.FMA(levels[code], e.scale[g], e.zero[g])
		}
		if e.lost[at] = e.x[at] - value; e.isTaken(at) {
			e.lost[at] = 0
		}
	}
}

// takeOutliers chooses the entries that are farthest from the mean of their
// group and stores them. It reports whether they can be stored.
func (e *encoder) takeOutliers(c *codedPages) bool {
	e.means()
	m, floor := c.Outliers, uint64(0)
	e.best = e.best[:0]
	cut := func() {
		slices.Sort(e.best) // the farthest come last
		e.best = e.best[:copy(e.best, e.best[len(e.best)-m:])]
		floor = e.best[0]
	}
	for slot := range e.size {
		for d := range e.dim {
			at := slot*e.dim + d
			far := float32(math.Inf(1))
			if x := e.x[at]; fits16(x) {
				far = float32(math.Abs(float64(x - e.lo[slot*e.next+d/e.width])))
			}
			if key := uint64(math.Float32bits(far))<<32 | uint64(^uint32(at)); key > floor {
				if e.best = append(e.best, key); len(e.best) == 2*m {
					cut()
				}
			}
		}
	}
	cut()
	for i, key := range e.best {
		e.best[i] = uint64(^uint32(key))
	}
	slices.Sort(e.best)
	e.taken = grown(e.taken, e.size*e.dim)
	clear(e.taken)
	list := c.outliers[c.inOutliers.at(e.page, 0, int(e.head)):]
	for i, at := range e.best {
		x := e.x[at]
		bits := tensor.F32ToF16(x)
		if x != x {
			bits = 0x7e00
		} else if bits&0x7fff == 0x7c00 && !math.IsInf(float64(x), 0) {
			return false
		}
		kernel.PutOutlier(list, i, int(at), bits)
		e.taken[at] = true
	}
	return true
}

// fits16 reports whether x rounds to a finite F16.
func fits16(x float32) bool { return tensor.F32ToF16(x)&0x7c00 != 0x7c00 }

// means leaves in lo the mean of what fits in F16 of each group.
func (e *encoder) means() {
	clear(e.lo)
	clear(e.count)
	for slot := range e.size {
		for d := range e.dim {
			if x := e.x[slot*e.dim+d]; fits16(x) {
				g := slot*e.next + d/e.width
				e.lo[g], e.count[g] = e.lo[g]+x, e.count[g]+1
			}
		}
	}
	for g := range e.lo {
		e.lo[g] /= max(e.count[g], 1)
	}
}

// lowRank stores the approximation of what coding loses, term by term. It
// reports whether it can be stored.
func (e *encoder) lowRank(c *codedPages) bool {
	size, dim := e.size, e.dim
	e.left, e.right, e.turned = grown(e.left, size), grown(e.right, dim), grown(e.turned, dim*size)
	for k := range c.Rank {
		left, right := c.left[c.inLeft.at(e.page, 0, int(e.head))+int64(k):], c.right[c.inRight.at(e.page, int64(k), int(e.head)):]
		if !e.findTerm() {
			clear(right[:dim])
			for slot := range size {
				left[slot*int(c.inLeft.slot)] = 0
			}
			continue
		}
		tensor.F16.FromF32s(right[:dim], e.right)
		tensor.F16.ToF32s(e.right, right[:dim])
		e.times(e.left, e.right, e.turned, dim, size)
		for slot, x := range e.left {
			h := tensor.F32ToF16(x)
			if h&0x7c00 == 0x7c00 {
				return false
			}
			left[slot*int(c.inLeft.slot)] = h
			e.left[slot] = -tensor.F16ToF32(h)
		}
		vec.MulAdd(kernel.Exact, vec.Matrix{X: e.lost, Row: dim}, vec.Matrix{X: e.left, Row: 1}, vec.Matrix{X: e.right, Row: dim}, size, 1, dim, vec.Keep, nil)
	}
	return true
}

// findTerm leaves in right the direction of features in which most is lost: by
// power iterations from the row that loses most. It reports whether there is
// one.
func (e *encoder) findTerm() bool {
	size, dim := e.size, e.dim
	vec.ColumnsF32(e.turned, size, e.lost, dim, size, dim, 0)
	most, at := float32(-1), 0
	for slot := range size {
		if n := squares(e.lost[slot*dim:][:dim]); n > most {
			most, at = n, slot
		}
	}
	copy(e.right, e.lost[at*dim:][:dim])
	if !unit(e.right) {
		return false
	}
	for range kernel.PowerIterations {
		e.times(e.left, e.right, e.turned, dim, size)
		e.times(e.right, e.left, e.lost, size, dim)
		if !unit(e.right) {
			return false
		}
	}
	return true
}

// times sets dst to the product of a vector of n elements and n rows of m.
func (e *encoder) times(dst, x, rows []float32, n, m int) {
	vec.MulAdd(kernel.Exact, vec.Matrix{X: dst, Row: m}, vec.Matrix{X: x, Row: n, Col: 1}, vec.Matrix{X: rows, Row: m}, 1, n, m, vec.Zero, nil)
}

// squares is the sum of the squares of x.
func squares(x []float32) (n float32) {
	for _, v := range x {
		n = kernel.FMA(v, v, n)
	}
	return n
}

// unit divides x by its length. It reports whether there is one.
func unit(x []float32) bool {
	n := squares(x)
	if !(n > 0 && n <= math.MaxFloat32) {
		return false
	}
	n = float32(math.Sqrt(float64(n)))
	for i := range x {
		x[i] /= n
	}
	return true
}
