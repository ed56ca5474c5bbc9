// Zhen Qin et al., "HGRN2: Gated Linear RNNs with State Expansion", 2024, https://arxiv.org/abs/2404.07904

package recurrence

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// HGRN2 is GLA whose keys are what its gates leave:
//
//	S ← diag(f)·S + (1 − f) ⊗ v,  Out = Sᵀq
//
// with Gate ln f, the lower bound of the layer included. Each column of the state
// is a weighted mean of values.
//
// Claim: quality near Mamba's of the same size, without keys of its own.
//
// Cost: that of GLA.
//
// Limits: those of GLA. KeyHeads is Heads.
type HGRN2 struct{}

// Info describes the technique.
func (HGRN2) Info() Info { return Info{"hgrn2", "arXiv:2404.07904", "none", ReadsChannelGate, "1"} }

func (HGRN2) problems(c *Config) []string { return ownKeys(c) }

// ownKeys refuses heads that share keys.
func ownKeys(c *Config) []string {
	if c.KeyHeads != c.Heads {
		return []string{fmt.Sprintf("KeyHeads %d, want Heads %d", c.KeyHeads, c.Heads)}
	}
	return nil
}

func (HGRN2) states(c *Config) [][3]int { return direct{}.states(c) }

func (HGRN2) lower(l *Layer, s *Step) kernel.ScanInput {
	in := l.input(s, 0)
	in.Query, in.Value = of(dense(&s.Query), s.Query.Shape[:3]...), of(dense(&s.Value), s.Value.Shape[:3]...)
	in.Key = of(written(dense(&s.Gate)), s.Gate.Shape[:3]...)
	return in
}

func (HGRN2) hosted() bool { return true }

func (t HGRN2) run(l *Layer, s *Step) error {
	out := like(&s.Out)
	if err := l.scan(s, t.lower(l, s), out); err != nil {
		return err
	}
	spread(&s.Out, out.F32s())
	return nil
}

func (t HGRN2) backward(l *Layer, s *Step, g *Gradients) error {
	d := Gradients{DOut: of(dense(&g.DOut), g.DOut.Shape[:3]...), DQuery: g.DQuery, DKey: like(&s.Query), DValue: g.DValue, DGate: like(&s.Gate)}
	if err := l.scanBackward(t.lower(l, s), &d); err != nil {
		return err
	}
	dgate, dkey := d.DGate.F32s(), d.DKey.F32s()
	for i, x := range dense(&s.Gate) {
		if x <= 0 {
			dgate[i] -= float32(dkey[i] * exp(x))
		}
	}
	spread(&g.DGate, dgate)
	return nil
}
