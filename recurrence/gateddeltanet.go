// Songlin Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024, https://arxiv.org/abs/2412.06464

package recurrence

// GatedDeltaNet forgets by a gate of each head and then replaces what a key
// stands for:
//
//	S ← e^Gate·S,  S ← S + Beta·k ⊗ (v − Sᵀk),  Out = Scale·Sᵀq
//
// It is the recurrence of Qwen3-Next and its kin, three layers of four.
//
// Claim: recall of DeltaNet with the forgetting of Mamba-2; weak extrapolation:
// perplexity stays flat to 20 thousand tokens after training on 4 thousand.
//
// Cost: that of package recurrence, delta rule, and C exponentials a token and
// head.
//
// Limits: those of DeltaNet.
type GatedDeltaNet struct {
	Normalize bool // queries and keys are divided by their length first
}

// Info describes the technique.
func (GatedDeltaNet) Info() Info {
	return Info{"gated-deltanet", "arXiv:2412.06464", "weak", ReadsKey | ReadsGate | ReadsBeta, "1/√KeyDim"}
}

func (GatedDeltaNet) problems(*Config) []string { return nil }

func (GatedDeltaNet) states(c *Config) [][3]int { return direct{}.states(c) }

func (t GatedDeltaNet) hosted() bool { return t.Normalize }

func (t GatedDeltaNet) run(l *Layer, s *Step) error { return runDelta(l, s, t.Normalize) }

func (t GatedDeltaNet) backward(l *Layer, s *Step, g *Gradients) error {
	return deltaBackward(l, s, g, t.Normalize)
}
