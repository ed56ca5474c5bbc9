// Tianzhu Ye et al., "Differential Transformer", 2024, https://arxiv.org/abs/2410.05258

package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Diff is differential attention: the difference of two softmaxes over the same
// values, in which what both give to irrelevant keys cancels.
//
//	Out = softmax(Q₁·K₁ᵀ·Scale)·V − Lambda·softmax(Q₂·K₂ᵀ·Scale)·V
//
// A row of Query has the features of Q₁ and then those of Q₂, and a row of Key
// likewise. The paper's ValueDim is that of such a row, 2·HeadDim; the norm of
// each head and the factor 1 − λ_init that follow belong to the model.
//
// Claim: none beyond the trained length; better retrieval within it, for models
// trained so.
//
// Cost: two passes over keys and values: for the paper's sizes and pairs of
// queries and keys, 2·(HeadDim + 2·HeadDim) FLOPs twice, half more than attention
// of as many features, and its values read twice. The difference is one Rotate,
// 3·ValueDim FLOPs a row.
//
// Limits: there is no backward pass and there are no coded pages. Lambda is one
// number a layer.
type Diff struct {
	Lambda float64 // of the second softmax, finite
}

// Name returns "diff".
func (Diff) Name() string { return "diff" }

// DiffLambdaInit is λ_init of a layer, counted from 0: 0.8 − 0.6·e^(−0.3·layer).
func DiffLambdaInit(layer int) float64 { return 0.8 - float64(0.6*xmath.Exp(-0.3*float64(layer))) }

// DiffLambda is λ of the four learned vectors of a layer:
// exp(q1·k1) − exp(q2·k2) + λ_init.
func DiffLambda(q1, k1, q2, k2 []float64, init float64) float64 {
	dot := func(a, b []float64) (x float64) {
		for i := range min(len(a), len(b)) {
			x += float64(a[i] * b[i])
		}
		return x
	}
	return xmath.Exp(dot(q1, k1)) - xmath.Exp(dot(q2, k2)) + init
}

// Run computes one layer of the step that a was planned for. a has the HeadDim of
// one half; args have Query [tokens, Heads, 2·HeadDim], Key likewise, and Out
// [tokens, Heads, 2·ValueDim], which holds the result in its first ValueDim
// features and no more than memory in the others. LSE is to be absent: there is
// no sum of which it would be the logarithm.
//
// The difference of two halves x and y is that of a rotation with cosine 1 and
// sine Lambda: x' = fma(x, 1, −(y·Lambda)).
func (m Diff) Run(ops kernel.Ops, a *Attention, args *kernel.Args) error {
	if args == nil {
		return &kernel.ValueError{Name: "Args", Got: "nil", Want: "arguments"}
	}
	c, dim, value := &a.spec, int64(a.spec.HeadDim), int64(a.spec.ValueDim)
	if math.IsNaN(m.Lambda) || math.Abs(m.Lambda) > math.MaxFloat32 {
		return fmt.Errorf("attention: diff: Lambda is %v, want finite", m.Lambda)
	}
	if !c.Coding.IsZero() {
		return fmt.Errorf("attention: diff: Coding is %v, want none", c.Coding)
	}
	if !args.LSE.IsZero() {
		return fmt.Errorf("attention: diff: LSE is %v, want none", &args.LSE)
	}
	for _, x := range []struct {
		name string
		view *tensor.View
		dim  int64
	}{{"Query", &args.Query, 2 * dim}, {"Key", &args.Key, 2 * dim}, {"Out", &args.Out, 2 * value}} {
		if x.view.Rank < 3 || x.name != "Key" && x.view.Rank > 3 || x.view.Shape[x.view.Rank-1] != x.dim {
			return fmt.Errorf("attention: diff: %s is %v, want rows of %d features, two halves", x.name, x.view, x.dim)
		}
	}
	for half := range int64(2) {
		one := *args
		one.Query = args.Query.Slice(args.Query.Rank-1, half*dim, half*dim+dim)
		one.Key = args.Key.Slice(args.Key.Rank-1, half*dim, half*dim+dim)
		one.Out = args.Out.Slice(2, half*value, half*value+value)
		if err := a.Run(&one); err != nil {
			return fmt.Errorf("attention: diff: half %d: %w", half, err)
		}
	}
	cos, sin := make([]float32, value), make([]float32, value)
	for d := range cos {
		cos[d], sin[d] = 1, float32(m.Lambda)
	}
	return ops.Rotate(&kernel.RotateArgs{
		X: args.Out, Rows: make([]int32, args.Out.Shape[0]), Table: kernel.RotaryTable{Cos: cos, Sin: sin},
		Dim: int(2 * value), Layout: kernel.HalfSplit, Policy: c.Policy,
	})
}
