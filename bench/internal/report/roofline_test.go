package report

import (
	"bytes"
	"image/color"
	"image/png"
	"math"
	"testing"
)

func TestRooflineDrawsEveryPoint(t *testing.T) {
	roofs := []RooflineRoof{{"one", 100, 10}, {"two", 200, 15}}
	inks := func(points []RooflinePoint) (n int) {
		data, err := Roofline("Title", "note", roofs, points)
		if err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		want := lineColors[0]
		for y := range img.Bounds().Dy() {
			for x := range img.Bounds().Dx() {
				if color.RGBAModel.Convert(img.At(x, y)) == want {
					n++
				}
			}
		}
		return n
	}
	none := inks(nil)
	one := inks([]RooflinePoint{{"a", 4, 30}})
	two := inks([]RooflinePoint{{"a", 4, 30}, {"a", 500, 90}})
	// the legend has a marker of the kind as well
	if each := one / 2; none != 0 || each == 0 || two < 3*each-each/4 || two > 3*each+each/4 {
		t.Errorf("%d dots of the first kind's colour without points, %d with one, %d with two", none, one, two)
	}
}

func TestRooflineOfOddValues(t *testing.T) {
	for _, c := range []struct {
		roofs  []RooflineRoof
		points []RooflinePoint
	}{
		{nil, nil},
		{[]RooflineRoof{{"nothing", 0, 0}, {"none", math.NaN(), math.Inf(1)}}, []RooflinePoint{{"a", math.NaN(), 1}, {"a", 1, 0}, {"a", -1, 1}}},
		{nil, []RooflinePoint{{"one", 1e-9 * 2, 1e11}}},
		{[]RooflineRoof{{"", 1, 1e9}}, []RooflinePoint{{"", 1000, 1}}}, // the knee lies far to the left
	} {
		data, err := Roofline("", "", c.roofs, c.points)
		if err != nil {
			t.Errorf("%v: %v", c, err)
			continue
		}
		if _, err := png.Decode(bytes.NewReader(data)); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
}
