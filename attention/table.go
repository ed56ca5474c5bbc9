package attention

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kernel"
)

// table builds the rotation table of a step and keeps its rows for the next.
// Each distinct PosMap has a segment: rows for consecutive u = ⌊(x mod M)/G⌋,
// so that slope, offset and clamp cost the kernel nothing and a row is found by
// integer arithmetic alone.
type table struct {
	rotation kernel.Rotation
	segments []segment
	out      kernel.RotaryTable
}

type segment struct {
	curve        curve
	first, count int64 // rows stand for u = first … first+count−1
	base, room   int64 // rows base … base+room−1 of the table; count <= room
}

// curve is what the rows of a segment depend on.
type curve struct {
	slope, offset, lo, hi float64
	side                  kernel.Side // always QuerySide where sides do not differ
}

// span is a range of integer positions, hi included.
type span struct{ lo, hi int64 }

func (s span) empty() bool { return s.lo > s.hi }

func (s span) union(t span) span {
	switch {
	case s.empty():
		return t
	case t.empty():
		return s
	}
	return span{min(s.lo, t.lo), max(s.hi, t.hi)}
}

// reset forgets the rows if r rotates differently from the step before.
func (t *table) reset(r kernel.Rotation) {
	o := &t.rotation
	if o.Dim == r.Dim && o.Factor == r.Factor && o.ZetaBase == r.ZetaBase && o.CompatF32 == r.CompatF32 &&
		slices.Equal(o.InvFreq, r.InvFreq) && slices.Equal(o.Zeta, r.Zeta) {
		return
	}
	r.InvFreq, r.Zeta = slices.Clone(r.InvFreq), slices.Clone(r.Zeta) // the caller may reuse its own
	*t = table{rotation: r}
}

// maxBytes bounds a segment: at 128 rotated features, 8 million positions. Two
// positions further apart are a mistake more often than a wish.
const maxBytes = 4 << 30

// segmentFor makes rows for positions x of m and returns the segment's number.
func (t *table) segmentFor(m PosMap, side kernel.Side, x span) (int, error) {
	c := curve{m.Slope, m.Offset, m.Lo, m.Hi, kernel.QuerySide}
	if t.rotation.Zeta != nil {
		c.side = side
	}
	u := m.units(x)
	i := slices.IndexFunc(t.segments, func(s segment) bool { return s.curve == c })
	if i < 0 {
		i = len(t.segments)
		t.segments = append(t.segments, segment{curve: c, first: u.lo})
	}
	s := &t.segments[i]
	have := span{s.first, s.first + s.count - 1}
	want := have.union(u)
	most := int64(maxBytes) / int64(4*t.rotation.Dim)
	if want.hi-want.lo >= most {
		want = u // what the steps before needed is far away
	}
	if want.hi-want.lo >= most {
		return 0, fmt.Errorf("attention: positions %d to %d need a rotation table of %d rows, want at most %d", x.lo, x.hi, want.hi-want.lo+1, most)
	}
	if want != have {
		if want.lo != s.first {
			s.first, s.count = want.lo, 0 // rows move: fill afresh
			t.out.Version = kernel.NewVersion()
		}
		t.grow(i, want.hi-s.first+1)
	}
	return i, nil
}

// units is the range of u = ⌊(x mod Mod)/Div⌋, cut to where p(u) still changes.
func (m *PosMap) units(x span) span {
	if x.empty() || m.Slope == 0 || m.Lo == m.Hi {
		return span{0, 0}
	}
	u := x
	if m.Mod > 0 {
		u = span{0, min(int64(m.Mod)-1, max(x.hi, 0))}
		if x.lo < 0 {
			u.hi = int64(m.Mod) - 1
		}
	}
	if m.Div > 1 {
		u = span{kernel.FloorDiv(u.lo, int64(m.Div)), kernel.FloorDiv(u.hi, int64(m.Div))}
	}
	if m.Slope > 0 {
		// one row past the point where the clamp takes hold is enough
		if cut := (m.Hi - m.Offset) / m.Slope; cut < math.MaxInt32 {
			u.hi = min(u.hi, int64(math.Ceil(max(cut, -math.MaxInt32))))
		}
		if cut := (m.Lo - m.Offset) / m.Slope; cut > -math.MaxInt32 {
			u.lo = max(u.lo, int64(math.Floor(min(cut, math.MaxInt32))))
		}
		u.lo = min(u.lo, u.hi)
	}
	return u
}

// grow fills segment i up to count rows, making room for it if it has too
// little: then segments move, and the table is laid out anew.
func (t *table) grow(i int, count int64) {
	s := &t.segments[i]
	if count > s.room {
		old := t.segments
		t.segments = slices.Clone(old)
		t.segments[i].room = max(count, 2*s.room, 64)
		half, rows := int64(t.rotation.Dim/2), int64(0)
		for k := range t.segments {
			t.segments[k].base = rows
			rows += t.segments[k].room
		}
		out := kernel.RotaryTable{Cos: make([]float32, rows*half), Sin: make([]float32, rows*half), Version: kernel.NewVersion()}
		for k, o := range old {
			at := t.segments[k].base * half
			copy(out.Cos[at:], t.out.Cos[o.base*half:][:o.count*half])
			copy(out.Sin[at:], t.out.Sin[o.base*half:][:o.count*half])
		}
		t.out = out
		s = &t.segments[i]
	}
	half := int64(t.rotation.Dim / 2)
	m := PosMap{Slope: s.curve.slope, Offset: s.curve.offset, Lo: s.curve.lo, Hi: s.curve.hi}
	for ; s.count < count; s.count++ {
		at := (s.base + s.count) * half
		p := m.at(s.first + s.count)
		t.rotation.Fill(t.out.Cos[at:at+half], t.out.Sin[at:at+half], [3]float64{p}, s.curve.side)
	}
}

// rowMap is m over the final layout of the table.
func (t *table) rowMap(m PosMap, i int) kernel.RowMap {
	s := &t.segments[i]
	return kernel.RowMap{Mod: m.Mod, Div: m.Div, First: int32(s.first), Base: int32(s.base), Count: int32(s.count)}
}
