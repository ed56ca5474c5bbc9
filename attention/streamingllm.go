// Guangxuan Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023, https://arxiv.org/abs/2309.17453

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// StreamingLLM sees the first Sinks keys and the last Recent ones, each at its
// rank among them: as if the cache held no more and positions were counted in
// the cache.
//
//	i−j <  Recent              query at i, key at j                           distance i−j
//	i−j >= Recent, j < Sinks   query at min(i, Sinks+Recent−1), key at j      distance Sinks+Recent−1−j once keys are out of sight
//	other                      not seen
//
// The recent keys' ranks differ from their positions by the same number as the
// query's, so they can stay where they are, and no table of ranks is needed.
//
// Claim: weak. Perplexity stays flat over millions of tokens; what is out of
// sight is forgotten.
//
// Cost: O(Sinks + Recent) keys a query, and one more rotated copy of each query
// than WindowSinks, 3·RotaryDim FLOPs. Both Terms rotate a key to its position,
// so KeyStorage may also be PostRoPE. The bytes a cache may free are its own
// affair: dropping the keys out of sight gives the same output up to rounding.
//
// Limits: positions must be the indices, so where a cache did drop keys, use
// Absolute with Step.ByRank. It is made for causal masks; under others, keys
// after the query keep their true distance.
type StreamingLLM struct {
	Sinks  int // first keys that stay in sight, at least 0; the paper has 4
	Recent int // last keys in sight, the query's own included, at least 1
}

// Name returns "streaming-llm".
func (StreamingLLM) Name() string { return "streaming-llm" }

// Terms returns the Terms of the recent keys and of the sinks. They are also a
// mask.
func (m StreamingLLM) Terms(int) ([]Term, error) {
	if err := parameter("Sinks", m.Sinks, 0); err != nil {
		return nil, err
	}
	if err := parameter("Recent", m.Recent, 1); err != nil {
		return nil, err
	}
	if m.Sinks >= kernel.MaxBound-m.Recent {
		return nil, fmt.Errorf("Sinks+Recent is %d, want at most 2³¹−2", int64(m.Sinks)+int64(m.Recent))
	}
	recent, sinks := nearFar(m.Recent)
	sinks.Key = between(0, int32(m.Sinks))
	return []Term{
		{Region: recent, PosQ: Identity, PosK: Identity},
		{Region: sinks, PosQ: Identity.AtMost(float64(m.Sinks + m.Recent - 1)), PosK: Identity},
	}, nil
}

// LongestLength is the longest sequence whose rotated distances stay below the
// trained length: any where Sinks+Recent is at most that.
func (m StreamingLLM) LongestLength(trained int) int {
	if m.Sinks <= trained-m.Recent {
		return NoLimit
	}
	return trained
}
