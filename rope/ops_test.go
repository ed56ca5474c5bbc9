package rope_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// reference is a backend of one operation, in float64, written from
// kernel.RotateArgs and RotaryTable alone.
type reference struct{}

func (reference) AppendKV(*kernel.AppendArgs) error       { return errors.ErrUnsupported }
func (reference) CopyPages(*kernel.CopyArgs) error        { return errors.ErrUnsupported }
func (reference) GatherRows(*kernel.GatherArgs) error     { return errors.ErrUnsupported }
func (reference) EncodePages(*kernel.EncodeArgs) error    { return errors.ErrUnsupported }
func (reference) Merge(*kernel.MergeArgs) error           { return errors.ErrUnsupported }
func (reference) PageBounds(*kernel.PageBoundsArgs) error { return errors.ErrUnsupported }
func (reference) PageScores(*kernel.PageScoresArgs) error { return errors.ErrUnsupported }
func (reference) RowScores(*kernel.RowScoresArgs) error   { return errors.ErrUnsupported }
func (reference) CodeScores(*kernel.CodeScoresArgs) error { return errors.ErrUnsupported }
func (reference) TopK(*kernel.TopKArgs) error             { return errors.ErrUnsupported }
func (reference) Scores(*kernel.ScoresArgs) error         { return errors.ErrUnsupported }
func (reference) ScoreLoss(*kernel.ScoreLossArgs) error   { return errors.ErrUnsupported }
func (reference) Rotate(a *kernel.RotateArgs) error {
	half := a.Dim / 2
	for t, row := range a.Rows {
		if row < 0 {
			continue
		}
		for h := range a.X.Shape[1] {
			for k := range half {
				i, j := pair(a.Layout, k, half)
				c, s := float64(a.Table.Cos[int(row)*half+k]), float64(a.Table.Sin[int(row)*half+k])
				if a.Inverse {
					s = -s
				}
				x, y := float64(a.X.At(int64(t), h, int64(i))), float64(a.X.At(int64(t), h, int64(j)))
				a.X.Set(float32(x*c-y*s), int64(t), h, int64(i))
				a.X.Set(float32(y*c+x*s), int64(t), h, int64(j))
			}
		}
	}
	return nil
}

func pair(l kernel.RotaryLayout, k, half int) (i, j int) {
	if l == kernel.Interleaved {
		return 2 * k, 2*k + 1
	}
	return k, k + half
}

// turn rotates one vector in float64, without Fill.
func turn(x []float64, r *kernel.Rotation, pos [3]float64, side kernel.Side) []float64 {
	y := append([]float64(nil), x...)
	for k, f := range r.InvFreq {
		p := pos[0]
		if r.Axis != nil {
			p = pos[r.Axis[k]]
		}
		a := r.Factor
		if r.Zeta != nil {
			e := p / r.ZetaBase
			if side == kernel.KeySide {
				e = -e
			}
			a *= math.Pow(r.Zeta[k], e)
		}
		s, c := math.Sincos(p * f)
		i, j := pair(r.Layout, k, r.Dim/2)
		y[i], y[j] = a*(x[i]*c-x[j]*s), a*(x[j]*c+x[i]*s)
	}
	return y
}

func at(p float64) [3]float64 { return [3]float64{p, p, p} }

func dot(x, y []float64) (s float64) {
	for i := range x {
		s += x[i] * y[i]
	}
	return s
}

func norm(x []float64) float64 { return math.Sqrt(dot(x, x)) }

func vector(r *rand.Rand, n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = r.NormFloat64()
	}
	return x
}

func random(r *rand.Rand, tokens, heads, dim int64) tensor.View {
	data := make([]float32, tokens*heads*dim)
	for i := range data {
		data[i] = float32(r.NormFloat64())
	}
	return tensor.FromF32(data, tokens, heads, dim)
}

func clone(v tensor.View) tensor.View {
	return tensor.FromF32(append([]float32(nil), v.F32s()...), v.Shape[0], v.Shape[1], v.Shape[2])
}

// distance is the largest difference of two tensors.
func distance(a, b tensor.View) (worst float64) {
	for i, x := range a.F32s() {
		d := math.Abs(float64(x) - float64(b.F32s()[i]))
		if !(d <= worst) { // NaN counts
			worst = d
		}
	}
	return worst
}

func apply(t *testing.T, x tensor.View, p rope.Positions, r kernel.Rotation) tensor.View {
	t.Helper()
	y := clone(x)
	if err := rope.Apply(reference{}, y, p, r, kernel.KeySide); err != nil {
		t.Fatal(err)
	}
	return y
}

func shift(t *testing.T, x tensor.View, delta rope.Positions, r kernel.Rotation) tensor.View {
	t.Helper()
	y := clone(x)
	if err := rope.Shift(reference{}, y, delta, r, kernel.KeySide); err != nil {
		t.Fatal(err)
	}
	return y
}

func lower(t *testing.T, m rope.Method, length int) kernel.Rotation {
	t.Helper()
	r, err := m.Rotation(length)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func count(from, n int32) []int32 {
	p := make([]int32, n)
	for i := range p {
		p[i] = from + int32(i)
	}
	return p
}

func ones(n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = 1 + float64(i)/8
	}
	return x
}

// everyMethod is each method with a partial rotation, three axes and the
// interleaved layout mixed in.
func everyMethod() []rope.Method {
	b := rope.Base{HeadDim: 64}
	neighbours := rope.Base{HeadDim: 64, Layout: kernel.Interleaved}
	partial := rope.Base{HeadDim: 64, Partial: 0.5}
	axes := rope.Base{HeadDim: 64, Theta: 1e6, MRoPE: rope.MRoPE{Sections: [3]int{8, 12, 12}}}
	dealt := rope.Base{HeadDim: 64, MRoPE: rope.MRoPE{Sections: [3]int{12, 10, 10}, Interleaved: true}}
	return []rope.Method{
		rope.Default{Base: b}, rope.Default{Base: partial}, rope.Default{Base: axes}, rope.Default{Base: dealt},
		rope.Linear{Base: neighbours, Factor: 8},
		rope.NTK{Base: b, Factor: 4}, rope.NTKAlpha{Base: b, Alpha: 1000}, rope.NTKFixed{Base: partial, Factor: 4},
		rope.NTKMixed{Base: b, Factor: 4},
		rope.DynamicNTK{Base: b, Factor: 2, MaxLength: 2048}, rope.DynamicNTK{Base: b, Factor: 2, MaxLength: 2048, AtMaxLength: true},
		rope.NTKByParts{Base: b, Factor: 4, OriginalLength: 2048},
		rope.YaRN{Base: neighbours, Factor: 16, OriginalLength: 4096}, rope.YaRN{Base: axes, Factor: 4, OriginalLength: 32768},
		rope.DynamicYaRN{Base: partial, OriginalLength: 2048},
		rope.LongRoPE{Base: b, Short: ones(32), Long: ones(32), OriginalLength: 4096, MaxLength: 131072},
		rope.Llama3{Base: b, Factor: 8, OriginalLength: 8192},
		rope.Proportional{Base: partial}, rope.XPos{Base: neighbours}, rope.XPos{Base: b},
		rope.Divided{Method: rope.Llama3{Base: b, Factor: 8, OriginalLength: 8192}, Factors: ones(32)},
	}
}

func tensorOf(n int64, shape []int64) tensor.View {
	return tensor.FromF32(make([]float32, n), shape...)
}
