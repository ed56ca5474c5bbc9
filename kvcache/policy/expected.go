package policy

import (
	"fmt"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention
// from Future Queries Distribution", https://arxiv.org/abs/2510.00636
//
// If the queries to come are normal, with mean μ and covariance Σ, the expected
// weight of a key before normalising is exp(μ·k/√d + ½·kᵀΣk/d). Keys stay by it,
// normalised over the keys, times the norm of their values. Needs: keys, values
// and query moments, turned to where the queries will be (Ahead). Cost: a quadratic
// form a key. Limits: keys rotated as they are stored (PostRoPE), or moments and
// keys both unrotated.

// ExpectedAttention keeps sinks, 4 in the paper's code.
func ExpectedAttention(sinks int) *Policy {
	return &Policy{Score: Expected{Epsilon: 0.02}, Sinks: sinks}
}

// Moments are the mean and the covariance of the queries of one query head.
type Moments struct {
	Mean       []float64 // [dim]
	Covariance []float64 // [dim·dim]
}

// MomentsOf takes them of query head h of [tokens, Heads, dim] in host memory, of
// at least one token.
func MomentsOf(query tensor.View, h int) (Moments, error) {
	if query.Rank != 3 || query.Shape[0] < 1 || h < 0 || int64(h) >= query.Shape[1] || query.Bytes() == nil {
		return Moments{}, valueError("MomentsOf: query", &query, "[tokens,Heads,dim] in host memory, with a token and head %d", h)
	}
	n, dim := query.Shape[0], query.Shape[2]
	m := Moments{make([]float64, dim), make([]float64, dim*dim)}
	for t := range n {
		for d := range dim {
			m.Mean[d] += float64(query.At(t, int64(h), d)) / float64(n)
		}
	}
	x := make([]float64, dim)
	for t := range n {
		for d := range dim {
			x[d] = float64(query.At(t, int64(h), d)) - m.Mean[d]
		}
		for a := range dim {
			for b := range dim {
				m.Covariance[a*dim+b] += float64(x[a]*x[b]) / float64(n)
			}
		}
	}
	return m, nil
}

// Ahead turns moments of unrotated queries by the mean rotation of positions from
// to from+n−1, where the queries to come will be; the paper's code takes n 512.
func (m Moments) Ahead(r *kernel.Rotation, from, n int) (Moments, error) {
	dim, half := len(m.Mean), r.Dim/2
	if r.Dim > dim || len(r.InvFreq) != half || n < 1 || len(m.Covariance) != dim*dim {
		return Moments{}, valueError("Ahead", fmt.Sprintf("a rotation of %d of %d features, %d positions", r.Dim, dim, n), "at most as many features, and a position")
	}
	cos, sin := make([]float64, half), make([]float64, half)
	c, s := make([]float32, half), make([]float32, half)
	for p := range n {
		r.Fill(c, s, [3]float64{float64(from + p), float64(from + p), float64(from + p)}, kernel.QuerySide)
		for k := range half {
			cos[k], sin[k] = cos[k]+float64(c[k])/float64(n), sin[k]+float64(s[k])/float64(n)
		}
	}
	turn := func(x []float64, stride int) {
		for k := range half {
			i, j := k, k+half
			if r.Layout == kernel.Interleaved {
				i, j = 2*k, 2*k+1
			}
			u, v := x[i*stride], x[j*stride]
			x[i*stride], x[j*stride] = float64(u*cos[k])-float64(v*sin[k]), float64(v*cos[k])+float64(u*sin[k])
		}
	}
	out := Moments{append([]float64(nil), m.Mean...), append([]float64(nil), m.Covariance...)}
	turn(out.Mean, 1)
	for d := range dim {
		turn(out.Covariance[d:], dim) // columns, then rows: R·Σ·Rᵀ
	}
	for d := range dim {
		turn(out.Covariance[d*dim:], 1)
	}
	return out, nil
}

// Expected scores a key by its expected weight.
type Expected struct {
	Epsilon float64 // added to weights before they are multiplied by ‖v‖₂
	Scale   float64 // of scores; 0: 1/√dim
}

func (Expected) Needs() Needs { return Keys | Values | QueryMoments }

// Score is the mean over query heads of the expected weight, times ‖v‖₂.
func (e Expected) Score(h *Head, dst []float32) error {
	if len(dst) == 0 {
		return nil
	}
	dim := int(h.Key.Shape[1])
	scale := e.Scale
	if scale == 0 {
		scale = xmath.Pow(float64(dim), -0.5)
	}
	mean, x, k := make([]float64, len(dst)), make([]float64, len(dst)), make([]float64, dim)
	for i, m := range h.Moments {
		if len(m.Mean) != dim || len(m.Covariance) != dim*dim {
			return valueError(fmt.Sprintf("Moments[%d]", i), fmt.Sprintf("of %d and %d", len(m.Mean), len(m.Covariance)), "of dim %d and its square", dim)
		}
		for j := range x {
			rowInto(k, &h.Key, j)
			form := 0.0
			for a := range dim {
				form += float64(k[a] * dot(m.Covariance[a*dim:][:dim], k))
			}
			x[j] = float64(scale*dot(m.Mean, k)) + float64(0.5*scale*scale*form)
		}
		softmax(x)
		for j := range mean {
			mean[j] += x[j] / float64(len(h.Moments))
		}
	}
	v := make([]float64, h.Value.Shape[1])
	for j := range dst {
		dst[j] = float32((mean[j] + e.Epsilon) * norm2(rowInto(v, &h.Value, j)))
	}
	return nil
}
