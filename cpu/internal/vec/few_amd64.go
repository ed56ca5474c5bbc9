//go:build amd64 && !purego

package vec

import "github.com/longctx/longctx/kernel"

// few says how rows of codes of few bits that stand for levels are decoded.
type few struct {
	tier  Variant
	words int // of a register that a row fills, or that are repeated
	width int // words of a row, or if they are repeated registers of values
	step  int // bits from one part of the words to the next
}

// fewFor is that of rows of so many features, with a group of values that
// share a scale. It is not ok where there is no assembly.
func fewFor(codec kernel.Codec, dim, group int) (f few, ok bool) {
	if codec < kernel.Int4 {
		return f, false
	}
	words, bits := codeWords(codec, dim), codec.Bits()
	for _, t := range [...]struct {
		tier  Variant
		lanes int
	}{{AVX512, 16}, {AVX2, 8}} {
		if active < t.tier || group%t.lanes != 0 || t.tier == AVX512 && group > 0 && dim/group > 16 {
			continue
		}
		if words >= t.lanes && (group == 0 || words%t.lanes == 0) {
			return few{t.tier, t.lanes, words, bits}, true
		}
		if words < t.lanes && (words == 8 || words == 4) {
			return few{t.tier, words, dim / t.lanes, bits * t.lanes / words}, true
		}
	}
	return f, false
}

// straight are the codes of few bits, repeated to sixteen levels.
var straight = func() (t [kernel.Int1 + 1][16]float32) {
	for c := kernel.Int4; c <= kernel.Int1; c++ {
		for i := range t[c] {
			t[c][i] = float32(uint8(i) & c.MaxCode())
		}
	}
	return t
}()

// repeated are sixteen levels, those there are over again: in memory where they
// are not the codes.
func repeated(codec kernel.Codec, levels []float32, memory *[16]float32) *float32 {
	if levels == nil {
		return &straight[codec][0]
	}
	for i := range memory {
		memory[i] = levels[uint8(i)&codec.MaxCode()]
	}
	return &memory[0]
}

// laneShifts are how much higher the codes of each lane lie in a register that
// rows of 4 or 8 words fill by repetition; of more words, 0.
var laneShifts = func() (t [kernel.Int1 + 1][17][16]uint32) {
	for c := kernel.Int4; c <= kernel.Int1; c++ {
		for _, words := range []int{4, 8, 16} {
			for i := range t[c][words] {
				t[c][words][i] = uint32(i / words * c.Bits())
			}
		}
	}
	return t
}()

func tokensFew(dst []float32, ld int, codes []uint8, codec kernel.Codec, stride, n, dim, group int, scale []uint16, scaleStride int, zero []uint16, zeroStride int, levels []float32) bool {
	f, ok := fewFor(codec, dim, group)
	if !ok {
		return false
	}
	var memory [16]float32
	table, lanes := repeated(codec, levels, &memory), &laneShifts[codec][f.words][0]
	to, from, s, z := p(dst), p(codes), p(scale), p(zero)
	switch {
	case f.tier == AVX512 && f.words == 16:
		tokensFew16AVX512(to, ld, from, stride, n, f.width, f.step, lanes, table, group, dim/group, s, scaleStride, z, zeroStride)
	case f.tier == AVX512 && f.words == 8:
		tokensFew8AVX512(to, ld, from, stride, n, f.width, f.step, lanes, table, group, dim/group, s, scaleStride, z, zeroStride)
	case f.tier == AVX512:
		tokensFew4AVX512(to, ld, from, stride, n, f.width, f.step, lanes, table, group, dim/group, s, scaleStride, z, zeroStride)
	case f.words == 8:
		tokensFew8AVX2(to, ld, from, stride, n, f.width, f.step, lanes, table, group, dim/group, s, scaleStride, z, zeroStride)
	default:
		tokensFew4AVX2(to, ld, from, stride, n, f.width, f.step, lanes, table, group, dim/group, s, scaleStride, z, zeroStride)
	}
	return true
}
