// Chenxin An et al., "Why Does the Effective Context Length of LLMs Fall Short?", 2024, https://arxiv.org/abs/2410.18745

package attention

import "fmt"

// STRING (shifted rotary position embedding) drops the largest distances,
// which training shows a model rarely, and uses smaller ones twice.
//
//	i−j <  Shift   query at i, key at j                    distance i−j
//	i−j >= Shift   query at i − Shift + Window, key at j   distance i−j − Shift + Window
//
// Claim: strong within the trained length, where models reach half of it
// without. The paper has Shift of a third to a half of the trained length and
// Window from 32, and mostly a third and 128. Window = Shift is Absolute.
//
// Cost beside Absolute: one more rotated copy of each query, 3·RotaryDim FLOPs
// a query and head. Both Terms rotate a key to its position, so KeyStorage may
// also be PostRoPE. No more bytes; a tile of keys across Shift is multiplied
// twice.
//
// Limits: LongestLength goes past the trained length by Shift − Window, but
// brings back the rare distances. It is made for causal masks; under others,
// keys after the query keep their true distance.
type STRING struct {
	Shift  int // distances below it are kept, at least 1
	Window int // distance that Shift becomes, 0 to Shift
}

// STRINGFor returns the published setting for a model trained on sequences of
// trained tokens: a third of it and 128, or less where it is short.
func STRINGFor(trained int) STRING { return STRING{Shift: trained / 3, Window: min(128, trained/3)} }

// Name returns "string".
func (STRING) Name() string { return "string" }

// Terms returns the near and the far Term.
func (m STRING) Terms(int) ([]Term, error) {
	if err := parameter("Shift", m.Shift, 1); err != nil {
		return nil, err
	}
	if m.Window < 0 || m.Window > m.Shift {
		return nil, fmt.Errorf("Window is %d, want 0 to Shift %d", m.Window, m.Shift)
	}
	near, far := nearFar(m.Shift)
	return []Term{
		{Region: near, PosQ: Identity, PosK: Identity},
		{Region: far, PosQ: Identity.Shift(float64(m.Window - m.Shift)), PosK: Identity},
	}, nil
}

// LongestLength is the longest sequence whose rotated distances stay below the
// trained length: trained + Shift − Window.
func (m STRING) LongestLength(trained int) int {
	if m.Shift > trained {
		return trained
	}
	return int(min(int64(trained)+int64(m.Shift-m.Window), NoLimit))
}
