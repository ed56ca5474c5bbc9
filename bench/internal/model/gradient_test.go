package model

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
)

// Each kind of weight is moved along its gradient, and along a random
// direction: the loss must change as the gradient says.
func TestGradientMatchesDifferences(t *testing.T) {
	c := tiny()
	m := loud(t, c, 7)
	r := rand.New(rand.NewPCG(1, 1))
	how := Attending{Mask: attention.Causal(), Rotary: rotary(c), Position: attention.ReRoPE{Window: 5}}
	g, err := NewGradient(m, newBackend(t), kernel.Exact, how)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	inputs := [][]int32{randomTokens(r, 11), randomTokens(r, 16)}
	targets := randomTokens(r, 27)
	weights := make([]float32, 27)
	for i := range weights {
		weights[i] = float32(i % 4)
	}
	loss := func() float64 {
		l, err := g.Loss(inputs, targets, weights)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	loss()
	if err := g.Backward(); err != nil {
		t.Fatal(err)
	}
	for k, p := range m.Params() {
		grad := append([]float32(nil), g.Params()[k].Data...)
		for trial := range 3 {
			direction, norm := make([]float64, len(grad)), 0.0
			for i := range direction {
				if direction[i] = r.NormFloat64(); trial == 0 {
					direction[i] = float64(grad[i])
				} else if trial == 2 {
					direction[i] += 30 * math.Copysign(math.Abs(direction[i]), float64(grad[i]))
				}
				norm += direction[i] * direction[i]
			}
			norm = math.Sqrt(norm)
			want := 0.0
			for i := range direction {
				direction[i] /= norm
				want += direction[i] * float64(grad[i])
			}
			step := 2e-3
			before := append([]float32(nil), p.Data...)
			at := func(h float64) float64 {
				for i := range p.Data {
					p.Data[i] = before[i] + float32(h*direction[i])
				}
				return loss()
			}
			// fourth-order difference
			got := (8*(at(step)-at(-step)) - (at(2*step) - at(-2*step))) / (12 * step)
			copy(p.Data, before)
			if diff := math.Abs(got - want); diff > 0.01*math.Abs(want)+1e-3 {
				t.Errorf("%s direction %d: the loss changes by %g a unit, the gradient says %g", p.Name, trial, got, want)
			}
			if trial == 0 && want < 0.01 {
				t.Errorf("%s has a gradient of norm %g: this test cannot fail", p.Name, want)
			}
		}
	}
}

func TestAdamWFirstStepIsTheRate(t *testing.T) {
	c := tiny()
	m, g := loud(t, c, 1), loud(t, c, 2)
	before := append([]float32(nil), m.Norm.Data...)
	o := NewAdamW(m)
	if _, err := o.Step(m.Params(), g.Params(), 0.01); err != nil {
		t.Fatal(err)
	}
	for i, x := range m.Norm.Data { // no decay; the first step is the rate times the sign
		want := before[i] - float32(math.Copysign(0.01, float64(g.Norm.Data[i])))
		if math.Abs(float64(x-want)) > 1e-5 {
			t.Fatalf("weight %d is %g, want %g", i, x, want)
		}
	}
	g.Norm.Data[3] = float32(math.NaN())
	before = append(before[:0], m.Norm.Data...)
	if _, err := o.Step(m.Params(), g.Params(), 0.01); err == nil || apart(before, m.Norm.Data) != 0 {
		t.Errorf("a NaN in the gradient: %v", err)
	}
}

func TestBadBatchesAreErrors(t *testing.T) {
	c := tiny()
	g, err := NewGradient(loud(t, c, 1), newBackend(t), kernel.Exact, Attending{Mask: attention.Causal(), Rotary: rotary(c)})
	if err != nil {
		t.Fatal(err)
	}
	one := []float32{1}
	for _, b := range []struct {
		in      [][]int32
		targets []int32
		weights []float32
	}{{nil, nil, nil}, {[][]int32{{1}}, nil, one}, {[][]int32{{1}}, []int32{1}, nil}, {[][]int32{{257}}, []int32{1}, one}, {[][]int32{{1}}, []int32{-1}, one}} {
		if _, err := g.Loss(b.in, b.targets, b.weights); err == nil {
			t.Errorf("%v: no error", b)
		}
	}
}
