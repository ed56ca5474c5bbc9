package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
)

// geometry answers, pair by pair and from the definitions, which keys a query
// sees and where both are rotated to. It calls nothing of kernel or attention
// but the modules' own Terms and Rotation.
type geometry struct {
	*Problem
	terms    []attention.Term
	rotation kernel.Rotation // Dim 0: none
	tokenAt  []int           // first query token of each sequence
	keyAt    []int           // first key of each sequence, in the order of inputs
}

func newGeometry(p *Problem) (*geometry, error) {
	g := &geometry{Problem: p}
	t, k, longest := 0, 0, 1
	for s, n := range p.Step.QueryLens {
		g.tokenAt, g.keyAt = append(g.tokenAt, t), append(g.keyAt, k)
		t, k, longest = t+n, k+p.Step.KeyLens[s], max(longest, p.Step.KeyLens[s])
	}
	if p.Step.Length > 0 {
		longest = p.Step.Length
	}
	var err error
	if g.terms, err = p.Config.Position.Terms(longest); err != nil {
		return nil, err
	}
	if p.Config.Rotary != nil {
		g.rotation, err = p.Config.Rotary.Rotation(longest)
	}
	return g, err
}

// index is the query index of query r of sequence s.
func (g *geometry) index(s, r int) int { return g.Step.KeyLens[s] - g.Step.QueryLens[s] + r }

// term is the Term that joins query r and key j of sequence s for KV head
// head, or −1 if the query does not see the key.
func (g *geometry) term(s, head, r, j int) int {
	i, seen := g.index(s, r), 0
	for n := range g.Config.Mask.Regions {
		if g.holds(&g.Config.Mask.Regions[n], s, i, j) {
			seen++
		}
	}
	if seen > 1 {
		panic(fmt.Sprintf("kerneltest: internal error: mask regions overlap at (%d, %d)", i, j))
	}
	if seen == 0 || !g.restricted(s, head, r, j) {
		return -1
	}
	found := -1
	for n := range g.terms {
		if g.holds(&g.terms[n].Region, s, i, j) {
			if found >= 0 {
				panic(fmt.Sprintf("kerneltest: internal error: terms overlap at (%d, %d)", i, j))
			}
			found = n
		}
	}
	return found
}

func (g *geometry) holds(r *kernel.Region, s, i, j int) bool {
	if !within(r.Diff, i-j) || !within(r.Key, j) {
		return false
	}
	if r.Prefix && j >= g.Step.PrefixLens[s] {
		return false
	}
	for _, c := range r.Chunk {
		if c.Size > 0 && !within(c.Range, floor(i, int(c.Size))-floor(j, int(c.Size))) {
			return false
		}
	}
	return true
}

func within(r kernel.Range, x int) bool {
	return (x >= int(r.Lo) || r.Lo == math.MinInt32) && (x < int(r.Hi) || r.Hi == math.MaxInt32)
}

func floor(a, b int) int { return int(math.Floor(float64(a) / float64(b))) }

// restricted is the conjunction of the masks that come as data.
func (g *geometry) restricted(s, head, r, j int) bool {
	kinds, i, n := g.Config.Mask.Kinds, g.index(s, r), g.Step.QueryLens[s]
	if kinds&kernel.MaskDocument != 0 {
		d := g.Step.Documents[g.keyAt[s]:]
		if d[i] != d[j] {
			return false
		}
	}
	if kinds&kernel.MaskTree != 0 {
		if c := j - (g.Step.KeyLens[s] - n); c >= 0 {
			words := (n + 63) / 64
			w := g.Step.Tree.Bits[int(g.Step.Tree.Start[s])+r*words+c/64]
			if w>>(c%64)&1 == 0 {
				return false
			}
		}
	}
	if kinds&kernel.MaskBlocks != 0 {
		b := &g.Step.Blocks
		first, last := floor(g.index(s, 0), int(b.QueryBlock)), floor(g.index(s, n-1), int(b.QueryBlock))
		row := int(b.RowStart[s]) + floor(i, int(b.QueryBlock)) - first
		if b.PerHead {
			row += head * (last - first + 1)
		}
		for _, k := range b.Indices[b.Indptr[row]:b.Indptr[row+1]] {
			if int(k) == floor(j, int(b.KeyBlock)) {
				return true
			}
		}
		return false
	}
	return true
}

// queryPos is the position of query r of sequence s, before a PosMap: its own,
// or that of its key.
func (g *geometry) queryPos(s, r int) int {
	if g.Step.QueryPos != nil {
		return int(g.Step.QueryPos[g.tokenAt[s]+r])
	}
	return g.keyPos(s, g.index(s, r))
}

func (g *geometry) keyPos(s, j int) int {
	if g.Step.KeyPos != nil && !g.Step.ByRank {
		return int(g.Step.KeyPos[g.keyAt[s]+j])
	}
	return j
}

// mapped is p(x) = clamp(Slope·⌊(x mod Mod)/Div⌋ + Offset, Lo, Hi).
func mapped(m attention.PosMap, x int) float64 {
	if m.Mod > 0 {
		x = ((x % int(m.Mod)) + int(m.Mod)) % int(m.Mod)
	}
	if m.Div > 1 {
		x = floor(x, int(m.Div))
	}
	p := float64(m.Slope*float64(x)) + m.Offset
	if p > m.Hi {
		p = m.Hi
	}
	if p < m.Lo {
		p = m.Lo
	}
	return p
}

// pair names the two features of pair k of the rotation.
func (g *geometry) pair(k int) (a, b int) {
	if g.rotation.Layout == kernel.Interleaved {
		return 2 * k, 2*k + 1
	}
	return k, k + g.rotation.Dim/2
}

// turn is the cosine and sine of pair k at position p, with their factors.
func (g *geometry) turn(k int, p float64, key bool) (cos, sin float64) {
	r := &g.rotation
	angle, factor := p*r.InvFreq[k], r.Factor
	if r.CompatF32 {
		angle = float64(float32(p) * float32(r.InvFreq[k]))
	} else if r.Zeta != nil {
		e := p / r.ZetaBase
		if key {
			e = -e
		}
		factor *= math.Pow(r.Zeta[k], e)
	}
	return math.Cos(angle) * factor, math.Sin(angle) * factor
}

// scale is all that multiplies the score of query index i in a term.
func (g *geometry) scale(term, i int) float64 {
	c := g.Config.Scale
	if t := g.terms[term].Scale; t != 0 {
		c *= t
	}
	if g.rotation.ScoreScale != 0 {
		c *= g.rotation.ScoreScale
	}
	if n := g.Config.Score.LogN; n > 0 && i >= 0 {
		c *= math.Max(1, math.Log(float64(i+1))/math.Log(float64(n)))
	}
	return c
}

// rotatedKeys reports whether keys are rotated by attention, not before it.
func (g *geometry) rotatedKeys() bool { return g.Config.KeyStorage == kernel.PreRoPE }
