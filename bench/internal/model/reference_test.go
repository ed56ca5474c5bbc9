package model

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
)

// reference is the model in float64, token by token and as plain as can be: the
// differences of its loss are exact enough to see a gradient off by 10⁻⁵.
type reference struct {
	c       Config
	weights map[string][]float64
}

func newReference(m *Model) *reference {
	r := &reference{m.Config, map[string][]float64{}}
	for _, p := range m.Params() {
		for _, v := range p.Data {
			r.weights[p.Name] = append(r.weights[p.Name], float64(v))
		}
	}
	return r
}

func (r *reference) norm(x []float64, name string) []float64 {
	sum := 0.0
	for _, v := range x {
		sum += v * v
	}
	y, w := make([]float64, len(x)), r.weights[name]
	for i := range x {
		y[i] = x[i] / math.Sqrt(sum/float64(len(x))+r.c.Epsilon) * w[i]
	}
	return y
}

func (r *reference) linear(x []float64, name string) []float64 {
	w := r.weights[name]
	y := make([]float64, len(w)/len(x))
	for o := range y {
		for i, v := range x {
			y[o] += w[o*len(x)+i] * v
		}
	}
	return y
}

func (r *reference) rotate(x []float64, position int) {
	half := len(x) / 2
	for i := range half {
		sin, cos := math.Sincos(float64(position) * math.Pow(r.c.Base, -float64(i)/float64(half)))
		a, b := x[i], x[i+half]
		x[i], x[i+half] = a*cos-b*sin, b*cos+a*sin
	}
}

// attend is what head h of token t takes from the tokens up to it.
func (r *reference) attend(qkv [][]float64, t, h int) []float64 {
	dim := r.c.HeadDim
	kv := r.c.Heads + h/(r.c.Heads/r.c.KVHeads)
	out, sum := make([]float64, dim), 0.0
	for j := range t + 1 {
		s := 0.0
		for d := range dim {
			s += qkv[t][h*dim+d] * qkv[j][kv*dim+d]
		}
		p := math.Exp(s / math.Sqrt(float64(dim)))
		sum += p
		for d := range dim {
			out[d] += p * qkv[j][(kv+r.c.KVHeads)*dim+d]
		}
	}
	for d := range out {
		out[d] /= sum
	}
	return out
}

func (r *reference) layer(x [][]float64, prefix string) {
	add := func(x, y []float64) {
		for i, v := range y {
			x[i] += v
		}
	}
	qkv := make([][]float64, len(x))
	for t := range x {
		qkv[t] = r.linear(r.norm(x[t], prefix+"attn_norm"), prefix+"qkv")
		for h := range r.c.Heads + r.c.KVHeads {
			r.rotate(qkv[t][h*r.c.HeadDim:][:r.c.HeadDim], t)
		}
	}
	for t := range x {
		var y []float64
		for h := range r.c.Heads {
			y = append(y, r.attend(qkv, t, h)...)
		}
		add(x[t], r.linear(y, prefix+"out"))
		gu := r.linear(r.norm(x[t], prefix+"mlp_norm"), prefix+"gate_up")
		g, u := gu[:r.c.FF], gu[r.c.FF:]
		for i, v := range g {
			g[i] = v / (1 + math.Exp(-v)) * u[i]
		}
		add(x[t], r.linear(g, prefix+"down"))
	}
}

func (r *reference) loss(inputs [][]int32, targets []int32, weights []float32) float64 {
	loss, whole, at := 0.0, 0.0, 0
	for _, s := range inputs {
		x := make([][]float64, len(s))
		for t, token := range s {
			x[t] = append(x[t], r.weights["embed"][int(token)*r.c.Dim:][:r.c.Dim]...)
		}
		for l := range r.c.Layers {
			r.layer(x, fmt.Sprintf("layers.%d.", l))
		}
		for t := range s {
			logits, sum := r.linear(r.norm(x[t], "norm"), "embed"), 0.0
			for _, v := range logits {
				sum += math.Exp(v)
			}
			loss += float64(weights[at]) * (math.Log(sum) - logits[targets[at]])
			whole += float64(weights[at])
			at++
		}
	}
	return loss / whole
}

// Single coordinates of every weight, against differences of the reference.
func TestGradientIsThatOfTheReference(t *testing.T) {
	c := tiny()
	for _, policy := range []kernel.Policy{kernel.Exact, kernel.Fast} {
		m := loud(t, c, 7)
		random := rand.New(rand.NewPCG(1, 1))
		g, err := NewGradient(m, newBackend(t), policy, Attending{Mask: attention.Causal(), Rotary: rotary(c)})
		if err != nil {
			t.Fatal(err)
		}
		inputs := [][]int32{randomTokens(random, 11), randomTokens(random, 16), randomTokens(random, 1)}
		targets, weights := randomTokens(random, 28), make([]float32, 28)
		for i := range weights {
			weights[i] = float32(i % 4)
		}
		loss, err := g.Loss(inputs, targets, weights)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Backward(); err != nil {
			t.Fatal(err)
		}
		ref := newReference(m)
		if want := ref.loss(inputs, targets, weights); math.Abs(loss-want) > 1e-6*want {
			t.Errorf("%v: loss %v, want %v", policy, loss, want)
		}
		for k, p := range m.Params() {
			grad, largest, worst := g.Params()[k].Data, 0.0, 0.0
			for _, v := range grad {
				largest = max(largest, math.Abs(float64(v)))
			}
			for trial := range 30 {
				i := random.IntN(len(grad))
				if p.Name == "embed" && trial%2 == 0 { // an embedding that is read, not only predicted
					i = int(inputs[trial%2][trial%11])*p.Cols + trial%p.Cols
				}
				const h = 1e-5
				x := ref.weights[p.Name]
				was := x[i]
				x[i] = was + h
				up := ref.loss(inputs, targets, weights)
				x[i] = was - h
				down := ref.loss(inputs, targets, weights)
				x[i] = was
				worst = max(worst, math.Abs((up-down)/(2*h)-float64(grad[i])))
			}
			if !(largest > 1e-4) || !(worst < 2e-5*largest) {
				t.Errorf("%v: %s is off by %g where the largest is %g", policy, p.Name, worst, largest)
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}
