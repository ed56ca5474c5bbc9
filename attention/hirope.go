// Kechi Zhang et al., "HiRoPE: Length Extrapolation for Code Models Using Hierarchical Position", 2024, https://arxiv.org/abs/2403.19115

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// HiRoPE is rotary embedding of two levels: the pairs of high frequency turn by
// the token's own position, those of low frequency by the number of its segment
// (in code, its function), which grows slowly enough to stay as in training.
//
//	pair k <  Split   turns by i
//	pair k >= Split   turns by the segment of i
//
// Split of all pairs is RoPE.
//
// Claim: strong, without training, for code; the paper goes to four times the
// trained length.
//
// Cost: that of Absolute with keys stored rotated.
//
// Limits: a rotation of two axes: turn queries and keys with package rope by
// Rotation and Positions, and leave Config.Rotary nil. The paper's window, within
// which all pairs turn by the token's own position, would rotate a key in two
// ways, and is not here.
type HiRoPE struct {
	Split int  // pairs that turn by the token's own position, 0 to all
	BiPE  BiPE // the segments
}

// Name returns "hirope".
func (HiRoPE) Name() string { return "hirope" }

// Rotation divides the pairs of a rotation between the two levels.
func (m HiRoPE) Rotation(r kernel.Rotation) (kernel.Rotation, error) {
	if m.Split < 0 || m.Split > len(r.InvFreq) {
		return kernel.Rotation{}, fmt.Errorf("attention: hirope: Split is %d, want 0 to the %d pairs of the rotation", m.Split, len(r.InvFreq))
	}
	if r.Axis != nil {
		return kernel.Rotation{}, fmt.Errorf("attention: hirope: a rotation of several axes, want one of a single axis")
	}
	r.Axis = make([]uint8, len(r.InvFreq))
	for k := m.Split; k < len(r.Axis); k++ {
		r.Axis[k] = 1
	}
	return r, nil
}

// Positions returns the positions on the axes of Rotation of tokens 0 to n−1.
func (m HiRoPE) Positions(n int) ([3][]int32, error) {
	segment, _, err := m.BiPE.Levels(n)
	if err != nil {
		return [3][]int32{}, fmt.Errorf("attention: hirope: %w", err)
	}
	own := make([]int32, n)
	for t := range own {
		own[t] = int32(t)
	}
	return [3][]int32{own, segment, make([]int32, n)}, nil
}
