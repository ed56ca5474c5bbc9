// Songlin Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024, https://arxiv.org/abs/2406.06484

package recurrence

import (
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// DeltaNet replaces what a key stands for instead of adding to it:
//
//	S ← S + Beta·k ⊗ (v − Sᵀk),  Out = Scale·Sᵀq
//
// Claim: recalls associations where linear attention mixes them up (all of MQAR).
// Nothing is claimed beyond the trained length.
//
// Cost: that of package recurrence, delta rule.
//
// Limits: keys have length 1, or the state grows: Normalize, or the caller, sees
// to it. Beta lies in 0 … 1, or to 2 where negative eigenvalues are wanted.
// Without a gate nothing is ever forgotten but by being replaced.
type DeltaNet struct {
	Normalize bool // queries and keys are divided by their length first
}

// Info describes the technique.
func (DeltaNet) Info() Info {
	return Info{"deltanet", "arXiv:2406.06484", "none", ReadsKey | ReadsBeta, "1/√KeyDim"}
}

func (DeltaNet) problems(*Config) []string { return nil }

func (DeltaNet) states(c *Config) [][3]int { return direct{}.states(c) }

func (t DeltaNet) hosted() bool { return t.Normalize }

func (t DeltaNet) run(l *Layer, s *Step) error { return runDelta(l, s, t.Normalize) }

func (t DeltaNet) backward(l *Layer, s *Step, g *Gradients) error {
	return deltaBackward(l, s, g, t.Normalize)
}

func runDelta(l *Layer, s *Step, normalize bool) error {
	if !normalize {
		return direct{}.run(l, s)
	}
	in, out := l.input(s, 0), like(&s.Out)
	unit(&in)
	if err := l.scan(s, in, out); err != nil {
		return err
	}
	spread(&s.Out, out.F32s())
	return nil
}

func deltaBackward(l *Layer, s *Step, g *Gradients, normalize bool) error {
	if !normalize {
		return direct{}.backward(l, s, g)
	}
	in, d := l.input(s, 0), *g
	q, k := unit(&in)
	d.DQuery, d.DKey, d.DOut = like(&s.Query), like(&s.Key), of(dense(&g.DOut), g.DOut.Shape[:3]...)
	if err := l.scanBackward(in, &d); err != nil {
		return err
	}
	denormalize(d.DQuery.F32s(), in.Query.F32s(), q, l.config.KeyDim)
	denormalize(d.DKey.F32s(), in.Key.F32s(), k, l.config.KeyDim)
	spread(&g.DQuery, d.DQuery.F32s())
	spread(&g.DKey, d.DKey.F32s())
	return nil
}

// unit makes queries and keys of length 1, and returns their inverse lengths.
func unit(in *kernel.ScanInput) (query, key []float32) {
	widen := func(v *tensor.View) (inverse []float32) {
		y, inverse := normalized(dense(v), int(v.Shape[2]))
		*v = of(y, v.Shape[:3]...)
		return inverse
	}
	in.Value = of(dense(&in.Value), in.Value.Shape[:3]...)
	return widen(&in.Query), widen(&in.Key)
}
