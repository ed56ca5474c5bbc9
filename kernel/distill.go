package kernel

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/tensor"
)

// Scores before softmax, of sequences without a mask whose keys and queries lie
// one sequence after another: what a student learns from a teacher by.

// ScoresArgs asks for the scores of all queries and keys of each sequence: rule
// 22. For query r and key j of sequence s, with Q queries and K keys,
//
//	Out[h, base(s) + r·K + j] = Scale · Query[t,h]·Key[row of j, g]
//
// where base(s) is the sum of Q·K over the sequences before.
type ScoresArgs struct {
	Query      tensor.View // [tokens, Heads, dim] F32, F16 or BF16
	Key        tensor.View // [rows, KVHeads, dim], of these types too
	QueryStart []int32     // [n+1] as in Batch
	KeyStart   []int32     // [n+1] keys of sequence s are rows KeyStart[s] to KeyStart[s+1]−1
	Scale      float32     // of the dot product
	Policy     Policy

	Out tensor.View // [Heads, Σ Q·K] F32
}

// ScoreSide is one of two models whose scores are compared.
type ScoreSide struct {
	Query, Key tensor.View // as in ScoresArgs
	Scale      float32
}

// ScoreLossArgs asks how far the scores of two models are apart, and for the
// gradient of that, without storing a score: rule 23. With s and t the scores of
// Student and Teacher by rule 22, 0 where they are at or below ZeroBelow,
//
//	Out[t, h] = Σ_j (s[j] − t[j])²
//	DQuery[t, h] = Σ_j Gradient·(s[j] − t[j])·Key[j]      DKey[j] = Σ Gradient·(s[j] − t[j])·Query
//
// where pairs with s set to 0 give no gradient, and Gradient has the factor 2, the
// Scale of Student and what the mean divides by. It is the attention loss of
// TinyBERT (Jiao et al., https://arxiv.org/abs/1909.10351, equation 7).
type ScoreLossArgs struct {
	Student, Teacher     ScoreSide // of the same tokens, rows and Heads
	QueryStart, KeyStart []int32   // as in ScoresArgs
	ZeroBelow            float32   // negative; 0: no score is set to 0
	Policy               Policy

	Out tensor.View // [tokens, Heads] F32

	Gradient     float32
	DQuery, DKey tensor.View // F32, as Query and Key of Student; both or neither. They are written, not added to.
}

// Validate checks the views and tables of a Scores.
func (a *ScoresArgs) Validate() error {
	if a == nil {
		return absent("ScoresArgs")
	}
	side := ScoreSide{a.Query, a.Key, a.Scale}
	if err := side.validate("", a.QueryStart, a.KeyStart); err != nil {
		return err
	}
	if a.Policy > Fast {
		return &ValueError{"Policy", a.Policy.String(), "exact or fast"}
	}
	pairs := int64(0)
	for s := range len(a.QueryStart) - 1 {
		pairs += int64(a.QueryStart[s+1]-a.QueryStart[s]) * int64(a.KeyStart[s+1]-a.KeyStart[s])
	}
	return checkView("Out", &a.Out, tensor.F32, a.Query.Shape[1], pairs)
}

// Validate checks the views and tables of a ScoreLoss.
func (a *ScoreLossArgs) Validate() error {
	if a == nil {
		return absent("ScoreLossArgs")
	}
	if err := a.Student.validate("Student.", a.QueryStart, a.KeyStart); err != nil {
		return err
	}
	if err := a.Teacher.validate("Teacher.", a.QueryStart, a.KeyStart); err != nil {
		return err
	}
	q, k := &a.Student.Query, &a.Student.Key
	if got := &a.Teacher.Query; got.Shape[1] != q.Shape[1] {
		return &ShapeError{"Teacher.Query", got.String(), fmt.Sprintf("the %d heads of Student.Query", q.Shape[1])}
	}
	if !(a.ZeroBelow <= 0) {
		return &ValueError{"ZeroBelow", fmt.Sprint(a.ZeroBelow), "negative, or 0 for none"}
	}
	if a.Policy > Fast {
		return &ValueError{"Policy", a.Policy.String(), "exact or fast"}
	}
	if err := checkView("Out", &a.Out, tensor.F32, q.Shape[0], q.Shape[1]); err != nil {
		return err
	}
	if a.DQuery.IsZero() && a.DKey.IsZero() {
		return nil
	}
	if !(math.Abs(float64(a.Gradient)) <= math.MaxFloat32) {
		return &ValueError{"Gradient", fmt.Sprint(a.Gradient), "finite"}
	}
	if err := checkView("DQuery", &a.DQuery, tensor.F32, q.Shape[0], q.Shape[1], q.Shape[2]); err != nil {
		return err
	}
	return checkView("DKey", &a.DKey, tensor.F32, k.Shape[0], k.Shape[1], k.Shape[2])
}

// validate checks a side; in names it.
func (a *ScoreSide) validate(in string, queryStart, keyStart []int32) error {
	q, k := &a.Query, &a.Key
	if err := checkView(in+"Query", q, q.DType, q.Shape[0], q.Shape[1], q.Shape[2]); err != nil {
		return err
	}
	if err := checkView(in+"Key", k, k.DType, k.Shape[0], k.Shape[1], q.Shape[2]); err != nil {
		return err
	}
	if !wide(q.DType) || q.Shape[1] < 1 || q.Shape[1] > MaxHeads || q.Shape[2] < 1 || q.Shape[2] > MaxHeadDim {
		return &ShapeError{in + "Query", q.String(), fmt.Sprintf("f32, f16 or bf16, 1 to %d heads of 1 to %d features", MaxHeads, MaxHeadDim)}
	}
	if heads := k.Shape[1]; !wide(k.DType) || heads < 1 || q.Shape[1]%heads != 0 {
		return &ShapeError{in + "Key", k.String(), fmt.Sprintf("f32, f16 or bf16, and a number of heads that divides the %d of %sQuery", q.Shape[1], in)}
	}
	if !(math.Abs(float64(a.Scale)) <= math.MaxFloat32) {
		return &ValueError{in + "Scale", fmt.Sprint(a.Scale), "finite"}
	}
	if err := checkStarts("QueryStart", queryStart, q.Shape[0]); err != nil {
		return err
	}
	if err := checkStarts("KeyStart", keyStart, k.Shape[0]); err != nil {
		return err
	}
	return lengthOf("KeyStart", len(keyStart), len(queryStart))
}

// checkStarts checks that starts ascend from 0 to n.
func checkStarts(name string, starts []int32, n int64) error {
	last := len(starts) - 1
	if last < 0 || starts[0] != 0 || int64(starts[last]) != n {
		return &ShapeError{name, fmt.Sprintf("%d numbers", len(starts)), fmt.Sprintf("ascending from 0 to %d", n)}
	}
	for i := range last {
		if starts[i+1] < starts[i] {
			return &ValueError{fmt.Sprintf("%s[%d]", name, i+1), fmt.Sprint(starts[i+1]), fmt.Sprintf("at least %d", starts[i])}
		}
	}
	return nil
}
