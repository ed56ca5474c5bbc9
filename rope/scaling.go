// Liu et al., "Scaling Laws of RoPE-based Extrapolation",
// https://arxiv.org/abs/2310.05209, theorem 1 and equations 2 to 4.

package rope

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/internal/xmath"
)

// CriticalDim is the number of features of a head whose pairs complete a turn
// in training on trainLength tokens with the given base,
//
//	2·⌈(d/2)·ln(trainLength/2π)/ln base⌉
//
// at most headDim. The others have not seen all angles, and limit how far the
// model extrapolates.
func CriticalDim(headDim, trainLength int, base float64) (int, error) {
	switch {
	case headDim < 2 || headDim%2 != 0:
		return 0, argument("headDim", headDim, "even, 2 or more")
	case trainLength < 7:
		return 0, argument("trainLength", trainLength, "above 2π tokens")
	case !(base > 1 && base <= maxFloat):
		return 0, argument("base", base, "a finite number above 1")
	}
	pairs := float64(headDim/2) * xmath.Log(float64(trainLength)/(2*math.Pi)) / xmath.Log(base)
	return 2 * min(int(math.Ceil(min(pairs, float64(headDim)))), headDim/2), nil
}

// CriticalLength is the number of tokens to which a model extrapolates that
// was trained on trainLength tokens with trainBase and then fine-tuned at that
// length with base,
//
//	2π·base^(CriticalDim/headDim)
//
// The law is for bases not below trainBase.
func CriticalLength(headDim, trainLength int, trainBase, base float64) (float64, error) {
	d, err := CriticalDim(headDim, trainLength, trainBase)
	if err != nil {
		return 0, err
	}
	if !(base >= trainBase && base <= maxFloat) {
		return 0, argument("base", base, fmt.Sprintf("trainBase %v or more", trainBase))
	}
	return 2 * math.Pi * xmath.Pow(base, float64(d)/float64(headDim)), nil
}

// BaseFor is the least base with which CriticalLength is targetLength, at
// least trainBase. Default with this Theta, fine-tuned, is adjusted base
// frequency.
func BaseFor(headDim, trainLength int, trainBase float64, targetLength int) (float64, error) {
	d, err := CriticalDim(headDim, trainLength, trainBase)
	if err != nil {
		return 0, err
	}
	if targetLength < 7 {
		return 0, argument("targetLength", targetLength, "above 2π tokens")
	}
	base := xmath.Pow(float64(targetLength)/(2*math.Pi), float64(headDim)/float64(d))
	return max(base, trainBase), nil
}

func argument(name string, got any, want string) error {
	return &ValueError{Field: name, Got: fmt.Sprint(got), Want: want}
}
