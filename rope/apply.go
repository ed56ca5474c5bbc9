// Rotation of rows by a backend: Su et al., "RoFormer: Enhanced Transformer
// with Rotary Position Embedding", https://arxiv.org/abs/2104.09864, equation 34.

package rope

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Positions are the positions of tokens on the axes of MRoPE. Without MRoPE
// only the first axis is read.
type Positions [3][]int32

// Text gives each token one position: the same on every axis.
func Text(positions []int32) Positions {
	return Positions{positions, positions, positions}
}

// Table computes one row of cosines and sines for each token, in float64,
// rounded once to float32 unless r.CompatF32. Side matters to XPos alone.
func Table(r kernel.Rotation, p Positions, side kernel.Side) (kernel.RotaryTable, error) {
	if err := checkRotation(&r, p); err != nil {
		return kernel.RotaryTable{}, err
	}
	n, half := len(p[0]), r.Dim/2
	t := kernel.RotaryTable{Cos: make([]float32, n*half), Sin: make([]float32, n*half)}
	limit := turnLimit(&r)
	for i := range n {
		pos := [3]float64{0: float64(p[0][i])}
		if r.Axis != nil {
			pos[1], pos[2] = float64(p[1][i]), float64(p[2][i])
		}
		for axis, x := range pos {
			if math.Abs(x) >= limit {
				return kernel.RotaryTable{}, argument(fmt.Sprintf("position [%d][%d]", axis, i), int64(x),
					fmt.Sprintf("less than %.0f either way, beyond which the table is not accurate or leaves float32", limit))
			}
		}
		r.Fill(t.Cos[i*half:][:half], t.Sin[i*half:][:half], pos, side)
	}
	return t, nil
}

// turnLimit is the position from which a row cannot be computed: angles of
// 2³⁰ are not reduced exactly, and xPos factors of 2^±126 leave float32.
func turnLimit(r *kernel.Rotation) float64 {
	limit := math.Inf(1)
	for k, f := range r.InvFreq {
		limit = min(limit, 0x1p30/f) // f = 0: no limit
		if r.Zeta != nil {
			if l := math.Abs(xmath.Log(r.Zeta[k])); l > 0 {
				limit = min(limit, 126*math.Ln2*r.ZetaBase/l)
			}
		}
	}
	return limit
}

// checkRotation refuses a Rotation that no method of this package makes, as
// callers may build their own, and positions that do not fit it.
func checkRotation(r *kernel.Rotation, p Positions) error {
	pairs := r.Dim / 2
	switch {
	case r.Dim < 2 || r.Dim%2 != 0:
		return argument("Rotation.Dim", r.Dim, "even, 2 or more")
	case len(r.InvFreq) != pairs:
		return argument("len(Rotation.InvFreq)", len(r.InvFreq), fmt.Sprintf("Dim/2 = %d", pairs))
	case !(r.Factor > 0 && r.Factor <= math.MaxFloat32):
		return argument("Rotation.Factor", r.Factor, "above 0 and a float32")
	case r.Axis != nil && len(r.Axis) != pairs:
		return argument("len(Rotation.Axis)", len(r.Axis), fmt.Sprintf("0 or Dim/2 = %d", pairs))
	case r.Zeta != nil && (len(r.Zeta) != pairs || !(r.ZetaBase > 0) || r.CompatF32):
		return argument("Rotation.Zeta", fmt.Sprintf("of %d, ZetaBase %v, CompatF32 %v", len(r.Zeta), r.ZetaBase, r.CompatF32),
			fmt.Sprintf("of Dim/2 = %d, ZetaBase above 0, CompatF32 false", pairs))
	}
	for k, f := range r.InvFreq {
		if !(f >= 0 && f <= maxFloat) {
			return argument(fmt.Sprintf("Rotation.InvFreq[%d]", k), f, "finite, 0 or more")
		}
		if r.Axis != nil && r.Axis[k] > 2 {
			return argument(fmt.Sprintf("Rotation.Axis[%d]", k), r.Axis[k], "0 to 2")
		}
		if r.Zeta != nil && !(r.Zeta[k] > 0 && r.Zeta[k] <= maxFloat) {
			return argument(fmt.Sprintf("Rotation.Zeta[%d]", k), r.Zeta[k], "finite, above 0")
		}
	}
	if r.Axis != nil && (len(p[1]) != len(p[0]) || len(p[2]) != len(p[0])) {
		return argument("positions", fmt.Sprintf("%d, %d and %d on the three axes", len(p[0]), len(p[1]), len(p[2])), "as many on each; see Text")
	}
	return nil
}

// Apply rotates the rows of x, of shape [tokens, heads, dim], in place, by the
// positions of their tokens, and multiplies them by r.Factor. Features from
// r.Dim on are not touched. Rotating twice is not checked for and is wrong.
func Apply(ops kernel.Ops, x tensor.View, p Positions, r kernel.Rotation, side kernel.Side) error {
	if x.Rank != 3 || x.Shape[0] != int64(len(p[0])) || x.Shape[2] < int64(r.Dim) {
		return &kernel.ShapeError{Tensor: "rope.Apply x", Got: x.String(),
			Want: fmt.Sprintf("[%d positions, heads, %d or more]", len(p[0]), r.Dim)}
	}
	table, err := Table(r, p, side)
	if err != nil {
		return err
	}
	rows := make([]int32, len(p[0]))
	for i := range rows {
		rows[i] = int32(i)
	}
	return ops.Rotate(&kernel.RotateArgs{X: x, Rows: rows, Table: table, Dim: r.Dim, Layout: r.Layout})
}

// Unapply undoes Apply with the same arguments, up to rounding to the type of
// x. It rotates by the negative positions with 1/Factor, where
// kernel.RotateArgs.Inverse, which only negates the sines, would multiply by
// Factor again.
func Unapply(ops kernel.Ops, x tensor.View, p Positions, r kernel.Rotation, side kernel.Side) error {
	r.Factor = 1 / r.Factor
	var back Positions
	for axis, list := range p {
		back[axis] = make([]int32, len(list))
		for i, v := range list {
			if v == math.MinInt32 {
				return argument(fmt.Sprintf("position [%d][%d]", axis, i), v, "above the least int32")
			}
			back[axis][i] = -v
		}
	}
	return Apply(ops, x, back, r, side)
}

// Shift moves rows that Apply has rotated by r to new positions, given the
// difference new − old of each: what a cache of rotated keys needs after
// tokens were dropped and the rest renumbered. It turns by the difference
// alone: Factor is in the rows already. Text moves a token on all axes alike.
//
// The rows must have been rotated with the same frequencies: Shift cannot mend
// keys of a method that DependsOnLength after the length has changed them.
// Every Shift rounds to the type of x once more; keys cached before rotation
// have neither limit. With CompatF32 the difference is turned exactly, while
// the tables at the old and the new position each have their own error.
func Shift(ops kernel.Ops, x tensor.View, delta Positions, r kernel.Rotation, side kernel.Side) error {
	if err := checkRotation(&r, delta); err != nil {
		return err
	}
	r.Factor, r.CompatF32 = 1, false
	return Apply(ops, x, delta, r, side)
}
