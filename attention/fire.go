// Shanda Li et al., "Functional Interpolation for Relative Positions Improves Long Context Transformers", 2023, https://arxiv.org/abs/2310.04418

package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/tensor"
)

// FIRE adds a bias that a small network makes of the distance in proportion to
// the query's index:
//
//	s += f_h( ψ(i−j) / ψ(max(Threshold, i)) ),   ψ(x) = ln(C·x + 1)
//	f_h(x) = OutBias[h] + Σ_k Out[h][k]·max(0, In[k]·x + InBias[k])
//
// T5's bias, ALiBi and KERPLE are special cases.
//
// Claim: weak, and better than the biases before it; the argument of f never
// leaves 0 to 1, however long the sequence is.
//
// Cost: one addition a pair; for each table n·hidden·heads products on the
// host, and Heads·n float32.
//
// Limits: for models trained so, without rotation. Up to query index Threshold
// the bias depends on the distance alone, and one table serves all queries; past
// it each query needs its own table and so a Run of its own, as decode makes them.
type FIRE struct {
	C          float64     // above 0
	Threshold  float64     // L, above 0
	In, InBias []float64   // [hidden] of the hidden layer; the paper has 32
	Out        [][]float64 // [heads][hidden]
	OutBias    []float64   // [heads]
}

// Name returns "fire".
func (FIRE) Name() string { return "fire" }

// Table returns ScoreArgs.RelBias for Score{RelBias: true}, for the query of an
// index and all that have the same: distances 0 to query, and where that is
// shorter to Threshold.
func (m FIRE) Table(query int) (tensor.View, error) {
	if err := m.check(); err != nil {
		return tensor.View{}, err
	}
	if err := parameter("query index", query, 0); err != nil {
		return tensor.View{}, fmt.Errorf("attention: fire: %w", err)
	}
	n := query + 1
	if m.Shared(query) {
		n = int(min(m.Threshold, maxTable)) + 1
	}
	length := xmath.Log(float64(m.C*max(m.Threshold, float64(query))) + 1)
	hidden := make([]float64, len(m.In))
	at := -1 // the distance that hidden is of
	return biasTable("fire", len(m.Out), n, func(h, d int) float64 {
		if d != at {
			at = d
			x := xmath.Log(float64(m.C*float64(d))+1) / length
			for k := range hidden {
				hidden[k] = max(0, float64(m.In[k]*x)+m.InBias[k])
			}
		}
		sum := m.OutBias[h]
		for k, w := range m.Out[h] {
			sum += float64(w * hidden[k])
		}
		return sum
	})
}

// Shared reports whether the table of a query is that of all before it.
func (m FIRE) Shared(query int) bool { return float64(query) <= m.Threshold }

func (m FIRE) check() error {
	if !(m.C > 0 && m.C <= math.MaxFloat32 && m.Threshold > 0 && m.Threshold <= math.MaxFloat32) {
		return fmt.Errorf("attention: fire: C is %v and Threshold %v, want both above 0 and finite", m.C, m.Threshold)
	}
	if len(m.Out) == 0 || len(m.OutBias) != len(m.Out) || len(m.In) == 0 || len(m.InBias) != len(m.In) {
		return fmt.Errorf("attention: fire: %d In, %d InBias, %d Out, %d OutBias, want as many In as InBias and Out as OutBias, at least one", len(m.In), len(m.InBias), len(m.Out), len(m.OutBias))
	}
	for h, w := range m.Out {
		if len(w) != len(m.In) {
			return fmt.Errorf("attention: fire: Out[%d] has %d weights, want %d, one for each of In", h, len(w), len(m.In))
		}
	}
	return nil
}
