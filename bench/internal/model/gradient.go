package model

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Gradient computes the loss of a model and its gradient, that of attention by
// the library's Backward. It serves one goroutine at a time.
type Gradient struct {
	model     *Model
	attention *attention.Attention
	slopes    tensor.View
	grad      *Model

	layers     []activations
	x, normed  []float32 // of the output norm
	rstd       []float32
	logits     []float32 // after Loss: the gradient of the loss to them
	dx, dn     []float32
	dact, dgu  []float32
	turned     [2][]float32
	datt, dqkv []float32
	rows       int
	inputs     []int32
	predicted  []int32
	rowLoss    []float64
}

// activations are what a layer's backward needs of its forward.
type activations struct {
	in, mid         []float32 // [rows, Dim] before attention and before the MLP
	inRstd, midRstd []float32
	inNorm, midNorm []float32
	qkv, attended   []float32
	lse             []float32 // [rows, Heads]
	gateUp, act     []float32
}

// NewGradient makes a Gradient of m, whose weights may change between calls.
func NewGradient(m *Model, b kernel.Backend, policy kernel.Policy, how Attending) (*Gradient, error) {
	if err := how.everyLayerAlike(); err != nil {
		return nil, err
	}
	c := m.Config.attention(policy, how)
	c.Backward = true
	a, err := attention.New(b, c)
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	return &Gradient{
		model: m, attention: a, slopes: slopesView(how), grad: blank(m.Config), layers: make([]activations, m.Config.Layers),
	}, nil
}

// Close frees what the kernel holds.
func (g *Gradient) Close() error { return g.attention.Close() }

// Params are the gradients of Model.Params, in their order, after Backward.
func (g *Gradient) Params() []*Param { return g.grad.Params() }

// Predicted is the likeliest next token after each input, sequence by
// sequence, after Loss.
func (g *Gradient) Predicted() []int32 { return g.predicted }

// Losses is the cross-entropy in nats of each target, after Loss.
func (g *Gradient) Losses() []float64 { return g.rowLoss }

// Loss is the mean cross-entropy in nats of the targets, weighted. Targets and
// weights have one element for each input token, sequence by sequence.
func (g *Gradient) Loss(inputs [][]int32, targets []int32, weights []float32) (float64, error) {
	if err := g.start(inputs, targets, weights); err != nil {
		return 0, err
	}
	m, c := g.model, &g.model.Config
	for i := range m.Layers {
		if err := g.forward(&m.Layers[i], &g.layers[i]); err != nil {
			return 0, fmt.Errorf("model: layer %d: %w", i, err)
		}
	}
	g.normed, g.rstd = resize(g.normed, g.rows*c.Dim), resize(g.rstd, g.rows)
	g.logits = resize(g.logits, g.rows*c.Vocab)
	rmsNorm(g.normed, g.x, g.rstd, m.Norm, c.Epsilon)
	linear(g.logits, g.normed, g.rows, m.Embed)
	return g.crossEntropy(targets, weights), nil
}

// start checks the arguments, plans, and looks up the embeddings.
func (g *Gradient) start(inputs [][]int32, targets []int32, weights []float32) error {
	e := g.model.Embed
	lens := make([]int, len(inputs))
	g.inputs = g.inputs[:0]
	for i, s := range inputs {
		lens[i] = len(s)
		g.inputs = append(g.inputs, s...)
	}
	g.rows = len(g.inputs)
	if len(targets) != g.rows || len(weights) != g.rows || g.rows == 0 {
		return fmt.Errorf("model: Loss: %d targets and %d weights, want as many as %d inputs, at least 1", len(targets), len(weights), g.rows)
	}
	g.x = resize(g.x, g.rows*e.Cols)
	for r, t := range g.inputs {
		if t < 0 || int(t) >= e.Rows || targets[r] < 0 || int(targets[r]) >= e.Rows {
			return fmt.Errorf("model: Loss: token %d with target %d, want 0 to %d", t, targets[r], e.Rows-1)
		}
		copy(g.x[r*e.Cols:], e.Data[int(t)*e.Cols:][:e.Cols])
	}
	if err := g.attention.Plan(attention.Step{QueryLens: lens}); err != nil {
		return fmt.Errorf("model: %w", err)
	}
	return nil
}

// forward runs a layer on x and keeps what backward needs.
func (g *Gradient) forward(l *Layer, a *activations) error {
	c, n := &g.model.Config, g.rows
	wide := c.Heads * c.HeadDim
	a.in, a.inNorm, a.inRstd = resize(a.in, n*c.Dim), resize(a.inNorm, n*c.Dim), resize(a.inRstd, n)
	a.mid, a.midNorm, a.midRstd = resize(a.mid, n*c.Dim), resize(a.midNorm, n*c.Dim), resize(a.midRstd, n)
	a.qkv, a.attended, a.lse = resize(a.qkv, n*c.qkv()), resize(a.attended, n*wide), resize(a.lse, n*c.Heads)
	a.gateUp, a.act = resize(a.gateUp, n*2*c.FF), resize(a.act, n*c.FF)

	copy(a.in, g.x)
	rmsNorm(a.inNorm, a.in, a.inRstd, l.AttnNorm, c.Epsilon)
	linear(a.qkv, a.inNorm, n, l.QKV)
	var args kernel.Args
	args.Query, args.Key, args.Value = c.split(a.qkv, n)
	args.Out, args.LSE = c.heads(a.attended, n), tensor.FromF32(a.lse, int64(n), int64(c.Heads))
	args.Slopes = g.slopes
	if err := g.attention.Run(&args); err != nil {
		return err
	}
	addLinear(g.x, a.attended, n, l.Out)

	copy(a.mid, g.x)
	rmsNorm(a.midNorm, a.mid, a.midRstd, l.MLPNorm, c.Epsilon)
	linear(a.gateUp, a.midNorm, n, l.GateUp)
	swiGLU(a.act, a.gateUp, n, c.FF)
	addLinear(g.x, a.act, n, l.Down)
	return nil
}

func (c *Config) heads(data []float32, rows int) tensor.View {
	return tensor.FromF32(data, int64(rows), int64(c.Heads), int64(c.HeadDim))
}

// crossEntropy turns logits into the gradient of the weighted mean loss to
// them, and returns the loss.
func (g *Gradient) crossEntropy(targets []int32, weights []float32) float64 {
	v := g.model.Config.Vocab
	g.predicted, g.rowLoss = resize(g.predicted, g.rows), resize(g.rowLoss, g.rows)
	whole := 0.0
	for _, w := range weights {
		whole += float64(w)
	}
	parallel(g.rows, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			row, top := g.logits[r*v:][:v], 0
			for i, x := range row {
				if x > row[top] {
					top = i
				}
			}
			most, sum := row[top], 0.0
			for _, x := range row {
				sum += math.Exp(float64(x - most))
			}
			g.predicted[r] = int32(top)
			g.rowLoss[r] = math.Log(sum) + float64(most-row[targets[r]])
			scale := float64(weights[r]) / whole
			for i, x := range row {
				row[i] = float32(math.Exp(float64(x-most)) / sum * scale)
			}
			row[targets[r]] -= float32(scale)
		}
	})
	loss := 0.0
	for r, x := range g.rowLoss {
		loss += x * float64(weights[r]) / whole
	}
	return loss
}

// Backward computes the gradient of the last Loss, once.
func (g *Gradient) Backward() error {
	m, c, n := g.model, &g.model.Config, g.rows
	for _, p := range g.grad.Params() {
		clear(p.Data)
	}
	g.dx, g.dn = resize(g.dx, n*c.Dim), resize(g.dn, n*c.Dim)
	clear(g.dx)
	g.linearBackward(g.dn, g.logits, g.normed, m.Embed, g.grad.Embed)
	g.normBackward(g.dn, g.x, g.rstd, m.Norm, g.grad.Norm)
	for i := len(m.Layers) - 1; i >= 0; i-- {
		if err := g.backward(&m.Layers[i], &g.grad.Layers[i], &g.layers[i]); err != nil {
			return fmt.Errorf("model: layer %d: %w", i, err)
		}
	}
	for r, t := range g.inputs {
		to := g.grad.Embed.Data[int(t)*c.Dim:][:c.Dim]
		for i, d := range g.dx[r*c.Dim:][:c.Dim] {
			to[i] += d
		}
	}
	return nil
}

// backward turns dx, the gradient to a layer's output, into that to its input.
func (g *Gradient) backward(l, grad *Layer, a *activations) error {
	c, n := &g.model.Config, g.rows
	g.dact, g.dgu = resize(g.dact, n*c.FF), resize(g.dgu, n*2*c.FF)
	g.linearBackward(g.dact, g.dx, a.act, l.Down, grad.Down)
	swiGLUBackward(g.dgu, g.dact, a.gateUp, n, c.FF)
	g.linearBackward(g.dn, g.dgu, a.midNorm, l.GateUp, grad.GateUp)
	g.normBackward(g.dn, a.mid, a.midRstd, l.MLPNorm, grad.MLPNorm)

	g.datt, g.dqkv = resize(g.datt, n*c.Heads*c.HeadDim), resize(g.dqkv, n*c.qkv())
	g.linearBackward(g.datt, g.dx, a.attended, l.Out, grad.Out)
	var args kernel.BackwardArgs
	args.Query, args.Key, args.Value = c.split(a.qkv, n)
	args.Out, args.LSE = c.heads(a.attended, n), tensor.FromF32(a.lse, int64(n), int64(c.Heads))
	args.DOut = c.heads(g.datt, n)
	args.DQuery, args.DKey, args.DValue = c.split(g.dqkv, n)
	args.Slopes = g.slopes
	if err := g.attention.Backward(&args); err != nil {
		return err
	}
	g.linearBackward(g.dn, g.dqkv, a.inNorm, l.QKV, grad.QKV)
	g.normBackward(g.dn, a.in, a.inRstd, l.AttnNorm, grad.AttnNorm)
	return nil
}

// linearBackward sets dx = dy·w and adds dyᵀ·x to grad. Factors are transposed
// first: the product with the second factor transposed takes dot products of
// rows and is the fastest of gonum's by half.
func (g *Gradient) linearBackward(dx, dy, x []float32, w, grad *Param) {
	in, out, n := w.Cols, w.Rows, g.rows
	wt := g.transposed(&g.turned[0], w.Data, out, in)
	blas32.Gemm(blas.NoTrans, blas.Trans, 1, general(dy, n, out), wt, 0, general(dx, n, in))
	dyt, xt := g.transposed(&g.turned[0], dy, n, out), g.transposed(&g.turned[1], x, n, in)
	blas32.Gemm(blas.NoTrans, blas.Trans, 1, dyt, xt, 1, general(grad.Data, out, in))
}

// transposed writes the transpose of x [rows, cols] to scratch.
func (g *Gradient) transposed(scratch *[]float32, x []float32, rows, cols int) blas32.General {
	*scratch = resize(*scratch, rows*cols)
	y := *scratch
	parallel(cols, func(lo, hi int) {
		const tile = 16
		for r0 := 0; r0 < rows; r0 += tile {
			for c := lo; c < hi; c++ {
				for r := r0; r < min(r0+tile, rows); r++ {
					y[c*rows+r] = x[r*cols+c]
				}
			}
		}
	})
	return general(y, cols, rows)
}

// normBackward adds the gradient to the input x of an RMSNorm, given that to
// its output, to g.dx, and the gradient to its weights to grad:
//
//	dx_i = r·(w_i·dy_i − x_i·r²·mean_j(w_j·dy_j·x_j)),  r = 1/√(mean x² + eps)
func (g *Gradient) normBackward(dy, x, rstd []float32, w, grad *Param) {
	n := w.Cols
	parallel(g.rows, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			xr, dyr, to := x[r*n:][:n], dy[r*n:][:n], g.dx[r*n:][:n]
			dot := 0.0
			for i, v := range xr {
				dot += float64(w.Data[i]*dyr[i]) * float64(v)
			}
			s := rstd[r]
			k := float32(dot / float64(n) * float64(s) * float64(s))
			for i, v := range xr {
				to[i] += s * (w.Data[i]*dyr[i] - v*k)
			}
		}
	})
	for r := range g.rows { // one goroutine: the order of the sum must not depend on their number
		for i, v := range x[r*n:][:n] {
			grad.Data[i] += dy[r*n+i] * v * rstd[r]
		}
	}
}

// swiGLUBackward sets dgu to the gradient to (g, u), given da, that to
// silu(g)·u.
func swiGLUBackward(dgu, da, gu []float32, rows, n int) {
	parallel(rows, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			gate, up := gu[2*r*n:][:n], gu[(2*r+1)*n:][:n]
			dgate, dup := dgu[2*r*n:][:n], dgu[(2*r+1)*n:][:n]
			for i, d := range da[r*n:][:n] {
				s := sigmoid(gate[i])
				dup[i] = d * gate[i] * s
				dgate[i] = d * up[i] * s * (1 + gate[i]*(1-s))
			}
		}
	})
}
