// Xinyu Yang, Tianqi Chen, Beidi Chen, "APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding", 2025, https://arxiv.org/abs/2502.05431

package attention

import (
	"errors"
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// APE is PCW whose tokens after the contexts weigh these anew, since contexts that
// do not see one another together draw too much attention, and too evenly:
//
//	scores of context keys   s/Temperature
//	their LSE                LSE · Gain·Temperature, before it meets that of the other keys
//
// Temperature and Gain 1 are PCW.
//
// Claim: strong, without training, and closer than PCW to contexts read in
// sequence. The published example has 0.9 for both; they are to be chosen for a
// model and task.
//
// Cost: that of PCW, as two passes over disjoint keys, and a merge.
//
// Limits: those of PCW. A sink logit would be counted in both passes.
type APE struct {
	PCW
	Temperature float64 // of scores of context keys, above 0
	Gain        float64 // of their LSE, beside Temperature, above 0
}

// Name returns "ape".
func (APE) Name() string { return "ape" }

// APEAttention is an Attention of the tokens after the contexts.
type APEAttention struct {
	backend          kernel.Backend
	contexts, others *Attention
	gain             float32
	end              int              // of the contexts
	buffers          [2]tensor.Buffer // Out and LSE of the contexts
	tokens, room     int
	planned          bool
}

// New makes an Attention for the tokens after the contexts. Its Config has no Mask
// (it is Causal).
func (m APE) New(b kernel.Backend, c Config) (*APEAttention, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	gain := m.Gain * m.Temperature
	if !(m.Temperature >= 1.0/1024 && m.Temperature <= 1024 && m.Gain > 0 && gain <= math.MaxFloat32) {
		return nil, fmt.Errorf("attention: ape: Temperature is %v and Gain %v, want a Temperature of 2⁻¹⁰ to 2¹⁰, and a Gain above 0", m.Temperature, m.Gain)
	}
	if c.Mask.Regions != nil || c.Mask.Kinds != 0 || c.Score.SinkLogit || c.Backward || c.ColumnStats {
		return nil, errors.New("attention: ape: Config has a Mask, sink logit, Backward or ColumnStats, want none")
	}
	a := &APEAttention{backend: b, gain: float32(gain), end: m.end(len(m.Contexts) - 1)}
	context, others := m.parts()
	c.Mask = others
	var err error
	if a.others, err = New(b, c); err != nil {
		return nil, err
	}
	c.setDefaults()
	c.Mask, c.Scale = context, c.Scale/m.Temperature
	if a.contexts, err = New(b, c); err != nil {
		return nil, errors.Join(err, a.others.Close())
	}
	return a, nil
}

// Close frees what the kernels hold.
func (a *APEAttention) Close() error { return errors.Join(a.contexts.Close(), a.others.Close()) }

// Plan prepares a step of tokens after the contexts, with Positions as KeyPos.
func (a *APEAttention) Plan(step Step) error {
	a.planned = false
	if err := a.contexts.Plan(step); err != nil {
		return err
	}
	if err := a.others.Plan(step); err != nil {
		return err
	}
	b := a.others.Batch()
	for s := range b.SeqLens {
		if i := b.QueryIndex(s); b.QueryLen(s) > 0 && i < int64(a.end) {
			return fmt.Errorf("attention: ape: sequence %d has a query of index %d, want %d or later, after the contexts", s, i, a.end)
		}
	}
	a.tokens = b.Tokens()
	if a.tokens <= a.room {
		a.planned = true
		return nil
	}
	s := a.others.spec
	rows := int64(a.tokens) * int64(s.Heads)
	var err error
	if a.buffers[0], err = a.backend.Alloc(rows * int64(s.ValueDim) * s.DType.Size()); err != nil {
		return err
	}
	// in pairs, twice: the other half is for a caller that wants no LSE
	if a.buffers[1], err = a.backend.Alloc(2 * (rows + rows%2) * tensor.F32.Size()); err != nil {
		return err
	}
	a.room, a.planned = a.tokens, true
	return nil
}

// Run computes one layer of the step.
func (a *APEAttention) Run(args *kernel.Args) error {
	if !a.planned {
		return fmt.Errorf("attention: ape: %w", kernel.ErrNoPlan)
	}
	if args == nil {
		return &kernel.ValueError{Name: "Args", Got: "nil", Want: "arguments"}
	}
	s, tokens := &a.others.spec, int64(a.tokens)
	heads := int64(s.Heads)
	other := *args
	if other.LSE.IsZero() {
		other.LSE = tensor.Of(a.buffers[1], tensor.F32, tokens, heads)
		other.LSE.Offset = a.half()
	}
	if err := a.others.Run(&other); err != nil {
		return err
	}
	if tokens == 0 {
		return nil
	}
	context := *args
	context.Out = tensor.Of(a.buffers[0], s.DType, tokens, heads, int64(s.ValueDim))
	context.LSE = tensor.Of(a.buffers[1], tensor.F32, tokens, heads)
	if err := a.contexts.Run(&context); err != nil {
		return err
	}
	if err := a.scaleLSE(tokens * heads); err != nil {
		return fmt.Errorf("attention: ape: %w", err)
	}
	if err := a.backend.Merge(&kernel.MergeArgs{
		OutA: context.Out, LSEA: context.LSE, OutB: other.Out, LSEB: other.LSE, Out: other.Out, LSE: other.LSE, Policy: s.Policy,
	}); err != nil {
		return fmt.Errorf("attention: ape: %w", err)
	}
	return nil
}

// half is where the second half of the LSE buffer begins.
func (a *APEAttention) half() int64 {
	rows := int64(a.room) * int64(a.others.spec.Heads)
	return rows + rows%2
}

// scaleLSE multiplies n numbers by the gain: a rotation of pairs with the gain as
// cosine and sine 0. They are finite, as each query sees a context key.
func (a *APEAttention) scaleLSE(n int64) error {
	pairs := (n + 1) / 2
	return a.backend.Rotate(&kernel.RotateArgs{
		X: tensor.Of(a.buffers[1], tensor.F32, pairs, 1, 2), Rows: make([]int32, pairs),
		Table: kernel.RotaryTable{Cos: []float32{a.gain}, Sin: []float32{0}}, Dim: 2, Policy: a.others.spec.Policy,
	})
}
