package attention

import (
	"math"

	"github.com/longctx/longctx/kernel"
)

// Position is a position module: it partitions the pairs (query, key) into
// Terms and says where each rotates them to. A module is a pure function of
// its parameters; the number of Terms must not depend on length.
type Position interface {
	Name() string
	// Terms returns the disjoint Terms for a step whose longest sequence has
	// length tokens.
	Terms(length int) ([]Term, error)
}

// Term is one part of a position module.
type Term struct {
	Region     kernel.Region
	PosQ, PosK PosMap
	Scale      float64 // multiplies the score; 0: 1
}

// PosMap is the position to which the token of position x is rotated:
//
//	p(x) = clamp(Slope·⌊(x mod Mod)/Div⌋ + Offset, Lo, Hi)
//
// Mod 0 takes no remainder, Div 0 is 1. Identity, Constant and the methods on
// PosMap make the usual ones; the zero PosMap rotates everything to 0.
type PosMap struct {
	Slope, Offset float64
	Mod, Div      int32
	Lo, Hi        float64
}

// Identity is p(x) = x.
var Identity = PosMap{Slope: 1, Lo: math.Inf(-1), Hi: math.Inf(1)}

// Constant is p(x) = at.
func Constant(at float64) PosMap { return PosMap{Offset: at, Lo: at, Hi: at} }

// Shift adds d to the position, before any clamp.
func (m PosMap) Shift(d float64) PosMap { m.Offset += d; return m }

// Group divides x by g, rounding down.
func (m PosMap) Group(g int) PosMap { m.Div = int32(g); return m }

// Wrap takes x modulo n.
func (m PosMap) Wrap(n int) PosMap { m.Mod = int32(n); return m }

// AtMost clamps the position from above.
func (m PosMap) AtMost(hi float64) PosMap { m.Hi = hi; return m }

// At returns p(x).
func (m PosMap) At(x int64) float64 {
	if m.Mod > 0 {
		x -= kernel.FloorDiv(x, int64(m.Mod)) * int64(m.Mod)
	}
	if m.Div > 1 {
		x = kernel.FloorDiv(x, int64(m.Div))
	}
	return m.at(x)
}

// at is p as a function of u = ⌊(x mod Mod)/Div⌋.
func (m *PosMap) at(u int64) float64 {
	return min(max(float64(m.Slope*float64(u))+m.Offset, m.Lo), m.Hi)
}

// Absolute rotates every token to its own position: plain RoPE, and with the
// frequencies of package rope PI, NTK, YaRN, LongRoPE and the like.
type Absolute struct{}

// Name returns "absolute".
func (Absolute) Name() string { return "absolute" }

// Terms returns one Term over all pairs.
func (Absolute) Terms(int) ([]Term, error) {
	return []Term{{Region: kernel.Everywhere, PosQ: Identity, PosK: Identity}}, nil
}
