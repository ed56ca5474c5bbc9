package report

import (
	"bytes"
	"image/png"
	"math"
	"reflect"
	"testing"
)

func TestFront(t *testing.T) {
	trades := []Trade{{"dear", "", 9, 5}, {"cheap", "", 1, 3}, {"beaten", "", 2, 2}, {"equal", "", 1, 2}, {"middle", "", 3, 4}, {"also beaten", "", 10, 5}}
	names := func(list []Trade) (out []string) {
		for _, x := range list {
			out = append(out, x.Name)
		}
		return out
	}
	if got, want := names(Front(trades, false)), []string{"cheap", "middle", "dear"}; !reflect.DeepEqual(got, want) {
		t.Errorf("the larger the better: %v, want %v", got, want)
	}
	if got, want := names(Front(trades, true)), []string{"equal"}; !reflect.DeepEqual(got, want) {
		t.Errorf("the smaller the better: %v, want %v", got, want)
	}
}

// TestPareto: a picture comes of any numbers, and another of others.
func TestPareto(t *testing.T) {
	many := []Trade{{"a", "x", 10, 2}, {"b", "y", 20, 1.9}, {"far", "y", 20, 9}, {"none", "z", 0, 1}, {"nan", "z", 5, math.NaN()}}
	seen := map[string]bool{}
	for _, less := range []bool{false, true} {
		for n := range len(many) + 1 {
			data, err := Pareto("title", "note", "cost", "gain", less, many[:n])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := png.Decode(bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			seen[string(data)] = true
		}
	}
	if len(seen) < 6 {
		t.Errorf("%d pictures, want at least 6", len(seen))
	}
	p := pareto{less: true, trades: many[:3], front: Front(many[:3], true)}
	if n := p.cut(); n != 1 || len(p.trades) != 2 {
		t.Errorf("%d trades above the axis, want 1", n)
	}
}
