//go:build arm64 && !purego

package vec

import (
	"slices"
	"testing"
)

func TestVariantsOfThisMachine(t *testing.T) {
	if got := Variants(); !slices.Equal(got, []Variant{Generic, NEON}) {
		t.Errorf("variants %v, want generic and neon", got)
	}
	before := Active()
	defer Use(before)
	x := make([]float32, 4096)
	c, b := Matrix{X: x[:1024], Row: 64}, Matrix{X: x[2048:], Row: 64}
	for _, c2 := range []struct {
		v          Variant
		row, col   int
		rows, want int
	}{
		{Generic, 16, 1, 3, 0},
		{NEON, 16, 1, 3, 60},
		{NEON, 1, 16, 3, 60},
		{NEON, 2, 16, 1, 60}, // the distance of rows plays no part
		{NEON, 2, 16, 3, 0},
	} {
		Use(c2.v)
		a := Matrix{X: x[1024:], Row: c2.row, Col: c2.col}
		if got := mulAdd(&c, &a, &b, c2.rows, 5, 63, Zero, nil); got != c2.want {
			t.Errorf("%+v: %d of 63 columns in assembly", c2, got)
		}
	}
}
