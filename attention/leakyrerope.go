// Jianlin Su, "Transformer Upgrade Path 12: ReRoPE for Infinite Extrapolation", 2023, https://kexue.fm/archives/9708

package attention

import (
	"fmt"
	"math"
)

// LeakyReRoPE is ReRoPE whose distances go on growing past Window, Factor
// times slower.
//
//	i−j <  Window   query at i, key at j                                     distance i−j
//	i−j >= Window   query at (i + Window·(Factor−1))/Factor, key at j/Factor distance Window + (i−j−Window)/Factor
//
// Claim: strong up to LongestLength; far keys keep an order. Its author finds
// ReRoPE as good or better. Factor 1 is Absolute.
//
// Cost beside Absolute: one more rotated copy of each query and of each key a
// block of queries reads as far, 3·RotaryDim FLOPs each. No more bytes; a tile
// of keys across the Window is multiplied twice.
//
// Limits: keys are stored PreRoPE. It is made for causal masks; under others,
// keys after the query keep their true distance.
type LeakyReRoPE struct {
	Window int     // distances below it are kept, at least 1
	Factor float64 // of slowing, at least 1
}

// Name returns "leaky-rerope".
func (LeakyReRoPE) Name() string { return "leaky-rerope" }

// Terms returns the near and the far Term.
func (m LeakyReRoPE) Terms(int) ([]Term, error) {
	if err := parameter("Window", m.Window, 1); err != nil {
		return nil, err
	}
	if !(m.Factor >= 1) || math.IsInf(m.Factor, 0) {
		return nil, fmt.Errorf("Factor is %v, want finite and at least 1", m.Factor)
	}
	near, far := nearFar(m.Window)
	slowed := Identity
	slowed.Slope = 1 / m.Factor
	return []Term{
		{Region: near, PosQ: Identity, PosK: Identity},
		{Region: far, PosQ: slowed.Shift(float64(m.Window) * (m.Factor - 1) / m.Factor), PosK: slowed},
	}, nil
}

// LongestLength is the longest sequence whose rotated distances stay at most
// trained−1: ⌊(trained−1−Window)·Factor⌋ + Window + 1.
func (m LeakyReRoPE) LongestLength(trained int) int {
	if m.Window >= trained {
		return trained
	}
	far := math.Floor(float64(trained-1-m.Window) * m.Factor)
	return int(min(far+float64(m.Window)+1, NoLimit))
}
