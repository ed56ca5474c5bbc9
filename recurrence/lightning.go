// Zhen Qin et al., "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language Models", 2024, https://arxiv.org/abs/2401.04658

package recurrence

import "fmt"

// Lightning is linear attention with a fixed decay of each head that grows weaker
// in later layers,
//
//	S ← e^(−s)·S + k ⊗ v,  Out = Scale·Sᵀq,  s = 8/Heads · (1 − Layer/Layers) · h
//
// computed in chunks, within which it is quadratic: the form of all recurrences
// here, and the paper's point. The rule of s is that of flash-linear-attention.
//
// Claim: the cost of a token does not depend on the length, in training too.
//
// Cost: that of package recurrence, gated.
//
// Limits: head 0 does not decay at all, and fixed decays forget by distance
// alone. MiniMax-01 puts an attention layer after every seventh of these, and
// its slopes are those of ALiBi: give them in Slopes.
type Lightning struct {
	Layer, Layers int       // 0 <= Layer < Layers
	Slopes        []float64 // [Heads] s of each head, at least 0; nil: by the rule
}

// Info describes the technique.
func (Lightning) Info() Info {
	return Info{"lightning2", "arXiv:2401.04658", "none", ReadsKey, "1/√KeyDim"}
}

func (t Lightning) problems(c *Config) (out []string) {
	if t.Slopes == nil && (t.Layer < 0 || t.Layer >= t.Layers) {
		out = append(out, fmt.Sprintf("Layer %d of Layers %d, want 0 <= Layer < Layers", t.Layer, t.Layers))
	}
	if t.Slopes != nil && len(t.Slopes) != c.Heads {
		out = append(out, fmt.Sprintf("%d Slopes, want %d, one a head", len(t.Slopes), c.Heads))
	}
	for h, x := range t.Slopes {
		if !(x >= 0) {
			out = append(out, fmt.Sprintf("Slopes[%d] %v, want at least 0", h, x))
		}
	}
	return out
}

func (Lightning) states(c *Config) [][3]int { return direct{}.states(c) }

func (t Lightning) gates(heads int) []float32 {
	out := make([]float32, heads)
	for h := range out {
		if t.Slopes != nil {
			out[h] = float32(-t.Slopes[h])
		} else {
			out[h] = float32(-8 / float64(heads) * (1 - float64(t.Layer)/float64(t.Layers)) * float64(h))
		}
	}
	return out
}

func (Lightning) hosted() bool { return false }

func (t Lightning) run(l *Layer, s *Step) error {
	return l.scan(s, l.decaying(s, t.gates(l.config.Heads)), s.Out)
}

func (t Lightning) backward(l *Layer, s *Step, g *Gradients) error {
	return l.scanBackward(l.decaying(s, t.gates(l.config.Heads)), g)
}
