// Amirhossein Kazemnejad et al., "The Impact of Positional Encoding on Length Generalization in Transformers", 2023, https://arxiv.org/abs/2305.19466

package attention

import "github.com/longctx/longctx/kernel"

// NoPE rotates every query and key to position 0: content alone decides, and
// the causal mask is the only trace of order.
//
// ALiBi (Press et al., https://arxiv.org/abs/2108.12409) is NoPE with a score:
// Score{Slopes: true}, and ALiBiSlopes(Heads) in ScoreArgs.Slopes of each Run.
//
// Claim: for models trained so. Weak beyond the trained length, where attention
// spreads over too many keys; a smaller temperature mends part of that (Wang et
// al., https://arxiv.org/abs/2404.12224): set Scale or Score.LogN.
//
// Cost: that of a rotation that changes nothing, and a factor of the Rotary
// method still multiplies. Where Config.Rotary is nil nothing is rotated, and
// Absolute, the default, is NoPE at no cost.
//
// Limits: none on length, mask or KeyStorage.
type NoPE struct{}

// Name returns "nope".
func (NoPE) Name() string { return "nope" }

// Terms returns one Term over all pairs.
func (NoPE) Terms(int) ([]Term, error) {
	return []Term{{Region: kernel.Everywhere, PosQ: Constant(0), PosK: Constant(0)}}, nil
}

// LongestLength is NoLimit: all distances are 0.
func (NoPE) LongestLength(int) int { return NoLimit }
