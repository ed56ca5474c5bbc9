// Yikai Zhang, Junlong Li, Pengfei Liu, "Extending LLMs' Context Window with 100 Samples", 2024, https://arxiv.org/abs/2401.07004

package attention

import "fmt"

// EntropyScale keeps the entropy of attention about as it was in training: in
// layers from First on, scores of query index i are multiplied by
//
//	Temper · max(1, ln(i+1)/ln Trained)
//
// It is log-n scaling (Su, "ReRoPE"; Chiang and Cholak,
// https://arxiv.org/abs/2202.12172) with the first layers left out, as
// Entropy-ABF has it, which also raises the rotation base (rope.Default with
// rope.BaseFor). Temper is the reciprocal of a softmax temperature of its own;
// for NoPE see Wang et al., https://arxiv.org/abs/2404.12224.
//
// Claim: weak by itself. It is best with a method that bounds distances.
//
// Cost: none in the kernel; the factor is part of a table of one number a query.
//
// Limits: none on masks or positions.
type EntropyScale struct {
	Trained int     // length from which scores grow, at least 2; 0: never
	First   int     // first layer that is scaled; Entropy-ABF has 2
	Temper  float64 // factor of every score, positive; 0: 1
}

// Name returns "entropy".
func (EntropyScale) Name() string { return "entropy" }

// Apply sets what a layer's Config needs. Its Scale is to be set, or 0 for
// 1/√HeadDim.
func (m EntropyScale) Apply(c *Config, layer int) error {
	if m.Trained < 0 || m.Trained == 1 || m.First < 0 || layer < 0 {
		return fmt.Errorf("attention: entropy: Trained %d, First %d, layer %d, want Trained 0 or at least 2, and the others at least 0", m.Trained, m.First, layer)
	}
	if m.Temper != 0 && !(m.Temper > 0 && m.Temper <= maxTemper) {
		return fmt.Errorf("attention: entropy: Temper is %v, want 0 (off) or above 0, at most %g", m.Temper, float64(maxTemper))
	}
	if layer < m.First {
		return nil
	}
	c.Score.LogN = m.Trained
	if m.Temper != 0 {
		d := *c
		d.setDefaults()
		c.Scale = d.Scale * m.Temper
	}
	return nil
}

// maxTemper keeps factors within what a float32 score can be.
const maxTemper = 1 << 20
