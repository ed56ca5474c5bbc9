// Xiaoqi Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2019, https://arxiv.org/abs/1909.10351

package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// TinyBERT is its attention loss: how far the scores of a student's layer are from
// those of a teacher's, before softmax and with as many heads of any size each.
//
//	A = Query·Keyᵀ·Scale, and 0 where that is at or below ZeroBelow
//	loss = 1/(Heads·N) · Σ over heads, queries and keys of (A_student − A_teacher)²
//
// over encoders whose queries see all keys of their sequence. N is the number of
// pairs of a query and a key, as the paper means it.
//
// The published code pads: it adds −10000 to the scores of padded keys, sets
// scores of at most −100 to 0 on both sides, those of real keys too, and divides
// by all pairs of the padded batch. ZeroBelow −100 and Padded do so. It does not
// mask padded queries: with their rows in Query, and QueryLens all Padded, the
// loss is the same.
//
// Claim: the paper's ablation has this loss as the one that is missed most.
//
// Cost: two products of queries and keys, and with gradients two more for the
// student. No score is stored; a worker keeps the gradient of one head's keys.
//
// Limits: on the CPU. The scores themselves are the operation Scores of package
// kernel. The losses of embeddings, hidden states and predictions are
// sums over rows of a model, and not attention.
type TinyBERT struct {
	ZeroBelow float32 // −100 as published, 0: none
	Padded    int     // tokens that sequences are padded to in the mean, 0: the mean is over the pairs that there are
}

// Name returns "tinybert".
func (TinyBERT) Name() string { return "tinybert" }

// ScorePair is a layer of a student and one of a teacher, with the same tokens and
// heads. Sequences lie one after another, without padding.
type ScorePair struct {
	Student, Teacher kernel.ScoreSide // Scale 0: 1/√ of the features of a head
	QueryLens        []int            // tokens of each sequence
	KeyLens          []int            // nil: QueryLens
}

// lower makes the arguments and the number of pairs of a head.
func (p *ScorePair) lower(a *kernel.ScoreLossArgs) (pairs int64, err error) {
	keys := p.KeyLens
	if keys == nil {
		keys = p.QueryLens
	}
	if len(keys) != len(p.QueryLens) {
		return 0, fmt.Errorf("%d KeyLens, want %d", len(keys), len(p.QueryLens))
	}
	for _, x := range [...]struct {
		name   string
		lens   []int
		starts *[]int32
	}{{"QueryLens", p.QueryLens, &a.QueryStart}, {"KeyLens", keys, &a.KeyStart}} {
		*x.starts = []int32{0}
		for s, n := range x.lens {
			last := (*x.starts)[s]
			if n < 0 || n >= kernel.MaxBound-int(last) {
				return 0, fmt.Errorf("%s[%d] is %d after %d, want at least 0 and fewer than 2³¹−1 in all", x.name, s, n, last)
			}
			*x.starts = append(*x.starts, last+int32(n))
		}
	}
	for s, n := range keys {
		pairs += int64(n) * int64(p.QueryLens[s])
	}
	a.Student, a.Teacher = p.Student, p.Teacher
	for _, side := range [...]*kernel.ScoreSide{&a.Student, &a.Teacher} {
		if side.Scale == 0 && side.Query.Shape[2] > 0 {
			side.Scale = float32(1 / math.Sqrt(float64(side.Query.Shape[2])))
		}
	}
	return pairs, nil
}

// Loss is the loss of a pair.
func (m TinyBERT) Loss(ops kernel.Ops, p *ScorePair) (float64, error) {
	return m.Gradients(ops, p, 1, tensor.View{}, tensor.View{})
}

// Gradients is Loss, and writes the gradients of the student's queries and keys,
// F32 of their shapes, times that of the loss.
func (m TinyBERT) Gradients(ops kernel.Ops, p *ScorePair, dLoss float64, dQuery, dKey tensor.View) (float64, error) {
	a := kernel.ScoreLossArgs{ZeroBelow: m.ZeroBelow, DQuery: dQuery, DKey: dKey}
	fail := func(err error) (float64, error) { return 0, fmt.Errorf("attention: tinybert: %w", err) }
	pairs, err := p.lower(&a)
	if err != nil {
		return fail(err)
	}
	if m.Padded != 0 {
		for s, n := range p.QueryLens {
			if keys := int(a.KeyStart[s+1] - a.KeyStart[s]); m.Padded < n || m.Padded < keys {
				return fail(fmt.Errorf("Padded is %d, want 0 or at least the %d queries and %d keys of sequence %d", m.Padded, n, keys, s))
			}
		}
		pairs = int64(len(p.QueryLens)) * int64(m.Padded) * int64(m.Padded)
	}
	q := &a.Student.Query
	n := float64(pairs) * float64(q.Shape[1])
	if n > 0 {
		a.Gradient = float32(2 * dLoss * float64(a.Student.Scale) / n)
	}
	a.Out = tensor.New(tensor.F32, max(q.Shape[0], 0), max(q.Shape[1], 0))
	if err := ops.ScoreLoss(&a); err != nil {
		return fail(err)
	}
	sum := 0.0
	for _, x := range a.Out.F32s() {
		sum += float64(x)
	}
	if n == 0 {
		return 0, nil
	}
	return sum / n, nil
}

// TeacherLayer is the layer of a teacher whose scores layer of a student learns:
// the last of as many as stand for one, (layer+1)·teacher/student − 1.
func (TinyBERT) TeacherLayer(layer, student, teacher int) (int, error) {
	if student < 1 || teacher < student || teacher%student != 0 || layer < 0 || layer >= student {
		return 0, fmt.Errorf("attention: tinybert: layer %d of %d and %d layers of the teacher, want a layer below the first, and a multiple of it", layer, student, teacher)
	}
	return (layer+1)*(teacher/student) - 1, nil
}
