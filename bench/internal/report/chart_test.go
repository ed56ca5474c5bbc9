package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestSpread: labels keep their order, their gap and the range, and do not move
// where there is room.
func TestSpread(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		const gap, low, high = 10, 50, 450
		want := make([]float64, 1+random.IntN(40))
		for i := range want {
			want[i] = low + (high-low)*math.Round(8*random.Float64())/8
		}
		slices.Sort(want)
		slices.Reverse(want)
		got := spread(want, gap, low, high)
		if len(got) != len(want) {
			t.Fatalf("%d places for %d labels", len(got), len(want))
		}
		for i, y := range got {
			if y < low-1e-9 || y > high+1e-9 || i > 0 && got[i-1]-y < gap-1e-9 {
				t.Fatalf("want %v\ngot %v", want, got)
			}
		}
	}
	if free := []float64{300, 200, 190, 60}; !slices.Equal(spread(free, 10, 50, 450), free) {
		t.Errorf("%v moved to %v without need", free, spread(free, 10, 50, 450))
	}
	if got := spread([]float64{100, 100}, 10, 0, 200); got[0] != 105 || got[1] != 95 {
		t.Errorf("equal places went to %v, want 105 and 95", got)
	}
}

// TestBitsAxis: the axis holds the least value and every value below the cut,
// has a few ticks, and says when it cut.
func TestBitsAxis(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		least := math.Exp(4*random.Float64() - 2)
		most := least * (1 + math.Exp(20*random.Float64()-15))
		c := chart{curves: []curve{{y: []float64{least, math.NaN(), most}}}}
		c.bitsAxis()
		cut := c.high < most
		if c.low > least || c.high < min(most, 1.6*least) || len(c.yTicks) < 2 || len(c.yTicks) > 9 {
			t.Fatalf("values %g to %g: axis %g to %g with %d ticks", least, most, c.low, c.high, len(c.yTicks))
		}
		if said := c.note != ""; said != cut || cut != (c.curves[0].label == " ↑") {
			t.Fatalf("values %g to %g, axis up to %g: note %q, label %q", least, most, c.high, c.note, c.curves[0].label)
		}
		for _, tick := range c.yTicks {
			if tick.Value < c.low || tick.Value > c.high*(1+1e-12) {
				t.Fatalf("tick %g outside %g to %g", tick.Value, c.low, c.high)
			}
		}
	}
}

// TestCurvesAreOrdered: by their last value, the highest first; those without
// any value at the end.
func TestCurvesAreOrdered(t *testing.T) {
	r := synthetic(syntheticNames, fiveLengths, 2)
	r.Results = r.Results[:len(r.Results)-12]
	g, err := newGrid(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []measure{bits, recall} {
		last := math.Inf(1)
		for _, c := range g.chart(m, g.methods).curves {
			end := math.Inf(-1)
			if i := c.last(); i >= 0 {
				end = c.y[i]
			} else if c.label != missing {
				t.Errorf("%s: %s was not measured and is labelled %q", m.title, c.name, c.label)
			}
			if end > last {
				t.Errorf("%s: %s ends at %g, below one that ends at %g", m.title, c.name, end, last)
			}
			last = end
		}
	}
}

// TestStylesDiffer: 28 methods share no pair of colour and dashes, and no
// shade of the heat map is darker than one below it.
func TestStylesDiffer(t *testing.T) {
	seen := map[string]int{}
	for i := range 28 {
		s := styleOf(i)
		key := fmt.Sprint(s.line.Color, s.line.Dashes)
		if j, ok := seen[key]; ok {
			t.Errorf("methods %d and %d are drawn alike", j, i)
		}
		seen[key] = i
	}
	before := -1.0
	for i := range 101 {
		c := shade(float64(i) / 100)
		light := 0.2126*float64(c.R) + 0.7152*float64(c.G) + 0.0722*float64(c.B)
		if light < before-0.5 {
			t.Errorf("shade %d%% is darker than the one below", i)
		}
		before = light
	}
}

// TestOverviewMethods: the well-known ones when they were run, else the first
// ten.
func TestOverviewMethods(t *testing.T) {
	for _, test := range []struct {
		run, want []string
	}{
		{syntheticNames, overviewNames},
		{[]string{"alibi", "dca", "rope"}, []string{"rope", "dca"}},
		{[]string{"alibi", "xpos"}, []string{"alibi", "xpos"}},
		{[]string{"b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9", "b10", "b11"}, []string{"b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9", "b10"}},
	} {
		g, err := newGrid(synthetic(test.run, []int{128}, 1))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range g.overviewMethods() {
			got = append(got, m.Name)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("of %v the overview shows %v, want %v", test.run, got, test.want)
		}
	}
}
