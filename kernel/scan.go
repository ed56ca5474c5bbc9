package kernel

import (
	"fmt"

	"github.com/longctx/longctx/tensor"
)

// Scanner is a Backend with the recurrences of linear attention. Its methods are
// safe for concurrent use. A Backend need not be one.
type Scanner interface {
	Backend
	// Scan runs tokens of sequences through their states: rule 24.
	Scan(*ScanArgs) error
	// ScanBackward computes the gradients of a Scan.
	ScanBackward(*ScanBackwardArgs) error
}

// ScannerOf is b as a Scanner, or an *UnsupportedError.
func ScannerOf(b Backend) (Scanner, error) {
	if b == nil {
		return nil, absent("Backend")
	}
	if s, ok := b.(Scanner); ok {
		return s, nil
	}
	return nil, &UnsupportedError{Backend: b.Name(), Reasons: []string{"recurrences (it is no kernel.Scanner)"}}
}

// MaxStateDim is the largest KeyDim and ValueDim of a state.
const MaxStateDim = 1024

// ScanInput is a recurrence over the tokens of sequences. Head h has a state
// S [KeyDim, ValueDim] and reads the queries and keys of key head
// h/(Heads/KeyHeads). For each token
//
//	S   ← diag(exp(Gate)) · S
//	u   = Value                           without Beta
//	u   = Beta · (Value − Sᵀ·Key)         with Beta: the delta rule
//	S   ← S + Key ⊗ u
//	Out = Scale · Sᵀ·Query
//
// With Bonus the token is read before it is stored and before the state decays,
//
//	Out = Scale · (Sᵀ·Query + (Query·(Bonus∘Key)) · Value),   then S ← diag(exp(Gate))·S + Key ⊗ Value
//
// Gates are natural logarithms and at most 0: what is above counts as 0, what is
// below −128·ln 2, −Inf included, as −128·ln 2, whose factor is 0.
type ScanInput struct {
	Query tensor.View // [tokens, KeyHeads, KeyDim] F32, F16 or BF16
	Key   tensor.View // as Query
	Value tensor.View // [tokens, Heads, ValueDim], as Query
	Gate  tensor.View // [tokens, Heads] or [tokens, Heads, KeyDim] F32; absent: 0
	Beta  tensor.View // [tokens, Heads] F32, optional
	Bonus tensor.View // [Heads, KeyDim] F32, optional, without Beta

	// State [slots, Heads, KeyDim, ValueDim] F32 has a state a slot. The last
	// dimension has stride 1. It may be absent where no sequence has a slot.
	State tensor.View
	From  []int32 // [sequences] slot with the state before the first token; −1: zero. nil: all are

	QueryStart []int32 // [sequences+1] first token of each
	Scale      float64
	Policy     Policy
}

// ScanArgs asks for the outputs and last states of a recurrence.
type ScanArgs struct {
	ScanInput
	To  []int32     // [sequences] slot for the state after the last token, From's own or one that no other names; −1: not kept. nil: none is
	Out tensor.View // [tokens, Heads, ValueDim] as Value
}

// Sequences is the number of sequences.
func (a *ScanInput) Sequences() int { return len(a.QueryStart) - 1 }

// ChannelGates reports whether each channel of a key has a gate of its own.
func (a *ScanInput) ChannelGates() bool { return !a.Gate.IsZero() && a.Gate.Rank == 3 }

func (a *ScanInput) validate() error {
	q, v := &a.Query, &a.Value
	tokens, keyHeads, heads, keyDim, valueDim := q.Shape[0], q.Shape[1], v.Shape[1], q.Shape[2], v.Shape[2]
	if !wide(q.DType) && q.Buf != nil {
		return &ShapeError{"Query", q.String(), "f32, f16 or bf16"}
	}
	for _, x := range []struct {
		name string
		view *tensor.View
		dt   tensor.DType
		dims [3]int64
		rank int
		must bool
	}{
		{"Query", q, q.DType, [3]int64{tokens, keyHeads, keyDim}, 3, true},
		{"Key", &a.Key, q.DType, [3]int64{tokens, keyHeads, keyDim}, 3, true},
		{"Value", v, q.DType, [3]int64{tokens, heads, valueDim}, 3, true},
		{"Beta", &a.Beta, tensor.F32, [3]int64{tokens, heads}, 2, false},
		{"Bonus", &a.Bonus, tensor.F32, [3]int64{heads, keyDim}, 2, false},
		{"Gate", &a.Gate, tensor.F32, [3]int64{tokens, heads, keyDim}, 2 + a.Gate.Rank&1, false},
	} {
		if x.must || !x.view.IsZero() {
			if err := checkView(x.name, x.view, x.dt, x.dims[:x.rank]...); err != nil {
				return err
			}
		}
	}
	if keyHeads < 1 || heads < 1 || heads > MaxHeads || heads%keyHeads != 0 {
		return &ShapeError{"Value", v.String(), fmt.Sprintf("1 to %d heads, a multiple of the %d of Query", MaxHeads, keyHeads)}
	}
	for _, x := range []*tensor.View{q, v} {
		if d := x.Shape[2]; d < 1 || d > MaxStateDim {
			return &ShapeError{"Query and Value", x.String(), fmt.Sprintf("1 to %d features", MaxStateDim)}
		}
	}
	if !a.Beta.IsZero() && !a.Bonus.IsZero() {
		return &ValueError{"Bonus", a.Bonus.String(), "none with Beta"}
	}
	if !(a.Scale-a.Scale == 0) {
		return &ValueError{"Scale", fmt.Sprint(a.Scale), "finite"}
	}
	if a.Policy > Fast {
		return &ValueError{"Policy", fmt.Sprint(uint8(a.Policy)), "exact or fast"}
	}
	if err := checkStarts("QueryStart", a.QueryStart, tokens); err != nil {
		return err
	}
	if !a.State.IsZero() {
		if err := a.checkState("State", &a.State, a.State.Shape[0]); err != nil {
			return err
		}
	}
	return a.checkSlots("From", a.From)
}

func (a *ScanInput) checkState(name string, v *tensor.View, n int64) error {
	if err := checkView(name, v, tensor.F32, n, a.Value.Shape[1], a.Query.Shape[2], a.Value.Shape[2]); err != nil {
		return err
	}
	if v.Stride[3] != 1 {
		return &ShapeError{name, fmt.Sprintf("%v with stride %d of its last dimension", v, v.Stride[3]), "stride 1"}
	}
	return nil
}

func (a *ScanInput) checkSlots(name string, slots []int32) error {
	if slots == nil {
		return nil
	}
	if err := lengthOf(name, len(slots), a.Sequences()); err != nil {
		return err
	}
	for i, s := range slots {
		if s < -1 || s >= 0 && (a.State.IsZero() || int64(s) >= a.State.Shape[0]) {
			return &ValueError{fmt.Sprintf("%s[%d]", name, i), fmt.Sprint(s), fmt.Sprintf("−1 or a slot of State, %v", &a.State)}
		}
	}
	return nil
}

// Validate checks the views and lists of a Scan.
func (a *ScanArgs) Validate() error {
	if a == nil {
		return absent("ScanArgs")
	}
	if err := a.validate(); err != nil {
		return err
	}
	v := &a.Value
	if err := checkView("Out", &a.Out, v.DType, v.Shape[0], v.Shape[1], v.Shape[2]); err != nil {
		return err
	}
	if err := a.checkSlots("To", a.To); err != nil || len(a.To) < 2 {
		return err
	}
	owner := make(map[int32]int, len(a.To))
	for i, s := range a.To {
		if _, twice := owner[s]; twice && s >= 0 {
			return &ValueError{fmt.Sprintf("To[%d]", i), fmt.Sprint(s), "each slot at most once"}
		}
		owner[s] = i
	}
	for i, s := range a.From {
		if j, written := owner[s]; written && s >= 0 && j != i {
			return &ValueError{fmt.Sprintf("From[%d]", i), fmt.Sprint(s), fmt.Sprintf("not the slot that sequence %d writes", j)}
		}
	}
	return nil
}
