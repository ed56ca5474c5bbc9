package kerneltest

import (
	"fmt"
	"math"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// TestScanGradients: the gradients of the oracle are the slopes of its outputs
// and states.
func TestScanGradients(t *testing.T) {
	for _, k := range scanKinds {
		c := &scanCase{lens: []int{4, 0, 3}, heads: 4, keyHeads: 2, keyDim: 3, valueDim: 2, dtype: tensor.F32, gate: k.gate, beta: k.beta, bonus: k.bonus}
		x, r := c.data(1), newRandom(3, 4)
		x.from, x.to = []int32{0, -1, 2}, []int32{3, 4, 5}
		dout, last := make([]float64, len(x.v)), make([]float64, len(c.lens)*c.stateLen())
		for _, y := range [][]float64{dout, last} {
			for i := range y {
				y[i] = r.normal()
			}
		}
		loss := func() (sum float64) {
			out, state := stepScan[float64](c, x)
			for i, y := range out {
				sum += y * dout[i]
			}
			for i, y := range last {
				sum += y * state[3*c.stateLen()+i]
			}
			return sum
		}
		g := stepScanBackward[float64](c, x, dout, last)
		var bonus []float64
		for i := range x.bonus {
			bonus = append(bonus, g.bonus[i]+g.bonus[len(x.bonus)+i]+g.bonus[2*len(x.bonus)+i])
		}
		for _, p := range []struct {
			name    string
			x, want []float64
		}{
			{"query", x.q, g.q}, {"key", x.k, g.k}, {"value", x.v, g.v}, {"gate", x.gate, g.gate}, {"beta", x.beta, g.beta}, {"bonus", x.bonus, bonus},
			{"first state", x.state[:c.stateLen()], g.first[:c.stateLen()]}, {"first state of the last", x.state[2*c.stateLen():][:c.stateLen()], g.first[2*c.stateLen():]},
		} {
			for i, y := range p.x {
				const step = 1e-5
				p.x[i] = y + step
				up := loss()
				p.x[i] = y - step
				got := (up - loss()) / (2 * step)
				p.x[i] = y
				if math.Abs(got-p.want[i]) > 1e-6*(1+math.Abs(got)) {
					t.Fatalf("%s: gradient %d of %s is %v, the slope %v", k.name, i, p.name, p.want[i], got)
				}
			}
		}
	}
}

// randomScan is a small case of any shape and kind.
func randomScan(seed uint64) (scanCase, Layout) {
	r := newRandom(seed, 79)
	k := scanKinds[r.below(len(scanKinds))]
	c := scanCase{
		keyHeads: 1 + r.below(3), keyDim: 1 + r.below(40), valueDim: 1 + r.below(40), dtype: allTypes()[r.below(3)],
		gate: k.gate, beta: k.beta, bonus: k.bonus, edge: r.below(2) == 1,
	}
	c.heads = c.keyHeads * (1 + r.below(4))
	for range 1 + r.below(4) {
		c.lens = append(c.lens, r.below([]int{3, 20, 140}[r.below(3)]))
	}
	return c, layouts[r.below(len(layouts))]
}

// TestRandomScans: recurrences of any shape and kind, and their gradients.
func TestRandomScans(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 2})
	defer b.Close()
	seeds := uint64(50)
	if testing.Short() {
		seeds = 12
	}
	for seed := range seeds {
		c, l := randomScan(seed)
		for _, policy := range []kernel.Policy{kernel.Exact, kernel.Fast} {
			r := Result{Case: fmt.Sprintf("seed %d: %+v", seed, c), Policy: policy}
			x := &trial{backend: b, policy: policy, result: &r}
			if err := guard(func() error { x.scan(&c, seed, l); x.scanBackward(&c, seed, l); return nil }); err != nil {
				x.fail(err)
			}
			if !r.OK() {
				t.Error(&r)
			}
		}
	}
}

// TestScansAreOptional: a backend that is no Scanner refuses with reasons, and
// fails no case.
func TestScansAreOptional(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	for _, c := range Cases() {
		if c.Op == "scan" || c.Op == "scanbackward" {
			r := Check(struct{ kernel.Backend }{b}, c, kernel.Exact)
			if skip, fail := r.verdict(false); skip == "" || fail != "" {
				t.Errorf("%s: skipped %q, failed %q", c.Name, skip, fail)
			}
		}
	}
}
