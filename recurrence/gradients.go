package recurrence

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Gradients are those of a Step, of what the technique reads. They are F32, of
// the shape of what they are the gradient of, and written, not added to.
type Gradients struct {
	DOut tensor.View // input: as Out, or F32

	DQuery, DKey, DValue                 tensor.View
	DGate, DBeta, DInput, DDelta, DBonus tensor.View
}

// Backward computes the gradients of a Run with the same step. The slots hold
// the states before the first token: Fork keeps them over a Run. States are not
// changed; no gradient flows into or out of them.
func (l *Layer) Backward(s *Step, g *Gradients) error {
	if err := l.check(s); err != nil {
		return err
	}
	if g == nil {
		return errors.New("recurrence: Gradients is nil")
	}
	for _, v := range []*tensor.View{&s.Query, &s.Key, &s.Value, &s.Out, &s.Gate, &s.Beta, &s.Input, &s.Delta, &s.Bonus,
		&g.DOut, &g.DQuery, &g.DKey, &g.DValue, &g.DGate, &g.DBeta, &g.DInput, &g.DDelta, &g.DBonus} {
		if err := l.checkMemory("a tensor of Backward", v, false); err != nil {
			return err
		}
	}
	if g.DOut.DType != tensor.F32 {
		if err := checkShape("DOut", &g.DOut, s.Out.DType, s.Out.Shape[:3]); err != nil {
			return err
		}
	} else if err := checkShape("DOut", &g.DOut, tensor.F32, s.Out.Shape[:3]); err != nil {
		return err
	}
	for _, v := range []struct {
		name     string
		view, of *tensor.View
	}{
		{"DQuery", &g.DQuery, &s.Query}, {"DKey", &g.DKey, &s.Key}, {"DValue", &g.DValue, &s.Value}, {"DGate", &g.DGate, &s.Gate},
		{"DBeta", &g.DBeta, &s.Beta}, {"DInput", &g.DInput, &s.Input}, {"DDelta", &g.DDelta, &s.Delta}, {"DBonus", &g.DBonus, &s.Bonus},
	} {
		if v.of.IsZero() {
			if !v.view.IsZero() {
				return fmt.Errorf("recurrence: %s is %v, but %s reads no such tensor", v.name, v.view, l.rec.Info().Name)
			}
			continue
		}
		if err := checkShape(v.name, v.view, tensor.F32, v.of.Shape[:v.of.Rank]); err != nil {
			return err
		}
	}
	if err := l.rec.backward(l, s, g); err != nil {
		return fmt.Errorf("recurrence: %s: %w", l.rec.Info().Name, err)
	}
	return nil
}

// scanBackward computes the gradients of one recurrence.
func (l *Layer) scanBackward(in kernel.ScanInput, g *Gradients) error {
	a := &kernel.ScanBackwardArgs{
		ScanInput: in, DOut: g.DOut, DQuery: g.DQuery, DKey: g.DKey, DValue: g.DValue, DGate: g.DGate, DBeta: g.DBeta,
	}
	if in.Bonus.IsZero() {
		return l.backend.ScanBackward(a)
	}
	a.DBonus = zeros(int64(in.Sequences()), in.Bonus.Shape[0], in.Bonus.Shape[1])
	if err := l.backend.ScanBackward(a); err != nil {
		return err
	}
	sum := make([]float32, in.Bonus.Len())
	for i, x := range a.DBonus.F32s() {
		sum[i%len(sum)] += x
	}
	spread(&g.DBonus, sum)
	return nil
}
