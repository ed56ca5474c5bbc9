package rope

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
)

// Method is a way to choose the angles of rotary position embedding. The
// methods of this package are values: they hold no state, so a Rotation asked
// for twice is the same twice, whatever was asked for between.
type Method interface {
	// Name is the method's name, as Hugging Face configurations have it
	// where they know the method.
	Name() string
	// Rotation lowers the method to frequencies and factors for a step whose
	// longest sequence has length tokens, new ones included. Only a method
	// that DependsOnLength looks at it. A field that cannot be used gives a
	// *ValueError.
	Rotation(length int) (kernel.Rotation, error)
	// DependsOnLength reports whether Rotation changes with length. Keys that
	// such a method rotated at one length do not fit queries rotated at
	// another: cache them before rotation (kernel.PreRoPE), or fix one length
	// for the life of a sequence.
	DependsOnLength() bool
}

// Base is what all methods share. The zero value of a field other than HeadDim
// means its usual value.
type Base struct {
	HeadDim   int     // features of a head
	RotaryDim int     // features rotated, even, the first of the head; 0: ⌊HeadDim·Partial⌋
	Partial   float64 // share of the head that is rotated ("partial_rotary_factor"); 0: 1
	Theta     float64 // the base θ of the frequencies; 0: 10000
	Layout    kernel.RotaryLayout
	MRoPE     MRoPE // several position axes; zero: one
	// CompatF32 rounds frequency, angle and table to float32 in turn, as the
	// Python implementations do with which models were trained; see the
	// package comment for what that costs at long positions.
	CompatF32 bool
}

const (
	defaultTheta = 10000
	maxFloat     = math.MaxFloat64
)

// DependsOnLength returns false. Methods that depend on it say so themselves.
func (b Base) DependsOnLength() bool { return false }

func (b Base) theta() float64 {
	if b.Theta == 0 {
		return defaultTheta
	}
	return b.Theta
}

func (b Base) partial() float64 {
	if b.Partial == 0 {
		return 1
	}
	return b.Partial
}

// dim is the number of features rotated.
func (b Base) dim() int {
	if b.RotaryDim != 0 {
		return b.RotaryDim
	}
	return int(float64(b.HeadDim) * b.partial())
}

// validate checks the fields of Base; the caller goes on with its own.
func (b Base) validate(method string, length int) *check {
	c := &check{method: method}
	if b.HeadDim < 2 || b.HeadDim > kernel.MaxHeadDim {
		c.fail("HeadDim", b.HeadDim, fmt.Sprintf("2 to %d", kernel.MaxHeadDim))
		return c
	}
	if !(b.partial() > 0 && b.partial() <= 1) {
		c.fail("Partial", b.Partial, "above 0, at most 1")
		return c
	}
	if d := b.dim(); d < 2 || d > b.HeadDim || d%2 != 0 {
		c.fail("RotaryDim", d, fmt.Sprintf("even, 2 to HeadDim %d", b.HeadDim))
	} else if b.RotaryDim != 0 && b.Partial != 0 && int(math.Round(float64(b.HeadDim)*b.Partial)) != b.RotaryDim {
		c.fail("Partial", b.Partial, fmt.Sprintf("0, or RotaryDim/HeadDim = %d/%d", b.RotaryDim, b.HeadDim))
	}
	if !(b.theta() > 1 && b.theta() <= maxFloat) {
		c.fail("Theta", b.Theta, "a finite number above 1")
	}
	if b.Layout != kernel.HalfSplit && b.Layout != kernel.Interleaved {
		c.fail("Layout", b.Layout, "half-split or interleaved")
	}
	if length < 0 {
		c.fail("length", length, "0 or more tokens")
	}
	return c
}

// frequencies are θ^(−2i/d) for i = 0 … d/2−1.
func frequencies(d int, theta float64) []float64 {
	f := make([]float64, d/2)
	for i := range f {
		f[i] = xmath.Pow(theta, -float64(2*i)/float64(d))
	}
	return f
}

// ntkBase is θ·s^(d/(d−2)), the base with which the lowest frequency of d
// features is divided by s and the highest is kept.
func ntkBase(theta, s float64, d int) float64 {
	return theta * xmath.Pow(s, float64(d)/float64(d-2))
}

// pairsForNTK refuses the one pair whose exponent d/(d−2) would divide by 0.
func (c *check) pairsForNTK(b Base) {
	if c.err == nil && b.dim() < 4 {
		c.fail("RotaryDim", b.dim(), "4 or more")
	}
}

// lower makes the Rotation. The frequencies are given for all pairs, so their
// number is half of the features rotated.
func (b Base) lower(method string, f []float64, factor float64) (kernel.Rotation, error) {
	for i, x := range f {
		if !(x >= 0 && x <= maxFloat) {
			return kernel.Rotation{}, &ValueError{method, fmt.Sprintf("the frequency of pair %d", i), fmt.Sprint(x), "finite: a parameter is too large"}
		}
	}
	if !(factor > 0 && factor <= math.MaxFloat32) {
		return kernel.Rotation{}, &ValueError{method, "the attention factor", fmt.Sprint(factor), "above 0 and a float32"}
	}
	axis, err := b.MRoPE.axes(method, len(f))
	if err != nil {
		return kernel.Rotation{}, err
	}
	return kernel.Rotation{
		Dim: 2 * len(f), Layout: b.Layout, InvFreq: f,
		Factor: factor, ScoreScale: 1, Axis: axis, CompatF32: b.CompatF32,
	}, nil
}

// scaled divides every frequency by s.
func scaled(f []float64, s float64) []float64 {
	for i := range f {
		f[i] /= s
	}
	return f
}
