package recurrence

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Recurrence is a technique: one of the structs of this package.
type Recurrence interface {
	Info() Info
	// problems lists what is wrong with the parameters for a Config.
	problems(c *Config) []string
	// states are the shapes of the state of a sequence, [heads, rows, columns].
	states(c *Config) [][3]int
	// hosted reports whether run computes more than scans, on the host.
	hosted() bool
	run(l *Layer, s *Step) error
	backward(l *Layer, s *Step, g *Gradients) error
}

// Info describes a technique.
type Info struct {
	Name  string
	Paper string // "arXiv:2307.08621"
	Claim string // beyond the trained length: "weak" (perplexity stays flat) or "none"
	Reads Inputs // what a Step gives besides Query and Value
	Scale string // of outputs, where Config.Scale is 0
}

// Inputs is a set of tensors of a Step.
type Inputs uint8

const (
	ReadsKey Inputs = 1 << iota
	ReadsGate
	ReadsChannelGate // Gate, with one for each channel of a key
	ReadsBeta
	ReadsInput
	ReadsDelta
	ReadsBonus
)

// All is every technique with its default parameters, by name.
func All() []Recurrence {
	return []Recurrence{DeltaNet{}, GatedDeltaNet{}, GLA{}, GSA{Slots: 64}, HGRN2{}, Lightning{Layers: 1}, Linear{}, Mamba2{}, MLSTM{}, RetNet{}, RWKV6{}, SimpleGLA{}}
}

// Find returns a technique with its default parameters. The error names those
// there are.
func Find(name string) (Recurrence, error) {
	var names []string
	for _, r := range All() {
		if r.Info().Name == name {
			return r, nil
		}
		names = append(names, r.Info().Name)
	}
	return nil, fmt.Errorf("recurrence: no technique %q, have %s", name, strings.Join(names, ", "))
}

// String lists the tensors.
func (x Inputs) String() string {
	var names []string
	for i, name := range []string{"Key", "Gate", "Gate of channels", "Beta", "Input", "Delta", "Bonus"} {
		if x>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// Config is what is fixed for one layer.
type Config struct {
	Heads    int // states a sequence
	KeyHeads int // heads of Query and Key, a divisor of Heads; 0: Heads
	KeyDim   int // features of Query and Key, 1 to kernel.MaxStateDim
	ValueDim int // features of Value and Out; 0: KeyDim
	Scale    float64
	Policy   kernel.Policy
}

// Step is the tensors of some tokens of some sequences. Those that the technique
// does not read are absent. Gates are natural logarithms of factors, at most 0.
type Step struct {
	Query, Key tensor.View // [tokens, KeyHeads, KeyDim] F32, F16 or BF16
	Value, Out tensor.View // [tokens, Heads, ValueDim], as Query
	Gate       tensor.View // [tokens, Heads] or [tokens, Heads, KeyDim] F32
	Beta       tensor.View // [tokens, Heads] F32: strength of the delta rule
	Input      tensor.View // [tokens, Heads] F32: logarithm of mLSTM's input gate
	Delta      tensor.View // [tokens, Heads] F32: Mamba-2's time step, above 0
	Bonus      tensor.View // [Heads, KeyDim] F32: RWKV's weight of the own token

	QueryStart []int32 // [sequences+1] first token of each
	States     *States // of the layer; nil: all start from zero and nothing is kept
	Slots      []int32 // [sequences] slot of States of each, read and written; −1: starts from zero, not kept
}

// ConfigError lists everything that is wrong with a Config.
type ConfigError struct{ Problems []string }

func (e *ConfigError) Error() string { return "recurrence: " + strings.Join(e.Problems, "; ") }

// Layer runs a technique. It serves one goroutine at a time.
type Layer struct {
	backend kernel.Scanner
	rec     Recurrence
	config  Config
}

// New checks a Config. The error is a *ConfigError with every fault, or the
// *kernel.UnsupportedError of a backend without recurrences.
func New(b kernel.Backend, r Recurrence, c Config) (*Layer, error) {
	if b == nil || r == nil {
		return nil, errors.New("recurrence: New: backend or technique is nil")
	}
	if c.KeyHeads == 0 {
		c.KeyHeads = c.Heads
	}
	if c.ValueDim == 0 {
		c.ValueDim = c.KeyDim
	}
	var problems []string
	if c.Heads < 1 || c.Heads > kernel.MaxHeads {
		problems = append(problems, fmt.Sprintf("Heads %d, want 1 to %d", c.Heads, kernel.MaxHeads))
	}
	if c.KeyHeads < 1 || c.Heads%max(c.KeyHeads, 1) != 0 {
		problems = append(problems, fmt.Sprintf("KeyHeads %d does not divide Heads %d", c.KeyHeads, c.Heads))
	}
	for _, d := range []struct {
		name string
		n    int
	}{{"KeyDim", c.KeyDim}, {"ValueDim", c.ValueDim}} {
		if d.n < 1 || d.n > kernel.MaxStateDim {
			problems = append(problems, fmt.Sprintf("%s %d, want 1 to %d", d.name, d.n, kernel.MaxStateDim))
		}
	}
	if c.Scale-c.Scale != 0 {
		problems = append(problems, fmt.Sprintf("Scale %v, want finite", c.Scale))
	}
	if c.Policy > kernel.Fast {
		problems = append(problems, fmt.Sprintf("Policy %d, want exact or fast", c.Policy))
	}
	if problems = append(problems, r.problems(&c)...); len(problems) > 0 {
		return nil, &ConfigError{problems}
	}
	if c.Scale == 0 {
		c.Scale = 1
		if r.Info().Scale != "1" {
			c.Scale = 1 / math.Sqrt(float64(c.KeyDim))
		}
	}
	s, err := kernel.ScannerOf(b)
	if err != nil {
		return nil, fmt.Errorf("recurrence: %w", err)
	}
	return &Layer{s, r, c}, nil
}

// Config is what the layer was made with, defaults filled in.
func (l *Layer) Config() Config { return l.config }

// Run takes the tokens of a step into the states and writes their outputs.
func (l *Layer) Run(s *Step) error {
	if err := l.check(s); err != nil {
		return err
	}
	if err := l.runHere(s); err != nil {
		return fmt.Errorf("recurrence: %s: %w", l.rec.Info().Name, err)
	}
	for _, slot := range s.Slots {
		if slot >= 0 {
			s.States.fresh[slot] = false
		}
	}
	return nil
}

// check finds what is missing or too much in a step. Shapes are checked by the
// backend, and here where this package reads the numbers itself.
func (l *Layer) check(s *Step) error {
	if s == nil {
		return errors.New("recurrence: Step is nil")
	}
	c, info := &l.config, l.rec.Info()
	tokens := s.Value.Shape[0]
	for _, v := range []struct {
		name  string
		view  *tensor.View
		want  bool
		dtype tensor.DType
		shape []int64
	}{
		{"Query", &s.Query, true, s.Query.DType, []int64{tokens, int64(c.KeyHeads), int64(c.KeyDim)}},
		{"Key", &s.Key, info.Reads&ReadsKey != 0, s.Query.DType, []int64{tokens, int64(c.KeyHeads), int64(c.KeyDim)}},
		{"Value", &s.Value, true, s.Query.DType, []int64{tokens, int64(c.Heads), int64(c.ValueDim)}},
		{"Out", &s.Out, true, s.Query.DType, []int64{tokens, int64(c.Heads), int64(c.ValueDim)}},
		{"Gate", &s.Gate, info.Reads&(ReadsGate|ReadsChannelGate) != 0, tensor.F32, []int64{tokens, int64(c.Heads), int64(gates(l.rec, c))}[:gateRank(info)]},
		{"Beta", &s.Beta, info.Reads&ReadsBeta != 0, tensor.F32, []int64{tokens, int64(c.Heads)}},
		{"Input", &s.Input, info.Reads&ReadsInput != 0, tensor.F32, []int64{tokens, int64(c.Heads)}},
		{"Delta", &s.Delta, info.Reads&ReadsDelta != 0, tensor.F32, []int64{tokens, int64(c.Heads)}},
		{"Bonus", &s.Bonus, info.Reads&ReadsBonus != 0, tensor.F32, []int64{int64(c.Heads), int64(c.KeyDim)}},
	} {
		if !v.want && !v.view.IsZero() {
			return fmt.Errorf("recurrence: %s reads no %s, but there is %v", info.Name, v.name, v.view)
		}
		if v.want {
			if err := checkShape(v.name, v.view, v.dtype, v.shape); err != nil {
				return err
			}
			if err := l.checkMemory(v.name, v.view, true); err != nil {
				return err
			}
		}
	}
	if d := s.Query.DType; d != tensor.F32 && d != tensor.F16 && d != tensor.BF16 {
		return fmt.Errorf("recurrence: Query is %v, want f32, f16 or bf16", d)
	}
	return l.checkSlots(s, tokens)
}

// gates is how many gates a head has with ReadsChannelGate.
func gates(r Recurrence, c *Config) int {
	if g, ok := r.(GSA); ok {
		return g.Slots
	}
	return c.KeyDim
}

func gateRank(info Info) int {
	if info.Reads&ReadsChannelGate != 0 {
		return 3
	}
	return 2
}

func checkShape(name string, v *tensor.View, dtype tensor.DType, shape []int64) error {
	ok := v.Buf != nil && v.DType == dtype && v.Rank == len(shape)
	for i, n := range shape {
		ok = ok && v.Shape[i] == n
	}
	if !ok {
		return fmt.Errorf("recurrence: %s is %v, want %v%v", name, v, dtype, shape)
	}
	if err := v.Check(); err != nil {
		return fmt.Errorf("recurrence: %s: %w", name, err)
	}
	return nil
}

func (l *Layer) checkSlots(s *Step, tokens int64) error {
	if n := len(s.QueryStart); n < 1 || s.QueryStart[0] != 0 || int64(s.QueryStart[n-1]) != tokens {
		return fmt.Errorf("recurrence: QueryStart %v, want 0 … %d", s.QueryStart, tokens)
	}
	for i := 1; i < len(s.QueryStart); i++ {
		if s.QueryStart[i] < s.QueryStart[i-1] {
			return fmt.Errorf("recurrence: QueryStart[%d] is %d, want at least %d", i, s.QueryStart[i], s.QueryStart[i-1])
		}
	}
	if s.States == nil && s.Slots == nil {
		return nil
	}
	if s.States == nil || s.States.layer != l {
		return errors.New("recurrence: States are not this layer's (Layer.NewStates makes them)")
	}
	if len(s.Slots) != len(s.QueryStart)-1 {
		return fmt.Errorf("recurrence: %d Slots, want %d, one a sequence", len(s.Slots), len(s.QueryStart)-1)
	}
	seen := map[int32]bool{}
	for i, slot := range s.Slots {
		if slot == -1 {
			continue
		}
		if !s.States.has(slot) {
			return fmt.Errorf("recurrence: Slots[%d] is %d, which is not allocated (States have %d slots)", i, slot, len(s.States.live))
		}
		if seen[slot] {
			return fmt.Errorf("recurrence: slot %d belongs to two sequences", slot)
		}
		seen[slot] = true
	}
	return nil
}

// input is the step as a recurrence of part i of the states.
func (l *Layer) input(s *Step, part int) kernel.ScanInput {
	in := kernel.ScanInput{
		Query: s.Query, Key: s.Key, Value: s.Value, Gate: s.Gate, Beta: s.Beta, Bonus: s.Bonus,
		QueryStart: s.QueryStart, Scale: l.config.Scale, Policy: l.config.Policy,
	}
	if s.States != nil {
		in.State, in.From = s.States.parts[part], make([]int32, len(s.Slots))
		for i, slot := range s.Slots {
			in.From[i] = slot
			if slot >= 0 && s.States.fresh[slot] {
				in.From[i] = -1
			}
		}
	}
	return in
}

// scan runs a recurrence and keeps its states.
func (l *Layer) scan(s *Step, in kernel.ScanInput, out tensor.View) error {
	return l.scanHere(&kernel.ScanArgs{ScanInput: in, To: s.Slots, Out: out})
}
