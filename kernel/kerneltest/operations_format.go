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
		for i, l := range layouts {
			t.operation("encode", fmt.Sprintf("%v/layout=%d", c, i), func(t *trial) { t.encodePages(c, tensor.F32, false, 16, 24, 8, l) }, exact)
		}
		for _, d := range []tensor.DType{tensor.F16, tensor.BF16, tensor.F8E4M3, tensor.F8E5M2} {
			t.operation("encode", fmt.Sprintf("%v/%v", c, d), func(t *trial) { t.encodePages(c, d, false, 40, 16, 2, Layout{Spread: 2}) }, exact)
		}
		t.operation("encode", fmt.Sprintf("%v/f8e4m3/scaled", c), func(t *trial) { t.encodePages(c, tensor.F8E4M3, true, 8, 16, 16, Layout{}) }, exact)
		t.operation("encode", fmt.Sprintf("%v/one-feature-groups", c), func(t *trial) { t.encodePages(c, tensor.F32, false, 8, 8, 1, Layout{}) }, exact)
		t.operation("encode", fmt.Sprintf("%v/dim=512", c), func(t *trial) { t.encodePages(c, tensor.BF16, false, 512, 512, 64, Layout{}) }, exact)
	}
	t.operation("encode", "int8/odd-dims", func(t *trial) { t.encodePages(kernel.Int8, tensor.F32, false, 7, 15, 5, Layout{Pad: 1}) }, exact)
	t.operation("encode", "append-and-attend", (*trial).encodedAttention)
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
	keyCodes, keyScale, keyZero        *block
	valueCodes, valueScale, valueZero  *block
	keyScales, valueScales             []float32
	pages, size, heads, codedPageCount int
}

const encodePageSize, encodeHeads = 5, 2

// newEncoding has pages of random values of type d, spread by head.
func newEncoding(m *memory, c kernel.Codec, d tensor.DType, scale bool, keyDim, valueDim, group int64, l Layout) (e *encoding, err error) {
	e = &encoding{pages: 7, size: encodePageSize, heads: encodeHeads, codedPageCount: 6}
	e.Codec, e.Src, e.Dst, e.Encoded = c, []int32{6, 0, 3, 5, 0}, []int32{1, 5, 0, 2, 4}, make([]bool, 5)
	pages, size, heads, coded := int64(e.pages), int64(e.size), int64(e.heads), int64(e.codedPageCount)
	if e.key, e.k, err = m.filled("Key", d, l, false, 1, pages, size, heads, keyDim); err != nil {
		return nil, err
	}
	if e.value, e.v, err = m.filled("Value", d, l, false, 2, pages, size, heads, valueDim); err != nil {
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
	l.Spread = 0
	for _, o := range []struct {
		name  string
		block **block
		view  *tensor.View
		dtype tensor.DType
		shape []int64
	}{
		{"CodedKey.Codes", &e.keyCodes, &e.CodedKey.Codes, tensor.U8, []int64{coded, size, heads, int64(len(pack(c, make([]uint8, keyDim))))}},
		{"CodedKey.Scale", &e.keyScale, &e.CodedKey.Scale, tensor.F16, []int64{coded, heads, keyDim}},
		{"CodedKey.Zero", &e.keyZero, &e.CodedKey.Zero, tensor.F16, []int64{coded, heads, keyDim}},
		{"CodedValue.Codes", &e.valueCodes, &e.CodedValue.Codes, tensor.U8, []int64{coded, size, heads, int64(len(pack(c, make([]uint8, valueDim))))}},
		{"CodedValue.Scale", &e.valueScale, &e.CodedValue.Scale, tensor.F16, []int64{coded, size, heads, valueDim / group}},
		{"CodedValue.Zero", &e.valueZero, &e.CodedValue.Zero, tensor.F16, []int64{coded, size, heads, valueDim / group}},
	} {
		if *o.block, err = m.put(o.name, o.dtype, l, true, true, o.shape...); err != nil {
			return nil, err
		}
		if *o.view, err = m.hand(*o.block); err != nil {
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

// encodePages: rule 13 bit for bit, pages without a place in F16 refused, and
// pages that are no target left alone.
func (t *trial) encodePages(c kernel.Codec, d tensor.DType, scale bool, keyDim, valueDim, group int, l Layout) {
	t.with(func(m *memory) error {
		e, err := newEncoding(m, c, d, scale, int64(keyDim), int64(valueDim), int64(group), l)
		if err != nil {
			return err
		}
		row := e.heads * keyDim
		for j := range e.size { // page 6: channels without spread, and a wide one
			e.k[(6*e.size+j)*row], e.k[(6*e.size+j)*row+1] = 2, float32(round(d, 400*float64(j-2)))
		}
		// channels of ties, which x·(1/scale) would miss, and a token of zeros of both signs
		step := 61.0 / 64
		for j, x := range []float64{0, float64(levels(c)) * step, 1.5 * step, 3.5 * step, 5.5 * step} {
			e.k[(6*e.size+j)*row+2] = float32(round(d, x))
		}
		for i := range e.heads * valueDim {
			e.v[6*e.size*e.heads*valueDim+i] = float32(math.Copysign(0, float64(i%3)-1))
		}
		// pages 3 and 5 cannot be coded
		e.k[4*e.size*row-1], e.v[6*e.size*e.heads*valueDim-1] = float32(math.NaN()), float32(math.NaN())
		if d == tensor.F32 {
			e.k[4*e.size*row-1], e.v[6*e.size*e.heads*valueDim-1] = -65520, float32(math.Inf(1))
		}
		if err := e.handPlain(m); err != nil {
			return err
		}
		blocks := []*block{e.keyCodes, e.keyScale, e.keyZero, e.valueCodes, e.valueScale, e.valueZero}
		var want []words
		for _, b := range blocks {
			want = append(want, b.words())
		}
		e.expect(c, keyDim, valueDim, group, want)
		if err := t.backend.EncodePages(&e.EncodeArgs); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		for i, ok := range e.Encoded {
			if unfit := e.Src[i] == 3 || e.Src[i] == 5; ok == unfit {
				t.wrong("page %d, to be refused: %v, is encoded: %v", e.Src[i], unfit, ok)
			}
		}
		var all []*words
		for i, b := range blocks {
			got := b.words()
			e.maskUnfit(&got, &want[i])
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

// maskUnfit makes the targets of pages that cannot be coded alike.
func (e *encoding) maskUnfit(got, want *words) {
	page := len(got.bits) / e.codedPageCount
	for i, src := range e.Src {
		if src == 3 || src == 5 {
			clear(got.bits[int(e.Dst[i])*page:][:page])
			clear(want.bits[int(e.Dst[i])*page:][:page])
		}
	}
}

// expect puts what rule 13 gives for the pages that can be coded into want.
func (e *encoding) expect(c kernel.Codec, keyDim, valueDim, group int, want []words) {
	value := func(x, scales []float32, dim, page, slot, head, d int) float32 {
		v := x[((page*e.size+slot)*e.heads+head)*dim+d]
		if scales != nil {
			v *= scales[head]
		}
		return v
	}
	bits := func(w *words, at int, x float32) { w.bits[at] = encode(w.dtype, float64(x)) }
	for i, src := range e.Src {
		if src == 3 || src == 5 {
			continue
		}
		from, to := int(src), int(e.Dst[i])
		for h := range e.heads {
			keys := make([][]uint8, e.size)
			for d := range keyDim {
				var x []float32
				for slot := range e.size {
					x = append(x, value(e.k, e.keyScales, keyDim, from, slot, h, d))
				}
				scale, zero, codes := encodeGroup(c, x)
				bits(&want[1], (to*e.heads+h)*keyDim+d, scale)
				bits(&want[2], (to*e.heads+h)*keyDim+d, zero)
				for slot := range e.size {
					keys[slot] = append(keys[slot], codes[slot])
				}
			}
			for slot := range e.size {
				expectRowAt(&want[0], (to*e.size+slot)*e.heads+h, pack(c, keys[slot]))
				var values []uint8
				for g := range valueDim / group {
					var x []float32
					for d := range group {
						x = append(x, value(e.v, e.valueScales, valueDim, from, slot, h, g*group+d))
					}
					scale, zero, codes := encodeGroup(c, x)
					at := ((to*e.size+slot)*e.heads+h)*(valueDim/group) + g
					bits(&want[4], at, scale)
					bits(&want[5], at, zero)
					values = append(values, codes...)
				}
				expectRowAt(&want[3], (to*e.size+slot)*e.heads+h, pack(c, values))
			}
		}
	}
}

func expectRowAt(w *words, row int, bytes []float32) {
	for i, b := range bytes {
		w.bits[row*len(bytes)+i] = uint32(b)
	}
}

// encodedAttention: what EncodePages writes, Run reads: a page coded by the
// backend is the page that the cases lay out.
func (t *trial) encodedAttention() {
	for _, c := range bothCodecs() {
		p := (&Problem{Config: config(2, 2, 16, coded(c, 8, 4)), Step: prefill(40), Coded: codedAll, Seed: 3}).normal()
		in := p.makeInputs()
		want := t.answer(p, in, Layout{})
		t.with(func(m *memory) error {
			plain := *p
			plain.Config.Codec, plain.Config.ValueGroup = kernel.NoCodec, 0
			raw := plain.makeInputs()
			got, err := t.encodeAndRun(m, p, raw)
			if err == nil {
				t.agree(fmt.Sprintf("%v", c), got, want)
			}
			return err
		})
	}
}

func (t *trial) encodeAndRun(m *memory, p *Problem, raw *inputs) (*answer, error) {
	cfg := &p.Config
	c := &placed{memory: m, problem: p}
	empty := *raw // nothing is coded yet: codes, scales and zeros of nothing
	rows := func(n int) *codedRows { return &codedRows{make([]uint8, n), make([]float32, n), make([]float32, n)} }
	empty.codedKey, empty.codedValue = rows(len(raw.key)), rows(len(raw.value))
	if err := c.place(&empty); err != nil {
		return nil, err
	}
	table := &c.step.KV.(*pages).table
	e := kernel.EncodeArgs{Codec: cfg.Codec, CodedKey: c.args.CodedKey, CodedValue: c.args.CodedValue, Dst: table.Indices, Encoded: make([]bool, len(table.Indices))}
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
