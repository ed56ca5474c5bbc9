package policy

import (
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/tensor"
)

// Liu et al., "MiniCache: KV Cache Compression in Depth Dimension for Large Language
// Models", https://arxiv.org/abs/2405.14366
//
// In the upper half of a model the keys, and the values, of two neighbouring layers
// have much the same directions: one direction between the two is kept for both, by
// spherical interpolation, with the norm of each, and the tokens whose directions
// are farthest apart are kept whole. Needs: rows of both layers. Cost: one pass.
// Limits: rows that were merged are restored before attention reads them: it is a
// way to store layers that are not at work, such as on another tier, and no Planner.
type MiniCache struct {
	T    float64 // where between the layers, 0 (the first) to 1; the paper takes 0.6
	Keep float64 // part of the range of angles, from the widest, that is kept whole, 0 to 1; 0.05
}

// Pair is the rows of two layers.
type Pair struct {
	Direction tensor.View    // [n, dim] F32, of norm 1
	Norms     [2][]float32   // [n]
	Kept      []int32        // rows kept whole, ascending
	Rows      [2]tensor.View // [len(Kept), dim] F32
}

// Merge makes one of a and b, both [n, dim] in host memory. A row of zeros has the
// direction of the other layer's.
func (m MiniCache) Merge(a, b tensor.View) (*Pair, error) {
	if !(m.T >= 0 && m.T <= 1 && m.Keep >= 0 && m.Keep <= 1) {
		return nil, valueError("MiniCache.T", m.T, "0 to 1, and Keep (%v) too", m.Keep)
	}
	if a.Rank != 2 || b.Rank != 2 || a.Shape != b.Shape || a.Bytes() == nil || b.Bytes() == nil {
		return nil, valueError("MiniCache: rows", &a, "[n,dim] in host memory, as of the other layer (%v)", &b)
	}
	n := int(a.Shape[0])
	p := &Pair{Direction: tensor.New(tensor.F32, a.Shape[:2]...)}
	angles, least, most := make([]float64, n), math.Inf(1), 0.0
	for j := range n {
		x, y := row(&a, j), row(&b, j)
		nx, ny := norm2(x), norm2(y)
		p.Norms[0], p.Norms[1] = append(p.Norms[0], float32(nx)), append(p.Norms[1], float32(ny))
		if nx == 0 {
			x = y
		}
		if ny == 0 {
			y = x
		}
		e, angle := slerp(unit(x), unit(y), m.T)
		for d, v := range e {
			p.Direction.Set(float32(v), int64(j), int64(d))
		}
		angles[j], least, most = angle, min(least, angle), max(most, angle)
	}
	for j, angle := range angles {
		if m.Keep > 0 && most > least && angle >= most-m.Keep*(most-least) {
			p.Kept = append(p.Kept, int32(j))
		}
	}
	for side, v := range []*tensor.View{&a, &b} {
		p.Rows[side] = tensor.New(tensor.F32, int64(len(p.Kept)), a.Shape[1])
		for i, j := range p.Kept {
			for d, x := range row(v, int(j)) {
				p.Rows[side].Set(float32(x), int64(i), int64(d))
			}
		}
	}
	return p, nil
}

// slerp goes from x by the part t of the way to y, and gives the angle between them.
func slerp(x, y []float64, t float64) (e []float64, angle float64) {
	angle = math.Acos(min(max(dot(x, y), -1), 1))
	u, v := 1-t, t
	if s, _ := xmath.SinCos(angle, 1); s > 1e-6 {
		su, _ := xmath.SinCos(angle, 1-t)
		sv, _ := xmath.SinCos(angle, t)
		u, v = su/s, sv/s
	}
	e = make([]float64, len(x))
	for d := range e {
		e[d] = float64(u*x[d]) + float64(v*y[d])
	}
	return unit(e), angle
}

// Restore is the rows of the first layer (0) or the second (1), [n, dim] F32.
func (p *Pair) Restore(layer int) (tensor.View, error) {
	if layer != 0 && layer != 1 {
		return tensor.View{}, valueError("Restore: layer", layer, "0 or 1")
	}
	out := tensor.New(tensor.F32, p.Direction.Shape[:2]...)
	for j, norm := range p.Norms[layer] {
		for d, x := range row(&p.Direction, j) {
			out.Set(float32(x*float64(norm)), int64(j), int64(d))
		}
	}
	for i, j := range p.Kept {
		for d, x := range row(&p.Rows[layer], i) {
			out.Set(float32(x), int64(j), int64(d))
		}
	}
	return out, nil
}

// Bytes is the memory of a Pair; two layers take 8·n·dim in F32.
func (p *Pair) Bytes() int64 {
	return 4 * (p.Direction.Len() + int64(len(p.Norms[0])+len(p.Norms[1])+len(p.Kept)) + p.Rows[0].Len() + p.Rows[1].Len())
}
