package model

import (
	"fmt"
	"math"
)

// AdamW is Adam with decoupled weight decay (Loshchilov and Hutter, arXiv
// 1711.05101) of the matrices, after the gradient is cut to a norm of Clip.
type AdamW struct {
	Beta1, Beta2, Epsilon, Decay, Clip float64

	Steps int
	M, V  []*Param // moments, as Model.Params
}

// NewAdamW has moments of zero for a model.
func NewAdamW(m *Model) *AdamW {
	return &AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, Decay: 0.05, Clip: 1, M: blank(m.Config).Params(), V: blank(m.Config).Params()}
}

// Step changes params by gradients, both as Model.Params, and returns the norm
// of the gradient. A gradient that is not finite is an error and changes
// nothing.
func (o *AdamW) Step(params, gradients []*Param, rate float64) (norm float64, err error) {
	for _, g := range gradients {
		for _, x := range g.Data {
			norm += float64(x) * float64(x)
		}
	}
	norm = math.Sqrt(norm)
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		return norm, fmt.Errorf("model: the gradient of step %d has norm %v", o.Steps+1, norm)
	}
	o.Steps++
	cut := 1.0
	if norm > o.Clip {
		cut = o.Clip / norm
	}
	b1, b2 := float32(o.Beta1), float32(o.Beta2)
	// both corrections of the moments' start at zero
	toM := 1 / (1 - math.Pow(o.Beta1, float64(o.Steps)))
	toV := 1 / (1 - math.Pow(o.Beta2, float64(o.Steps)))
	for k, p := range params {
		m, v, g := o.M[k].Data, o.V[k].Data, gradients[k].Data
		keep := float32(1)
		if p.Rows > 1 {
			keep = float32(1 - rate*o.Decay)
		}
		parallel(len(p.Data), func(lo, hi int) {
			for i := lo; i < hi; i++ {
				d := g[i] * float32(cut)
				m[i] = b1*m[i] + (1-b1)*d
				v[i] = b2*v[i] + (1-b2)*d*d
				p.Data[i] = p.Data[i]*keep - float32(rate*float64(m[i])*toM/(math.Sqrt(float64(v[i])*toV)+o.Epsilon))
			}
		})
	}
	return norm, nil
}
