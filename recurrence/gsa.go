// Yu Zhang et al., "Gated Slot Attention for Efficient Linear-Time Sequence Modeling", 2024, https://arxiv.org/abs/2409.07146

package recurrence

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
)

// GSA is attention over a fixed number of slots that the gates write and forget:
//
//	K[m] ← α_m·K[m] + (1 − α_m)·k,  V[m] ← α_m·V[m] + (1 − α_m)·v
//	p = softmax(Scale·K·q),  Out = Vᵀp
//
// with Gate ln α [tokens, Heads, Slots]. The keys are one recurrence with a state
// of one column for each slot and head, the values another with the slots for
// channels of a key.
//
// Claim: better recall than GLA with a smaller state, for the softmax.
//
// Cost: that of GLA with KeyDim = Slots for the values. For the keys
// Slots·(C·C exponentials and 4·KeyDim FLOPs) a token and head: the decay of a
// slot is not that of a channel that is read, so that each slot weighs the tokens
// of a chunk anew.
//
// Limits: Heads·Slots is at most kernel.MaxHeads. KeyHeads is Heads.
type GSA struct {
	Slots int // at least 1
}

// Info describes the technique.
func (GSA) Info() Info {
	return Info{"gsa", "arXiv:2409.07146", "none", ReadsKey | ReadsChannelGate, "1/√KeyDim"}
}

func (t GSA) problems(c *Config) (out []string) {
	if t.Slots < 1 || t.Slots > kernel.MaxStateDim || t.Slots*c.Heads > kernel.MaxHeads {
		out = append(out, fmt.Sprintf("Slots %d, want at least 1, at most %d, and with %d Heads at most %d in all", t.Slots, kernel.MaxStateDim, c.Heads, kernel.MaxHeads))
	}
	return append(out, ownKeys(c)...)
}

func (t GSA) states(c *Config) [][3]int {
	return [][3]int{{c.Heads * t.Slots, c.KeyDim, 1}, {c.Heads, t.Slots, c.ValueDim}}
}

// lower is the recurrences of keys and of values, the latter without queries.
func (t GSA) lower(l *Layer, s *Step) (keys, values kernel.ScanInput) {
	tokens, heads, slots := s.Value.Shape[0], s.Value.Shape[1], int64(t.Slots)
	gate := dense(&s.Gate)
	in := written(gate)
	keys = l.input(s, 0)
	keys.Query, keys.Key = of(dense(&s.Query), s.Query.Shape[:3]...), of(dense(&s.Key), s.Key.Shape[:3]...)
	keys.Value, keys.Gate = of(in, tokens, heads*slots, 1), of(gate, tokens, heads*slots)
	values = kernel.ScanInput{QueryStart: s.QueryStart, Scale: 1, Policy: l.config.Policy, From: keys.From}
	values.Key, values.Gate = of(in, tokens, heads, slots), of(gate, tokens, heads, slots)
	values.Value = of(dense(&s.Value), s.Value.Shape[:3]...)
	if s.States != nil {
		values.State = s.States.parts[1]
	}
	return keys, values
}

func (GSA) hosted() bool { return true }

func (t GSA) run(l *Layer, s *Step) error {
	keys, values := t.lower(l, s)
	score := like(&keys.Value)
	if err := l.scan(s, keys, score); err != nil {
		return err
	}
	softmax(score.F32s(), t.Slots)
	values.Query = of(score.F32s(), values.Key.Shape[:3]...)
	out := like(&s.Out)
	if err := l.scan(s, values, out); err != nil {
		return err
	}
	spread(&s.Out, out.F32s())
	return nil
}

// softmax replaces rows of n scores by their weights.
func softmax(x []float32, n int) {
	for i := 0; i < len(x); i += n {
		row, most, sum := x[i:i+n], x[i], 0.0
		for _, y := range row {
			most = max(most, y)
		}
		for j, y := range row {
			row[j] = float32(math.Exp(float64(y) - float64(most)))
			sum += float64(row[j])
		}
		for j := range row {
			row[j] = float32(float64(row[j]) / sum)
		}
	}
}

func (t GSA) backward(l *Layer, s *Step, g *Gradients) error {
	keys, values := t.lower(l, s)
	score := like(&keys.Value)
	if err := l.backend.Scan(&kernel.ScanArgs{ScanInput: keys, Out: score}); err != nil {
		return err
	}
	p := score.F32s()
	softmax(p, t.Slots)
	values.Query = of(p, values.Key.Shape[:3]...)
	d := Gradients{DOut: of(dense(&g.DOut), g.DOut.Shape[:3]...), DQuery: like(&values.Query), DKey: like(&values.Key), DValue: g.DValue, DGate: like(&values.Gate)}
	if err := l.scanBackward(values, &d); err != nil {
		return err
	}
	dp := d.DQuery.F32s()
	for i := 0; i < len(p); i += t.Slots {
		sum := 0.0
		for j := i; j < i+t.Slots; j++ {
			sum += float64(p[j]) * float64(dp[j])
		}
		for j := i; j < i+t.Slots; j++ {
			dp[j] = float32(float64(p[j]) * (float64(dp[j]) - sum))
		}
	}
	e := Gradients{DOut: of(dp, keys.Value.Shape[:3]...), DQuery: g.DQuery, DKey: g.DKey, DValue: like(&keys.Value), DGate: like(&keys.Gate)}
	if err := l.scanBackward(keys, &e); err != nil {
		return err
	}
	dgate := d.DGate.F32s()
	for i, x := range dense(&s.Gate) {
		dgate[i] += e.DGate.F32s()[i]
		if x <= 0 {
			dgate[i] -= float32((d.DKey.F32s()[i] + e.DValue.F32s()[i]) * exp(x))
		}
	}
	spread(&g.DGate, dgate)
	return nil
}
