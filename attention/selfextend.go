// Hongye Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning", 2024, https://arxiv.org/abs/2401.01325

package attention

import "fmt"

// SelfExtend keeps near distances and divides far ones by Group, on whole
// numbers.
//
//	i−j <  Window   query at i, key at j                                       distance i−j
//	i−j >= Window   query at ⌊i/Group⌋ + Window − Window/Group, key at ⌊j/Group⌋
//
// Claim: strong up to LongestLength. The published code advises
// Window + (length−Window)/Group of half to two thirds of the trained length.
// Group 1 is Absolute.
//
// Cost beside Absolute: one more rotated copy of each query and of each key a
// block of queries reads as far, 3·RotaryDim FLOPs each. No more bytes; a tile
// of keys across the Window is multiplied twice.
//
// Limits: keys are stored PreRoPE. Group divides Window: the published code
// takes Window/Group as a fraction in prefill and rounded in decode, and only
// so do the two agree. It is made for causal masks; under others, keys after
// the query keep their true distance.
type SelfExtend struct {
	Group  int // positions that far tokens share, at least 1
	Window int // distances below it are kept; a multiple of Group
}

// Name returns "self-extend".
func (SelfExtend) Name() string { return "self-extend" }

// Terms returns the near and the far Term.
func (m SelfExtend) Terms(int) ([]Term, error) {
	if err := parameter("Group", m.Group, 1); err != nil {
		return nil, err
	}
	if err := parameter("Window", m.Window, 1); err != nil {
		return nil, err
	}
	if m.Window%m.Group != 0 {
		return nil, fmt.Errorf("Window is %d, want a multiple of Group %d", m.Window, m.Group)
	}
	near, far := nearFar(m.Window)
	grouped := Identity.Group(m.Group)
	return []Term{
		{Region: near, PosQ: Identity, PosK: Identity},
		{Region: far, PosQ: grouped.Shift(float64(m.Window - m.Window/m.Group)), PosK: grouped},
	}, nil
}

// LongestLength is the longest sequence whose rotated distances stay below the
// trained length: (trained−Window)·Group + Window.
func (m SelfExtend) LongestLength(trained int) int {
	if m.Window >= trained {
		return trained
	}
	return int(min(int64(trained-m.Window)*int64(m.Group)+int64(m.Window), NoLimit))
}
