package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// operation adds a case that is a function of the trial.
func (t *builder) operation(op, name string, check func(*trial), policies ...kernel.Policy) {
	t.cases = append(t.cases, Case{Op: op, Name: name, check: check, policies: policies})
}

func (t *builder) operations() {
	exact := kernel.Exact // operations without a policy run once
	for _, from := range allTypes() {
		for _, to := range allTypes() {
			t.operation("append", fmt.Sprintf("%v-to-%v", from, to), func(t *trial) { t.appendKV(from, to, from, to, Layout{}) }, exact)
		}
	}
	for i, l := range layouts {
		t.operation("append", fmt.Sprintf("layout=%d", i), func(t *trial) { t.appendKV(tensor.F32, tensor.BF16, tensor.F16, tensor.F32, l) }, exact)
		t.operation("copy", fmt.Sprintf("layout=%d", i), func(t *trial) { t.copyPages(tensor.F32, l) }, exact)
	}
	t.formatOperations()
	for _, d := range allTypes() {
		t.operation("copy", d.String(), func(t *trial) { t.copyPages(d, Layout{}) }, exact)
		for _, r := range []kernel.RotaryLayout{kernel.HalfSplit, kernel.Interleaved} {
			for _, inverse := range []bool{false, true} {
				for i, dim := range []int{2, 10, 32} {
					name := fmt.Sprintf("%v/%v/dim=%d/inverse=%v", d, r, dim, inverse)
					t.operation("rotate", name, func(t *trial) { t.rotate(d, r, dim, inverse, layouts[i+1]) })
				}
			}
		}
		for _, out := range allTypes() {
			for i, own := range []bool{false, true} {
				if own && d != out {
					continue
				}
				name := fmt.Sprintf("%v-to-%v/in-place=%v", d, out, own)
				t.operation("merge", name, func(t *trial) { t.merge(d, out, own, layouts[i+2]) })
			}
		}
		t.operation("merge", fmt.Sprintf("order/%v", d), func(t *trial) { t.mergeOrder(d) })
		t.operation("merge", fmt.Sprintf("halves/%v", d), func(t *trial) { t.mergeHalves(d) })
	}
	t.operation("rotate", "there-and-back", (*trial).rotateBack)
}

// filled is a tensor whose elements are drawn at random.
func (m *memory) filled(name string, d tensor.DType, l Layout, output bool, seed uint64, shape ...int64) (*block, []float32, error) {
	b, err := m.put(name, d, l, output, true, shape...)
	if err != nil {
		return nil, nil, err
	}
	r, x := newRandom(seed, 9), make([]float32, b.view.Len())
	for i := range x {
		x[i] = float32(round(d, r.normal()))
	}
	b.fill(x)
	return b, x, nil
}

// hands hands blocks over to views, in turn.
func (m *memory) hands(blocks []*block, views ...*tensor.View) (err error) {
	for i, b := range blocks {
		if *views[i], err = m.hand(b); err != nil {
			return err
		}
	}
	return nil
}

// with runs f with memory that is freed after it, and records its error.
func (t *trial) with(f func(m *memory) error) {
	m := &memory{backend: t.backend}
	defer m.free()
	if err := f(m); err != nil {
		t.fail(err)
	}
}

// appendKV: rows arrive in their slots rounded once, and nothing else changes.
func (t *trial) appendKV(keyFrom, keyTo, valueFrom, valueTo tensor.DType, l Layout) {
	const tokens, pages, size, heads, keyDim, valueDim = 11, 4, 5, 3, 6, 9
	t.with(func(m *memory) error {
		key, k, err := m.filled("Key", keyFrom, l, false, 1, tokens, heads, keyDim)
		if err != nil {
			return err
		}
		value, v, err := m.filled("Value", valueFrom, l, false, 2, tokens, heads, valueDim)
		if err != nil {
			return err
		}
		k[0], v[1], k[2], v[3] = float32(round(keyFrom, 1e6)), float32(round(valueFrom, -1e-7)), float32(round(keyFrom, math.Inf(1))), float32(math.NaN())
		key.fill(k)
		value.fill(v)
		keys, _, err := m.filled("KeyCache", keyTo, l, true, 3, pages, size, heads, keyDim)
		if err != nil {
			return err
		}
		values, _, err := m.filled("ValueCache", valueTo, l, true, 4, pages, size, heads, valueDim)
		if err != nil {
			return err
		}
		a := kernel.AppendArgs{Slots: make([]int32, tokens)}
		for i, slot := range newRandom(5, 5).permutation(pages * size)[:tokens] {
			if a.Slots[i] = int32(slot); i%4 == 3 {
				a.Slots[i] = -1
			}
		}
		if err := m.hands([]*block{key, value, keys, values}, &a.Key, &a.Value, &a.KeyCache, &a.ValueCache); err != nil {
			return err
		}
		wantKeys, wantValues := keys.words(), values.words()
		for i, slot := range a.Slots {
			if slot >= 0 {
				expectRow(&wantKeys, int(slot), k[i*heads*keyDim:][:heads*keyDim])
				expectRow(&wantValues, int(slot), v[i*heads*valueDim:][:heads*valueDim])
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

func expectRow(w *words, row int, x []float32) {
	for d, v := range x {
		w.bits[row*len(x)+d] = encode(w.dtype, round(w.dtype, float64(v)))
	}
}

// copyPages: pages arrive bit for bit, and nothing else changes.
func (t *trial) copyPages(d tensor.DType, l Layout) {
	const pages, size, heads, dim = 9, 5, 2, 7
	t.with(func(m *memory) error {
		cache, x, err := m.filled("Cache", d, l, true, 1, pages, size, heads, dim)
		if err != nil {
			return err
		}
		x[len(x)-1] = float32(math.NaN()) // a page not yet full
		cache.fill(x)
		a := kernel.CopyArgs{Src: []int32{8, 0, 8, 3}, Dst: []int32{1, 7, 4, 2}}
		if a.Cache, err = m.hand(cache); err != nil {
			return err
		}
		want := cache.words()
		const page = size * heads * dim
		for i := range a.Src {
			copy(want.bits[a.Dst[i]*page:][:page], want.bits[a.Src[i]*page:][:page])
		}
		if err := t.backend.CopyPages(&a); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		got := cache.words()
		t.differ(differ("Cache", &got, &want))
		for i := range got.bits { // bit for bit: NaNs too
			if got.bits[i] != want.bits[i] {
				t.wrong("Cache: element %d is %#x, want %#x", i, got.bits[i], want.bits[i])
				break
			}
		}
		t.result.Hash = hash(&got)
		return nil
	})
}

// angles is a table of rows·dim/2 cosines and sines with the exact angles.
func angles(rows, dim int) (table kernel.RotaryTable, exact []float64) {
	r := kernel.Rotation(rope(dim, func(r *kernel.Rotation) { r.Factor = 1.25 }))
	half := dim / 2
	table = kernel.RotaryTable{Cos: make([]float32, rows*half), Sin: make([]float32, rows*half)}
	for i := range rows {
		r.Fill(table.Cos[i*half:][:half], table.Sin[i*half:][:half], [3]float64{float64(3 * i)}, kernel.QuerySide)
		for k := range half {
			exact = append(exact, float64(3*i)*r.InvFreq[k])
		}
	}
	return table, exact
}

// rotate: pairs turn as rule 3 has it, and neither the tail nor a token of row
// −1 changes.
func (t *trial) rotate(d tensor.DType, layout kernel.RotaryLayout, dim int, inverse bool, l Layout) {
	const tokens, heads, width = 8, 3, 33
	g := geometry{rotation: kernel.Rotation{Dim: dim, Layout: layout}}
	t.with(func(m *memory) error {
		b, x, err := m.filled("X", d, l, true, 1, tokens, heads, width)
		if err != nil {
			return err
		}
		x[dim+1], x[2*width*heads] = float32(math.NaN()), 0
		b.fill(x)
		table, exact := angles(6, dim)
		a := kernel.RotateArgs{Rows: []int32{5, 0, -1, 3, 3, 1, -1, 2}, Table: table, Dim: dim, Layout: layout, Inverse: inverse, Policy: t.policy}
		if a.X, err = m.hand(b); err != nil {
			return err
		}
		want := b.words()
		reals := widen(x)
		for token, row := range a.Rows {
			for h := range heads {
				for k := range dim / 2 {
					if row < 0 {
						continue
					}
					at, i, j := (token*heads+h)*width, 0, 0
					i, j = g.pair(k)
					cos, sin := table.Cos[int(row)*dim/2+k], table.Sin[int(row)*dim/2+k]
					angle := exact[int(row)*dim/2+k]
					if inverse {
						sin, angle = -sin, -angle
					}
					u, v := x[at+i], x[at+j]
					want.bits[at+i] = encode(d, round(d, float64(kernel.FMA(u, cos, -float32(v*sin)))))
					want.bits[at+j] = encode(d, round(d, float64(kernel.FMA(v, cos, float32(u*sin)))))
					reals[at+i] = 1.25 * (float64(u)*math.Cos(angle) - float64(v)*math.Sin(angle))
					reals[at+j] = 1.25 * (float64(v)*math.Cos(angle) + float64(u)*math.Sin(angle))
				}
			}
		}
		if err := t.backend.Rotate(&a); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		got := b.words()
		t.result.Hash = hash(&got)
		if t.policy == kernel.Exact {
			t.differ(differ("X", &got, &want))
		}
		largest := 0.0
		for _, v := range reals {
			if finite(v) {
				largest = max(largest, math.Abs(v))
			}
		}
		for i := range got.bits {
			tail, still := i%width >= dim, a.Rows[i/width/heads] < 0
			if (tail || still) && got.bits[i] != want.bits[i] {
				t.wrong("X: element %d, which is not rotated, is %#x, want %#x", i, got.bits[i], want.bits[i])
			}
			if e := math.Abs(got.value(i) - reals[i]); finite(reals[i]) && !(e <= unit(d, largest)+4*unit(tensor.F32, largest)) {
				t.wrong("X: element %d is %v, want %v", i, got.value(i), reals[i])
			}
		}
		return nil
	})
}

// rotateBack: the inverse of a rotation undoes it.
func (t *trial) rotateBack() {
	t.with(func(m *memory) error {
		b, x, err := m.filled("X", tensor.F32, Layout{Gap: 1}, true, 1, 4, 2, 16)
		if err != nil {
			return err
		}
		table, _ := angles(4, 16)
		a := kernel.RotateArgs{Rows: []int32{3, 2, 1, 0}, Table: table, Dim: 16, Policy: t.policy}
		if a.X, err = m.hand(b); err != nil {
			return err
		}
		for _, a.Inverse = range []bool{false, true} {
			if err := t.backend.Rotate(&a); err != nil {
				return err
			}
		}
		if err := m.take(); err != nil {
			return err
		}
		got := b.words()
		for i, v := range x {
			if e := math.Abs(got.value(i) - 1.25*1.25*float64(v)); !(e <= 1e-6) {
				t.wrong("X: element %d is %v after there and back, want %v", i, got.value(i), 1.25*1.25*float64(v))
			}
		}
		return nil
	})
}

// softState is the outcome of attention over some keys.
type softState struct {
	out, lse *block
	o, l     []float32
}

const mergeTokens, mergeHeads, mergeDim = 7, 3, 9

func (m *memory) softState(name string, d tensor.DType, l Layout, seed uint64) (s softState, err error) {
	if s.out, s.o, err = m.filled("Out"+name, d, l, true, seed, mergeTokens, mergeHeads, mergeDim); err != nil {
		return s, err
	}
	if s.lse, s.l, err = m.filled("LSE"+name, tensor.F32, l, true, seed+50, mergeTokens, mergeHeads); err != nil {
		return s, err
	}
	for i := range s.l {
		s.l[i] *= 4
	}
	return s, nil
}

// set stores what o and l have become.
func (s *softState) set() {
	s.out.fill(s.o)
	s.lse.fill(s.l)
}

// empty makes a row that saw no key.
func (s *softState) empty(row int) {
	s.l[row] = float32(math.Inf(-1))
	clear(s.o[row*mergeDim:][:mergeDim])
}

// merge: rule 9, in place or not, and its identity on either side.
func (t *trial) merge(d, outType tensor.DType, own bool, l Layout) {
	t.with(func(m *memory) error {
		a, err := m.softState("A", d, l, 1)
		if err != nil {
			return err
		}
		b, err := m.softState("B", d, l, 2)
		if err != nil {
			return err
		}
		a.empty(3)
		b.empty(4)
		a.empty(5)
		b.empty(5)
		a.l[6], b.l[6] = 1000, -1000
		b.l[7] = a.l[7]
		a.set()
		b.set()
		out := softState{out: a.out, lse: a.lse}
		if !own {
			if out, err = m.softState("", outType, l, 3); err != nil {
				return err
			}
			a.out.output, a.lse.output = false, false
		}
		b.out.output, b.lse.output = false, false
		args := kernel.MergeArgs{Policy: t.policy}
		if err := m.hands([]*block{a.out, a.lse, b.out, b.lse}, &args.OutA, &args.LSEA, &args.OutB, &args.LSEB); err != nil {
			return err
		}
		args.Out, args.LSE = args.OutA, args.LSEA
		if !own {
			if err := m.hands([]*block{out.out, out.lse}, &args.Out, &args.LSE); err != nil {
				return err
			}
		}
		if err := t.backend.Merge(&args); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		gotOut, gotLSE := out.out.words(), out.lse.words()
		t.result.Hash = hash(&gotOut, &gotLSE)
		t.judgeMerge(&a, &b, &gotOut, &gotLSE)
		return nil
	})
}

func (t *trial) judgeMerge(a, b *softState, gotOut, gotLSE *words) {
	wantOut := words{gotOut.dtype, make([]uint32, len(gotOut.bits))}
	wantLSE := words{tensor.F32, make([]uint32, len(gotLSE.bits))}
	out := make([]float64, len(gotOut.bits))
	for row := range a.l {
		la, lb := a.l[row], b.l[row]
		lse := mergeRow(la, lb, func(d int) (float32, float32) { return a.o[row*mergeDim+d], b.o[row*mergeDim+d] }, func(d int, v float32) {
			expect(&wantOut, row*mergeDim+d, v)
		})
		expect(&wantLSE, row, lse)
		top := math.Max(float64(la), float64(lb))
		if math.IsInf(top, -1) {
			top = 0
		}
		wa, wb := math.Exp(float64(la)-top), math.Exp(float64(lb)-top)
		for d := range mergeDim {
			if wa+wb > 0 {
				out[row*mergeDim+d] = (wa*float64(a.o[row*mergeDim+d]) + wb*float64(b.o[row*mergeDim+d])) / (wa + wb)
			}
		}
		real := top + math.Log(wa+wb)
		if e := math.Abs(gotLSE.value(row) - real); !(e <= 4*unit(tensor.F32, real)+2e-7) && !math.IsInf(real, -1) {
			t.wrong("LSE: row %d is %v, want %v", row, gotLSE.value(row), real)
		}
		if math.IsInf(real, -1) && gotLSE.value(row) != real {
			t.wrong("LSE: row %d is %v, want %v", row, gotLSE.value(row), real)
		}
		if empty := math.IsInf(float64(la), -1) || math.IsInf(float64(lb), -1); empty || t.policy == kernel.Exact {
			for d := range mergeDim {
				g, w := gotOut.slice(row*mergeDim+d, row*mergeDim+d+1), wantOut.slice(row*mergeDim+d, row*mergeDim+d+1)
				t.differ(differ(fmt.Sprintf("Out row %d feature %d", row, d), &g, &w))
			}
			g, w := gotLSE.slice(row, row+1), wantLSE.slice(row, row+1)
			t.differ(differ(fmt.Sprintf("LSE row %d", row), &g, &w))
		}
	}
	for i, w := range out {
		if e := math.Abs(gotOut.value(i) - w); !(e <= unit(gotOut.dtype, 4)+4*unit(tensor.F32, 4)) {
			t.wrong("Out: element %d is %v, want %v", i, gotOut.value(i), w)
		}
	}
}

func expect(w *words, i int, v float32) { w.bits[i] = encode(w.dtype, round(w.dtype, float64(v))) }

// mergeRow is rule 9 of package kernel for one row.
func mergeRow(la, lb float32, in func(d int) (a, b float32), out func(d int, v float32)) (lse float32) {
	inf := float32(math.Inf(-1))
	if la == inf || lb == inf {
		for d := range mergeDim {
			a, b := in(d)
			if la == inf {
				a = b
			}
			out(d, a)
		}
		return max(la, lb)
	}
	m := max(la, lb)
	wa, wb := kernel.Exp2(float32((la-m)*kernel.Log2E)), kernel.Exp2(float32((lb-m)*kernel.Log2E))
	l := wa + wb
	inv := 1 / l
	for d := range mergeDim {
		a, b := in(d)
		out(d, float32(kernel.FMA(b, wb, float32(a*wa))*inv)+0)
	}
	return m + float32(kernel.Log2(l)*kernel.Ln2)
}

// mergeOrder: (A, B), C and A, (B, C) and (C, B), A agree to rounding.
func (t *trial) mergeOrder(d tensor.DType) {
	t.with(func(m *memory) error {
		var s [3]softState
		for i := range s {
			var err error
			if s[i], err = m.softState(fmt.Sprint(i), d, Layout{}, uint64(10+i)); err != nil {
				return err
			}
		}
		var answers [3]words
		for n, order := range [3][3]int{{0, 1, 2}, {1, 2, 0}, {2, 1, 0}} {
			into, err := m.softState("", tensor.F32, Layout{}, 20)
			if err != nil {
				return err
			}
			for step := range 2 {
				first := s[order[0]]
				if step == 1 {
					first = into
				}
				args := kernel.MergeArgs{Policy: t.policy}
				for i := range s {
					s[i].set()
				}
				second := s[order[step+1]]
				if err := m.hands([]*block{first.out, first.lse, second.out, second.lse, into.out, into.lse},
					&args.OutA, &args.LSEA, &args.OutB, &args.LSEB, &args.Out, &args.LSE); err != nil {
					return err
				}
				if err := t.backend.Merge(&args); err != nil {
					return err
				}
				if err := m.take(); err != nil {
					return err
				}
			}
			answers[n] = into.out.words()
		}
		for i := range answers[0].bits {
			for n := 1; n < 3; n++ {
				if a, b := answers[0].value(i), answers[n].value(i); !(math.Abs(a-b) <= 2e-6) {
					t.wrong("Out: element %d is %v or %v by the order of merging", i, a, b)
				}
			}
		}
		return nil
	})
}

// mergeHalves: attention over two parts of the keys, merged, is attention over
// all of them.
func (t *trial) mergeHalves(d tensor.DType) {
	const queries, keys, half = 7, 90, 33
	part := func(lo, hi int32) attention.Mask {
		return attention.Mask{Regions: []kernel.Region{{Diff: kernel.Range{Lo: 0, Hi: kernel.MaxBound}, Key: kernel.Range{Lo: lo, Hi: hi}}}}
	}
	p := Problem{Config: config(mergeHeads, 1, mergeDim, types(d, d)), Step: extend(queries, keys), Seed: 7}
	whole := new(expected).get(&p)
	t.with(func(m *memory) error {
		var s [2]softState
		for i, mask := range []attention.Mask{part(kernel.MinBound, half), part(half, kernel.MaxBound)} {
			q := *whole.problem
			q.Config.Mask = mask
			a, name, err := solve(t.backend, &q, whole.in, Layout{}, t.policy)
			if t.result.Kernel = name; err != nil {
				return err
			}
			if s[i], err = m.softState(fmt.Sprint(i), d, Layout{}, 1); err != nil {
				return err
			}
			for k := range s[i].o {
				s[i].o[k] = float32(a.out.value(k))
			}
			for k := range s[i].l {
				s[i].l[k] = float32(a.lse.value(k))
			}
			s[i].set()
		}
		args := kernel.MergeArgs{Policy: t.policy}
		if err := m.hands([]*block{s[0].out, s[0].lse, s[1].out, s[1].lse}, &args.OutA, &args.LSEA, &args.OutB, &args.LSEB); err != nil {
			return err
		}
		args.Out, args.LSE = args.OutB, args.LSEB
		if err := t.backend.Merge(&args); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		out, lse := s[1].out.words(), s[1].lse.words()
		for i, w := range whole.ref.out {
			if e := math.Abs(out.value(i) - w); !(e <= 2*unit(d, 1)+4*unit(tensor.F32, 1)) {
				t.wrong("Out: element %d is %v, want %v", i, out.value(i), w)
			}
		}
		for i, w := range whole.ref.lse {
			if e := math.Abs(lse.value(i) - w); !(e <= 4*unit(tensor.F32, w)) {
				t.wrong("LSE: element %d is %v, want %v", i, lse.value(i), w)
			}
		}
		return nil
	})
}
