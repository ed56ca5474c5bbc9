// Chi Han et al., "LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models", 2024, https://arxiv.org/abs/2308.16137

package attention

// LMInfinite sees the last Window keys and the first Global ones, and the
// latter no farther than Window.
//
//	i−j <  Window                query at i, key at j        distance i−j
//	i−j >= Window, j < Global    query at Window, key at 0   distance Window
//	other                        not seen
//
// Claim: weak. Perplexity stays flat to any length; what lies between is not
// seen. (The paper's retrieval results let some layers also attend to the best
// keys between.)
//
// Cost: O(Window + Global) keys a query, and one more rotated copy of each
// query than WindowSinks, 3·RotaryDim FLOPs. No more bytes; a tile with local
// and global keys is multiplied twice.
//
// Limits: keys are stored PreRoPE. It is made for causal masks; under others,
// keys after the query keep their true distance.
type LMInfinite struct {
	Global int // first keys that stay in sight, at least 0
	Window int // last keys in sight, at least 1, below the trained length
}

// Name returns "lm-infinite".
func (LMInfinite) Name() string { return "lm-infinite" }

// Terms returns the local and the global Term. They are also a mask.
func (m LMInfinite) Terms(int) ([]Term, error) {
	if err := parameter("Global", m.Global, 0); err != nil {
		return nil, err
	}
	if err := parameter("Window", m.Window, 1); err != nil {
		return nil, err
	}
	local, global := nearFar(m.Window)
	global.Key = between(0, int32(m.Global))
	return []Term{
		{Region: local, PosQ: Identity, PosK: Identity},
		{Region: global, PosQ: Constant(float64(m.Window)), PosK: Constant(0)},
	}, nil
}

// LongestLength is the longest sequence whose rotated distances stay below the
// trained length: any where Window is below it.
func (m LMInfinite) LongestLength(trained int) int {
	if m.Window < trained {
		return NoLimit
	}
	return trained
}
