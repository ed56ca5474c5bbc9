package recurrence

import (
	"math"
	"math/rand/v2"

	"github.com/longctx/longctx/tensor"
)

// problem is the numbers of a step, row-major, in float64: every technique has
// its rule on them, token by token, as its paper has it.
type problem struct {
	c                                              Config
	reads                                          Inputs
	gates                                          int // of a head; 0: none
	start                                          []int32
	q, k, v, gate, beta, input, delta, bonus, dout []float64
}

// newProblem makes random numbers for a technique.
func newProblem(r Recurrence, c Config, lens []int, seed uint64) *problem {
	src := rand.New(rand.NewPCG(seed, 1))
	p := &problem{c: c, reads: r.Info().Reads, start: []int32{0}}
	for i, n := range lens {
		p.start = append(p.start, p.start[i]+int32(n))
	}
	tokens := int(p.start[len(lens)])
	make64 := func(n int, f func() float64) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = float64(float32(f()))
		}
		return x
	}
	normal := func() float64 { return src.NormFloat64() }
	p.q, p.k = make64(tokens*c.KeyHeads*c.KeyDim, normal), make64(tokens*c.KeyHeads*c.KeyDim, normal)
	p.v, p.dout = make64(tokens*c.Heads*c.ValueDim, normal), make64(tokens*c.Heads*c.ValueDim, normal)
	if p.reads&ReadsBeta != 0 { // keys of length 1
		for i := 0; i < len(p.k); i += c.KeyDim {
			sum := 0.0
			for _, x := range p.k[i : i+c.KeyDim] {
				sum += x * x
			}
			for d := range c.KeyDim {
				p.k[i+d] = float64(float32(p.k[i+d] / math.Sqrt(sum)))
			}
		}
		p.beta = make64(tokens*c.Heads, src.Float64)
	}
	switch {
	case p.reads&ReadsChannelGate != 0:
		p.gates = gates(r, &c)
	case p.reads&ReadsGate != 0:
		p.gates = 1
	}
	if p.gates > 0 {
		p.gate = make64(tokens*c.Heads*p.gates, func() float64 { return -src.ExpFloat64() / 4 })
	}
	if p.reads&ReadsInput != 0 {
		p.input = make64(tokens*c.Heads, func() float64 { return 3 * src.NormFloat64() })
	}
	if p.reads&ReadsDelta != 0 {
		p.delta = make64(tokens*c.Heads, src.Float64)
	}
	if p.reads&ReadsBonus != 0 {
		p.bonus = make64(c.Heads*c.KeyDim, normal)
	}
	return p
}

func view(x []float64, d tensor.DType, shape ...int) tensor.View {
	if x == nil {
		return tensor.View{}
	}
	dims := make([]int64, len(shape))
	for i, n := range shape {
		dims[i] = int64(n)
	}
	v := tensor.New(d, dims...)
	y := make([]float32, len(x))
	for i := range x {
		y[i] = float32(x[i])
	}
	spread(&v, y)
	return v
}

// step is tokens lo … hi−1 of the problem as a Step of so many sequences.
func (p *problem) step(d tensor.DType, lo, hi int, start []int32) *Step {
	c, n := &p.c, hi-lo
	part := func(x []float64, row int) []float64 {
		if x == nil {
			return nil
		}
		return x[lo*row : hi*row]
	}
	s := &Step{
		Query: view(part(p.q, c.KeyHeads*c.KeyDim), d, n, c.KeyHeads, c.KeyDim), Value: view(part(p.v, c.Heads*c.ValueDim), d, n, c.Heads, c.ValueDim),
		Out:  tensor.New(d, int64(n), int64(c.Heads), int64(c.ValueDim)),
		Beta: view(part(p.beta, c.Heads), tensor.F32, n, c.Heads), Input: view(part(p.input, c.Heads), tensor.F32, n, c.Heads),
		Delta: view(part(p.delta, c.Heads), tensor.F32, n, c.Heads), Bonus: view(p.bonus, tensor.F32, c.Heads, c.KeyDim),
		QueryStart: start,
	}
	if p.reads&ReadsKey != 0 {
		s.Key = view(part(p.k, c.KeyHeads*c.KeyDim), d, n, c.KeyHeads, c.KeyDim)
	}
	switch {
	case p.reads&ReadsChannelGate != 0:
		s.Gate = view(part(p.gate, c.Heads*p.gates), tensor.F32, n, c.Heads, p.gates)
	case p.reads&ReadsGate != 0:
		s.Gate = view(part(p.gate, c.Heads), tensor.F32, n, c.Heads)
	}
	return s
}

// whole is the problem as one step.
func (p *problem) whole(d tensor.DType) *Step {
	return p.step(d, 0, int(p.start[len(p.start)-1]), p.start)
}

// token is what a head reads at a token.
type token struct {
	t, h       int
	q, k, v    []float64
	gate       []float64
	beta, i, d float64
	bonus      []float64
}

// run gives every token of every sequence and head to a rule that fresh makes.
func (p *problem) run(fresh func(h int) func(x token) []float64) []float64 {
	c := &p.c
	out := make([]float64, len(p.v))
	scalar := func(x []float64, i int) float64 {
		if x == nil {
			return 0
		}
		return x[i]
	}
	for seq := range len(p.start) - 1 {
		for h := range c.Heads {
			rule := fresh(h)
			for t := int(p.start[seq]); t < int(p.start[seq+1]); t++ {
				i, qk := t*c.Heads+h, (t*c.KeyHeads+h/(c.Heads/c.KeyHeads))*c.KeyDim
				x := token{
					t: t, h: h, q: p.q[qk : qk+c.KeyDim], k: p.k[qk : qk+c.KeyDim], v: p.v[i*c.ValueDim : (i+1)*c.ValueDim],
					beta: scalar(p.beta, i), i: scalar(p.input, i), d: scalar(p.delta, i),
				}
				if p.gates > 0 {
					x.gate = p.gate[i*p.gates : (i+1)*p.gates]
				}
				if p.bonus != nil {
					x.bonus = p.bonus[h*c.KeyDim : (h+1)*c.KeyDim]
				}
				copy(out[i*c.ValueDim:], rule(x))
			}
		}
	}
	return out
}

// memory is a state, [row][column].
type memory [][]float64

func newMemory(rows, columns int) memory {
	m := make(memory, rows)
	for i := range m {
		m[i] = make([]float64, columns)
	}
	return m
}

// decay multiplies rows by e^g, one g for all or one a row.
func (m memory) decay(g []float64) {
	for i, row := range m {
		f := math.Exp(g[min(i, len(g)-1)])
		for e := range row {
			row[e] *= f
		}
	}
}

// add adds k ⊗ v times f.
func (m memory) add(k, v []float64, f float64) {
	for i, row := range m {
		for e := range row {
			row[e] += f * k[i] * v[e]
		}
	}
}

// read is Mᵀq times scale.
func (m memory) read(q []float64, scale float64) []float64 {
	out := make([]float64, len(m[0]))
	for i, row := range m {
		for e, x := range row {
			out[e] += scale * q[i] * x
		}
	}
	return out
}

// delta replaces what k stands for.
func (m memory) delta(k, v []float64, beta float64) {
	old := m.read(k, 1)
	u := make([]float64, len(v))
	for e := range u {
		u[e] = v[e] - old[e]
	}
	m.add(k, u, beta)
}

func unitLength(x []float64) []float64 {
	sum := 1e-6
	for _, y := range x {
		sum += y * y
	}
	return scaled(x, 1/math.Sqrt(sum))
}

func scaled(x []float64, f float64) []float64 {
	out := make([]float64, len(x))
	for i, y := range x {
		out[i] = y * f
	}
	return out
}

// paper is the rule of a technique for a head.
type paper struct {
	name string
	rec  Recurrence
	rule func(c *Config, h int) func(x token) []float64
}

// part is how far from the rule results in float32 may be, of the largest.
func (p *paper) part() float64 {
	if p.name == "mlstm" { // its divisor may cancel
		return 3e-5
	}
	return 3e-6
}

var papers = []paper{
	{"linear", Linear{}, func(c *Config, h int) func(token) []float64 {
		m := newMemory(c.KeyDim, c.ValueDim)
		return func(x token) []float64 { m.add(x.k, x.v, 1); return m.read(x.q, c.Scale) }
	}},
	{"linear/elu/normalize", Linear{ELU: true, Normalize: true}, func(c *Config, h int) func(token) []float64 {
		m, z := newMemory(c.KeyDim, c.ValueDim), newMemory(c.KeyDim, 1)
		phi := func(x []float64) []float64 {
			out := make([]float64, len(x))
			for i, y := range x {
				if out[i] = y + 1; y < 0 {
					out[i] = math.Exp(y)
				}
			}
			return out
		}
		return func(x token) []float64 {
			m.add(phi(x.k), x.v, 1)
			z.add(phi(x.k), []float64{1}, 1)
			return scaled(m.read(phi(x.q), 1), 1/z.read(phi(x.q), 1)[0])
		}
	}},
	{"retnet", RetNet{}, func(c *Config, h int) func(token) []float64 {
		m := newMemory(c.KeyDim, c.ValueDim)
		g := math.Log(1 - math.Pow(2, -5-float64(h)))
		return func(x token) []float64 { m.decay([]float64{g}); m.add(x.k, x.v, 1); return m.read(x.q, c.Scale) }
	}},
	{"lightning2", Lightning{Layer: 1, Layers: 4}, func(c *Config, h int) func(token) []float64 {
		m := newMemory(c.KeyDim, c.ValueDim)
		g := -8 / float64(c.Heads) * 0.75 * float64(h)
		return func(x token) []float64 { m.decay([]float64{g}); m.add(x.k, x.v, 1); return m.read(x.q, c.Scale) }
	}},
	{"simple-gla", SimpleGLA{}, gatedRule},
	{"gla", GLA{}, gatedRule},
	{"mamba2", Mamba2{A: []float32{-1, -0.25, -2, -0.5}, D: []float32{1, 0, -1, 0.5}}, func(c *Config, h int) func(token) []float64 {
		m := newMemory(c.KeyDim, c.ValueDim)
		a, d := []float64{-1, -0.25, -2, -0.5}[h], []float64{1, 0, -1, 0.5}[h]
		return func(x token) []float64 {
			m.decay([]float64{a * x.d})
			m.add(x.k, x.v, x.d)
			o := m.read(x.q, c.Scale)
			for e := range o {
				o[e] += d * x.v[e]
			}
			return o
		}
	}},
	{"deltanet", DeltaNet{}, func(c *Config, h int) func(token) []float64 {
		m := newMemory(c.KeyDim, c.ValueDim)
		return func(x token) []float64 { m.delta(x.k, x.v, x.beta); return m.read(x.q, c.Scale) }
	}},
	{"deltanet/normalize", DeltaNet{Normalize: true}, func(c *Config, h int) func(token) []float64 {
		m := newMemory(c.KeyDim, c.ValueDim)
		return func(x token) []float64 {
			m.delta(unitLength(x.k), x.v, x.beta)
			return m.read(unitLength(x.q), c.Scale)
		}
	}},
	{"gated-deltanet", GatedDeltaNet{}, func(c *Config, h int) func(token) []float64 {
		m := newMemory(c.KeyDim, c.ValueDim)
		return func(x token) []float64 { m.decay(x.gate); m.delta(x.k, x.v, x.beta); return m.read(x.q, c.Scale) }
	}},
	{"gated-deltanet/normalize", GatedDeltaNet{Normalize: true}, func(c *Config, h int) func(token) []float64 {
		m := newMemory(c.KeyDim, c.ValueDim)
		return func(x token) []float64 {
			m.decay(x.gate)
			m.delta(unitLength(x.k), x.v, x.beta)
			return m.read(unitLength(x.q), c.Scale)
		}
	}},
	{"gsa", GSA{Slots: 6}, func(c *Config, h int) func(token) []float64 {
		keys, values := newMemory(6, c.KeyDim), newMemory(6, c.ValueDim)
		return func(x token) []float64 {
			in := make([]float64, 6)
			for i, g := range x.gate {
				in[i] = 1 - math.Exp(g)
			}
			keys.decay(x.gate)
			keys.add(in, x.k, 1)
			values.decay(x.gate)
			values.add(in, x.v, 1)
			p, sum := make([]float64, 6), 0.0
			for i := range p {
				for d, y := range x.q {
					p[i] += c.Scale * y * keys[i][d]
				}
				p[i] = math.Exp(p[i])
				sum += p[i]
			}
			return values.read(p, 1/sum)
		}
	}},
	{"hgrn2", HGRN2{}, func(c *Config, h int) func(token) []float64 {
		m := newMemory(c.KeyDim, c.ValueDim)
		return func(x token) []float64 {
			k := make([]float64, len(x.gate))
			for i, g := range x.gate {
				k[i] = 1 - math.Exp(g)
			}
			m.decay(x.gate)
			m.add(k, x.v, 1)
			return m.read(x.q, c.Scale)
		}
	}},
	{"mlstm", MLSTM{}, func(c *Config, h int) func(token) []float64 {
		m, n := newMemory(c.KeyDim, c.ValueDim), newMemory(c.KeyDim, 1)
		return func(x token) []float64 { // without the stabilising m: float64 has room
			for _, s := range []struct {
				m memory
				v []float64
			}{{m, x.v}, {n, []float64{1}}} {
				s.m.decay(x.gate)
				s.m.add(x.k, s.v, math.Exp(x.i))
			}
			return scaled(m.read(x.q, c.Scale), 1/max(math.Abs(n.read(x.q, c.Scale)[0]), 1))
		}
	}},
	{"rwkv6", RWKV6{}, func(c *Config, h int) func(token) []float64 {
		m := newMemory(c.KeyDim, c.ValueDim)
		return func(x token) []float64 {
			o, own := m.read(x.q, c.Scale), 0.0
			for d := range x.q {
				own += c.Scale * x.q[d] * x.bonus[d] * x.k[d]
			}
			for e := range o {
				o[e] += own * x.v[e]
			}
			m.decay(x.gate)
			m.add(x.k, x.v, 1)
			return o
		}
	}},
}

func gatedRule(c *Config, h int) func(token) []float64 {
	m := newMemory(c.KeyDim, c.ValueDim)
	return func(x token) []float64 { m.decay(x.gate); m.add(x.k, x.v, 1); return m.read(x.q, c.Scale) }
}
