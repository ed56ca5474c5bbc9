package cpu

import (
	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// What of the current tile is in scratch memory: bits of scratch.have. A bit
// from haveTurned on says that the variant has turned the keys.
const (
	haveKeys uint16 = 1 << iota
	haveColumns
	haveValues
	haveValueColumns
	haveHalves
	haveTurned
)

// setTile makes keys j0 … j0+n−1 of the sequence the current tile, in the
// memory of tile i of a chunk.
func (sc *scratch) setTile(i int, j0 int64, n int) {
	sc.tileMemory = &sc.tiles[i]
	sc.j0, sc.n, sc.have, sc.turned = j0, n, 0, 0
}

// keys are the rows of the tile as variant v rotates them, ld apart.
func (sc *scratch) keys(a *attention, v int) []float32 {
	if sc.have&haveKeys == 0 {
		a.args.key.loadTile(sc.k, sc.ld, false, a, sc)
		sc.have |= haveKeys
	}
	if !a.turnsKeys() {
		return sc.k
	}
	k := sc.kr[v*len(sc.k):][:len(sc.k)]
	if sc.have&(haveTurned<<v) == 0 {
		sc.have |= haveTurned << v
		copy(k, sc.k[:sc.n*sc.ld])
		m := &a.batch.Terms[v].RowK
		for j := range sc.n {
			a.rotate(k[j*sc.ld:][:a.spec.HeadDim], m.Row(sc.keyPosition(a, sc.j0+int64(j))), false)
		}
	}
	return k
}

func (a *attention) turnsKeys() bool {
	return a.spec.RotaryDim > 0 && a.spec.KeyStorage == kernel.PreRoPE
}

// columns are the keys of the tile as variant v rotates them, transposed:
// feature d of key j at d·tile+j. It holds one variant at a time.
func (sc *scratch) columns(a *attention, v int) []float32 {
	if sc.have&haveColumns != 0 && sc.turned == v {
		return sc.kt
	}
	sc.have |= haveColumns
	if a.turnsKeys() {
		sc.turned = v
		vec.ColumnsF32(sc.kt, tile, sc.keys(a, v), sc.ld, sc.n, a.spec.HeadDim, 0)
	} else if size := a.spec.PageSize; size > 0 && size < 8 || !a.args.key.coded.inColumns() { // a page would be less than a register
		vec.ColumnsF32(sc.kt, tile, sc.keys(a, v), sc.ld, sc.n, a.spec.HeadDim, 0)
	} else {
		a.args.key.loadTile(sc.kt, tile, true, a, sc)
	}
	return sc.kt
}

// valueColumns are the values of the tile, transposed.
func (sc *scratch) valueColumns(a *attention) []float32 {
	if sc.have&haveValueColumns == 0 {
		vec.ColumnsF32(sc.vt, tile, sc.values(a), sc.vld, sc.n, a.spec.ValueDim, 0)
		sc.have |= haveValueColumns
	}
	return sc.vt
}

// values are the rows of the tile's values, vld apart.
func (sc *scratch) values(a *attention) []float32 {
	if sc.have&haveValues == 0 {
		a.args.value.loadTile(sc.v, sc.vld, false, a, sc)
		sc.have |= haveValues
	}
	return sc.v
}

// halfColumns are the keys of the tile transposed as they are stored, in 16
// bits: feature d of key j at d·tile+j.
func (sc *scratch) halfColumns(a *attention) vec.Matrix16 {
	r := &a.args.key
	if sc.have&haveHalves == 0 {
		sc.have |= haveHalves
		keys, values := r.next(a, sc), a.args.value.next(a, sc)
		for j := 0; j < sc.n; {
			at, stride, n := r.place(a, sc, j)
			ahead := 0
			if keys == nil {
				ahead = r.ahead(a, sc, j)
			}
			vec.Turn16(sc.halves[j:], tile, r.bits[at:], int(stride), n, a.spec.HeadDim, ahead, values, keys)
			j += n
		}
	}
	return vec.Matrix16{X: sc.halves, Row: tile, DType: r.dtype}
}

// next is the tile after the current one, if both lie in one piece. Its first
// values are fetched while the keys are transposed, its keys while these are
// multiplied, and the other values while the values are: the lines that a
// processor waits for at a time are few, and each loop has time for some.
func (r *reader) next(a *attention, sc *scratch) []uint16 {
	at, stride, n := r.place(a, sc, 0)
	if ahead := r.ahead(a, sc, 0); ahead != 0 && n == tile && stride == int64(r.n) {
		return r.bits[at+int64(ahead):]
	}
	return nil
}

// stored says how the products take a tile: decoded to float32, or as it is
// stored. That pays where few rows share it, and where it is whole.
type stored uint8

const (
	decoded stored = iota
	halves
	coded
)

func (sc *scratch) stored(a *attention) stored {
	if sc.n < tile || sc.rows > wideRows || a.args.direct == [coded + 1]bool{} {
		return decoded
	}
	how := halves
	if !a.spec.Coding.IsZero() {
		first, size, kinds := int64(a.batch.Pages.Indptr[sc.blk.seq]), int64(a.spec.PageSize), [2]bool{}
		for j := sc.j0; j < sc.j0+tile; j = (j/size + 1) * size {
			if a.batch.Pages.IsCoded(int(first + j/size)) {
				kinds[1], how = true, coded
			} else {
				kinds[0] = true
			}
		}
		if kinds[0] && kinds[1] {
			return decoded
		}
	}
	if !a.args.direct[how] {
		return decoded
	}
	return how
}

// direct reports whether keys and values suit vec.Turn16 and vec.MulAdd16, and
// vec.ChannelProduct and vec.TokenProduct: whole registers of features that
// lie side by side, and pages of whole registers of keys.
func direct(s *kernel.Spec, key, value *reader) (ok [coded + 1]bool) {
	if s.PageSize%16 != 0 || s.RotaryDim > 0 && s.KeyStorage == kernel.PreRoPE {
		return ok
	}
	ok[halves] = vec.Multiplies16() && key.bits != nil && value.bits != nil && key.dim == 1 && value.dim == 1 &&
		s.HeadDim%32 == 0 && s.ValueDim%16 == 0
	k, v := &key.coded, &value.coded
	ok[coded] = k.direct() && (k.Group == 0 || k.Codec != kernel.Int8) && v.direct() && v.Group > 0 &&
		vec.MultipliesCodes(k.Codec, s.HeadDim, k.Group, k.Levels) && vec.MultipliesCodes(v.Codec, s.ValueDim, v.Group, v.Levels)
	return ok
}

// codes are those of key j of the tile and the keys after it in its page, and
// how many these are. other is the reader that comes next.
func (r *reader) codes(a *attention, sc *scratch, j int, other *reader) (x vec.Codes, n int) {
	c, b, s, head := &r.coded, a.batch, int(sc.blk.seq), int(sc.blk.kvHead)
	size, key := int64(a.spec.PageSize), sc.j0+int64(j)
	i, slot := int(b.Pages.Indptr[s])+int(key/size), key%size
	page := int64(b.Pages.Indices[i])
	scale, zero := c.inScale.at(page, slot, head), c.inZero.at(page, slot, head)
	x = vec.Codes{
		Codec: c.Codec, X: c.codes[c.inCodes.at(page, slot, head):], Row: int(c.inCodes.slot), Group: c.Group, Levels: c.table(head),
		Scale: c.scale[scale:], ScaleRow: int(c.inScale.slot), Zero: c.zero[zero:], ZeroRow: int(c.inZero.slot),
	}
	next := i + int((slot+tile)/size)
	if next < int(b.Pages.Indptr[s+1]) && b.Pages.IsCoded(next) {
		page, slot := int64(b.Pages.Indices[next]), (slot+tile)%size
		x.Next, x.Later = c.codes[c.inCodes.at(page, slot, head):], other.coded.codes[other.coded.inCodes.at(page, slot, head):]
		x.AheadScale, x.AheadZero = int(c.inScale.at(page, slot, head)-scale), int(c.inZero.at(page, slot, head)-zero)
	}
	return x, int(min(int64(sc.n-j), size-slot))
}

// reader widens rows of a tensor to float32.
type reader struct {
	f32    []float32
	bits   []uint16
	b8     []uint8
	dtype  tensor.DType
	offset int64
	row    int64 // elements from one row (token, or page) to the next
	slot   int64 // paged: elements from one slot of a page to the next
	head   int64
	dim    int64 // stride of features
	n      int   // features

	scale scalars    // of keys and values: of each KV head; absent: 1
	coded codedPages // of keys and values: the pages that are not in this tensor; without Codec none
}

// read prepares a [rows, heads, dim] tensor, or [pages, slots, heads, dim].
func read(v *tensor.View) reader {
	r := reader{f32: v.F32s(), bits: v.Bits(), b8: v.Bits8(), dtype: v.DType, offset: v.Offset, row: v.Stride[0]}
	k := 1
	if v.Rank == 4 {
		r.slot, k = v.Stride[1], 2
	}
	r.head, r.dim, r.n = v.Stride[k], v.Stride[k+1], int(v.Shape[k+1])
	return r
}

// loadTile widens the current tile for the block's KV head, to rows ld apart
// or to columns. Runs of keys that lie evenly in memory are one call.
func (r *reader) loadTile(dst []float32, ld int, columns bool, a *attention, sc *scratch) {
	b, s, head := a.batch, int(sc.blk.seq), int(sc.blk.kvHead)
	at := r.offset + int64(head)*r.head
	if a.spec.PageSize == 0 {
		r.loadScaled(dst, ld, columns, at+(int64(b.KeyStart[s])+sc.j0)*r.row, r.row, sc.n, r.ahead(a, sc, 0), head)
		return
	}
	first, size := int(b.Pages.Indptr[s]), int64(a.spec.PageSize)
	for j := 0; j < sc.n; {
		i, slot := first+int((sc.j0+int64(j))/size), (sc.j0+int64(j))%size
		n, page := min(sc.n-j, int(size-slot)), int64(b.Pages.Indices[i])
		to := j * ld
		if columns {
			to = j
		}
		if b.Pages.IsCoded(i) {
			r.coded.load(dst[to:], ld, columns, page, slot, n, head, sc.coded)
		} else {
			r.loadScaled(dst[to:], ld, columns, at+page*r.row+slot*r.slot, r.slot, n, r.ahead(a, sc, j), head)
		}
		j += n
	}
}

// place is the element at which key j of the current tile begins, and how many
// keys from there on lie a stride apart.
func (r *reader) place(a *attention, sc *scratch, j int) (at, stride int64, n int) {
	b, s := a.batch, int(sc.blk.seq)
	at = r.offset + int64(sc.blk.kvHead)*r.head
	if a.spec.PageSize == 0 {
		return at + (int64(b.KeyStart[s])+sc.j0+int64(j))*r.row, r.row, sc.n - j
	}
	size := int64(a.spec.PageSize)
	page, slot := (sc.j0+int64(j))/size, (sc.j0+int64(j))%size
	at += int64(b.Pages.Indices[int64(b.Pages.Indptr[s])+page])*r.row + slot*r.slot
	return at, r.slot, min(sc.n-j, int(size-slot))
}

// ahead is the distance from key j of the current tile to the one a tile
// later, or 0.
func (r *reader) ahead(a *attention, sc *scratch, j int) int {
	b, s := a.batch, int(sc.blk.seq)
	key := sc.j0 + int64(j)
	if key+tile >= sc.seq.keys {
		return 0
	}
	if a.spec.PageSize == 0 {
		return int(tile * r.row)
	}
	size := int64(a.spec.PageSize)
	pages := b.Pages.Indices[b.Pages.Indptr[s]:]
	from, to := key/size, (key+tile)/size
	if b.Pages.IsCoded(int(int64(b.Pages.Indptr[s]) + to)) {
		return 0
	}
	return int((int64(pages[to])-int64(pages[from]))*r.row + ((key+tile)%size-key%size)*r.slot)
}

// loadScaled is loadRun for keys or values of a head: scaled, if they are.
func (r *reader) loadScaled(dst []float32, ld int, columns bool, at, stride int64, n, ahead, head int) {
	r.loadRun(dst, ld, columns, at, stride, n, ahead)
	if r.scale.x == nil {
		return
	}
	f, rows, dim := *r.scale.at(int64(head), 0), n, r.n
	if columns {
		rows, dim = dim, rows
	}
	for k := range rows {
		vec.ScaleRow(dst[k*ld:][:dim], f)
	}
}

// loadRun widens n rows, stride elements apart, from element at.
func (r *reader) loadRun(dst []float32, ld int, columns bool, at, stride int64, n, ahead int) {
	switch {
	case r.dim != 1:
		col, row := 1, ld
		if columns {
			col, row = ld, 1
		}
		for j := range n {
			for d := range r.n {
				dst[j*row+d*col] = r.at(at + int64(j)*stride + int64(d)*r.dim)
			}
		}
	case r.f32 != nil && columns:
		vec.ColumnsF32(dst, ld, r.f32[at:], int(stride), n, r.n, ahead)
	case r.f32 != nil:
		vec.RowsF32(dst, ld, r.f32[at:], int(stride), n, r.n, ahead)
	case r.b8 != nil && columns:
		vec.Columns8(dst, ld, r.b8[at:], r.dtype, int(stride), n, r.n, ahead)
	case r.b8 != nil:
		vec.Rows8(dst, ld, r.b8[at:], r.dtype, int(stride), n, r.n, ahead)
	case columns:
		vec.Columns16(dst, ld, r.bits[at:], r.dtype, int(stride), n, r.n, ahead)
	default:
		vec.Rows16(dst, ld, r.bits[at:], r.dtype, int(stride), n, r.n, ahead)
	}
}

// at is one element.
func (r *reader) at(i int64) float32 {
	switch {
	case r.f32 != nil:
		return r.f32[i]
	case r.b8 != nil:
		return r.dtype.ToF32(uint16(r.b8[i]))
	}
	return r.dtype.ToF32(r.bits[i])
}

// loadRow widens row t of a head.
func (r *reader) loadRow(dst []float32, t int64, head int) {
	r.loadRun(dst, 0, false, r.offset+t*r.row+int64(head)*r.head, 0, 1, 0)
}

// storeRow rounds src to row t of a head.
func (r *reader) storeRow(src []float32, t int64, head int) {
	src = src[:r.n]
	at := r.offset + t*r.row + int64(head)*r.head
	switch {
	case r.f32 != nil && r.dim == 1:
		copy(r.f32[at:], src)
	case r.f32 != nil:
		for d, x := range src {
			r.f32[at+int64(d)*r.dim] = x
		}
	case r.dim == 1:
		vec.Narrow16(r.bits[at:], src, r.dtype)
	default:
		for d, x := range src {
			r.bits[at+int64(d)*r.dim] = r.dtype.FromF32(x)
		}
	}
}

// scalars reads a rank-1 or rank-2 F32 tensor.
type scalars struct {
	x          []float32
	offset     int64
	row, col   int64
	rows, cols int64
}

func readScalars(v *tensor.View) scalars {
	return scalars{v.F32s(), v.Offset, v.Stride[0], v.Stride[1], v.Shape[0], v.Shape[1]}
}

func (s *scalars) at(i, k int64) *float32 { return &s.x[s.offset+i*s.row+k*s.col] }
