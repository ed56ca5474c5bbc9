// Ta-Chung Chi et al., "KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation", 2022, https://arxiv.org/abs/2205.09921

package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/tensor"
)

// KERPLE adds a bias that falls with distance d = |i−j|, of two learned numbers a
// head:
//
//	s −= A[h]·ln(1 + B[h]·d)   logarithmic
//	s −= A[h]·d^B[h]           Power
//
// Power with B = 1 is ALiBi of slopes A.
//
// Claim: weak; perplexity stays flat at many times the trained length, the
// logarithmic kernel best.
//
// Cost: one addition a pair and a table of Heads·n float32 for sequences of n
// tokens.
//
// Limits: for models trained so, without rotation. A table is exact for the
// distances it holds: beyond the last the bias stays. For keys after the query
// give two-sided tables with Score.RelBiasStart.
type KERPLE struct {
	A, B  []float64 // [heads], at least 0; the paper keeps both from 0.01 on, and B of Power at most 2
	Power bool
}

// Name returns "kerple".
func (KERPLE) Name() string { return "kerple" }

// Table returns ScoreArgs.RelBias for Score{RelBias: true}: distances 0 to n−1.
func (m KERPLE) Table(n int) (tensor.View, error) {
	if len(m.A) == 0 || len(m.A) != len(m.B) {
		return tensor.View{}, fmt.Errorf("attention: kerple: %d A and %d B, want one of each for each head", len(m.A), len(m.B))
	}
	for h := range m.A {
		if !(m.A[h] >= 0 && m.A[h] <= math.MaxFloat32 && m.B[h] >= 0 && m.B[h] <= math.MaxFloat32) || m.Power && m.B[h] > 2 {
			return tensor.View{}, fmt.Errorf("attention: kerple: head %d has A %v and B %v, want both finite and at least 0, and B at most 2 with Power", h, m.A[h], m.B[h])
		}
	}
	return biasTable("kerple", len(m.A), n, func(h, d int) float64 {
		switch {
		case !m.Power:
			return -m.A[h] * xmath.Log(1+float64(m.B[h]*float64(d)))
		case d == 0:
			return 0 // 0^0 would be 1: a distance of nothing has no bias
		}
		return -m.A[h] * xmath.Pow(float64(d), m.B[h])
	})
}

// maxTable bounds the tables that modules make: 1 GiB.
const maxTable = 1 << 28

// biasTable is a table of ScoreArgs.RelBias, each entry rounded once.
func biasTable(name string, heads, n int, bias func(h, d int) float64) (tensor.View, error) {
	if n < 1 || n > maxTable/heads {
		return tensor.View{}, fmt.Errorf("attention: %s: a table of %d distances for %d heads, want 1 to %d distances", name, n, heads, maxTable/heads)
	}
	out := make([]float32, heads*n)
	for d := range n {
		for h := range heads {
			out[h*n+d] = float32(bias(h, d))
		}
	}
	return tensor.FromF32(out, int64(heads), int64(n)), nil
}
