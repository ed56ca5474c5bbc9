// Angelos Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", 2020, https://arxiv.org/abs/2006.16236

package recurrence

import (
	"github.com/longctx/longctx/kernel"
)

// Linear is linear attention:
//
//	S ← S + φ(k) ⊗ v,  z ← z + φ(k),  Out = Scale·Sᵀφ(q), divided with Normalize by Scale·z·φ(q)
//
// φ is the identity, or with ELU elu(x) + 1. z is one more column of the state.
//
// Claim: the cost of attention without its quadratic part. Quality is below a
// transformer's.
//
// Cost: that of package recurrence, plain; with Normalize of ValueDim + 1.
//
// Limits: nothing is forgotten, so that the state fills up. Without ELU, or
// another positive φ made by the caller, the divisor of Normalize may vanish; it
// is kept away from 0 by 1e−10.
type Linear struct {
	ELU       bool
	Normalize bool
}

// Info describes the technique.
func (Linear) Info() Info { return Info{"linear", "arXiv:2006.16236", "none", ReadsKey, "1/√KeyDim"} }

func (Linear) problems(c *Config) []string { return nil }

func (t Linear) states(c *Config) [][3]int {
	if t.Normalize {
		return [][3]int{{c.Heads, c.KeyDim, c.ValueDim + 1}}
	}
	return direct{}.states(c)
}

func (t Linear) hosted() bool { return t.ELU || t.Normalize }

func (t Linear) run(l *Layer, s *Step) error {
	if !t.ELU && !t.Normalize {
		return direct{}.run(l, s)
	}
	in := t.lower(l, s)
	out := like(&in.Value)
	if err := l.scan(s, in, out); err != nil {
		return err
	}
	if t.Normalize {
		out = of(divided(out.F32s(), l.config.ValueDim), s.Out.Shape[:3]...)
	}
	spread(&s.Out, out.F32s())
	return nil
}

// lower is the step as a recurrence, with the column of ones.
func (t Linear) lower(l *Layer, s *Step) kernel.ScanInput {
	in := l.input(s, 0)
	q, k, v := dense(&s.Query), dense(&s.Key), dense(&s.Value)
	if t.ELU {
		for _, x := range [][]float32{q, k} {
			for i := range x {
				if x[i] > 0 {
					x[i]++
				} else {
					x[i] = exp(x[i])
				}
			}
		}
	}
	in.Query, in.Key, in.Value = of(q, s.Query.Shape[:3]...), of(k, s.Key.Shape[:3]...), of(v, s.Value.Shape[:3]...)
	if t.Normalize {
		in.Value = of(withOnes(v, l.config.ValueDim), s.Value.Shape[0], s.Value.Shape[1], s.Value.Shape[2]+1)
	}
	return in
}

const divisorFloor = 1e-10

// divided is rows of dim features divided by the one more that follows.
func divided(x []float32, dim int) []float32 {
	out := make([]float32, 0, len(x)/(dim+1)*dim)
	for i := 0; i < len(x); i += dim + 1 {
		for _, y := range x[i : i+dim] {
			out = append(out, y/(x[i+dim]+divisorFloor))
		}
	}
	return out
}

func (t Linear) backward(l *Layer, s *Step, g *Gradients) error {
	if !t.ELU && !t.Normalize {
		return direct{}.backward(l, s, g)
	}
	in, dim := t.lower(l, s), l.config.ValueDim
	d := Gradients{DOut: of(dense(&g.DOut), g.DOut.Shape[:3]...), DQuery: like(&s.Query), DKey: like(&s.Key), DValue: like(&in.Value)}
	if t.Normalize {
		out := like(&in.Value)
		if err := l.backend.Scan(&kernel.ScanArgs{ScanInput: in, Out: out}); err != nil {
			return err
		}
		d.DOut = of(undivided(d.DOut.F32s(), out.F32s(), dim), in.Value.Shape[:3]...)
	}
	if err := l.scanBackward(in, &d); err != nil {
		return err
	}
	if t.ELU {
		for _, x := range [][2][]float32{{d.DQuery.F32s(), in.Query.F32s()}, {d.DKey.F32s(), in.Key.F32s()}} {
			for i, y := range x[1] {
				x[0][i] *= min(y, 1) // the slope of φ: e^x = φ(x) below 0
			}
		}
	}
	spread(&g.DQuery, d.DQuery.F32s())
	spread(&g.DKey, d.DKey.F32s())
	spread(&g.DValue, trimmed(d.DValue.F32s(), int(in.Value.Shape[2]), dim))
	return nil
}

// undivided is the gradient of rows x from that of divided(x).
func undivided(d, x []float32, dim int) []float32 {
	out := make([]float32, 0, len(x))
	for i, j := 0, 0; i < len(x); i, j = i+dim+1, j+dim {
		by := float64(x[i+dim]) + divisorFloor
		sum := 0.0
		for e, y := range d[j : j+dim] {
			out = append(out, float32(float64(y)/by))
			sum += float64(y) * float64(x[i+e])
		}
		out = append(out, float32(-sum/(by*by)))
	}
	return out
}

// trimmed is the first dim features of rows of n.
func trimmed(x []float32, n, dim int) []float32 {
	out := make([]float32, 0, len(x)/n*dim)
	for i := 0; i < len(x); i += n {
		out = append(out, x[i:i+dim]...)
	}
	return out
}
