// Maximilian Beck et al., "xLSTM: Extended Long Short-Term Memory", 2024, https://arxiv.org/abs/2405.04517

package recurrence

import (
	"math"

	"github.com/longctx/longctx/kernel"
)

// MLSTM is the matrix memory of xLSTM: linear attention with a forget gate f, an
// exponential input gate i, and a norm n,
//
//	S ← f·S + i·k ⊗ v,  n ← f·n + i·k,  Out = Scale·Sᵀq / max(|Scale·n·q|, 1)
//
// with Gate ln f (the logarithm of a sigmoid) and Input ln i. As i may be large, S
// and n are kept times e^−m, where m is max(ln f + m, ln i) of the tokens so far;
// m cancels in Out. The norm is one more column of the state.
//
// Claim: scales as transformers do to billions of parameters, with weak
// extrapolation.
//
// Cost: that of package recurrence, gated, of ValueDim + 1.
//
// Limits: the scan over m is done token by token, for each head.
type MLSTM struct{}

// Info describes the technique.
func (MLSTM) Info() Info {
	return Info{"mlstm", "arXiv:2405.04517", "weak", ReadsKey | ReadsGate | ReadsInput, "1/√KeyDim"}
}

func (MLSTM) problems(c *Config) []string {
	if c.ValueDim == kernel.MaxStateDim {
		return []string{"ValueDim leaves no room for the norm"}
	}
	return nil
}

func (MLSTM) states(c *Config) [][3]int { return [][3]int{{c.Heads, c.KeyDim, c.ValueDim + 1}} }

// mlstm is a step of an MLSTM as a recurrence.
type mlstm struct {
	in    kernel.ScanInput
	value []float32 // [tokens, Heads, ValueDim]
	most  []float64 // [tokens, Heads] m
	input []float32 // [tokens, Heads] i·e^−m
	last  []float64 // [sequences, Heads] m after the last token
}

func (MLSTM) lower(l *Layer, s *Step) *mlstm {
	c, gate, in := &l.config, dense(&s.Gate), dense(&s.Input)
	x := &mlstm{in: l.input(s, 0), value: dense(&s.Value), most: make([]float64, len(gate)), input: make([]float32, len(gate))}
	for seq := range len(s.QueryStart) - 1 {
		m := make([]float64, c.Heads)
		if s.States != nil && s.Slots[seq] >= 0 {
			copy(m, s.States.auxOf(s.Slots[seq]))
		}
		for t := int(s.QueryStart[seq]); t < int(s.QueryStart[seq+1]); t++ {
			for h := range m {
				i := t*c.Heads + h
				kept := float64(min(gate[i], 0)) + m[h]
				m[h] = max(kept, float64(in[i]))
				if gate[i], x.input[i] = float32(kept-m[h]), float32(math.Exp(float64(in[i])-m[h])); math.IsInf(m[h], -1) {
					gate[i], x.input[i] = float32(m[h]), 0 // nothing is kept, and nothing comes
				}
				x.most[i] = m[h]
			}
		}
		x.last = append(x.last, m...)
	}
	v := withOnes(x.value, c.ValueDim)
	for i, f := range x.input {
		for e := i * (c.ValueDim + 1); e < (i+1)*(c.ValueDim+1); e++ {
			v[e] *= f
		}
	}
	tokens, heads := s.Value.Shape[0], s.Value.Shape[1]
	x.in.Query, x.in.Key = of(dense(&s.Query), s.Query.Shape[:3]...), of(dense(&s.Key), s.Key.Shape[:3]...)
	x.in.Value, x.in.Gate = of(v, tokens, heads, int64(c.ValueDim)+1), of(gate, tokens, heads)
	return x
}

// norm is what outputs are divided by, and whether it is n·q.
func (x *mlstm) norm(i int, n float32) (float64, bool) {
	floor := max(math.Exp(-x.most[i]), math.SmallestNonzeroFloat64)
	a := math.Abs(float64(n))
	if a >= floor {
		return a, true
	}
	return floor, false
}

func (MLSTM) hosted() bool { return true }

func (t MLSTM) run(l *Layer, s *Step) error {
	x, dim := t.lower(l, s), l.config.ValueDim
	raw := like(&x.in.Value)
	if err := l.scan(s, x.in, raw); err != nil {
		return err
	}
	out := make([]float32, len(x.value))
	for i := range x.input {
		row := raw.F32s()[i*(dim+1):][:dim+1]
		by, _ := x.norm(i, row[dim])
		for e, y := range row[:dim] {
			out[i*dim+e] = float32(float64(y) / by)
		}
	}
	spread(&s.Out, out)
	for seq, slot := range s.Slots {
		if slot >= 0 {
			copy(s.States.auxOf(slot), x.last[seq*l.config.Heads:])
		}
	}
	return nil
}

// The gradient takes m as given: outputs do not depend on it.
func (t MLSTM) backward(l *Layer, s *Step, g *Gradients) error {
	x, dim := t.lower(l, s), l.config.ValueDim
	raw := like(&x.in.Value)
	if err := l.backend.Scan(&kernel.ScanArgs{ScanInput: x.in, Out: raw}); err != nil {
		return err
	}
	dout, draw := dense(&g.DOut), make([]float32, raw.Len())
	for i := range x.input {
		row, d := raw.F32s()[i*(dim+1):][:dim+1], draw[i*(dim+1):][:dim+1]
		by, isNorm := x.norm(i, row[dim])
		sum := 0.0
		for e, y := range dout[i*dim:][:dim] {
			d[e] = float32(float64(y) / by)
			sum += float64(y) * float64(row[e])
		}
		if isNorm {
			d[dim] = float32(math.Copysign(-sum/(by*by), -sum*float64(row[dim])))
		}
	}
	d := Gradients{DOut: of(draw, x.in.Value.Shape[:3]...), DQuery: g.DQuery, DKey: g.DKey, DValue: like(&x.in.Value), DGate: g.DGate}
	if err := l.scanBackward(x.in, &d); err != nil {
		return err
	}
	dv, dinput := make([]float32, len(x.value)), make([]float32, len(x.input))
	for i, f := range x.input {
		row := d.DValue.F32s()[i*(dim+1):][:dim+1]
		sum := float64(row[dim])
		for e, y := range row[:dim] {
			sum += float64(y) * float64(x.value[i*dim+e])
			dv[i*dim+e] = float32(y * f)
		}
		dinput[i] = float32(sum * float64(f))
	}
	spread(&g.DValue, dv)
	spread(&g.DInput, dinput)
	return nil
}
