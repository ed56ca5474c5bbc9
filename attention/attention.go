package attention

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Attention is a kernel chosen for a Config. It serves one goroutine at a time.
type Attention struct {
	config           Config
	spec             kernel.Spec
	kernel           kernel.Attention
	batch            kernel.Batch
	table            table
	keyPos, queryPos []int32 // reused by Plan
	explicit         kernel.Positions
	planned          bool
}

// ConfigError lists everything that is wrong with a Config.
type ConfigError struct{ Problems []string }

func (e *ConfigError) Error() string { return "attention: " + strings.Join(e.Problems, "; ") }

// New checks a Config and chooses the backend's kernel for it. The error is a
// *ConfigError with every fault of the Config, or wraps the backend's
// *kernel.UnsupportedError with every reason.
func New(b kernel.Backend, c Config) (*Attention, error) {
	if b == nil {
		return nil, errors.New("attention: New: backend is nil")
	}
	c.setDefaults()
	var problems []string
	say := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	spec := kernel.Spec{
		Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim, ValueDim: c.ValueDim,
		DType: c.DType, KVDType: c.KVDType, PageSize: c.PageSize, Coding: c.Coding,
		KeyStorage: c.KeyStorage, Masks: c.Mask.Kinds, Scale: c.Scale, Policy: c.Policy,
		Backward: c.Backward, ColumnStats: c.ColumnStats,
	}
	c.Score.lower(&spec, say)
	if c.Rotary != nil {
		r, err := c.Rotary.Rotation(1)
		if err == nil {
			err = checkRotation(&r, c.HeadDim)
		}
		if err != nil {
			say("Rotary: %v", err)
		}
		spec.RotaryDim, spec.RotaryLayout = r.Dim, r.Layout
	}
	c.Mask.check(say)
	terms, err := c.Position.Terms(1)
	if err != nil {
		say("Position %s: %v", c.Position.Name(), err)
	} else if len(terms) == 0 {
		say("Position %s has no terms", c.Position.Name())
	}
	if c.KeyStorage == kernel.PostRoPE && spec.RotaryDim > 0 {
		for _, t := range terms {
			if t.PosK != terms[0].PosK {
				say("KeyStorage post-RoPE, but position %s rotates keys differently in its terms (want pre-RoPE)", c.Position.Name())
				break
			}
		}
	}
	if len(problems) == 0 {
		both, err := compose(c.Mask, terms)
		if err != nil {
			say("%v", err)
		}
		spec.Terms = max(len(both), 1)
	} else {
		spec.Terms = 1 // unknown; already refused
	}
	problems = append(problems, spec.Problems()...)
	if len(problems) > 0 {
		return nil, &ConfigError{problems}
	}
	k, err := b.Attention(spec)
	if err != nil {
		return nil, fmt.Errorf("attention: %w", err)
	}
	return &Attention{config: c, spec: spec, kernel: k}, nil
}

func (c *Config) setDefaults() {
	if c.ValueDim == 0 {
		c.ValueDim = c.HeadDim
	}
	if c.DType == 0 {
		c.DType = tensor.F32
	}
	if c.KVDType == 0 {
		c.KVDType = c.DType
	}
	if c.Position == nil {
		c.Position = Absolute{}
	}
	if c.Scale == 0 && c.HeadDim > 0 {
		c.Scale = 1 / math.Sqrt(float64(c.HeadDim))
	}
}

func (s *Score) lower(spec *kernel.Spec, say func(string, ...any)) {
	for _, f := range []struct {
		on  bool
		bit kernel.Scores
	}{
		{s.SoftCap != 0, kernel.ScoreSoftCap}, {s.Slopes, kernel.ScoreSlopes}, {s.RelBias, kernel.ScoreRelBias},
		{s.PrefixBias, kernel.ScorePrefixBias}, {s.SinkLogit, kernel.ScoreSinkLogit},
	} {
		if f.on {
			spec.Scores |= f.bit
		}
	}
	spec.SoftCap, spec.RelBiasStart = s.SoftCap, s.RelBiasStart
	if s.LogN < 0 || s.LogN == 1 {
		say("Score.LogN %d, want 0 (off) or a trained length of at least 2", s.LogN)
	}
}

func (m *Mask) check(say func(string, ...any)) {
	if len(m.Regions) == 0 {
		say("Mask has no regions (have Causal(), Bidirectional(), Window(n), …)")
	}
	for i, r := range m.Regions {
		if r.Diff.Hi == -1 || r.Key.Hi == -1 {
			say("Mask region %d has a length that is negative or above 2³¹−2", i)
		}
		for _, c := range r.Chunk {
			if c.Size < 0 {
				say("Mask region %d has chunk size %d, want at least 1", i, c.Size)
			}
		}
	}
}

func checkRotation(r *kernel.Rotation, headDim int) error {
	if r.Dim < 2 || r.Dim%2 != 0 || r.Dim > headDim {
		return fmt.Errorf("rotates %d features, want even, 2 to HeadDim %d", r.Dim, headDim)
	}
	if len(r.InvFreq) != r.Dim/2 {
		return fmt.Errorf("%d frequencies, want %d", len(r.InvFreq), r.Dim/2)
	}
	if r.CompatF32 && r.Zeta != nil {
		return errors.New("CompatF32 with xPos, want one of them")
	}
	if r.Axis != nil {
		return errors.New("positions have several axes; rotate queries and keys with package rope and leave Rotary nil")
	}
	return nil
}

// compose intersects every region of the mask with every term.
func compose(m Mask, terms []Term) ([]Term, error) {
	var out []Term
	for _, r := range m.Regions {
		for _, t := range terms {
			both, ok := r.Intersect(t.Region)
			if !ok {
				return nil, errors.New("mask and position together have more than two chunk sizes")
			}
			if !both.Empty() {
				t.Region = both
				out = append(out, t)
			}
		}
	}
	return out, nil
}

// KernelName says which kernel was chosen.
func (a *Attention) KernelName() string { return a.kernel.Name() }

// KeyStorage is what Run expects of the keys it reads.
func (a *Attention) KeyStorage() kernel.KeyStorage { return a.spec.KeyStorage }

// Spec is what the backend was asked for.
func (a *Attention) Spec() kernel.Spec { return a.spec }

// Batch is what the last Plan lowered to. It must not be changed.
func (a *Attention) Batch() *kernel.Batch { return &a.batch }

// Run computes one layer of the planned step. It allocates nothing.
func (a *Attention) Run(args *kernel.Args) error {
	if !a.planned {
		return fmt.Errorf("attention: %w", kernel.ErrNoPlan)
	}
	return a.kernel.Run(args)
}

// Backward computes the gradients of one layer of the planned step. The Config
// must have asked for it.
func (a *Attention) Backward(args *kernel.BackwardArgs) error {
	if !a.spec.Backward {
		return errors.New("attention: Backward without Config.Backward")
	}
	if !a.planned {
		return fmt.Errorf("attention: %w", kernel.ErrNoPlan)
	}
	return a.kernel.Backward(args)
}

// ColumnStats sums the weights that the queries of one layer of the planned
// step gave to each key, from the LSE that Run left. The Config must have asked
// for it. It allocates nothing.
func (a *Attention) ColumnStats(args *kernel.ColumnStatsArgs) error {
	if !a.spec.ColumnStats {
		return errors.New("attention: ColumnStats without Config.ColumnStats")
	}
	if !a.planned {
		return fmt.Errorf("attention: %w", kernel.ErrNoPlan)
	}
	return a.kernel.ColumnStats(args)
}

// Close frees what the kernel holds.
func (a *Attention) Close() error { return a.kernel.Close() }

// Merge joins attention over two disjoint sets of keys, given as (Out, LSE).
// It is commutative up to rounding; the state of no keys is (0, −Inf).
func Merge(ops kernel.Ops, args *kernel.MergeArgs) error { return ops.Merge(args) }
