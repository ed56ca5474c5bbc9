package kerneltest

import (
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// scanCase is a recurrence with random inputs.
type scanCase struct {
	lens             []int
	heads, keyHeads  int
	keyDim, valueDim int
	dtype            tensor.DType
	gate             int // 0: none; 2 or 3: rank of Gate
	beta, bonus      bool
	edge             bool // gates of −Inf, 0 and above, Beta of 0, 1 and 2
}

// scanData is the numbers of a case, row-major.
type scanData struct {
	q, k, v, gate, beta, bonus []float64
	state                      []float64 // [slots, heads, keyDim, valueDim]
	start, from, to            []int32
	slots                      int
	scale                      float64
}

func (c *scanCase) tokens() int {
	n := 0
	for _, x := range c.lens {
		n += x
	}
	return n
}

// stateLen is the elements of a slot.
func (c *scanCase) stateLen() int { return c.heads * c.keyDim * c.valueDim }

func (c *scanCase) data(seed uint64) *scanData {
	n, r := c.tokens(), newRandom(seed, 77)
	normals := func(d tensor.DType, n int) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = round(d, r.normal())
		}
		return x
	}
	x := &scanData{start: []int32{0}, slots: 2*len(c.lens) + 1, scale: float64(float32(1 / math.Sqrt(float64(c.keyDim))))}
	x.q, x.k = normals(c.dtype, n*c.keyHeads*c.keyDim), normals(c.dtype, n*c.keyHeads*c.keyDim)
	x.v = normals(c.dtype, n*c.heads*c.valueDim)
	x.state = normals(tensor.F32, x.slots*c.stateLen())
	for i, n := range c.lens {
		x.start = append(x.start, x.start[i]+int32(n))
		x.from = append(x.from, []int32{int32(i), -1, int32(i), 2 * int32(len(c.lens))}[i%4])
		x.to = append(x.to, []int32{int32(i), int32(len(c.lens) + i), -1, int32(len(c.lens) + i)}[i%4])
	}
	switch c.gate {
	case 2:
		x.gate = normals(tensor.F32, n*c.heads)
	case 3:
		x.gate = normals(tensor.F32, n*c.heads*c.keyDim)
	}
	for i, g := range x.gate {
		x.gate[i] = round(tensor.F32, -math.Abs(g)/8)
		if c.edge {
			switch r.below(9) {
			case 0:
				x.gate[i] = math.Inf(-1)
			case 1:
				x.gate[i] = 0
			case 2:
				x.gate[i] = 3
			case 3:
				x.gate[i] = -1000
			}
		}
	}
	if c.beta { // keys of length 1, or the state would grow without bound
		for i := 0; i < len(x.k); i += c.keyDim {
			sum := 0.0
			for _, y := range x.k[i : i+c.keyDim] {
				sum += y * y
			}
			for d := range c.keyDim {
				x.k[i+d] = round(c.dtype, x.k[i+d]/math.Sqrt(max(sum, 1e-9)))
			}
		}
		x.beta = make([]float64, n*c.heads)
		for i := range x.beta {
			x.beta[i] = float64(r.below(1<<16)) / (1 << 16)
			if c.edge {
				x.beta[i] = float64(r.below(3))
			}
		}
	}
	if c.bonus {
		x.bonus = normals(tensor.F32, c.heads*c.keyDim)
	}
	return x
}

// gateAt is the factor of a channel.
func (c *scanCase) gateAt(x *scanData, t, h, d int) float64 {
	g := 0.0
	switch c.gate {
	case 2:
		g = x.gate[t*c.heads+h]
	case 3:
		g = x.gate[(t*c.heads+h)*c.keyDim+d]
	}
	return math.Exp(min(max(g, -128*math.Ln2), 0))
}

// stepScan is the recurrence token by token, as ScanInput states it, in a type of
// number.
func stepScan[T float32 | float64](c *scanCase, x *scanData) (out, state []float64) {
	out, state = make([]float64, c.tokens()*c.heads*c.valueDim), append([]float64(nil), x.state...)
	s, u := make([]T, c.keyDim*c.valueDim), make([]T, c.valueDim)
	for seq := range c.lens {
		for h := range c.heads {
			clear(s)
			if f := x.from[seq]; f >= 0 {
				for i := range s {
					s[i] = T(x.state[int(f)*c.stateLen()+h*len(s)+i])
				}
			}
			for t := int(x.start[seq]); t < int(x.start[seq+1]); t++ {
				o := out[(t*c.heads+h)*c.valueDim:][:c.valueDim]
				at := (t*c.keyHeads + h/(c.heads/c.keyHeads)) * c.keyDim
				q, k := x.q[at:][:c.keyDim], x.k[at:][:c.keyDim]
				for e := range u {
					u[e] = T(x.v[(t*c.heads+h)*c.valueDim+e])
				}
				if c.bonus {
					var own T
					for d := range q {
						own += T(q[d]) * T(x.bonus[h*c.keyDim+d]) * T(k[d])
					}
					for e := range o {
						o[e] = x.scale * float64(own*u[e]+dotState(s, q, e, c.valueDim))
					}
				}
				for d := range q {
					f := T(c.gateAt(x, t, h, d))
					for e := range u {
						s[d*c.valueDim+e] *= f
					}
				}
				if c.beta {
					for e := range u {
						u[e] = T(x.beta[t*c.heads+h]) * (u[e] - dotState(s, k, e, c.valueDim))
					}
				}
				for d := range q {
					for e := range u {
						s[d*c.valueDim+e] += T(k[d]) * u[e]
					}
				}
				if !c.bonus {
					for e := range o {
						o[e] = x.scale * float64(dotState(s, q, e, c.valueDim))
					}
				}
			}
			if to := x.to[seq]; to >= 0 {
				for i := range s {
					state[int(to)*c.stateLen()+h*len(s)+i] = float64(s[i])
				}
			}
		}
	}
	return out, state
}

func dotState[T float32 | float64](s []T, x []float64, e, valueDim int) (sum T) {
	for d, y := range x {
		sum += T(y) * s[d*valueDim+e]
	}
	return sum
}

// exactScan is rule 24 as it stands there.
func exactScan(c *scanCase, x *scanData) (out, state []float64) {
	out, state = make([]float64, c.tokens()*c.heads*c.valueDim), append([]float64(nil), x.state...)
	for seq := range c.lens {
		for h := range c.heads {
			s := make([]float32, c.keyDim*c.valueDim)
			if f := x.from[seq]; f >= 0 {
				for i := range s {
					s[i] = float32(x.state[int(f)*c.stateLen()+h*len(s)+i])
				}
			}
			for t := int(x.start[seq]); t < int(x.start[seq+1]); t += kernel.TileSize {
				e := exactChunk{c: c, x: x, t0: t, n: min(kernel.TileSize, int(x.start[seq+1])-t), h: h}
				e.run(s, out)
			}
			if to := x.to[seq]; to >= 0 {
				for i := range s {
					state[int(to)*c.stateLen()+h*len(s)+i] = float64(s[i])
				}
			}
		}
	}
	return out, state
}

// exactChunk is a chunk of one head.
type exactChunk struct {
	c        *scanCase
	x        *scanData
	t0, n, h int
	sums     [][]float64 // [channel][1+token]
	u        [][]float32
}

func (e *exactChunk) q(r, d int) float32 {
	c := e.c
	return float32(e.x.q[((e.t0+r)*c.keyHeads+e.h/(c.heads/c.keyHeads))*c.keyDim+d]) * float32(e.x.scale)
}

func (e *exactChunk) k(r, d int) float32 {
	c := e.c
	return float32(e.x.k[((e.t0+r)*c.keyHeads+e.h/(c.heads/c.keyHeads))*c.keyDim+d])
}

// factor is the decay of channel d from after token i−1 to after token j−1.
func (e *exactChunk) factor(d, i, j int) float32 {
	return kernel.Exp2(float32(e.sums[d][j] - e.sums[d][i]))
}

// pair is the weight that row r gives to an earlier token s: its sums of gates
// end after token to−1.
func (e *exactChunk) pair(row func(r, d int) float32, r, s, to int) float32 {
	a := float32(0)
	if e.c.gate == 3 {
		size := 1
		for (r^s)/size > 1 {
			size *= 2
		}
		mid := r / size * size // the first token of the half that r is in
		for d := range e.c.keyDim {
			a = kernel.FMA(row(r, d)*e.factor(d, mid, to), e.k(s, d)*e.factor(d, s+1, mid), a)
		}
		return a
	}
	for d := range e.c.keyDim {
		a = kernel.FMA(row(r, d), e.k(s, d), a)
	}
	return a * e.factor(0, s+1, to)
}

func (e *exactChunk) run(s []float32, out []float64) {
	c, shift := e.c, 0
	if c.bonus {
		shift = 1
	}
	e.sumGates()
	read := func(row func(r, d int) float32, r, to, i int) float32 {
		a := float32(0)
		for d := range c.keyDim {
			a = kernel.FMA(row(r, d)*e.factor(d, 0, to), s[d*c.valueDim+i], a)
		}
		return a
	}
	for r := range e.n {
		u := make([]float32, c.valueDim)
		for i := range u {
			u[i] = float32(e.x.v[((e.t0+r)*c.heads+e.h)*c.valueDim+i])
			if c.beta {
				u[i] -= read(e.k, r, r+1, i)
			}
		}
		if c.beta {
			for j := range r {
				w := -e.pair(e.k, r, j, r+1)
				for i := range u {
					u[i] = kernel.FMA(w, e.u[j][i], u[i])
				}
			}
			for i := range u {
				u[i] *= float32(e.x.beta[(e.t0+r)*c.heads+e.h])
			}
		}
		e.u = append(e.u, u)
		w := make([]float32, r+1)
		for j := range r {
			w[j] = e.pair(e.q, r, j, r+1-shift)
		}
		for d := range c.keyDim {
			q := e.q(r, d)
			if c.bonus {
				q *= float32(e.x.bonus[e.h*c.keyDim+d])
			}
			w[r] = kernel.FMA(q, e.k(r, d), w[r])
		}
		for i := range u {
			o := read(e.q, r, r+1-shift, i)
			for j := range w {
				o = kernel.FMA(w[j], e.u[j][i], o)
			}
			out[((e.t0+r)*c.heads+e.h)*c.valueDim+i] = round(c.dtype, float64(o+0))
		}
	}
	for d := range c.keyDim {
		for i := range c.valueDim {
			y := s[d*c.valueDim+i] * e.factor(d, 0, e.n)
			for r := range e.n {
				y = kernel.FMA(e.k(r, d)*e.factor(d, r+1, e.n), e.u[r][i], y)
			}
			s[d*c.valueDim+i] = y
		}
	}
}

func (e *exactChunk) sumGates() {
	c := e.c
	for d := range c.keyDim {
		sums := make([]float64, e.n+1)
		for r := range e.n {
			g := float32(0)
			switch c.gate {
			case 2:
				g = float32(e.x.gate[(e.t0+r)*c.heads+e.h])
			case 3:
				g = float32(e.x.gate[((e.t0+r)*c.heads+e.h)*c.keyDim+d])
			}
			sums[r+1] = sums[r] + float64(min(max(float32(g*kernel.Log2E), -128), 0))
		}
		e.sums = append(e.sums, sums)
	}
}
