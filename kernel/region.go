package kernel

import (
	"math"
	"slices"
)

// Range is the integers Lo <= x < Hi. An end at MinBound or MaxBound is open.
type Range struct{ Lo, Hi int32 }

// The open ends of a Range.
const (
	MinBound = math.MinInt32
	MaxBound = math.MaxInt32
)

// All is the Range without ends.
var All = Range{MinBound, MaxBound}

// Contains reports whether x lies in r.
func (r Range) Contains(x int64) bool {
	return (r.Lo == MinBound || x >= int64(r.Lo)) && (r.Hi == MaxBound || x < int64(r.Hi))
}

// Intersect is the integers in both.
func (r Range) Intersect(s Range) Range { return Range{max(r.Lo, s.Lo), min(r.Hi, s.Hi)} }

// Empty reports whether r holds no integer.
func (r Range) Empty() bool { return r.Lo >= r.Hi }

// ChunkRange bounds ⌊i/Size⌋ − ⌊j/Size⌋. Size 0 bounds nothing.
type ChunkRange struct {
	Size int32
	Range
}

// Region is the set of pairs (query index i, key index j) on which a Term
// acts: a conjunction of intervals. For a fixed i it is one interval of j,
// which Keys gives, so no kernel needs a dense mask.
type Region struct {
	Diff   Range         // of i−j; causal is {0, MaxBound}
	Key    Range         // of j
	Chunk  [2]ChunkRange //
	Prefix bool          // only j < Batch.PrefixLens of the sequence
}

// Everywhere is the Region of all pairs.
var Everywhere = Region{Diff: All, Key: All}

// Intersect is the pairs in both. ok is false if that takes more than two
// different chunk sizes.
func (r Region) Intersect(s Region) (_ Region, ok bool) {
	r.Diff, r.Key, r.Prefix = r.Diff.Intersect(s.Diff), r.Key.Intersect(s.Key), r.Prefix || s.Prefix
	for _, c := range s.Chunk {
		if c.Size == 0 {
			continue
		}
		same := func(d ChunkRange) bool { return d.Size == c.Size }
		free := func(d ChunkRange) bool { return d.Size == 0 }
		if k := slices.IndexFunc(r.Chunk[:], same); k >= 0 {
			r.Chunk[k].Range = r.Chunk[k].Intersect(c.Range)
		} else if k := slices.IndexFunc(r.Chunk[:], free); k >= 0 {
			r.Chunk[k] = c
		} else {
			return r, false
		}
	}
	return r, true
}

// Empty reports a Region that plainly holds no pair; false promises nothing.
func (r *Region) Empty() bool {
	if r.Diff.Empty() || r.Key.Empty() {
		return true
	}
	for _, c := range r.Chunk {
		if c.Size > 0 && c.Range.Empty() {
			return true
		}
	}
	return false
}

// Contains reports whether the pair (i, j) is in r, for a sequence whose
// prefix is prefixLen.
func (r *Region) Contains(i, j int64, prefixLen int32) bool {
	if !r.Diff.Contains(i-j) || !r.Key.Contains(j) || r.Prefix && j >= int64(prefixLen) {
		return false
	}
	for _, c := range r.Chunk {
		if c.Size > 0 && !c.Contains(FloorDiv(i, int64(c.Size))-FloorDiv(j, int64(c.Size))) {
			return false
		}
	}
	return true
}

// Keys returns the key indices lo <= j < hi of 0 <= j < n that i sees in r.
func (r *Region) Keys(i int64, n int64, prefixLen int32) (lo, hi int64) {
	hi = n
	if r.Diff.Lo != MinBound {
		hi = min(hi, i-int64(r.Diff.Lo)+1)
	}
	if r.Diff.Hi != MaxBound {
		lo = max(lo, i-int64(r.Diff.Hi)+1)
	}
	if r.Key.Lo != MinBound {
		lo = max(lo, int64(r.Key.Lo))
	}
	if r.Key.Hi != MaxBound {
		hi = min(hi, int64(r.Key.Hi))
	}
	if r.Prefix {
		hi = min(hi, int64(prefixLen))
	}
	for _, c := range r.Chunk {
		if c.Size == 0 {
			continue
		}
		s := int64(c.Size)
		ci := FloorDiv(i, s)
		if c.Lo != MinBound { // ⌊j/s⌋ <= ci − Lo
			hi = min(hi, (ci-int64(c.Lo)+1)*s)
		}
		if c.Hi != MaxBound { // ⌊j/s⌋ > ci − Hi
			lo = max(lo, (ci-int64(c.Hi)+1)*s)
		}
	}
	return lo, max(lo, hi)
}

// Class tells how much of a tile of pairs is in a Region.
type Class uint8

const (
	Partial Class = iota
	Empty
	Full
)

func (c Class) String() string { return name(c, "partial", "empty", "full") }

// Classify looks at the tile i0 <= i < i1, j0 <= j < j1. Empty and Full are
// certain; Partial may also be said of a tile that is neither by chance. Every
// bound of a Region is monotone in i and in j, so the corners decide.
func (r *Region) Classify(i0, i1, j0, j1 int64, prefixLen int32) Class {
	if i0 >= i1 || j0 >= j1 {
		return Empty
	}
	full := true
	check := func(b Range, lo, hi int64) bool { // the quantity spans lo..hi on the tile
		if b.Lo != MinBound && hi < int64(b.Lo) || b.Hi != MaxBound && lo >= int64(b.Hi) {
			return false
		}
		full = full && b.Contains(lo) && b.Contains(hi)
		return true
	}
	if !check(r.Diff, i0-(j1-1), i1-1-j0) || !check(r.Key, j0, j1-1) {
		return Empty
	}
	if r.Prefix {
		if j0 >= int64(prefixLen) {
			return Empty
		}
		full = full && j1 <= int64(prefixLen)
	}
	for _, c := range r.Chunk {
		if s := int64(c.Size); s > 0 &&
			!check(c.Range, FloorDiv(i0, s)-FloorDiv(j1-1, s), FloorDiv(i1-1, s)-FloorDiv(j0, s)) {
			return Empty
		}
	}
	if full {
		return Full
	}
	return Partial
}

// FloorDiv is ⌊a/b⌋ for b > 0. Go's division truncates, and a query index can
// be negative where a sequence has fewer keys than queries.
func FloorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}
