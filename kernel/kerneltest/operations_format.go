package kerneltest

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Operations on keys and values of few bits.

func (t *builder) formatOperations() {
	exact := kernel.Exact
	for _, to := range fp8() {
		for _, from := range allTypes() {
			t.operation("append", fmt.Sprintf("%v-to-%v", from, to), func(t *trial) { t.appendKV(from, to, from, to, Layout{}) }, exact)
		}
		for i, l := range layouts {
			name := fmt.Sprintf("f32-to-%v/scaled/layout=%d", to, i)
			t.operation("append", name, func(t *trial) { t.appendScaled(to, l) }, exact)
		}
		t.operation("append", fmt.Sprintf("%v-to-%v", to, to), func(t *trial) { t.appendKV(to, to, to, to, Layout{Spread: 2}) }, exact)
		t.operation("copy", to.String(), func(t *trial) { t.copyPages(to, Layout{Spread: 3, Gap: 1}) }, exact)
	}
	t.operation("copy", "u8", func(t *trial) { t.copyPages(tensor.U8, Layout{HeadsFirst: true}) }, exact)
	for _, c := range bothCodecs() {
		q := func(group int) kernel.Coding { return coding(c, group) }
		for i, l := range layouts {
			t.operation("encode", fmt.Sprintf("%v/layout=%d", c, i), func(t *trial) { t.encodePages(q(8), tensor.F32, false, 16, 24, l) }, exact)
		}
		for _, d := range []tensor.DType{tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2} {
			t.operation("encode", fmt.Sprintf("%v/%v", c, d), func(t *trial) { t.encodePages(q(2), d, false, 40, 16, Layout{Spread: 2}) }, exact)
		}
		t.operation("encode", fmt.Sprintf("%v/f8e4m3/scaled", c), func(t *trial) { t.encodePages(q(16), tensor.F8E4M3, true, 8, 16, Layout{}) }, exact)
		t.operation("encode", fmt.Sprintf("%v/one-feature-groups", c), func(t *trial) { t.encodePages(q(1), tensor.F32, false, 8, 8, Layout{}) }, exact)
		t.operation("encode", fmt.Sprintf("%v/dim=512", c), func(t *trial) { t.encodePages(q(64), tensor.BF16, false, 512, 512, Layout{}) }, exact)
	}
	int8 := kernel.Quantizer{Codec: kernel.Int8}
	t.operation("encode", "int8/odd-dims", func(t *trial) {
		t.encodePages(kernel.Coding{Key: int8, Value: kernel.Quantizer{Codec: kernel.Int8, Group: 5}}, tensor.F32, false, 7, 15, Layout{Pad: 1})
	}, exact)
	for i, c := range codings(64) {
		t.operation("encode", fmt.Sprintf("coding=%v", c), func(t *trial) { t.encodePages(c, tensor.F32, false, 64, 64, layouts[i%len(layouts)]) }, exact)
		t.operation("encode", fmt.Sprintf("coding=%v/f16", c), func(t *trial) { t.encodePages(c, tensor.F16, false, 64, 64, Layout{}) }, exact)
	}
	t.operation("encode", "append-and-attend", func(t *trial) {
		for _, c := range bothCodecs() {
			t.encodedAttention(coding(c, 4))
		}
	})
	for _, c := range codings(64) {
		t.operation("encode", fmt.Sprintf("coding=%v/append-and-attend", c), func(t *trial) { t.encodedAttention(c) })
	}
}

// appendScaled: rows arrive as RNE(x·(1/scale)) of their head, and saturate.
func (t *trial) appendScaled(to tensor.DType, l Layout) {
	const tokens, pages, size, heads, dim = 5, 2, 4, 3, 6
	t.with(func(m *memory) error {
		key, k, err := m.filled("Key", tensor.F32, l, false, 1, tokens, heads, dim)
		if err != nil {
			return err
		}
		value, v, err := m.filled("Value", tensor.F16, l, false, 2, tokens, heads, dim)
		if err != nil {
			return err
		}
		k[0], k[1], k[2], k[3], k[8], v[1] = 1e6, float32(math.Inf(-1)), float32(math.NaN()), 1e-30, -3e38, 65504
		k[13], k[14] = 119, 63 // under the scale 7, x·(1/7) and x/7 lie on two sides of a tie
		key.fill(k)
		value.fill(v)
		keys, _, err := m.filled("KeyCache", to, l, true, 3, pages, size, heads, dim)
		if err != nil {
			return err
		}
		values, _, err := m.filled("ValueCache", to, l, true, 4, pages, size, heads, dim)
		if err != nil {
			return err
		}
		scales := []float32{0.3, 0x1p-9, 7}
		scale, err := m.put("KeyScale", tensor.F32, Layout{Gap: 2}, false, true, heads)
		if err != nil {
			return err
		}
		scale.fill(scales)
		a := kernel.AppendArgs{Slots: []int32{7, 0, -1, 3, 4}}
		if err := m.hands([]*block{key, value, keys, values, scale}, &a.Key, &a.Value, &a.KeyCache, &a.ValueCache, &a.KeyScale); err != nil {
			return err
		}
		wantKeys, wantValues := keys.words(), values.words() // values without a scale
		stored, _ := roundScaled(to, k, scales, dim)
		for i, slot := range a.Slots {
			if slot >= 0 {
				expectRow(&wantKeys, int(slot), stored[i*heads*dim:][:heads*dim])
				expectRow(&wantValues, int(slot), v[i*heads*dim:][:heads*dim])
			}
		}
		if err := t.backend.AppendKV(&a); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		gotKeys, gotValues := keys.words(), values.words()
		t.differ(differ("KeyCache", &gotKeys, &wantKeys))
		t.differ(differ("ValueCache", &gotValues, &wantValues))
		t.result.Hash = hash(&gotKeys, &gotValues)
		return nil
	})
}

// encoding is an EncodeArgs in memory.
type encoding struct {
	kernel.EncodeArgs
	key, value                         *block
	k, v                               []float32 // as stored
	codedKey, codedValue               *codedBlocks
	keyLevels, valueLevels             []float32
	keyScales, valueScales             []float32
	pages, size, heads, codedPageCount int
}

const encodePageSize, encodeHeads = 5, 2

// newEncoding has pages of random values of type d, spread by head.
func newEncoding(m *memory, c kernel.Coding, d tensor.DType, scale bool, keyDim, valueDim int, l Layout) (e *encoding, err error) {
	e = &encoding{pages: 7, size: encodePageSize, heads: encodeHeads, codedPageCount: 6}
	e.Coding, e.Src, e.Dst, e.Encoded = c, []int32{6, 0, 3, 5, 0}, []int32{1, 5, 0, 2, 4}, make([]bool, 5)
	pages, size, heads, coded := int64(e.pages), int64(e.size), int64(e.heads), int64(e.codedPageCount)
	if e.key, e.k, err = m.filled("Key", d, l, false, 1, pages, size, heads, int64(keyDim)); err != nil {
		return nil, err
	}
	if e.value, e.v, err = m.filled("Value", d, l, false, 2, pages, size, heads, int64(valueDim)); err != nil {
		return nil, err
	}
	if scale {
		e.keyScales, e.valueScales = []float32{0.31, 1.7}, []float32{0.05, 3}
		for _, s := range []struct {
			x    []float32
			view *tensor.View
		}{{e.keyScales, &e.KeyScale}, {e.valueScales, &e.ValueScale}} {
			b, err := m.put("scale", tensor.F32, Layout{}, false, true, heads)
			if err != nil {
				return nil, err
			}
			b.fill(s.x)
			if *s.view, err = m.hand(b); err != nil {
				return nil, err
			}
		}
	}
	for _, s := range []struct {
		name   string
		q      kernel.Quantizer
		dim    int
		levels *[]float32
		blocks **codedBlocks
		to     *kernel.CodedPages
	}{
		{"CodedKey", c.Key, keyDim, &e.keyLevels, &e.codedKey, &e.CodedKey},
		{"CodedValue", c.Value, valueDim, &e.valueLevels, &e.codedValue, &e.CodedValue},
	} {
		*s.levels = drawLevels(s.q, e.heads, false, 9)
		if *s.blocks, err = m.putCoded(s.name, s.q, *s.levels, l, true, coded, size, heads, s.dim); err != nil {
			return nil, err
		}
		blocks, views := (*s.blocks).all(s.to)
		if err := m.hands(blocks, views...); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// handPlain hands over the pages as k and v now are.
func (e *encoding) handPlain(m *memory) error {
	e.key.fill(e.k)
	e.value.fill(e.v)
	return m.hands([]*block{e.key, e.value}, &e.Key, &e.Value)
}

// outputs are the tensors that are written.
func (e *encoding) outputs() (list []*block) {
	for _, b := range []*codedBlocks{e.codedKey, e.codedValue} {
		blocks, _ := b.all(&kernel.CodedPages{})
		for _, x := range blocks {
			if x != b.levels {
				list = append(list, x)
			}
		}
	}
	return list
}

// encodePages: rules 13 and 14 bit for bit, pages without a place in F16
// refused, and pages that are no target left alone.
func (t *trial) encodePages(c kernel.Coding, d tensor.DType, scale bool, keyDim, valueDim int, l Layout) {
	t.with(func(m *memory) error {
		e, err := newEncoding(m, c, d, scale, keyDim, valueDim, l)
		if err != nil {
			return err
		}
		e.special(d, keyDim, valueDim)
		if err := e.handPlain(m); err != nil {
			return err
		}
		var want []words
		for _, b := range e.outputs() {
			want = append(want, b.words())
		}
		unfit := e.expect(keyDim, valueDim, want)
		if err := t.backend.EncodePages(&e.EncodeArgs); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		for i, ok := range e.Encoded {
			if ok == unfit[i] {
				t.wrong("page %d, to be refused: %v, is encoded: %v", e.Src[i], unfit[i], ok)
			}
		}
		var all []*words
		for i, b := range e.outputs() {
			got := b.words()
			e.maskUnfit(&got, &want[i], unfit)
			t.differ(differ(b.name, &got, &want[i]))
			if !slices.Equal(got.bits, want[i].bits) { // the poison of other pages too
				t.wrong("%s: bits differ", b.name)
			}
			all = append(all, &got)
		}
		t.result.Hash = hash(all...)
		return nil
	})
}

// special puts in what is easily got wrong.
func (e *encoding) special(d tensor.DType, keyDim, valueDim int) {
	row := e.heads * keyDim
	for j := range e.size { // page 6: channels without spread, and a wide one
		e.k[(6*e.size+j)*row], e.k[(6*e.size+j)*row+1] = 2, float32(round(d, 400*float64(j-2)))
	}
	// channels of ties, which x·(1/scale) would miss, and a token of zeros of both signs
	step := 61.0 / 64
	for j, x := range []float64{0, float64(maxCode(e.Coding.Key.Codec)) * step, 1.5 * step, 3.5 * step, 5.5 * step} {
		e.k[(6*e.size+j)*row+2] = float32(round(d, x))
	}
	for i := range e.heads * valueDim {
		e.v[6*e.size*e.heads*valueDim+i] = float32(math.Copysign(0, float64(i%3)-1))
	}
	// pages 3 and 5 cannot be coded, but where outliers have a place for them
	e.k[4*e.size*row-1], e.v[6*e.size*e.heads*valueDim-1] = float32(math.NaN()), float32(math.NaN())
	if d == tensor.F32 {
		e.k[4*e.size*row-1], e.v[6*e.size*e.heads*valueDim-1] = -65520, float32(math.Inf(1))
	}
}

// maskUnfit makes the targets of pages that cannot be coded alike.
func (e *encoding) maskUnfit(got, want *words, unfit []bool) {
	page := len(got.bits) / e.codedPageCount
	for i := range e.Src {
		if unfit[i] {
			clear(got.bits[int(e.Dst[i])*page:][:page])
			clear(want.bits[int(e.Dst[i])*page:][:page])
		}
	}
}

// expect puts what the rules give for the pages that can be coded into want, in
// the order of outputs, and says which cannot.
func (e *encoding) expect(keyDim, valueDim int, want []words) (unfit []bool) {
	unfit = make([]bool, len(e.Src))
	for _, s := range []struct {
		q                 kernel.Quantizer
		x, levels, scales []float32
		dim               int
	}{{e.Coding.Key, e.k, e.keyLevels, e.keyScales, keyDim}, {e.Coding.Value, e.v, e.valueLevels, e.valueScales, valueDim}} {
		rows, n := codedRows{levels: s.levels}, 3
		for i, src := range e.Src {
			for h := range e.heads {
				c := rows.coder(s.q, h, e.heads, e.size, s.dim)
				for at := range c.x {
					c.x[at] = s.x[((int(src)*e.size+at/s.dim)*e.heads+h)*s.dim+at%s.dim]
					if s.scales != nil {
						c.x[at] *= s.scales[h]
					}
				}
				head, ok := c.code()
				if !ok {
					unfit[i] = true
					continue
				}
				n = e.expectHead(head, s.q, int(e.Dst[i]), h, s.dim, want)
			}
		}
		want = want[n:]
	}
	return unfit
}

// expectHead puts a head of a page into want, and returns how many tensors it
// is in.
func (e *encoding) expectHead(head *codedHead, q kernel.Quantizer, page, h, dim int, want []words) int {
	put := func(w *words, row int, x []float32) {
		for i, v := range x {
			w.bits[row*len(x)+i] = encode(w.dtype, float64(v))
		}
	}
	n := 3
	for slot, codes := range head.codes {
		put(&want[0], (page*e.size+slot)*e.heads+h, pack(q.Codec, codes))
		if q.Group > 0 {
			groups := dim / q.Group
			put(&want[1], (page*e.size+slot)*e.heads+h, head.scale[slot*groups:][:groups])
			put(&want[2], (page*e.size+slot)*e.heads+h, head.zero[slot*groups:][:groups])
		}
	}
	if q.Group == 0 {
		put(&want[1], page*e.heads+h, head.scale)
		put(&want[2], page*e.heads+h, head.zero)
	}
	if q.Outliers > 0 {
		put(&want[n], page*e.heads+h, packOutliers(head.outliers, q.Outliers, e.size*dim))
		n++
	}
	if q.Rank > 0 {
		for slot, left := range head.left {
			put(&want[n], (page*e.size+slot)*e.heads+h, left)
		}
		for k, right := range head.right {
			put(&want[n+1], (page*e.heads+h)*q.Rank+k, right)
		}
		n += 2
	}
	return n
}

// encodedAttention: what EncodePages writes, Run reads: a page coded by the
// backend is the page that the cases lay out.
func (t *trial) encodedAttention(c kernel.Coding) {
	p := (&Problem{Config: config(2, 2, 64, quantized(8, c.Key, c.Value)), Step: prefill(40), Coded: codedAll, Seed: 3}).normal()
	in := p.makeInputs()
	want := t.answer(p, in, Layout{})
	t.with(func(m *memory) error {
		plain := *p
		plain.Config.Coding = kernel.Coding{}
		raw := plain.makeInputs()
		got, err := t.encodeAndRun(m, p, raw)
		if err == nil {
			t.agree(fmt.Sprintf("%v", c), got, want)
		}
		return err
	})
}

func (t *trial) encodeAndRun(m *memory, p *Problem, raw *inputs) (*answer, error) {
	cfg := &p.Config
	c := &placed{memory: m, problem: p}
	empty := *raw // nothing is coded yet: codes, scales and zeros of nothing
	empty.codedKey = &codedRows{levels: drawLevels(cfg.Coding.Key, cfg.KVHeads, p.Straight, p.Seed)}
	empty.codedValue = &codedRows{levels: drawLevels(cfg.Coding.Value, cfg.KVHeads, p.Straight, p.Seed)}
	if err := c.place(&empty); err != nil {
		return nil, err
	}
	table := &c.step.KV.(*pages).table
	e := kernel.EncodeArgs{Coding: cfg.Coding, CodedKey: c.args.CodedKey, CodedValue: c.args.CodedValue, Dst: table.Indices, Encoded: make([]bool, len(table.Indices))}
	for i := range table.Indices {
		e.Src = append(e.Src, int32(i))
	}
	shape := []int64{int64(len(e.Src)), int64(cfg.PageSize), int64(cfg.KVHeads)}
	for _, x := range []struct {
		name string
		data []float32
		dim  int
		view *tensor.View
	}{{"plain keys", raw.key, cfg.HeadDim, &e.Key}, {"plain values", raw.value, cfg.ValueDim, &e.Value}} {
		b, err := m.put(x.name, cfg.KVDType, Layout{}, false, true, append(shape, int64(x.dim))...)
		if err != nil {
			return nil, err
		}
		b.fill(x.data)
		if *x.view, err = m.hand(b); err != nil {
			return nil, err
		}
	}
	for _, b := range m.blocks {
		b.output = b.output || b.view.DType == tensor.U8 || b.view.DType == tensor.F16
	}
	if err := t.backend.EncodePages(&e); err != nil {
		return nil, err
	}
	s, err := newSolver(t.backend, *cfg, t.policy)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.kernel.Plan(c.step); err != nil {
		return nil, err
	}
	if err := s.kernel.Run(&c.args); err != nil {
		return nil, err
	}
	if err := m.take(); err != nil {
		return nil, err
	}
	return &answer{out: c.out.words(), lse: c.lse.words()}, nil
}
