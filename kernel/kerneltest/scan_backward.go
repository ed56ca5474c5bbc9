package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// scanGradients are those of a case, row-major as its data.
type scanGradients struct{ q, k, v, gate, beta, bonus, first []float64 }

// stepScanBackward goes back through the recurrence token by token, in a type of
// number. bonus is [sequences, heads, keyDim], last and first are
// [sequences, heads, keyDim, valueDim].
func stepScanBackward[T float32 | float64](c *scanCase, x *scanData, dout, last []float64) *scanGradients {
	zeros := func(like []float64, times int) []float64 {
		if like == nil {
			return nil
		}
		return make([]float64, times*len(like))
	}
	g := &scanGradients{
		q: zeros(x.q, 1), k: zeros(x.k, 1), v: zeros(x.v, 1), gate: zeros(x.gate, 1), beta: zeros(x.beta, 1),
		bonus: zeros(x.bonus, len(c.lens)), first: make([]float64, len(c.lens)*c.stateLen()),
	}
	for seq := range c.lens {
		for h := range c.heads {
			b := scanBack[T]{c: c, x: x, g: g, seq: seq, h: h}
			b.forward()
			b.backward(dout, last)
		}
	}
	return g
}

// scanBack is a head of a sequence.
type scanBack[T float32 | float64] struct {
	c      *scanCase
	x      *scanData
	g      *scanGradients
	seq, h int
	states [][]T // before each token, and after the last
	y, u   [][]T // what is stored, without and with Beta
}

// row is where the queries and keys, and the values, of a token are.
func (b *scanBack[T]) row(t int) (q, v int) {
	c := b.c
	return (t*c.keyHeads + b.h/(c.heads/c.keyHeads)) * c.keyDim, (t*c.heads + b.h) * c.valueDim
}

func (b *scanBack[T]) beta(t int) T {
	if !b.c.beta {
		return 1
	}
	return T(b.x.beta[t*b.c.heads+b.h])
}

func (b *scanBack[T]) forward() {
	c, x := b.c, b.x
	s := make([]T, c.keyDim*c.valueDim)
	if f := x.from[b.seq]; f >= 0 {
		for i := range s {
			s[i] = T(x.state[int(f)*c.stateLen()+b.h*len(s)+i])
		}
	}
	b.states = append(b.states, s)
	for t := int(x.start[b.seq]); t < int(x.start[b.seq+1]); t++ {
		qk, v := b.row(t)
		next, y, u := append([]T(nil), s...), make([]T, c.valueDim), make([]T, c.valueDim)
		for i := range next {
			next[i] *= T(c.gateAt(x, t, b.h, i/c.valueDim))
		}
		for e := range y {
			y[e] = T(x.v[v+e])
			if c.beta {
				y[e] -= dotState(next, x.k[qk:qk+c.keyDim], e, c.valueDim)
			}
			u[e] = b.beta(t) * y[e]
		}
		for i := range next {
			next[i] += T(x.k[qk+i/c.valueDim]) * u[i%c.valueDim]
		}
		b.states, b.y, b.u, s = append(b.states, next), append(b.y, y), append(b.u, u), next
	}
}

func (b *scanBack[T]) backward(dout, last []float64) {
	c, x, n := b.c, b.x, b.c.keyDim*b.c.valueDim
	at := (b.seq*c.heads + b.h) * n
	ds := make([]T, n)
	for i := range ds {
		ds[i] = T(last[at+i])
	}
	for i := c.lens[b.seq] - 1; i >= 0; i-- {
		t := int(x.start[b.seq]) + i
		_, v := b.row(t)
		do := make([]T, c.valueDim)
		for e := range do {
			do[e] = T(x.scale * dout[v+e])
		}
		before := make([]T, n) // gradient of the state that is read, with Bonus the one before
		if c.bonus {
			b.readOwn(t, i, do, before)
		} else {
			b.read(t, b.states[i+1], do, ds)
		}
		b.store(t, i, ds)
		for j := range ds {
			f := T(c.gateAt(x, t, b.h, j/c.valueDim))
			dg := float64(ds[j] * f * b.states[i][j])
			switch c.gate {
			case 2:
				b.g.gate[t*c.heads+b.h] += dg
			case 3:
				b.g.gate[(t*c.heads+b.h)*c.keyDim+j/c.valueDim] += dg
			}
			ds[j] = ds[j]*f + before[j]
		}
	}
	for i, y := range ds {
		b.g.first[at+i] = float64(y)
	}
	for i, y := range x.gate {
		if !(y <= 0) || y < -128*math.Ln2 {
			b.g.gate[i] = 0
		}
	}
}

// read is the gradient of Sᵀq.
func (b *scanBack[T]) read(t int, s, do, ds []T) {
	qk, _ := b.row(t)
	for i := range s {
		d, e := i/b.c.valueDim, i%b.c.valueDim
		b.g.q[qk+d] += float64(s[i] * do[e])
		ds[i] += T(b.x.q[qk+d]) * do[e]
	}
}

// readOwn is the gradient of Sᵀq + (q·(Bonus∘k))·v.
func (b *scanBack[T]) readOwn(t, i int, do, before []T) {
	c, x := b.c, b.x
	b.read(t, b.states[i], do, before)
	qk, v := b.row(t)
	var dot, own T
	for e, y := range do {
		dot += y * T(x.v[v+e])
	}
	for d := range c.keyDim {
		q, k, w := T(x.q[qk+d]), T(x.k[qk+d]), T(x.bonus[b.h*c.keyDim+d])
		own += q * k * w
		b.g.q[qk+d] += float64(dot * w * k)
		b.g.k[qk+d] += float64(dot * w * q)
		b.g.bonus[(b.seq*c.heads+b.h)*c.keyDim+d] += float64(dot * q * k)
	}
	for e, y := range do {
		b.g.v[v+e] += float64(own * y)
	}
}

// store is the gradient of S + k ⊗ u, and of u; ds becomes that of the decayed
// state.
func (b *scanBack[T]) store(t, i int, ds []T) {
	c := b.c
	qk, v := b.row(t)
	k := b.x.k[qk : qk+c.keyDim]
	dy := make([]T, c.valueDim)
	for e := range dy {
		du := dotState(ds, k, e, c.valueDim)
		if c.beta {
			b.g.beta[t*c.heads+b.h] += float64(du * b.y[i][e])
		}
		dy[e] = b.beta(t) * du
		b.g.v[v+e] += float64(dy[e])
	}
	for j := range ds {
		d, e := j/c.valueDim, j%c.valueDim
		b.g.k[qk+d] += float64(ds[j] * b.u[i][e])
		if c.beta {
			b.g.k[qk+d] -= float64(dy[e] * b.states[i][j] * T(c.gateAt(b.x, t, b.h, d)))
			ds[j] -= T(k[d]) * dy[e]
		}
	}
}

func (t *builder) scanGradients() {
	for i, k := range scanKinds {
		base := scanCase{lens: []int{70, 0, 1, 130, 64, 3}, heads: 2, keyHeads: 2, keyDim: 16, valueDim: 16, dtype: tensor.F32, gate: k.gate, beta: k.beta, bonus: k.bonus}
		add := func(name string, c scanCase, l Layout) {
			seed := seedOf("scanbackward/" + name)
			t.operation("scanbackward", name, func(t *trial) { t.scanBackward(&c, seed, l) })
		}
		add(k.name, base, layouts[i%len(layouts)])
		c := base
		c.edge, c.lens = true, []int{90, 7}
		add(k.name+"/edge", c, layouts[(i+1)%len(layouts)])
		c = base
		c.heads, c.keyHeads, c.keyDim, c.valueDim, c.lens, c.dtype = 6, 2, 5, 19, []int{33, 2, 65}, tensor.BF16
		add(k.name+"/grouped", c, layouts[(i+2)%len(layouts)])
		c = base
		c.heads, c.keyHeads, c.keyDim, c.valueDim, c.lens = 1, 1, 1, 1, []int{129}
		add(k.name+"/dim=1", c, Layout{})
	}
}

// scanBackward: the gradients are those of the recurrence, token by token.
func (t *trial) scanBackward(c *scanCase, seed uint64, l Layout) {
	t.with(func(m *memory) error {
		b, err := kernel.ScannerOf(t.backend)
		if err != nil {
			return err
		}
		x := c.data(seed)
		forward, _, err := c.args(m, x, l)
		if err != nil {
			return err
		}
		a := kernel.ScanBackwardArgs{ScanInput: forward.ScanInput}
		a.Policy = t.policy
		n, h, k, v, seqs := int64(c.tokens()), int64(c.heads), int64(c.keyDim), int64(c.valueDim), int64(len(c.lens))
		r := newRandom(seed, 78)
		dout, last := make([]float64, len(x.v)), make([]float64, len(c.lens)*c.stateLen())
		for i := range dout {
			dout[i] = round(c.dtype, r.normal())
		}
		for i := range last {
			last[i] = round(tensor.F32, r.normal())
		}
		want, plain := stepScanBackward[float64](c, x, dout, last), stepScanBackward[float32](c, x, dout, last)
		states := Layout{Gap: l.Gap, Pad: l.Pad}
		var compare []func()
		for _, p := range []struct {
			view  *tensor.View
			name  string
			in    []float64 // nil: an output
			dtype tensor.DType
			l     Layout
			shape []int64
			want  []float64
			plain []float64
		}{
			{&a.DOut, "DOut", dout, c.dtype, l, []int64{n, h, v}, nil, nil},
			{&a.DState, "DState", last, tensor.F32, states, []int64{seqs, h, k, v}, nil, nil},
			{&a.DQuery, "DQuery", nil, tensor.F32, l, []int64{n, int64(c.keyHeads), k}, want.q, plain.q},
			{&a.DKey, "DKey", nil, tensor.F32, l, []int64{n, int64(c.keyHeads), k}, want.k, plain.k},
			{&a.DValue, "DValue", nil, tensor.F32, l, []int64{n, h, v}, want.v, plain.v},
			{&a.DGate, "DGate", nil, tensor.F32, l, []int64{n, h, k}[:max(c.gate, 2)], want.gate, plain.gate},
			{&a.DBeta, "DBeta", nil, tensor.F32, l, []int64{n, h}, want.beta, plain.beta},
			{&a.DBonus, "DBonus", nil, tensor.F32, l, []int64{seqs, h, k}, want.bonus, plain.bonus},
			{&a.DFrom, "DFrom", nil, tensor.F32, states, []int64{seqs, h, k, v}, want.first, plain.first},
		} {
			if p.in == nil && p.want == nil {
				continue
			}
			o, err := m.put(p.name, p.dtype, p.l, p.in == nil, true, p.shape...)
			if err != nil {
				return err
			}
			if p.in != nil {
				o.fill(float32s(p.in))
			}
			if *p.view, err = m.hand(o); err != nil {
				return err
			}
			if p.in == nil {
				compare = append(compare, func() {
					got := o.words()
					t.near(p.name, &got, p.want, p.plain, 1e-5)
				})
			}
		}
		if err := b.ScanBackward(&a); err != nil {
			return err
		}
		a.DQuery.Shape[0]++
		if err := b.ScanBackward(&a); err == nil {
			return fmt.Errorf("kerneltest: a DQuery of another shape than Query: no error")
		}
		if err := m.take(); err != nil {
			return err
		}
		for _, c := range compare {
			c()
		}
		return nil
	})
}

func float32s(x []float64) []float32 {
	out := make([]float32, len(x))
	for i, y := range x {
		out[i] = float32(y)
	}
	return out
}
