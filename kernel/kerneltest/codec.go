package kerneltest

import (
	"encoding/binary"
	"math"
	"sort"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// What rules 2 and 12 to 14 of package kernel say of scales and coded pages, by
// arithmetic alone.

// codedMix says which pages of a sequence are coded.
type codedMix int

const (
	codedOld codedMix = iota // full ones, but for the last two pages
	codedAll                 // all, the partly filled last one too
	codedOdd                 // every second one
)

// isCoded reports whether a page of sequence s is coded.
func (p *Problem) isCoded(s, page int) bool {
	if p.Config.Coding.IsZero() {
		return false
	}
	switch p.Coded {
	case codedAll:
		return true
	case codedOdd:
		return (s+page)%2 == 1
	}
	return page < (p.Step.KeyLens[s]+p.Config.PageSize-1)/p.Config.PageSize-2
}

// bits are the widths of codes.
func bits(c kernel.Codec) int {
	return map[kernel.Codec]int{kernel.Int8: 8, kernel.Int4: 4, kernel.Int2: 2, kernel.Int1: 1}[c]
}

// maxCode is the largest code.
func maxCode(c kernel.Codec) float32 { return float32(int(1)<<bits(c) - 1) }

// drawLevels are ascending levels for each head: about the codes, or about
// numbers of unit variance. Those of a straight table are the codes.
func drawLevels(q kernel.Quantizer, heads int, straight bool, seed uint64) []float32 {
	if !q.Levels {
		return nil
	}
	r, n := newRandom(seed, 200), int(maxCode(q.Codec))+1
	uniform := func() float64 { return float64(r.below(1<<20)) / (1 << 20) }
	out := make([]float32, heads*n)
	for i := range out {
		c := float64(i % n)
		switch {
		case straight:
		case q.RMS:
			c = (2*c+0.5+uniform())/float64(n)*2 - 2
		default:
			c += 0.8*uniform() - 0.4
		}
		out[i] = float32(c)
	}
	return out
}

// codedHead is a head of a page, or of the first slots of one, as it is coded.
type codedHead struct {
	codes       [][]uint8 // [slot][feature]
	scale, zero []float32 // of each group: per channel, or slot by slot
	outliers    []outlier // by index
	left, right [][]float32
}

type outlier struct {
	index int // slot·features + feature
	value float32
}

// coder is rules 13 and 14 for a head of a page: slots rows of dim features.
type coder struct {
	kernel.Quantizer
	levels     []float32
	slots, dim int
	x          []float32
	out        map[int]bool // outliers
}

// group is the number of the group of an entry.
func (c *coder) group(at int) int {
	if c.Group == 0 {
		return at % c.dim
	}
	return at / c.Group
}

// members lists the entries of each group, ascending.
func (c *coder) members() [][]int {
	var list [][]int
	for at := range c.x {
		g := c.group(at)
		for len(list) <= g {
			list = append(list, nil)
		}
		list[g] = append(list[g], at)
	}
	return list
}

// code codes a head of a page. It is not ok where that has no place in F16.
func (c *coder) code() (h *codedHead, ok bool) {
	h, ok = &codedHead{}, true
	c.out = map[int]bool{}
	for _, at := range c.farthest() {
		v := c.x[at]
		half := float32(round(tensor.F16, float64(v)))
		ok = ok && (!math.IsInf(float64(half), 0) || half == v)
		h.outliers, c.out[at] = append(h.outliers, outlier{at, half}), true
	}
	codes := make([]uint8, len(c.x))
	for _, group := range c.members() {
		var rest []int
		for _, at := range group {
			if !c.out[at] {
				rest = append(rest, at)
			}
		}
		scale, zero := c.scaleOf(pick(c.x, rest))
		ok = ok && isFinite(scale) && isFinite(zero)
		h.scale, h.zero = append(h.scale, scale), append(h.zero, zero)
		for _, at := range rest {
			codes[at] = c.codeOf(c.x[at], scale, zero)
		}
	}
	for slot := range c.slots {
		h.codes = append(h.codes, codes[slot*c.dim:][:c.dim])
	}
	return h, c.lowRank(h) && ok
}

func isFinite(x float32) bool { return x-x == 0 }

func pick(x []float32, at []int) []float32 {
	out := make([]float32, len(at))
	for i, k := range at {
		out[i] = x[k]
	}
	return out
}

// farthest lists the entries that are farthest from what fits in F16 of their
// group on average, by index.
func (c *coder) farthest() []int {
	fits := func(at int) bool { return isFinite(float32(round(tensor.F16, float64(c.x[at])))) }
	far, list := make([]float64, len(c.x)), make([]int, len(c.x))
	for _, group := range c.members() {
		sum, n := float32(0), float32(0)
		for _, at := range group {
			if fits(at) {
				sum, n = sum+c.x[at], n+1
			}
		}
		for _, at := range group {
			if far[at] = math.Inf(1); fits(at) {
				far[at] = math.Abs(float64(c.x[at] - sum/n))
			}
		}
	}
	for at := range list {
		list[at] = at
	}
	sort.SliceStable(list, func(i, k int) bool { return far[list[i]] > far[list[k]] })
	list = list[:min(c.Outliers, len(list))]
	sort.Ints(list)
	return list
}

// scaleOf is the scale and the zero of a group without its outliers.
func (c *coder) scaleOf(x []float32) (scale, zero float32) {
	half := func(x float32) float32 { return float32(round(tensor.F16, float64(x))) }
	if len(x) == 0 {
		return 0, 0
	}
	if c.RMS {
		sum := float32(0)
		for _, v := range x {
			sum = kernel.FMA(v, v, sum)
		}
		return half(float32(math.Sqrt(float64(sum / float32(len(x)))))), 0
	}
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range x {
		lo, hi = math.Min(lo, float64(v)), math.Max(hi, float64(v))
	}
	if lo == 0 {
		lo = 0 // of either sign
	}
	if hi == 0 {
		hi = 0
	}
	span := float32(hi) - float32(lo)
	return half(span / maxCode(c.Codec)), half(float32(lo))
}

// codeOf is the code of x: the nearest code or level, of two as near the even
// one.
func (c *coder) codeOf(x, scale, zero float32) uint8 {
	if scale == 0 {
		return 0
	}
	y := float32(x-zero) / scale
	if !c.Levels {
		return uint8(math.RoundToEven(min(max(float64(y), 0), float64(maxCode(c.Codec)))))
	}
	for code := 0; code+1 < len(c.levels); code++ {
		if middle := float32(c.levels[code]+c.levels[code+1]) / 2; y < middle || y == middle && code%2 == 0 {
			return uint8(code)
		}
	}
	return uint8(maxCode(c.Codec))
}

// decoded is what a code stands for before low rank and outliers.
func (c *coder) decoded(h *codedHead, at int) float32 {
	code, g := h.codes[at/c.dim][at%c.dim], c.group(at)
	level := float32(code)
	if c.Levels {
		level = c.levels[code]
	}
	return kernel.FMA(level, h.scale[g], h.zero[g])
}

// value is what an entry stands for.
func (c *coder) value(h *codedHead, at int) float32 {
	for _, o := range h.outliers {
		if o.index == at {
			return o.value
		}
	}
	x := c.decoded(h, at)
	for k := range c.Rank {
		x = kernel.FMA(h.left[at/c.dim][k], h.right[k][at%c.dim], x)
	}
	return x
}

// lowRank finds the product that comes near to what coding loses, one column of
// the left and one row of the right at a time.
func (c *coder) lowRank(h *codedHead) (ok bool) {
	if ok = true; c.Rank == 0 {
		return ok
	}
	lost := make([]float32, len(c.x))
	for at, x := range c.x {
		if !c.out[at] {
			lost[at] = x - c.decoded(h, at)
		}
	}
	entry := func(slot, d int) float32 { return lost[slot*c.dim+d] }
	dot := func(n int, a, b func(int) float32) (sum float32) {
		for i := range n {
			sum = kernel.FMA(a(i), b(i), sum)
		}
		return sum
	}
	// unit makes v as long as 1, or 0 where that cannot be done
	unit := func(v []float32) {
		of := func(i int) float32 { return v[i] }
		n := dot(len(v), of, of)
		for i := range v {
			if v[i] /= float32(math.Sqrt(float64(n))); n == 0 || !isFinite(n) {
				v[i] = 0
			}
		}
	}
	h.left = make([][]float32, c.slots)
	for range c.Rank {
		best, most := 0, float32(0)
		for slot := range c.slots {
			of := func(d int) float32 { return entry(slot, d) }
			if n := dot(c.dim, of, of); n > most {
				best, most = slot, n
			}
		}
		v := append([]float32(nil), lost[best*c.dim:][:c.dim]...)
		unit(v)
		across := func(slot int) float32 {
			return dot(c.dim, func(d int) float32 { return entry(slot, d) }, func(d int) float32 { return v[d] })
		}
		for range 4 {
			u := make([]float32, c.slots)
			for slot := range u {
				u[slot] = across(slot)
			}
			for d := range v {
				v[d] = dot(c.slots, func(slot int) float32 { return entry(slot, d) }, func(slot int) float32 { return u[slot] })
			}
			unit(v)
		}
		for d := range v {
			v[d] = float32(round(tensor.F16, float64(v[d])))
		}
		h.right = append(h.right, v)
		for slot := range c.slots {
			u := float32(round(tensor.F16, float64(across(slot))))
			ok = ok && isFinite(u)
			h.left[slot] = append(h.left[slot], u)
			for d := range v {
				lost[slot*c.dim+d] = kernel.FMA(-u, v[d], entry(slot, d))
			}
		}
	}
	return ok
}

// pack is a row of codes as bytes.
func pack(c kernel.Codec, codes []uint8) []float32 {
	row := append([]byte(nil), codes...)
	if n := 32 / bits(c); n > 4 {
		words := len(codes) / n
		row = row[:0]
		for w := range words {
			x := uint32(0)
			for k := range n {
				x |= uint32(codes[k*words+w]) << (bits(c) * k)
			}
			row = binary.LittleEndian.AppendUint32(row, x)
		}
	}
	out := make([]float32, len(row))
	for i, b := range row {
		out[i] = float32(b)
	}
	return out
}

// packOutliers are m outliers as bytes. Those that there are fewer of lie in the
// last entries of a page of so many, which are in no slot that is filled.
func packOutliers(list []outlier, m, entries int) (out []float32) {
	list = append([]outlier(nil), list...)
	for len(list) < m {
		list = append(list, outlier{index: entries - m + len(list)})
	}
	for _, o := range list {
		x := encode(tensor.F16, float64(o.value))
		if o.value != o.value {
			x = 0x7e00
		}
		for _, b := range [...]int{o.index, o.index >> 8, int(x), int(x) >> 8} {
			out = append(out, float32(b&255))
		}
	}
	return out
}

// codedRows are the heads of coded pages, by the ordinal of the first key of
// the page and the head.
type codedRows struct {
	levels []float32 // [KVHeads][codes]
	heads  map[[2]int]*codedHead
}

// store makes keys and values what they are once stored: rounded to FP8 under
// a scale, and coded.
func (in *inputs) store(p *Problem) {
	c := &p.Config
	if p.Scaled {
		for h := range c.KVHeads {
			in.keyScale = append(in.keyScale, 0.013*float32(1+h))
			in.valueScale = append(in.valueScale, 0.7/float32(1+h))
		}
		in.storedKey, in.key = roundScaled(c.KVDType, in.key, in.keyScale, c.HeadDim)
		in.storedValue, in.value = roundScaled(c.KVDType, in.value, in.valueScale, c.ValueDim)
	}
	if c.Coding.IsZero() {
		return
	}
	for _, s := range []struct {
		rows **codedRows
		q    kernel.Quantizer
		x    []float32
		dim  int
	}{{&in.codedKey, c.Coding.Key, in.key, c.HeadDim}, {&in.codedValue, c.Coding.Value, in.value, c.ValueDim}} {
		*s.rows = &codedRows{drawLevels(s.q, c.KVHeads, p.Straight, p.Seed), map[[2]int]*codedHead{}}
		first := 0
		for seq, n := range p.Step.KeyLens {
			for lo := 0; lo < n; lo += c.PageSize {
				if p.isCoded(seq, lo/c.PageSize) {
					(*s.rows).code(s.q, s.x, first+lo, first+min(lo+c.PageSize, n), c.KVHeads, s.dim)
				}
			}
			first += n
		}
	}
}

// coder prepares for a head with so many rows of dim features.
func (r *codedRows) coder(q kernel.Quantizer, head, heads, slots, dim int) *coder {
	n := len(r.levels) / heads
	return &coder{Quantizer: q, levels: r.levels[head*n:][:n], slots: slots, dim: dim, x: make([]float32, slots*dim)}
}

// code codes keys lo to hi−1 of x, which are a page, and leaves in x what they
// now stand for.
func (r *codedRows) code(q kernel.Quantizer, x []float32, lo, hi, heads, dim int) {
	for h := range heads {
		c := r.coder(q, h, heads, hi-lo, dim)
		row := func(slot int) []float32 { return x[((lo+slot)*heads+h)*dim:][:dim] }
		for slot := range c.slots {
			copy(c.x[slot*dim:], row(slot))
		}
		head, _ := c.code()
		r.heads[[2]int{lo, h}] = head
		for at := range c.x {
			row(at / dim)[at%dim] = c.value(head, at)
		}
	}
}

// roundScaled rounds rows of heads of dim features to an FP8 type under a scale for
// each head: what is stored, and what that stands for.
func roundScaled(d tensor.DType, x, scale []float32, dim int) (stored, value []float32) {
	for i, v := range x {
		s := scale[i/dim%len(scale)]
		q := float32(round(d, float64(v*(1/s))))
		stored, value = append(stored, q), append(value, q*s)
	}
	return stored, value
}

// plain is the Problem with the same keys and values stored plainly.
func (p *Problem) plain(in *inputs) (*Problem, *inputs) {
	q, out := *p, *in
	q.Config.Coding, q.Config.KVDType, q.Scaled = kernel.Coding{}, tensor.F32, false
	out.storedKey, out.storedValue, out.keyScale, out.valueScale, out.codedKey, out.codedValue = nil, nil, nil, nil, nil, nil
	return &q, &out
}
