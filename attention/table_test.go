package attention

import (
	"math"
	"strings"
	"testing"

	"github.com/longctx/longctx/kernel"
)

func testRotation(dim int) kernel.Rotation {
	r := kernel.Rotation{Dim: dim, Factor: 1, ScoreScale: 1}
	for i := range dim / 2 {
		r.InvFreq = append(r.InvFreq, 1/float64(i+1))
	}
	return r
}

// Positions far apart must be refused before memory is asked for.
func TestTableRefusesPositionsFarApart(t *testing.T) {
	var tb table
	tb.reset(testRotation(128))
	_, err := tb.segmentFor(Identity, kernel.QuerySide, span{0, 2_000_000_000})
	if err == nil || !strings.Contains(err.Error(), "rotation table") {
		t.Fatalf("a span of 2·10⁹ positions: %v, want an error", err)
	}
	if len(tb.out.Cos) != 0 {
		t.Errorf("%d cosines were allocated all the same", len(tb.out.Cos))
	}
	// One far position is a row like any other, and so is the next, near 0.
	for _, at := range []int64{2_000_000_000, 5} {
		i, err := tb.segmentFor(Identity, kernel.QuerySide, span{at, at})
		if err != nil {
			t.Fatal(err)
		}
		m := tb.rowMap(Identity, i)
		if got, want := tb.out.Cos[m.Row(at)*64], float32(math.Cos(float64(at))); math.Abs(float64(got-want)) > 1e-6 {
			t.Errorf("position %d: cosine %v, want %v", at, got, want)
		}
	}
}

// However the table grew, a row is what Fill gives for its position.
func TestTableRowsStayRightAsItGrows(t *testing.T) {
	var tb table
	tb.reset(testRotation(8))
	maps := []PosMap{
		Identity, Constant(7), Identity.Group(4).Shift(3), Identity.Wrap(10), Identity.Wrap(10).Shift(5).AtMost(12),
		{Slope: 0.25, Offset: 1.5, Lo: math.Inf(-1), Hi: math.Inf(1)},
	}
	for _, x := range []span{{0, 3}, {0, 40}, {30, 300}, {-9, 20}, {1000, 1010}} {
		segments := make([]int, len(maps))
		for i, m := range maps {
			var err error
			if segments[i], err = tb.segmentFor(m, kernel.QuerySide, x); err != nil {
				t.Fatal(err)
			}
		}
		for i, m := range maps {
			row := tb.rowMap(m, segments[i])
			for p := x.lo; p <= x.hi; p++ {
				var cos, sin [4]float32
				tb.rotation.Fill(cos[:], sin[:], [3]float64{m.At(p)}, kernel.QuerySide)
				if at := row.Row(p) * 4; [4]float32(tb.out.Cos[at:]) != cos || [4]float32(tb.out.Sin[at:]) != sin {
					t.Fatalf("map %d, span %v: row of %d is not that of position %v", i, x, p, m.At(p))
				}
			}
		}
	}
}
