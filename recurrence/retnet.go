// Yutao Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", 2023, https://arxiv.org/abs/2307.08621

package recurrence

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
)

// RetNet is retention: linear attention with a fixed decay of each head,
//
//	S ← γ_h·S + k ⊗ v,  Out = Scale·Sᵀq,  γ_h = 1 − 2^(−5−h)
//
// The rotation of queries and keys (xPos in the paper) is package rope's, and the
// normalisation and swish gate of outputs the model's.
//
// Claim: training in parallel, decode at a constant cost, quality near
// transformers' from 2B parameters on. Nothing is claimed beyond the trained
// length.
//
// Cost: that of package recurrence, gated.
//
// Limits: with many heads the last ones hardly decay: γ_27 is 1 in float32, of
// which the layer takes ln γ without rounding γ first.
type RetNet struct {
	Gammas []float64 // [Heads] factors, above 0 and at most 1; nil: those of the paper
}

// Info describes the technique.
func (RetNet) Info() Info { return Info{"retnet", "arXiv:2307.08621", "none", ReadsKey, "1/√KeyDim"} }

func (r RetNet) problems(c *Config) (out []string) {
	if r.Gammas != nil && len(r.Gammas) != c.Heads {
		out = append(out, fmt.Sprintf("%d Gammas, want %d, one a head", len(r.Gammas), c.Heads))
	}
	for h, x := range r.Gammas {
		if !(x > 0 && x <= 1) {
			out = append(out, fmt.Sprintf("Gammas[%d] %v, want above 0 and at most 1", h, x))
		}
	}
	return out
}

func (RetNet) states(c *Config) [][3]int { return direct{}.states(c) }

// gates are ln γ of each head.
func (r RetNet) gates(heads int) []float32 {
	out := make([]float32, heads)
	for h := range out {
		out[h] = float32(math.Log1p(-math.Exp2(-5 - float64(h))))
		if r.Gammas != nil {
			out[h] = float32(math.Log(r.Gammas[h]))
		}
	}
	return out
}

func (RetNet) hosted() bool { return false }

func (r RetNet) run(l *Layer, s *Step) error {
	return l.scan(s, l.decaying(s, r.gates(l.config.Heads)), s.Out)
}

func (r RetNet) backward(l *Layer, s *Step, g *Gradients) error {
	return l.scanBackward(l.decaying(s, r.gates(l.config.Heads)), g)
}

// decaying is the recurrence of a step with fixed gates.
func (l *Layer) decaying(s *Step, perHead []float32) kernel.ScanInput {
	in := l.input(s, 0)
	in.Gate = constant(perHead, s.Value.Shape[0])
	return in
}
