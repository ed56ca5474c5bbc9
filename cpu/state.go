package cpu

import (
	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

// state is the online softmax of a block's rows over some keys: for a row, the
// maximum m of its scores (in units of log 2), l = Σ 2^(t−m) and
// o = Σ 2^(t−m)·v. A part is what has a fixed layout of its own: a strip of a
// wide block, or all rows of another.
type state struct {
	rows, dim, ld int
	wide          bool
	m, l          []float32 // [rows]
	o             []float32 // wide: [strips][dim][vec.Lanes]; else [rows][ld]
	seen          []bool    // [parts] holds anything; if not, o is undefined
}

// grow makes room for rows of dim features.
func (s *state) grow(rows, dim int) {
	s.dim, s.ld = dim, vec.Pad(dim)
	rows = (rows + vec.Lanes - 1) &^ (vec.Lanes - 1)
	if cap(s.m) < rows {
		s.m, s.l, s.o = make([]float32, rows), make([]float32, rows), make([]float32, rows*s.ld)
		s.seen = make([]bool, rows/vec.Lanes)
	}
}

// strips is the number of strips that hold so many rows.
func strips(rows int) int { return (rows + vec.Lanes - 1) / vec.Lanes }

func (s *state) reset(rows int, wide bool) {
	s.rows, s.wide = rows, wide
	n, parts := rows, 1
	if wide {
		parts = strips(rows)
		n = parts * vec.Lanes
	}
	s.m, s.l, s.seen = s.m[:n], s.l[:n], s.seen[:parts]
	for r := range s.m {
		s.m[r] = kernel.MaxStart
	}
	clear(s.l)
	clear(s.seen)
}

// strip is the sums, maxima and denominators of strip x.
func (s *state) strip(x int) (m, l, o []float32) {
	at, n := x*vec.Lanes, s.dim*vec.Lanes
	return s.m[at:][:vec.Lanes], s.l[at:][:vec.Lanes], s.o[x*n:][:n]
}

// merge adds the state of the keys that follow.
func (s *state) merge(b *state, policy kernel.Policy) {
	for x, seen := range b.seen {
		switch {
		case !seen:
		case s.wide:
			m, l, o := s.strip(x)
			pm, pl, po := b.strip(x)
			if s.seen[x] {
				vec.MergeStrip(policy, m, l, o, pm, pl, po, s.dim)
			} else { // the same as a merge with nothing
				copy(m, pm)
				copy(l, pl)
				copy(o, po)
			}
		case s.seen[x]:
			vec.MergeRows(policy, s.m, s.l, s.o, b.m, b.l, b.o, s.rows, s.ld, s.dim)
		default:
			copy(s.m, b.m)
			copy(s.l, b.l)
			copy(s.o[:s.rows*s.ld], b.o)
		}
		s.seen[x] = s.seen[x] || seen
	}
}

// addSink adds the state of one key of score logit[r] and value 0 to part x.
// It uses b as memory.
func (s *state) addSink(x int, logit func(r int) float32, b *state, policy kernel.Policy) {
	m, l, o := s.m, s.l, s.o
	pm, pl, po := b.m[:cap(b.m)], b.l[:cap(b.m)], b.o
	first, n := 0, s.rows*s.ld
	if s.wide {
		m, l, o = s.strip(x)
		first, n = x*vec.Lanes, len(o)
	}
	po = po[:n]
	clear(po)
	for i := range m {
		pm[i], pl[i] = kernel.MaxStart, 0
		if r := first + i; r < s.rows {
			pm[i], pl[i] = logit(r)*kernel.Log2E, 1
		}
	}
	if s.wide {
		vec.MergeStrip(policy, m, l, o, pm, pl, po, s.dim)
	} else {
		vec.MergeRows(policy, m, l, o, pm, pl, po, s.rows, s.ld, s.dim)
	}
}
