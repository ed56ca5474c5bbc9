// Tri Dao and Albert Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality", 2024, https://arxiv.org/abs/2405.21060

package recurrence

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// Mamba2 is the state space layer of Mamba-2 (SSD), which is SimpleGLA by other
// names:
//
//	S ← e^(A·Delta)·S + B ⊗ (Delta·x),  Out = Sᵀ·C + D·x
//
// with Query C, Key B, Value x. B and C of a group of heads are shared: KeyHeads
// is the number of groups, KeyDim the state size, ValueDim the head dimension.
// The convolution before it, the softplus that makes Delta, and the gated
// normalisation after it are the model's.
//
// Claim: quality near transformers' of the same size; recall and retrieval fall
// behind where the state is small. Nothing is claimed beyond the trained length.
//
// Cost: that of package recurrence, gated; products of queries and keys are made
// once for the heads of a group.
//
// Limits: gradients of A and D are not computed.
type Mamba2 struct {
	A []float32 // [Heads], at most 0; nil: −1
	D []float32 // [Heads] weight of the token's own value; nil: 0
}

// Info describes the technique.
func (Mamba2) Info() Info {
	return Info{"mamba2", "arXiv:2405.21060", "none", ReadsKey | ReadsDelta, "1"}
}

func (t Mamba2) problems(c *Config) (out []string) {
	if t.A != nil && len(t.A) != c.Heads {
		out = append(out, fmt.Sprintf("%d entries of A, want %d, one a head", len(t.A), c.Heads))
	}
	if t.D != nil && len(t.D) != c.Heads {
		out = append(out, fmt.Sprintf("%d entries of D, want %d, one a head", len(t.D), c.Heads))
	}
	for h, a := range t.A {
		if !(a <= 0) {
			out = append(out, fmt.Sprintf("A[%d] %v, want at most 0", h, a))
		}
	}
	return out
}

func (Mamba2) states(c *Config) [][3]int { return direct{}.states(c) }

func (t Mamba2) a(h int) float32 {
	if t.A == nil {
		return -1
	}
	return t.A[h]
}

// lower is the step as a recurrence, with the time steps and the values.
func (t Mamba2) lower(l *Layer, s *Step) (in kernel.ScanInput, delta, x []float32) {
	in, delta, x = l.input(s, 0), dense(&s.Delta), dense(&s.Value)
	gate, value := make([]float32, len(delta)), make([]float32, len(x))
	for i, d := range delta {
		gate[i] = t.a(i%l.config.Heads) * d
		for e := i * l.config.ValueDim; e < (i+1)*l.config.ValueDim; e++ {
			value[e] = d * x[e]
		}
	}
	in.Query, in.Key = of(dense(&s.Query), s.Query.Shape[:3]...), of(dense(&s.Key), s.Key.Shape[:3]...)
	in.Gate, in.Value = of(gate, s.Delta.Shape[:2]...), of(value, s.Value.Shape[:3]...)
	return in, delta, x
}

func (Mamba2) hosted() bool { return true }

func (t Mamba2) run(l *Layer, s *Step) error {
	in, _, x := t.lower(l, s)
	out := like(&s.Out)
	if err := l.scan(s, in, out); err != nil {
		return err
	}
	o := out.F32s()
	if t.D != nil {
		for i := range o {
			o[i] += float32(t.D[i/l.config.ValueDim%l.config.Heads] * x[i])
		}
	}
	spread(&s.Out, o)
	return nil
}

func (t Mamba2) backward(l *Layer, s *Step, g *Gradients) error {
	in, delta, x := t.lower(l, s)
	dout := dense(&g.DOut)
	d := Gradients{DOut: of(dout, g.DOut.Shape[:3]...), DQuery: g.DQuery, DKey: g.DKey, DValue: like(&s.Value), DGate: like(&in.Gate)}
	if err := l.scanBackward(in, &d); err != nil {
		return err
	}
	dv, dgate, ddelta := d.DValue.F32s(), d.DGate.F32s(), make([]float32, len(delta))
	for i, step := range delta {
		h := i % l.config.Heads
		sum := float64(t.a(h)) * float64(dgate[i])
		for e := i * l.config.ValueDim; e < (i+1)*l.config.ValueDim; e++ {
			sum += float64(dv[e]) * float64(x[e])
			dv[e] *= step
			if t.D != nil {
				dv[e] += float32(t.D[h] * dout[e])
			}
		}
		ddelta[i] = float32(sum)
	}
	spread(&g.DValue, dv)
	spread(&g.DDelta, ddelta)
	return nil
}
