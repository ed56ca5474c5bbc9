package cpu

import (
	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

// state is the online softmax of some rows over some keys: for a row, the
// maximum m of its scores (in units of log 2), l = Σ 2^(t−m) and
// o = Σ 2^(t−m)·v.
type state struct {
	rows, dim int
	m, l      []float32
	o         []float32 // [rows][dim]
	seen      []bool    // the row saw a key
}

func newState(rows, dim int) state {
	return state{rows, dim, make([]float32, rows), make([]float32, rows), make([]float32, rows*dim), make([]bool, rows)}
}

func (s *state) reset() {
	for r := range s.m {
		s.m[r] = kernel.MaxStart
	}
	clear(s.l)
	clear(s.o)
	clear(s.seen)
}

// merge adds the state of the keys that follow.
func (s *state) merge(b *state, policy kernel.Policy) {
	for r, seen := range b.seen {
		if !seen {
			continue
		}
		s.seen[r] = true
		s.mergeRow(r, b.m[r], b.l[r], b.o[r*s.dim:][:s.dim], policy)
	}
}

func (s *state) mergeRow(r int, bm, bl float32, bo []float32, policy kernel.Policy) {
	m := max(s.m[r], bm)
	if bm != bm || s.m[r] != s.m[r] {
		m = s.m[r] + bm
	}
	o := s.o[r*s.dim:][:s.dim]
	if policy == kernel.Fast {
		fa, fb := vec.Exp2Fast(s.m[r]-m), vec.Exp2Fast(bm-m)
		s.m[r], s.l[r] = m, float32(s.l[r]*fa)+float32(bl*fb)
		for d, x := range bo {
			o[d] = float32(o[d]*fa) + float32(x*fb)
		}
		return
	}
	fa, fb := kernel.Exp2(s.m[r]-m), kernel.Exp2(bm-m)
	s.m[r], s.l[r] = m, kernel.FMA(bl, fb, float32(s.l[r]*fa))
	for d, x := range bo {
		o[d] = kernel.FMA(x, fb, float32(o[d]*fa))
	}
}
