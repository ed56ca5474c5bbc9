package kernel

import (
	"fmt"

	"github.com/longctx/longctx/tensor"
)

// TopKArgs asks for the K largest of the first scores of each row: rule 18. It is
// how a selector turns PageScores into a list of pages. The result is host
// memory, since a Plan is made of such lists; the call waits for the backend.
type TopKArgs struct {
	Scores tensor.View // [tokens, heads, n] F32
	Counts []int32     // [tokens] scores that count, the first ones; nil: all n
	K      int         // at least 1
	Out    []int32     // [tokens·heads·K] indices, ascending in each row; −1 after the last
}

// MaxScores is the most scores that a row of a TopK may have.
const MaxScores = 1 << 24

// Validate checks the view and lists of a TopK.
func (a *TopKArgs) Validate() error {
	if a == nil {
		return absent("TopKArgs")
	}
	s := &a.Scores
	if err := checkView("Scores", s, tensor.F32, s.Shape[0], s.Shape[1], s.Shape[2]); err != nil {
		return err
	}
	if s.Shape[2] > MaxScores {
		return &ShapeError{"Scores", s.String(), fmt.Sprintf("rows of at most %d scores", MaxScores)}
	}
	if a.K < 1 || a.K > MaxScores {
		return &ValueError{"K", fmt.Sprint(a.K), fmt.Sprintf("1 to %d", MaxScores)}
	}
	if a.Counts != nil {
		if err := lengthOf("Counts", len(a.Counts), int(s.Shape[0])); err != nil {
			return err
		}
	}
	for i, n := range a.Counts {
		if n < 0 || int64(n) > s.Shape[2] {
			return &ValueError{fmt.Sprintf("Counts[%d]", i), fmt.Sprint(n), fmt.Sprintf("0 to %d", s.Shape[2])}
		}
	}
	return lengthOf("Out", len(a.Out), int(s.Shape[0]*s.Shape[1])*a.K)
}
