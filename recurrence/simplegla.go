// Songlin Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023, https://arxiv.org/abs/2312.06635, with one gate a head

package recurrence

// SimpleGLA is linear attention with a gate of each head that depends on the
// token:
//
//	S ← e^Gate·S + k ⊗ v,  Out = Scale·Sᵀq
//
// Claim: as Mamba-2's recurrence, whose discretisation it leaves to the caller.
//
// Cost: that of package recurrence, gated; C/2 exponentials a token and head.
//
// Limits: one factor for the whole state; recall of exact tokens is bounded by
// KeyDim.
type SimpleGLA struct{ direct }

// Info describes the technique.
func (SimpleGLA) Info() Info {
	return Info{"simple-gla", "arXiv:2312.06635", "none", ReadsKey | ReadsGate, "1/√KeyDim"}
}

// direct is a technique that is a recurrence of package kernel as it stands.
type direct struct{}

func (direct) problems(*Config) []string { return nil }

func (direct) states(c *Config) [][3]int { return [][3]int{{c.Heads, c.KeyDim, c.ValueDim}} }

func (direct) hosted() bool { return false }

func (direct) run(l *Layer, s *Step) error { return l.scan(s, l.input(s, 0), s.Out) }

func (direct) backward(l *Layer, s *Step, g *Gradients) error {
	return l.scanBackward(l.input(s, 0), g)
}
