package cpu

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// lostBy is the sum of squares of what coding keys and values loses.
func lostBy(t *testing.T, b *Backend, rows *tensor.View, q kernel.Quantizer) float64 {
	t.Helper()
	size, heads, dim := rows.Shape[1], rows.Shape[2], rows.Shape[3]
	e := &kernel.EncodeArgs{Coding: kernel.Coding{Key: q, Value: q}, Key: *rows, Value: *rows, Src: []int32{0}, Dst: []int32{0}, Encoded: make([]bool, 1)}
	for _, p := range []*kernel.CodedPages{&e.CodedKey, &e.CodedValue} {
		for _, x := range q.Tensors(p, 1, size, heads, int(dim)) {
			if x.Rank > 0 {
				*x.View = tensor.New(x.DType, x.Shape[:x.Rank]...)
			}
		}
		if q.Levels {
			p.Levels = tensor.New(tensor.F32, heads, int64(q.Codec.MaxCode())+1)
			for i, x := 0, p.Levels.F32s(); i < len(x); i++ {
				x[i] = float32(i % (int(q.Codec.MaxCode()) + 1))
			}
		}
	}
	if err := b.EncodePages(e); err != nil || !e.Encoded[0] {
		t.Fatalf("%v: %v, encoded %v", q, err, e.Encoded)
	}
	sum, row := 0.0, make([]float32, dim)
	for slot := range size {
		for h := range heads {
			e.CodedKey.Row(&q, row, 0, slot, h)
			for d, x := range row {
				lost := float64(x) - float64(rows.At(0, slot, h, int64(d)))
				sum += lost * lost
			}
		}
	}
	return sum
}

// TestCodingLosesLess: more bits, outliers and terms lose less of keys that have
// a few large entries and a common direction; levels that are the codes as much.
func TestCodingLosesLess(t *testing.T) {
	b := New(Options{Workers: 1})
	defer b.Close()
	rng := rand.New(rand.NewPCG(5, 6))
	rows := tensor.New(tensor.F32, 1, 32, 2, 64)
	for i, x := 0, rows.F32s(); i < len(x); i++ {
		x[i] = float32(rng.NormFloat64())
		if rng.IntN(100) == 0 {
			x[i] *= 20
		}
	}
	for _, group := range []int{0, 16, 64} {
		less := func(name string, list ...kernel.Quantizer) {
			last := math.Inf(1)
			for _, q := range list {
				q.Group = group
				lost := lostBy(t, b, &rows, q)
				if !(lost < last) {
					t.Errorf("%s: %v loses %v, what is less %v", name, q, lost, last)
				}
				last = lost
			}
		}
		q := kernel.Quantizer{Codec: kernel.Int2}
		less("bits", kernel.Quantizer{Codec: kernel.Int1}, q, kernel.Quantizer{Codec: kernel.Int4}, kernel.Quantizer{Codec: kernel.Int8})
		with := func(outliers, rank int) kernel.Quantizer {
			return kernel.Quantizer{Codec: q.Codec, Outliers: outliers, Rank: rank}
		}
		less("outliers", q, with(4, 0), with(16, 0), with(64, 0), with(32*64, 0))
		less("rank", q, with(0, 1), with(0, 2), with(0, 4), with(0, 8), with(0, 32))
		less("both", with(16, 0), with(16, 2), with(32, 4))
		q.Group = group
		straight := q
		straight.Levels = true
		if x, y := lostBy(t, b, &rows, q), lostBy(t, b, &rows, straight); x != y {
			t.Errorf("levels that are the codes lose %v, none %v", y, x)
		}
	}
	if all := lostBy(t, b, &rows, kernel.Quantizer{Codec: kernel.Int1, Outliers: 32 * 64}); all > 1 { // what F16 rounds
		t.Errorf("with every entry an outlier %v is lost", all)
	}
}

// TestPagesThatCannotBeCoded: what has no place is said of each page, an
// infinity that is an outlier has one.
func TestPagesThatCannotBeCoded(t *testing.T) {
	b := New(Options{Workers: 1})
	defer b.Close()
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct {
		name     string
		at       []float32
		outliers int
		ok       bool
	}{
		{"finite", []float32{1, 2}, 0, true},
		{"constant", nil, 0, true},
		{"NaN", []float32{nan}, 0, false}, {"Inf", []float32{-inf}, 0, false},
		{"NaN kept", []float32{nan}, 1, true}, {"Inf and NaN kept", []float32{inf, nan}, 2, true},
		{"one too many", []float32{inf, nan, -inf}, 2, false},
		{"finite and infinite as F16", []float32{65520}, 1, false}, {"largest", []float32{65504, -65504}, 2, true},
	} {
		rows := tensor.New(tensor.F32, 1, 8, 1, 16)
		copy(rows.F32s()[20:], c.at)
		q := kernel.Quantizer{Codec: kernel.Int4, Outliers: c.outliers}
		e := &kernel.EncodeArgs{Coding: kernel.Coding{Key: q, Value: q}, Key: rows, Value: rows, Src: []int32{0}, Dst: []int32{0}, Encoded: make([]bool, 1)}
		for _, p := range []*kernel.CodedPages{&e.CodedKey, &e.CodedValue} {
			for _, x := range q.Tensors(p, 1, 8, 1, 16) {
				if x.Rank > 0 {
					*x.View = tensor.New(x.DType, x.Shape[:x.Rank]...)
				}
			}
		}
		if err := b.EncodePages(e); err != nil || e.Encoded[0] != c.ok {
			t.Errorf("%s: encoded %v (%v), want %v", c.name, e.Encoded[0], err, c.ok)
			continue
		}
		if !c.ok || c.outliers == 0 {
			continue
		}
		row := make([]float32, 16)
		e.CodedValue.Row(&q, row, 0, 1, 0)
		for i, want := range c.at {
			if got := row[4+i]; got != want && (got == got || want == want) {
				t.Errorf("%s: entry %d comes back as %v, want %v", c.name, i, got, want)
			}
		}
	}
}
