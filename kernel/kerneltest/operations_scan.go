package kerneltest

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// scanKinds are the recurrences there are.
var scanKinds = []struct {
	name        string
	gate        int
	beta, bonus bool
}{
	{"plain", 0, false, false},
	{"head-gate", 2, false, false},
	{"channel-gate", 3, false, false},
	{"delta", 0, true, false},
	{"head-gate-delta", 2, true, false},
	{"channel-gate-delta", 3, true, false},
	{"bonus", 0, false, true},
	{"head-gate-bonus", 2, false, true},
	{"channel-gate-bonus", 3, false, true},
}

// scans adds the cases of a Scanner. A backend need not be one.
func (t *builder) scans() {
	add := func(name string, c scanCase, l Layout) {
		seed := seedOf("scan/" + name)
		t.operation("scan", name, func(t *trial) { t.scan(&c, seed, l) })
	}
	for i, k := range scanKinds {
		base := scanCase{lens: []int{70, 0, 1, 130, 64, 3}, heads: 2, keyHeads: 2, keyDim: 16, valueDim: 16, dtype: tensor.F32, gate: k.gate, beta: k.beta, bonus: k.bonus}
		add(k.name, base, layouts[i%len(layouts)])
		c := base
		c.edge = true
		add(k.name+"/edge", c, layouts[(i+1)%len(layouts)])
		c = base
		c.heads, c.keyHeads, c.keyDim, c.valueDim, c.lens = 6, 2, 5, 19, []int{33, 2}
		add(k.name+"/grouped", c, layouts[(i+2)%len(layouts)])
		c = base
		c.heads, c.keyHeads, c.keyDim, c.valueDim, c.lens = 1, 1, 1, 1, []int{129}
		add(k.name+"/dim=1", c, Layout{})
		c = base
		c.heads, c.keyHeads, c.keyDim, c.valueDim, c.lens = 2, 1, 64, 33, []int{1, 1, 1, 1, 1}
		add(k.name+"/steps", c, layouts[(i+3)%len(layouts)])
		for _, d := range []tensor.DType{tensor.F16, tensor.BF16} {
			c = base
			c.dtype, c.lens = d, []int{80}
			add(fmt.Sprintf("%s/%v", k.name, d), c, layouts[(i+4)%len(layouts)])
		}
		t.operation("scan", k.name+"/split", func(t *trial) { t.scanSplit(&base) })
		t.operation("scan", k.name+"/ragged", func(t *trial) { t.scanRagged(&base) })
		t.operation("scan", k.name+"/not-finite", func(t *trial) { t.scanNotFinite(&base) })
	}
	t.operation("scan", "gate-1", (*trial).scanGateOne)
	t.operation("scan", "gate-0", (*trial).scanGateZero)
	t.operation("scan", "beta-0", (*trial).scanBetaZero)
	t.operation("scan", "refused", (*trial).scanRefused, kernel.Exact)
}

// scanned are the results of a Scan.
type scanned struct{ out, state words }

// runScan runs a case on the backend.
func (t *trial) runScan(c *scanCase, x *scanData, l Layout) (r *scanned, err error) {
	m := &memory{backend: t.backend}
	defer m.free()
	b, err := kernel.ScannerOf(t.backend)
	if err != nil {
		return nil, err
	}
	a, blocks, err := c.args(m, x, l)
	if err != nil {
		return nil, err
	}
	a.Policy = t.policy
	if err := b.Scan(a); err != nil {
		return nil, err
	}
	if err := m.take(); err != nil {
		return nil, err
	}
	return &scanned{blocks[0].words(), blocks[1].words()}, nil
}

// args hands a case to the backend. The blocks are Out and State.
func (c *scanCase) args(m *memory, x *scanData, l Layout) (*kernel.ScanArgs, [2]*block, error) {
	n, h, k := int64(c.tokens()), int64(c.heads), int64(c.keyDim)
	a := &kernel.ScanArgs{ScanInput: kernel.ScanInput{From: x.from, QueryStart: x.start, Scale: x.scale}, To: x.to}
	var kept [2]*block
	for _, v := range []struct {
		view  *tensor.View
		name  string
		data  []float64
		dtype tensor.DType
		l     Layout
		shape []int64
	}{
		{&a.Query, "Query", x.q, c.dtype, l, []int64{n, int64(c.keyHeads), k}},
		{&a.Key, "Key", x.k, c.dtype, l, []int64{n, int64(c.keyHeads), k}},
		{&a.Value, "Value", x.v, c.dtype, l, []int64{n, h, int64(c.valueDim)}},
		{&a.Gate, "Gate", x.gate, tensor.F32, l, []int64{n, h, k}[:max(c.gate, 2)]},
		{&a.Beta, "Beta", x.beta, tensor.F32, l, []int64{n, h}},
		{&a.Bonus, "Bonus", x.bonus, tensor.F32, l, []int64{h, k}},
		{&a.State, "State", x.state, tensor.F32, Layout{Gap: l.Gap, Pad: l.Pad}, []int64{int64(x.slots), h, k, int64(c.valueDim)}},
		{&a.Out, "Out", []float64{}, c.dtype, l, []int64{n, h, int64(c.valueDim)}},
	} {
		if v.data == nil {
			continue
		}
		b, err := m.put(v.name, v.dtype, v.l, v.view == &a.State || v.view == &a.Out, true, v.shape...)
		if err != nil {
			return nil, kept, err
		}
		switch v.view {
		case &a.Out:
			kept[0] = b
		case &a.State:
			kept[1] = b
		}
		if v.view != &a.Out {
			f := make([]float32, len(v.data))
			for i, y := range v.data {
				f[i] = float32(y)
			}
			b.fill(f)
		}
		if *v.view, err = m.hand(b); err != nil {
			return nil, kept, err
		}
	}
	return a, kept, nil
}

// wordsOf are numbers as elements.
func wordsOf(d tensor.DType, x []float64) words {
	w := words{d, make([]uint32, len(x))}
	for i, y := range x {
		w.bits[i] = encode(d, y)
	}
	return w
}

// scan: the outputs and states are those of the recurrence, token by token, and
// under Exact those of the rule, bit for bit.
func (t *trial) scan(c *scanCase, seed uint64, l Layout) {
	x := c.data(seed)
	got, err := t.runScan(c, x, l)
	if err != nil {
		t.fail(err)
		return
	}
	out, state := stepScan[float64](c, x)
	out32, state32 := stepScan[float32](c, x)
	t.near("Out", &got.out, out, out32, 1e-6)
	t.near("State", &got.state, state, state32, 1e-6)
	if t.policy == kernel.Exact {
		t.result.Hash = hash(&got.out, &got.state)
		out, state := exactScan(c, x)
		wantOut, wantState := wordsOf(c.dtype, out), wordsOf(tensor.F32, state)
		t.differ(differ("Out", &got.out, &wantOut))
		t.differ(differ("State", &got.state, &wantState))
	}
}

// near reports elements farther from want than four times what a plain
// computation in float32 is anywhere, a part of the largest element, and the
// rounding of the type.
func (t *trial) near(name string, got *words, want, plain []float64, part float64) {
	far, most := 0.0, 0.0
	for i, w := range want {
		far, most = max(far, math.Abs(plain[i]-w)), max(most, math.Abs(w))
	}
	for i, w := range want {
		if d := math.Abs(got.value(i) - w); !(d <= 4*far+part*most+unit(got.dtype, max(math.Abs(w), 1e-30))) {
			t.wrong("%s: element %d is %v, want %v (a plain computation is within %v)", name, i, got.value(i), w, far)
			return
		}
	}
}

// scanSplit: a sequence may be given in several calls: cut where a chunk ends,
// the bits are the same, and elsewhere the numbers nearly.
func (t *trial) scanSplit(c *scanCase) {
	one := *c
	one.lens = []int{200}
	x := one.data(5)
	x.from, x.to = []int32{0}, []int32{0}
	whole, err := t.runScan(&one, x, Layout{})
	if err != nil {
		t.fail(err)
		return
	}
	out, state := stepScan[float64](&one, x)
	out32, state32 := stepScan[float32](&one, x)
	for _, cuts := range [][]int{{0, 64, 192, 200}, {0, 128, 200}, {0, 1, 2, 70, 71, 200}, {0, 199, 200}} {
		y, got := *x, &scanned{out: words{one.dtype, nil}}
		aligned := true
		for i := 1; i < len(cuts); i++ {
			part, z := one.part(&y, cuts[i-1], cuts[i])
			r, err := t.runScan(part, z, Layout{})
			if err != nil {
				t.fail(err)
				return
			}
			got.out.bits = append(got.out.bits, r.out.bits...)
			got.state = r.state
			y.state = make([]float64, len(r.state.bits))
			for j := range y.state {
				y.state[j] = r.state.value(j)
			}
			aligned = aligned && cuts[i-1]%kernel.TileSize == 0
		}
		if aligned {
			t.differ(differ(fmt.Sprintf("Out, cut at %v", cuts), &got.out, &whole.out))
			t.differ(differ(fmt.Sprintf("State, cut at %v", cuts), &got.state, &whole.state))
			continue
		}
		t.near(fmt.Sprintf("Out, cut at %v", cuts), &got.out, out, out32, 1e-6)
		t.near(fmt.Sprintf("State, cut at %v", cuts), &got.state, state, state32, 1e-6)
	}
}

// part is tokens lo … hi−1 of a case, as one sequence.
func (c *scanCase) part(x *scanData, lo, hi int) (*scanCase, *scanData) {
	d, y := *c, *x
	d.lens, y.start = []int{hi - lo}, []int32{0, int32(hi - lo)}
	n := c.tokens()
	for _, p := range []*[]float64{&y.q, &y.k, &y.v, &y.gate, &y.beta} {
		if *p != nil {
			row := len(*p) / n
			*p = (*p)[lo*row : hi*row]
		}
	}
	return &d, &y
}

// scanRagged: a sequence of a batch gets the bits that it gets alone.
func (t *trial) scanRagged(c *scanCase) {
	x := c.data(6)
	all, err := t.runScan(c, x, Layout{})
	if err != nil {
		t.fail(err)
		return
	}
	row := c.heads * c.valueDim
	for i := range c.lens {
		one, y := c.part(x, int(x.start[i]), int(x.start[i+1]))
		y.from, y.to = x.from[i:i+1], x.to[i:i+1]
		got, err := t.runScan(one, y, Layout{})
		if err != nil {
			t.fail(err)
			return
		}
		want := all.out.slice(int(x.start[i])*row, int(x.start[i+1])*row)
		t.differ(differ(fmt.Sprintf("Out of sequence %d alone", i), &got.out, &want))
		if to := int(x.to[i]); to >= 0 {
			got, want := got.state.slice(to*c.stateLen(), (to+1)*c.stateLen()), all.state.slice(to*c.stateLen(), (to+1)*c.stateLen())
			t.differ(differ(fmt.Sprintf("State of sequence %d alone", i), &got, &want))
		}
	}
}

// scanNotFinite: a NaN or an infinity reaches the tokens from its own on, of its
// own head, and no other.
func (t *trial) scanNotFinite(c *scanCase) {
	const token, head, feature = 40, 1, 3 // of the first sequence
	x := c.data(7)
	clean, err := t.runScan(c, x, Layout{})
	if err != nil {
		t.fail(err)
		return
	}
	for _, bad := range []float64{math.NaN(), math.Inf(1)} {
		for _, f := range []struct {
			name string
			data *[]float64
			dim  int
			all  bool // every feature from the token on
		}{{"Query", &x.q, c.keyDim, false}, {"Key", &x.k, c.keyDim, true}, {"Value", &x.v, c.valueDim, false}} {
			y := *f.data
			*f.data = slices.Clone(y)
			(*f.data)[(token*c.heads+head)*f.dim+feature] = bad
			got, err := t.runScan(c, x, Layout{})
			*f.data = y
			if err != nil {
				t.fail(err)
				return
			}
			for i := range got.out.bits {
				e, h, n := i%c.valueDim, i/c.valueDim%c.heads, i/c.valueDim/c.heads
				reached := h == head && n >= token && n < c.lens[0]
				if f.name == "Query" {
					reached = h == head && n == token
				}
				if !reached && got.out.canonical(i) != clean.out.canonical(i) {
					t.wrong("%v in %s: element %d of token %d, head %d is %v, want %v", bad, f.name, e, n, h, got.out.value(i), clean.out.value(i))
					return
				}
				if finite := !(got.out.value(i)-got.out.value(i) != 0); n == token && h == head && finite && (f.name != "Value" || e == feature) {
					t.wrong("%v in %s: element %d of its own token is %v", bad, f.name, e, got.out.value(i))
					return
				}
			}
		}
	}
}

// scanSame: a case gives the same bits with other gates.
func (t *trial) scanSame(name string, c *scanCase, x *scanData, d *scanCase, y *scanData) {
	a, err := t.runScan(c, x, Layout{})
	if err != nil {
		t.fail(err)
		return
	}
	b, err := t.runScan(d, y, Layout{})
	if err != nil {
		t.fail(err)
		return
	}
	t.differ(differ("Out, "+name, &a.out, &b.out))
	t.differ(differ("State, "+name, &a.state, &b.state))
}

// scanGateOne: a gate of ln 1 is none.
func (t *trial) scanGateOne() {
	for _, k := range scanKinds {
		if k.gate != 0 {
			continue
		}
		plain := scanCase{lens: []int{100, 7}, heads: 2, keyHeads: 1, keyDim: 8, valueDim: 12, dtype: tensor.F32, beta: k.beta, bonus: k.bonus}
		x := plain.data(8)
		for gate := 2; gate <= 3; gate++ {
			c, y := plain, *x
			c.gate, y.gate = gate, make([]float64, c.tokens()*c.heads*[]int{1, c.keyDim}[gate-2])
			t.scanSame(fmt.Sprintf("%s, gate of rank %d", k.name, gate), &c, &y, &plain, x)
		}
	}
}

// scanGateZero: after a gate of ln 0 nothing is left of what was before.
func (t *trial) scanGateZero() {
	for _, k := range scanKinds {
		if k.gate == 0 || k.bonus {
			continue
		}
		c := scanCase{lens: []int{90}, heads: 2, keyHeads: 2, keyDim: 8, valueDim: 12, dtype: tensor.F32, gate: k.gate, beta: k.beta}
		x := c.data(9)
		row := len(x.gate) / c.tokens()
		for i := range row {
			x.gate[37*row+i] = math.Inf(-1)
		}
		y := *x
		y.v, y.k, y.state = slices.Clone(x.v), slices.Clone(x.k), slices.Clone(x.state)
		for i := range y.v[:37*c.heads*c.valueDim] {
			y.v[i] = 7
		}
		for i := range y.state {
			y.state[i] = -3
		}
		a, err := t.runScan(&c, x, Layout{})
		if err != nil {
			t.fail(err)
			return
		}
		b, err := t.runScan(&c, &y, Layout{})
		if err != nil {
			t.fail(err)
			return
		}
		n := 37 * c.heads * c.valueDim
		got, want := a.out.slice(n, len(a.out.bits)), b.out.slice(n, len(b.out.bits))
		t.differ(differ(k.name, &got, &want))
	}
}

// scanBetaZero: a token of Beta 0 stores nothing.
func (t *trial) scanBetaZero() {
	c := scanCase{lens: []int{90}, heads: 2, keyHeads: 2, keyDim: 8, valueDim: 12, dtype: tensor.F32, beta: true}
	x := c.data(10)
	clear(x.beta)
	got, err := t.runScan(&c, x, Layout{})
	if err != nil {
		t.fail(err)
		return
	}
	want := wordsOf(tensor.F32, x.state)
	t.differ(differ("State", &got.state, &want))
}

// scanRefused: what cannot be right is refused, and changes nothing.
func (t *trial) scanRefused() {
	base := scanCase{lens: []int{3, 2}, heads: 4, keyHeads: 2, keyDim: 4, valueDim: 6, dtype: tensor.F32, gate: 3, beta: true}
	f32 := func(shape ...int64) tensor.View { return tensor.New(tensor.F32, shape...) }
	for _, f := range []struct {
		name  string
		spoil func(a *kernel.ScanArgs)
	}{
		{"zero", func(a *kernel.ScanArgs) { *a = kernel.ScanArgs{} }},
		{"no query", func(a *kernel.ScanArgs) { a.Query = tensor.View{} }},
		{"another type of key", func(a *kernel.ScanArgs) { a.Key = tensor.New(tensor.BF16, 5, 2, 4) }},
		{"key heads", func(a *kernel.ScanArgs) { a.Query, a.Key = f32(5, 3, 4), f32(5, 3, 4) }},
		{"no heads", func(a *kernel.ScanArgs) { a.Query, a.Key = f32(5, 0, 4), f32(5, 0, 4) }},
		{"no features", func(a *kernel.ScanArgs) {
			a.Query, a.Key, a.Gate, a.State = f32(5, 2, 0), f32(5, 2, 0), tensor.View{}, f32(5, 4, 0, 6)
		}},
		{"gate of rank 1", func(a *kernel.ScanArgs) { a.Gate = f32(5) }},
		{"gate of another shape", func(a *kernel.ScanArgs) { a.Gate = f32(5, 4, 3) }},
		{"beta of another shape", func(a *kernel.ScanArgs) { a.Beta = f32(5, 2) }},
		{"bonus with beta", func(a *kernel.ScanArgs) { a.Bonus = f32(4, 4) }},
		{"scale", func(a *kernel.ScanArgs) { a.Scale = math.NaN() }},
		{"policy", func(a *kernel.ScanArgs) { a.Policy = 9 }},
		{"no starts", func(a *kernel.ScanArgs) { a.QueryStart = nil }},
		{"starts that end early", func(a *kernel.ScanArgs) { a.QueryStart = []int32{0, 3, 4} }},
		{"starts that go back", func(a *kernel.ScanArgs) { a.QueryStart = []int32{0, 7, 5} }},
		{"from short", func(a *kernel.ScanArgs) { a.From = a.From[:1] }},
		{"from too large", func(a *kernel.ScanArgs) { a.From = []int32{0, 5} }},
		{"from below −1", func(a *kernel.ScanArgs) { a.From = []int32{0, -2} }},
		{"to twice", func(a *kernel.ScanArgs) { a.To = []int32{3, 3} }},
		{"to of another's from", func(a *kernel.ScanArgs) { a.From, a.To = []int32{1, 2}, []int32{2, 1} }},
		{"slots without states", func(a *kernel.ScanArgs) { a.State = tensor.View{} }},
		{"states of another shape", func(a *kernel.ScanArgs) { a.State = f32(5, 4, 6, 4) }},
		{"states with a stride", func(a *kernel.ScanArgs) { a.State = f32(5, 4, 6, 4).Swap(2, 3) }},
		{"out of another type", func(a *kernel.ScanArgs) { a.Out = tensor.New(tensor.F16, 5, 4, 6) }},
	} {
		t.with(func(m *memory) error {
			b, err := kernel.ScannerOf(t.backend)
			if err != nil {
				return err
			}
			a, _, err := base.args(m, base.data(11), Layout{})
			if err != nil {
				return err
			}
			f.spoil(a)
			if err := b.Scan(a); err == nil {
				t.wrong("%s: no error", f.name)
			}
			return m.untouched()
		})
	}
}
