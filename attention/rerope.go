// Jianlin Su, "Transformer Upgrade Path 12: ReRoPE for Infinite Extrapolation", 2023, https://kexue.fm/archives/9708

package attention

// ReRoPE is rectified RoPE: distances grow to Window and stay there.
//
//	i−j <  Window   query at i, key at j           distance i−j
//	i−j >= Window   query at Window, key at 0      distance Window
//
// Claim: strong. Perplexity falls with more context and retrieval is kept at
// many times the trained length, best with Score.LogN set to it. Usual windows
// are a quarter to a half of the trained length.
//
// Cost beside Absolute: one more rotated copy of each query, 3·RotaryDim
// FLOPs a query and head. Far keys stay unrotated. No more bytes; a tile of
// keys across the Window is multiplied twice.
//
// Limits: keys are stored PreRoPE. Far keys are told apart by content alone.
// It is made for causal masks; under others, keys after the query keep their
// true distance.
type ReRoPE struct {
	Window int // distances below it are kept, at least 1
}

// Name returns "rerope".
func (ReRoPE) Name() string { return "rerope" }

// Terms returns the near and the far Term.
func (m ReRoPE) Terms(int) ([]Term, error) {
	if err := parameter("Window", m.Window, 1); err != nil {
		return nil, err
	}
	near, far := nearFar(m.Window)
	return []Term{
		{Region: near, PosQ: Identity, PosK: Identity},
		{Region: far, PosQ: Constant(float64(m.Window)), PosK: Constant(0)},
	}, nil
}

// LongestLength is the longest sequence whose rotated distances stay below the
// trained length: any where Window is below it.
func (m ReRoPE) LongestLength(trained int) int {
	if m.Window < trained {
		return NoLimit
	}
	return trained
}
