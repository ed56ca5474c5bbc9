package kernel

import "github.com/longctx/longctx/tensor"

// ScanBackwardArgs asks for the gradients of a Scan with the same input. They are
// written, not added to, and independent of the number of workers; rule 24 does
// not fix their bits. States are read, not written. The gradient of a gate that
// counts as another value is 0. A backend may keep the states before each chunk,
// KeyDim·ValueDim·4 bytes for 64 tokens of the heads it is at.
type ScanBackwardArgs struct {
	ScanInput
	DOut   tensor.View // [tokens, Heads, ValueDim] as Value, or F32
	DState tensor.View // [sequences, Heads, KeyDim, ValueDim] F32 of the last states, optional

	DQuery, DKey tensor.View // [tokens, KeyHeads, KeyDim] F32
	DValue       tensor.View // [tokens, Heads, ValueDim] F32
	DGate        tensor.View // F32 as Gate, where there is one; optional
	DBeta        tensor.View // F32 as Beta, where there is one
	DBonus       tensor.View // [sequences, Heads, KeyDim] F32, where there is a Bonus: of each sequence
	DFrom        tensor.View // as DState, of the first states, optional
}

// Validate checks the views and lists of a ScanBackward.
func (a *ScanBackwardArgs) Validate() error {
	if a == nil {
		return absent("ScanBackwardArgs")
	}
	if err := a.validate(); err != nil {
		return err
	}
	q, v, dout := &a.Query, &a.Value, v32(a.DOut.DType, a.Value.DType)
	if err := checkView("DOut", &a.DOut, dout, v.Shape[0], v.Shape[1], v.Shape[2]); err != nil {
		return err
	}
	for _, x := range []struct {
		name     string
		view, as *tensor.View
	}{{"DQuery", &a.DQuery, q}, {"DKey", &a.DKey, q}, {"DValue", &a.DValue, v}, {"DGate", &a.DGate, &a.Gate}, {"DBeta", &a.DBeta, &a.Beta}} {
		if x.as.IsZero() || x.view == &a.DGate && x.view.IsZero() {
			if !x.view.IsZero() {
				return &ShapeError{x.name, x.view.String(), "absent, as what it is the gradient of"}
			}
			continue
		}
		if err := checkView(x.name, x.view, tensor.F32, x.as.Shape[:x.as.Rank]...); err != nil {
			return err
		}
	}
	n := int64(a.Sequences())
	if a.Bonus.IsZero() != a.DBonus.IsZero() {
		return &ShapeError{"DBonus", a.DBonus.String(), "there where Bonus is"}
	}
	if !a.DBonus.IsZero() {
		if err := checkView("DBonus", &a.DBonus, tensor.F32, n, v.Shape[1], q.Shape[2]); err != nil {
			return err
		}
	}
	for _, x := range []struct {
		name string
		view *tensor.View
	}{{"DState", &a.DState}, {"DFrom", &a.DFrom}} {
		if !x.view.IsZero() {
			if err := a.checkState(x.name, x.view, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// v32 is F32 if d is, and else want.
func v32(d, want tensor.DType) tensor.DType {
	if d == tensor.F32 {
		return d
	}
	return want
}
