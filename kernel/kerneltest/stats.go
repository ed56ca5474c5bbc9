package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// ColumnStats: how it is run, and what it should give, as real numbers, as a
// naive program has it, and by rule 15 of package kernel.

// observed reports whether query r of sequence s is among those summed over.
func (p *Problem) observed(s, r int) bool {
	return p.Window == 0 || r >= p.Step.QueryLens[s]-p.Window
}

func (w *row64) columnStats() {
	if !w.observed(w.s, w.r) {
		return
	}
	lse := w.ref.lse[w.token()*w.Config.Heads+w.h]
	for j, n := range w.terms {
		if n >= 0 {
			p := math.Exp(w.score[j] - lse)
			to, x := &w.ref.stats[(w.keyAt[w.s]+j)*w.Config.Heads+w.h], math.Pow(p, float64(w.Power))
			if w.Maximum {
				*to = max(*to, x)
			} else {
				*to += x
			}
		}
	}
}

// weightSlack is the relative error of a weight for a unit in the last place of
// LSE·log₂e: rule 15 rounds it twice, once as the LSE that Run leaves and once
// as an exponent of 2, which a naive program may do without an error.
func weightSlack(p *Problem, ref *reference) float64 {
	largest := 0.0
	for _, lse := range ref.lse {
		if finite(lse) {
			largest = max(largest, math.Abs(lse)*math.Log2E)
		}
	}
	return float64(p.Power) * math.Ln2 * unit(tensor.F32, largest)
}

// columnStats adds the weights of a row. lse is in the units of score.
func (n *naive) columnStats(s, r, h int, seen []int, score []float32, lse float32) {
	if !n.observed(s, r) {
		return
	}
	for k, j := range seen {
		p := n.exp(score[k] - lse)
		if n.Power == 2 {
			p *= p
		}
		to := &n.stats[(n.keyAt[s]+j)*n.Config.Heads+h]
		if n.Maximum {
			*to = max(*to, p)
		} else {
			*to += p
		}
	}
}

func (x *exact) columnStats() {
	c := &x.Config
	x.answer.stats = words{tensor.F32, make([]uint32, x.keys()*c.Heads)}
	for s := range x.Step.QueryLens {
		for head := range c.KVHeads {
			keys := x.rotatedTerms(s, head)
			for h := head * (c.Heads / c.KVHeads); h < (head+1)*(c.Heads/c.KVHeads); h++ {
				sums := make([]float32, x.Step.KeyLens[s])
				for r := range x.Step.QueryLens[s] {
					if x.observed(s, r) {
						x.addWeights(sums, s, r, h, head, keys)
					}
				}
				for j, v := range sums {
					x.answer.stats.bits[(x.keyAt[s]+j)*c.Heads+h] = math.Float32bits(v)
				}
			}
		}
	}
}

func (x *exact) addWeights(sums []float32, s, r, h, head int, keys [][][]float32) {
	at, i := (x.tokenAt[s]+r)*x.Config.Heads+h, x.index(s, r)
	lse := float32(x.answer.lse.value(at))
	if math.IsInf(float64(lse), -1) {
		return
	}
	queries := make([][]float32, len(x.terms))
	for n := range queries {
		queries[n] = x.turned(x.in.query[at*x.Config.HeadDim:][:x.Config.HeadDim], mapped(x.terms[n].PosQ, x.queryPos(s, r)), kernel.QuerySide, there)
	}
	for j := range sums {
		n := x.term(s, head, r, j)
		if n < 0 {
			continue
		}
		t, _ := x.score(s, h, i, j, queries[n], keys[n][j], x.scoreScale(n, i))
		w := kernel.Exp2(t - float32(lse*kernel.Log2E))
		if x.Power == 2 {
			w = float32(w * w)
		}
		if x.Maximum {
			sums[j] = max(sums[j], w) // NaN if one is
		} else {
			sums[j] += w
		}
	}
}

// columnStats runs ColumnStats on the LSE that Run left.
func (c *placed) columnStats(k *attention.Attention, a *answer) error {
	p := c.problem
	c.lse.output = false
	s := kernel.ColumnStatsArgs{Query: c.args.Query, Key: c.args.Key, KeyScale: c.args.KeyScale, CodedKey: c.args.CodedKey, ScoreArgs: c.args.ScoreArgs,
		Power: p.Power, Window: p.Window, Maximum: p.Maximum}
	out, err := c.put("ColumnStats", tensor.F32, c.layout, true, true, int64(p.keys()), int64(p.Config.Heads))
	if err != nil {
		return err
	}
	if err := c.hands([]*block{c.lse, out}, &s.LSE, &s.Out); err != nil {
		return err
	}
	if err := k.ColumnStats(&s); err != nil {
		return fmt.Errorf("ColumnStats: %w", err)
	}
	if err := c.take(); err != nil {
		return err
	}
	a.stats = out.words()
	return nil
}

// columnStats draws whether ColumnStats is called, and how.
func (d *drawn) columnStats(p *Problem) {
	if !d.chance(20) {
		return
	}
	p.Config.ColumnStats, p.WithoutLSE = true, false
	p.Power, p.Maximum = 1+d.below(2), d.chance(25)
	if d.chance(60) {
		p.Window = one(d, 1, 2, 16, 32, 128, 1+d.below(200))
	}
}
