package kernel

import "github.com/longctx/longctx/internal/xmath"

// Rotation is what a method of package rope lowers to, for sequences of a
// given length: the frequencies and factors from which rotation tables are
// made. The angle of pair k at position p is p·InvFreq[k].
type Rotation struct {
	Dim        int          // features rotated, even
	Layout     RotaryLayout //
	InvFreq    []float64    // [Dim/2] radians a position
	Factor     float64      // multiplies every cosine and sine: the "attention factor"
	ScoreScale float64      // multiplies Spec.Scale once: DeepSeek's mscale², 1 elsewhere
	Axis       []uint8      // [Dim/2] M-RoPE: which of the position's axes turns the pair; nil: axis 0
	Zeta       []float64    // [Dim/2] xPos: queries × Zeta^(p/ZetaBase), keys ÷; nil: none
	ZetaBase   float64      //
	CompatF32  bool         // angles by float32 products, as models were trained with
}

// Side tells queries from keys, which only xPos rotates differently.
type Side uint8

const (
	QuerySide Side = iota
	KeySide
)

// Fill computes one row of a RotaryTable, Dim/2 cosines and sines, for a
// position given on up to three axes (text has its one position on axis 0).
// It works in float64 and rounds once; CompatF32 rounds frequency, angle,
// cosine and product with Factor to float32 in turn, as the Python
// implementations do.
func (r *Rotation) Fill(cos, sin []float32, pos [3]float64, side Side) {
	for k, f := range r.InvFreq {
		p := pos[0]
		if r.Axis != nil {
			p = pos[r.Axis[k]]
		}
		if r.CompatF32 {
			s, c := xmath.SinCos(float64(float32(p)*float32(f)), 1)
			cos[k], sin[k] = float32(c)*float32(r.Factor), float32(s)*float32(r.Factor)
			continue
		}
		a := r.Factor
		if r.Zeta != nil {
			e := p / r.ZetaBase
			if side == KeySide {
				e = -e
			}
			a *= xmath.Pow(r.Zeta[k], e)
		}
		s, c := xmath.SinCos(p, f)
		cos[k], sin[k] = float32(a*c), float32(a*s)
	}
}
