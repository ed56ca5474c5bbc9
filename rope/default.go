// Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
// https://arxiv.org/abs/2104.09864, section 3.2.2.

package rope

import "github.com/longctx/longctx/kernel"

// Default is rotary position embedding as published: pair i turns by
// p·θ^(−2i/d) at position p.
//
// Adjusted base frequency (Xiong et al., "Effective Long-Context Scaling of
// Foundation Models", https://arxiv.org/abs/2309.16039, section 2.2) is
// Default with a larger Theta and training at the new length; BaseFor says how
// large.
type Default struct{ Base }

// Name returns "default".
func (Default) Name() string { return "default" }

// Rotation does not depend on length.
func (m Default) Rotation(length int) (kernel.Rotation, error) {
	if c := m.validate(m.Name(), length); c.err != nil {
		return kernel.Rotation{}, c.err
	}
	return m.lower(m.Name(), frequencies(m.dim(), m.theta()), 1)
}
