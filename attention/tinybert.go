// Xiaoqi Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2019, https://arxiv.org/abs/1909.10351

package attention

import (
	"errors"
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
// Limits: the losses of embeddings, hidden states and predictions are sums over
// rows of a model, and not attention.
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

// starts are where the queries and keys of each sequence start, with the end of the
// last, and the pairs of a query and a key.
func starts(queryLens, keyLens []int) (queries, keys []int32, pairs int64, err error) {
	if keyLens == nil {
		keyLens = queryLens
	}
	if len(keyLens) != len(queryLens) {
		return nil, nil, 0, fmt.Errorf("%d KeyLens, want %d", len(keyLens), len(queryLens))
	}
	queries, keys = []int32{0}, []int32{0}
	for _, x := range [...]struct {
		name   string
		lens   []int
		starts *[]int32
	}{{"QueryLens", queryLens, &queries}, {"KeyLens", keyLens, &keys}} {
		for s, n := range x.lens {
			last := (*x.starts)[s]
			if n < 0 || n >= kernel.MaxBound-int(last) {
				return nil, nil, 0, fmt.Errorf("%s[%d] is %d after %d, want at least 0 and fewer than 2³¹−1 in all", x.name, s, n, last)
			}
			*x.starts = append(*x.starts, last+int32(n))
		}
	}
	for s, n := range keyLens {
		pairs += int64(n) * int64(queryLens[s])
	}
	return queries, keys, pairs, nil
}

// scaled is a side with the usual Scale where it has none.
func scaled(s kernel.ScoreSide) kernel.ScoreSide {
	if s.Scale == 0 && s.Query.Shape[2] > 0 {
		s.Scale = float32(1 / math.Sqrt(float64(s.Query.Shape[2])))
	}
	return s
}

// Scores writes the scores of a layer before softmax to out [Heads, Σ queries·keys]
// F32: for each sequence in turn a matrix of its queries and keys. Nil keyLens:
// queryLens. It is the tap for losses other than TinyBERT's, which needs no scores.
func Scores(ops kernel.Ops, side kernel.ScoreSide, queryLens, keyLens []int, out tensor.View) error {
	queries, keys, _, err := starts(queryLens, keyLens)
	if err == nil {
		side = scaled(side)
		err = ops.Scores(&kernel.ScoresArgs{Query: side.Query, Key: side.Key, QueryStart: queries, KeyStart: keys, Scale: side.Scale, Out: out})
	}
	if err != nil {
		return fmt.Errorf("attention: %w", err)
	}
	return nil
}

// Loss is the loss of a pair.
func (m TinyBERT) Loss(ops kernel.Ops, p *ScorePair) (float64, error) {
	return m.Gradients(ops, p, 1, tensor.View{}, tensor.View{})
}

// Gradients is Loss, and writes the gradients of the student's queries and keys,
// F32 of their shapes, times that of the loss.
func (m TinyBERT) Gradients(ops kernel.Ops, p *ScorePair, dLoss float64, dQuery, dKey tensor.View) (float64, error) {
	if p == nil {
		return 0, errors.New("attention: tinybert: no ScorePair, want one")
	}
	a := kernel.ScoreLossArgs{Student: scaled(p.Student), Teacher: scaled(p.Teacher), ZeroBelow: m.ZeroBelow, DQuery: dQuery, DKey: dKey}
	fail := func(err error) (float64, error) { return 0, fmt.Errorf("attention: tinybert: %w", err) }
	var pairs int64
	var err error
	if a.QueryStart, a.KeyStart, pairs, err = starts(p.QueryLens, p.KeyLens); err != nil {
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
	sum, err := scoreLoss(ops, &a)
	if err != nil {
		return fail(err)
	}
	if n == 0 {
		return 0, nil
	}
	return sum / n, nil
}

// scoreLoss is the sum over queries and heads, from the memory of the backend.
func scoreLoss(ops kernel.Ops, a *kernel.ScoreLossArgs) (sum float64, err error) {
	q := &a.Student.Query
	host := tensor.New(tensor.F32, max(q.Shape[0], 0), max(q.Shape[1], 0))
	a.Out = host
	device, ok := ops.(interface {
		Alloc(bytes int64) (tensor.Buffer, error)
		CopyOut(dst []byte, src tensor.Buffer) error
	})
	if ok {
		if a.Out.Buf, err = device.Alloc(4 * host.Len()); err != nil {
			return 0, err
		}
		if b, ok := a.Out.Buf.(interface{ Close() error }); ok {
			defer func() { err = errors.Join(err, b.Close()) }()
		}
	}
	if err := ops.ScoreLoss(a); err != nil {
		return 0, err
	}
	if ok {
		if err := device.CopyOut(host.Bytes(), a.Out.Buf); err != nil {
			return 0, err
		}
	}
	for _, x := range host.F32s() {
		sum += float64(x)
	}
	return sum, nil
}

// TeacherLayer is the layer of a teacher whose scores layer of a student learns:
// the last of as many as stand for one, (layer+1)·teacher/student − 1.
func (TinyBERT) TeacherLayer(layer, student, teacher int) (int, error) {
	if student < 1 || teacher < student || teacher%student != 0 || layer < 0 || layer >= student {
		return 0, fmt.Errorf("attention: tinybert: layer %d of %d and %d layers of the teacher, want a layer below the first, and a multiple of it", layer, student, teacher)
	}
	return (layer+1)*(teacher/student) - 1, nil
}
