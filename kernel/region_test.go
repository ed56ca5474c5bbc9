package kernel

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// randomRegion has small bounds, so that every relation of a bound to a tile
// occurs, and open ends often.
func randomRegion(r *rand.Rand) Region {
	bounds := func(most int32) Range {
		out := Range{Lo: r.Int32N(2*most) - most}
		out.Hi = out.Lo + r.Int32N(most+2) - 1 // now and then empty
		if r.IntN(3) == 0 {
			out.Lo = MinBound
		}
		if r.IntN(3) == 0 {
			out.Hi = MaxBound
		}
		return out
	}
	region := Region{Diff: bounds(24), Key: All, Prefix: r.IntN(4) == 0}
	if r.IntN(2) == 0 {
		region.Key = bounds(24)
	}
	for k := range region.Chunk {
		if r.IntN(2) == 0 {
			region.Chunk[k] = ChunkRange{Size: 1 + r.Int32N(9), Range: bounds(4)}
		}
	}
	return region
}

// span is the pairs of the brute-force tests: some query indices are negative,
// as where a sequence has fewer keys than queries.
const spanQueryLo, spanQueryHi, spanKeys = -9, 33, 40

func checkRegion(t *testing.T, region Region, prefix int32) {
	t.Helper()
	any := false
	for i := int64(spanQueryLo); i < spanQueryHi; i++ {
		lo, hi := region.Keys(i, spanKeys, prefix)
		if lo < 0 || hi < lo || hi > lo && hi > spanKeys {
			t.Fatalf("%+v prefix %d: Keys(%d) = %d, %d, want an interval in 0 to %d", region, prefix, i, lo, hi, spanKeys)
		}
		for j := int64(0); j < spanKeys; j++ {
			in := region.Contains(i, j, prefix)
			any = any || in
			if in != contains(region, i, j, prefix) {
				t.Fatalf("%+v prefix %d: Contains(%d, %d) = %v", region, prefix, i, j, in)
			}
			if in != (lo <= j && j < hi) {
				t.Fatalf("%+v prefix %d: Contains(%d, %d) = %v but Keys = %d, %d", region, prefix, i, j, in, lo, hi)
			}
		}
	}
	if any && region.Empty() {
		t.Fatalf("%+v prefix %d: Empty, but holds a pair", region, prefix)
	}
}

// contains is the definition of a Region, written without its methods.
func contains(r Region, i, j int64, prefix int32) bool {
	within := func(x int64, b Range) bool {
		return (b.Lo == MinBound || int64(b.Lo) <= x) && (b.Hi == MaxBound || x < int64(b.Hi))
	}
	chunk := func(x, size int64) int64 {
		n := int64(0)
		for ; x < 0; x += size {
			n--
		}
		for ; x >= size; x -= size {
			n++
		}
		return n
	}
	for _, c := range r.Chunk {
		if c.Size > 0 && !within(chunk(i, int64(c.Size))-chunk(j, int64(c.Size)), c.Range) {
			return false
		}
	}
	return within(i-j, r.Diff) && within(j, r.Key) && (!r.Prefix || j < int64(prefix))
}

func checkClassify(t *testing.T, region Region, i0, i1, j0, j1 int64, prefix int32) Class {
	t.Helper()
	all, none := true, true
	for i := i0; i < i1; i++ {
		for j := j0; j < j1; j++ {
			if region.Contains(i, j, prefix) {
				none = false
			} else {
				all = false
			}
		}
	}
	c := region.Classify(i0, i1, j0, j1, prefix)
	if c == Empty && !none || c == Full && !all || c > Full {
		t.Fatalf("%+v prefix %d: tile i %d to %d, j %d to %d is %v; all in: %v, none in: %v", region, prefix, i0, i1, j0, j1, c, all, none)
	}
	return c
}

func checkIntersect(t *testing.T, a, b Region, prefix int32) {
	t.Helper()
	both, ok := a.Intersect(b)
	if !ok {
		used, sizes := 0, map[int32]bool{}
		for _, c := range a.Chunk {
			if c.Size > 0 {
				used, sizes[c.Size] = used+1, true
			}
		}
		for _, c := range b.Chunk {
			if c.Size > 0 && !sizes[c.Size] {
				used, sizes[c.Size] = used+1, true
			}
		}
		if used <= len(both.Chunk) {
			t.Fatalf("%+v and %+v: not ok, want ok with chunk sizes %v", a, b, sizes)
		}
		return
	}
	any := false
	for i := int64(spanQueryLo); i < spanQueryHi; i++ {
		for j := int64(0); j < spanKeys; j++ {
			want := a.Contains(i, j, prefix) && b.Contains(i, j, prefix)
			any = any || want
			if got := both.Contains(i, j, prefix); got != want {
				t.Fatalf("%+v and %+v: pair (%d, %d) in both: %v, in %+v: %v", a, b, i, j, want, both, got)
			}
		}
	}
	if any && both.Empty() {
		t.Fatalf("%+v and %+v: %+v is Empty, but holds a pair", a, b, both)
	}
}

func TestRegionKeysAreThoseContained(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		checkRegion(t, randomRegion(r), r.Int32N(spanKeys+2))
	}
}

func TestRegionClassifyIsSound(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var seen [3]int
	for range 3000 {
		region, prefix := randomRegion(r), r.Int32N(spanKeys+2)
		// sizes that divide nothing leave ragged tails, and starts that are no
		// multiples of them are chunked prefill
		rows, cols := 1+r.Int64N(9), 1+r.Int64N(9)
		first := spanQueryLo + r.Int64N(9)
		for i := first; i < spanQueryHi; i += rows {
			for j := int64(0); j < spanKeys; j += cols {
				seen[checkClassify(t, region, i, min(i+rows, spanQueryHi), j, min(j+cols, spanKeys), prefix)]++
			}
		}
	}
	for c, n := range seen {
		if n < 1000 {
			t.Errorf("only %d tiles were %v", n, Class(c))
		}
	}
}

// A region of one condition is decided by its corners exactly: Partial then
// means that some pairs are in and some are not.
func TestRegionClassifyIsTightForOneCondition(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	for range 3000 {
		one, from := Everywhere, randomRegion(r)
		switch r.IntN(4) {
		case 0:
			one.Diff = Range{from.Diff.Lo, MaxBound}
		case 1:
			one.Diff = Range{MinBound, from.Diff.Hi}
		case 2:
			one.Key = from.Key
		case 3:
			one.Prefix = true
		}
		prefix := r.Int32N(spanKeys + 2)
		i, j := spanQueryLo+r.Int64N(30), r.Int64N(30)
		i1, j1 := i+1+r.Int64N(12), j+1+r.Int64N(12)
		if checkClassify(t, one, i, i1, j, j1, prefix) != Partial {
			continue
		}
		in, out := false, false
		for a := i; a < i1; a++ {
			for b := j; b < j1; b++ {
				if one.Contains(a, b, prefix) {
					in = true
				} else {
					out = true
				}
			}
		}
		// a Key interval may lie within the tile's columns, or be empty there
		if !out || !in && one.Key == All {
			t.Fatalf("%+v prefix %d: tile i %d to %d, j %d to %d is partial; some in: %v, some out: %v", one, prefix, i, i1, j, j1, in, out)
		}
	}
}

func TestRegionIntersectIsBoth(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 4))
	for range 2000 {
		a, b := randomRegion(r), randomRegion(r)
		if r.IntN(2) == 0 {
			b.Chunk[0].Size = a.Chunk[1].Size // a size in common
		}
		checkIntersect(t, a, b, r.Int32N(spanKeys+2))
		checkIntersect(t, a, Everywhere, spanKeys)
	}
}

func TestFloorDivRoundsDown(t *testing.T) {
	for b := int64(1); b < 8; b++ {
		for a := int64(-40); a < 40; a++ {
			if q := FloorDiv(a, b); q*b > a || (q+1)*b <= a {
				t.Errorf("FloorDiv(%d, %d) = %d", a, b, q)
			}
		}
	}
}

// Bounds near the ends of int32 and indices near 2³¹ must not wrap.
func TestRegionAtTheEndsOfInt32(t *testing.T) {
	ends := []int32{MinBound, MinBound + 1, -1, 0, 1, MaxBound - 1, MaxBound}
	at := []int64{-(1 << 31) + 1, -1, 0, 1, 1<<31 - 2}
	for _, lo := range ends {
		for _, hi := range ends {
			if lo == MaxBound || hi == MinBound {
				continue // as an end that is closed these are not written
			}
			for _, size := range []int32{0, 1, 3, MaxBound} {
				region := Region{Diff: Range{lo, hi}, Key: All}
				region.Chunk[0] = ChunkRange{Size: size, Range: Range{lo, hi}}
				for _, i := range at {
					n := int64(1<<31 - 1)
					from, to := region.Keys(i, n, 0)
					for _, j := range at[2:] {
						in := region.Contains(i, j, 0)
						if in != (from <= j && j < to) {
							t.Errorf("%+v: Contains(%d, %d) = %v but Keys = %d, %d", region, i, j, in, from, to)
						}
						c := region.Classify(i, i+1, j, j+1, 0)
						if in && c != Full || !in && c == Full {
							t.Errorf("%+v: pair (%d, %d) in: %v, its tile is %v", region, i, j, in, c)
						}
					}
				}
			}
		}
	}
}

func FuzzRegion(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 255, 255, 5, 3, 0, 2, 1}, []byte{2, 4, 0, 9}, uint8(3))
	f.Add([]byte{}, []byte{255, 128, 127, 64, 32, 16, 8, 4, 2, 1, 0, 77}, uint8(40))
	f.Fuzz(func(t *testing.T, a, b []byte, prefix uint8) {
		x, y, p := regionOf(a), regionOf(b), int32(prefix)%(spanKeys+2)
		checkRegion(t, x, p)
		checkIntersect(t, x, y, p)
		for i := int64(spanQueryLo); i < spanQueryHi; i += 7 {
			for j := int64(0); j < spanKeys; j += 5 {
				checkClassify(t, x, i, i+7, j, min(j+5, spanKeys), p)
			}
		}
	})
}

// regionOf reads a Region from bytes: four for each bound, the last few of
// which choose open ends, so that the fuzzer can reach any bound.
func regionOf(b []byte) Region {
	next := func() int32 {
		var word [4]byte
		b = b[copy(word[:], b):]
		x := int32(binary.LittleEndian.Uint32(word[:]))
		if word[3] < 128 {
			return x % 64 // mostly near the span
		}
		return x
	}
	bounds := func() Range {
		r := Range{next(), next()}
		if r.Lo == MaxBound {
			r.Lo--
		}
		if r.Hi == MinBound {
			r.Hi++
		}
		return r
	}
	r := Region{Diff: bounds(), Key: bounds()}
	for k := range r.Chunk {
		r.Chunk[k] = ChunkRange{Size: max(0, next()), Range: bounds()}
	}
	r.Prefix = next()%2 == 1
	return r
}
