package cpu

import (
	"math/bits"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

// coverage is how much of a tile the rows of a part see in a term.
type coverage uint8

const (
	none coverage = iota
	some
	all
)

// covers classifies the current tile for part x and a term by the extremes of
// the rows' intervals. Masks that are no intervals make it at most some.
func (sc *scratch) covers(a *attention, x, term int) coverage {
	b, end := &sc.bounds[term*sc.parts()+x], sc.j0+int64(sc.n)
	switch {
	case b.maxHi <= sc.j0 || b.minLo >= end:
		return none
	case b.maxLo <= sc.j0 && b.minHi >= end && a.spec.Masks&(kernel.MaskTree|kernel.MaskBlocks) == 0:
		return all
	}
	return some
}

// look finds which keys of the tile each row of part x sees, and returns the
// keys that any does.
func (sc *scratch) look(a *attention, x int) uint64 {
	lo, hi := sc.partRows(x)
	seen := sc.any[:hi-lo]
	clear(seen)
	var union uint64
	for term := range a.batch.Terms {
		words := sc.words(term)
		clear(words)
		ranges := sc.ranges[term*sc.stride+lo:][:hi-lo]
		for i, k := range ranges {
			if k.hi <= sc.j0 || k.lo >= sc.j0+tile {
				continue
			}
			t, _ := sc.row(a, lo+i)
			// terms are disjoint; where a faulty module's are not, the first counts
			w := sc.seq.word(k, sc.seq.i0+t, sc.j0, int(sc.blk.kvHead)) &^ seen[i]
			words[i] = w
			seen[i] |= w
			union |= w
		}
	}
	return union
}

// words are the visible keys of the current part's rows in a term.
func (sc *scratch) words(term int) []uint64 {
	n := len(sc.any)
	return sc.word[term*n:][:n]
}

// strip takes the tile into the state of strip x: the step of the online
// softmax, for 32 rows side by side.
func (sc *scratch) strip(a *attention, st *state, x int) {
	active, only, full := 0, 0, false
	for term := range a.batch.Terms {
		if c := sc.covers(a, x, term); c != none {
			active, only, full = active+1, term, c == all
		}
	}
	if active == 0 {
		return
	}
	lo, hi := 0, sc.n // keys that any row sees, and those between
	plain := active == 1 && !a.score.perKey
	masked := !plain || !full
	if masked {
		union := sc.look(a, x)
		if union == 0 {
			return
		}
		lo, hi = lowest(union), bits.Len64(union)
	}
	scale, visible := ones[:vec.Lanes], []uint32(nil)
	if plain {
		scale = sc.scale[only*sc.stride+x*vec.Lanes:]
		sc.dotStrip(a, sc.s, a.variant[only], x, lo, hi)
		if masked {
			visible = sc.lanes(only)[lo:hi]
		}
	} else {
		sc.mixStrip(a, x, lo, hi)
	}
	m, l, o := st.strip(x)
	var f [vec.Lanes]float32
	s := sc.s[lo*vec.Lanes:]
	vec.SoftmaxStrip(a.spec.Policy, s, hi-lo, scale, visible, m, l, f[:])

	v := sc.values(a)
	start := vec.Scale
	if !st.seen[x] {
		st.seen[x], start = true, vec.Zero
	}
	if masked && !vec.Finite(v[lo*sc.vld:hi*sc.vld]) {
		sc.addVisible(a, o, start, &f, x)
		return
	}
	vec.MulAdd(a.spec.Policy, vec.Matrix{X: o, Row: vec.Lanes}, vec.Matrix{X: v[lo*sc.vld:], Row: 1, Col: sc.vld},
		vec.Matrix{X: s, Row: vec.Lanes}, a.spec.ValueDim, hi-lo, vec.Lanes, start, f[:])
}

// dotStrip sets s to the products of strip x with keys lo … hi−1 of the tile.
func (sc *scratch) dotStrip(a *attention, s []float32, v, x, lo, hi int) {
	k := sc.keys(a, v)
	vec.MulAdd(a.spec.Policy, vec.Matrix{X: s[lo*vec.Lanes:], Row: vec.Lanes}, vec.Matrix{X: k[lo*sc.ld:], Row: sc.ld, Col: 1},
		vec.Matrix{X: sc.queries(a, v, x), Row: vec.Lanes}, hi-lo, a.spec.HeadDim, vec.Lanes, vec.Zero, nil)
}

// mixStrip fills the scores of a strip from several terms, or with
// modifications. Each variant (a way to rotate both sides) is one product of
// the strip with the tile; its terms take from it what is theirs.
func (sc *scratch) mixStrip(a *attention, x, lo, hi int) {
	s := sc.s[lo*vec.Lanes : hi*vec.Lanes]
	for i := range s {
		s[i] = vec.Hidden
	}
	for v := range a.batch.Terms {
		if a.variant[v] != v {
			continue
		}
		ready := false
		for term := v; term < len(a.batch.Terms); term++ {
			if a.variant[term] != v || !anySet(sc.words(term)) {
				continue
			}
			if !ready {
				sc.dotStrip(a, sc.raw, v, x, lo, hi)
				ready = true
			}
			raw, scale := sc.raw[lo*vec.Lanes:], sc.scale[term*sc.stride+x*vec.Lanes:]
			if a.score.perKey {
				raw, scale = sc.modifyStrip(a, term, x, lo, hi), ones[:]
			}
			vec.Take(s, raw, hi-lo, scale, sc.lanes(term)[lo:hi])
		}
	}
}

// lanes turns the words of a term into a word of 32 lanes for each key.
func (sc *scratch) lanes(term int) []uint32 {
	words := sc.words(term)
	var m [2][32]uint32
	for i, w := range words[:min(len(words), vec.Lanes)] {
		m[0][i], m[1][i] = uint32(w), uint32(w>>32)
	}
	transpose(&m[0])
	transpose(&m[1])
	copy(sc.visible, m[0][:])
	copy(sc.visible[32:], m[1][:])
	return sc.visible
}

// transpose turns a matrix of 32 × 32 bits: halves of blocks of 16, 8, 4, 2, 1
// change places (Warren, "Hacker's Delight", 7-3).
func transpose(m *[32]uint32) {
	mask := uint32(0x0000ffff)
	for j := 16; j != 0; j, mask = j>>1, mask^mask<<(j>>1) {
		for k := 0; k < 32; k = (k + j + 1) &^ j {
			t := (m[k]>>j ^ m[k+j]) & mask
			m[k+j] ^= t
			m[k] ^= t << j
		}
	}
}

// addVisible adds weights times values key by key, where a value that some row
// does not see is NaN or Inf: a weight of 0 would not hide it.
func (sc *scratch) addVisible(a *attention, o []float32, start vec.Start, f *[vec.Lanes]float32, x int) {
	lo, hi := sc.partRows(x)
	for i := range hi - lo {
		for d := range a.spec.ValueDim {
			sum := &o[d*vec.Lanes+i]
			if start == vec.Zero {
				*sum = 0
			} else {
				*sum *= f[i]
			}
			for w := sc.any[i]; w != 0; w &= w - 1 {
				j := lowest(w)
				*sum = vec.FMA(a.spec.Policy, sc.v[j*sc.vld+d], sc.s[j*vec.Lanes+i], *sum)
			}
		}
	}
}

func anySet(words []uint64) bool {
	for _, w := range words {
		if w != 0 {
			return true
		}
	}
	return false
}
