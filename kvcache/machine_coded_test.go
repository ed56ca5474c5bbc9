package kvcache_test

import (
	"errors"
	"math"
	"reflect"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// What the machine knows of FP8 and of coded pages.

// huge is in one layer of the key of every 23rd token: a page with it cannot be
// coded, but of FP8, where it saturates.
const huge = 1e30

func (m *machine) unfit(tokens []token) bool {
	for layer := range m.config.Layers {
		key, _ := rowsOf(m.config, layer, tokens)
		if slices.ContainsFunc(key.F32s(), func(x float32) bool { return m.round(x) >= huge/2 }) {
			return true
		}
	}
	return false
}

// chooseFormat makes the element type FP8, or some pages coded, at times.
func (m *machine) chooseFormat() {
	c := &m.config
	if m.in.below(4) == 0 {
		c.DType = tensor.F8E4M3 + tensor.DType(m.in.below(2))
	}
	codec := kernel.Codec(m.in.below(3))
	if codec == kernel.NoCodec {
		return
	}
	if codec == kernel.Int4 {
		c.HeadDim, c.ValueDim = 8, 8
	}
	c.PageSize = 1 + c.PageSize%6 // more pages, and more of them due
	c.CodedPages, c.Coding = 1+m.in.below(24), coding(codec, 1+m.in.below(2))
	c.Residual = c.PageSize * m.in.below(3)
}

// round is x as a plain page holds it.
func (m *machine) round(x float32) float32 {
	if m.config.DType == tensor.F32 {
		return x
	}
	return m.config.DType.ToF32(m.config.DType.FromF32(x))
}

// storedRows are the rows of the tokens of a sequence, as they should be read:
// rounded, and where their page is coded what the codes stand for.
func (m *machine) storedRows(layer int, tokens []token, b *kernel.Batch) (key, value tensor.View) {
	key, value = rowsOf(m.config, layer, tokens)
	for _, v := range []*tensor.View{&key, &value} {
		for i, x := range v.F32s() {
			v.F32s()[i] = m.round(x)
		}
	}
	size := int64(m.config.PageSize)
	for k := range b.Pages.Indices {
		if !b.Pages.IsCoded(k) {
			continue
		}
		lo := int64(k) * size
		for h := range int64(m.config.KVHeads) {
			for d := range key.Shape[2] {
				m.code(&key, h, lo, lo+size, d, d+1)
			}
			for j := lo; j < lo+size; j++ {
				for d := int64(0); d < value.Shape[2]; d += int64(m.config.Coding.Value.Group) {
					m.code(&value, h, j, j+1, d, d+int64(m.config.Coding.Value.Group))
				}
			}
		}
	}
	return key, value
}

// code codes and decodes a group.
func (m *machine) code(v *tensor.View, h, j0, j1, d0, d1 int64) {
	var x []float32
	for j := j0; j < j1; j++ {
		for d := d0; d < d1; d++ {
			x = append(x, v.At(j, h, d))
		}
	}
	scale, zero, _ := m.config.Coding.Key.Codec.Group(slices.Min(x), slices.Max(x))
	s, z := tensor.F16ToF32(scale), tensor.F16ToF32(zero)
	for j := j0; j < j1; j++ {
		for d := d0; d < d1; d++ {
			v.Set(kernel.Decode(m.config.Coding.Key.Codec.Encode(v.At(j, h, d), s, z), s, z), j, h, d)
		}
	}
}

// refusesCut tells of a Truncate whether it would cut a coded page, and then
// that it is refused.
func (m *machine) refusesCut(what string, id kvcache.ID, n int) bool {
	size, pages := m.config.PageSize, m.lower(id).Pages
	if n%size == 0 || !pages.IsCoded(n/size) {
		return false
	}
	before := m.snapshot()
	var cut *kvcache.CodedPageError
	if err := m.cache.Truncate(id, n); !errors.As(err, &cut) || cut.Sequence != id || cut.Keys != n || cut.From != n/size*size || cut.To != cut.From+size {
		m.t.Fatalf("%s into a coded page: error %v, want a CodedPageError", what, err)
	}
	m.unchanged(what, before)
	m.cut++
	return true
}

// judgeCoding looks at which pages an Extend has coded. It reports whether the
// call ended with a fault of the coding, which changes nothing.
func (m *machine) judgeCoding(what string, before snapshot, ids []kvcache.ID, err error) (fault bool) {
	if !m.config.Coded() {
		return false
	}
	if errors.Is(err, errEncode) {
		m.unchanged(what, before)
		m.failedCodes++
		return true
	}
	c, unfit, waiting := &m.config, 0, 0
	for i, id := range m.live {
		was, is := table(before.batch, i), m.lower(id).Pages
		due := 0
		if slices.Contains(ids, id) {
			due = max(int(before.batch.SeqLens[i])-c.Residual, 0) / c.PageSize
		}
		for k := range was.Indices {
			switch {
			case k < due && !is.IsCoded(k):
				if m.unfit(m.oracle[id].tokens[k*c.PageSize : (k+1)*c.PageSize]) {
					unfit++
				} else {
					waiting++
				}
			case k < due && !was.IsCoded(k):
				if m.coded++; m.unfit(m.oracle[id].tokens[k*c.PageSize : (k+1)*c.PageSize]) {
					m.t.Fatalf("%s: page %d of sequence %d is coded, and cannot be", what, k, id)
				}
			case k >= due && is.IsCoded(k) && !was.IsCoded(k):
				m.t.Fatalf("%s: page %d of sequence %d is coded before it is due", what, k, id)
			case was.IsCoded(k) && (!is.IsCoded(k) || is.Indices[k] != was.Indices[k]):
				m.t.Fatalf("%s: coded page %d of sequence %d has changed", what, k, id)
			}
		}
	}
	// a page that turns out not to fit has had a coded page in the meantime
	if free := m.cache.Stats().CodedFree; waiting > 0 && free > unfit {
		m.t.Fatalf("%s: %d pages are due and plain, with %d coded pages free", what, waiting, free)
	}
	m.refused += unfit
	if after := m.snapshot(); err != nil && (!reflect.DeepEqual(after.positions, before.positions) || !slices.Equal(after.batch.Pages.Indptr, before.batch.Pages.Indptr)) {
		m.t.Fatalf("%s gave an error and changed\n%+v to\n%+v", what, before, after)
	}
	return false
}

// table is the pages of sequence i of a batch.
func table(b *kernel.Batch, i int) kernel.BlockTable {
	lo, hi := b.Pages.Indptr[i], b.Pages.Indptr[i+1]
	t := kernel.BlockTable{Indices: b.Pages.Indices[lo:hi]}
	if len(b.Pages.Coded) > 0 {
		t.Coded = b.Pages.Coded[lo:hi]
	}
	return t
}

func poisonCoded(c *kvcache.Cache, page int64) {
	for layer := range c.Config().Layers {
		var a kernel.Args
		if err := c.Bind(layer, &a); err != nil {
			panic(err)
		}
		for _, v := range []tensor.View{a.CodedKey.Scale, a.CodedValue.Scale} {
			at := page * v.Stride[0]
			for i := range v.Stride[0] {
				v.Bits()[at+i] = tensor.F32ToF16(float32(math.NaN()))
			}
		}
	}
}
