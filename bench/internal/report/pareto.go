package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Trade is a way to hold something: what it costs, and what that does.
type Trade struct {
	Name string
	Kind string // trades of a kind look alike
	Cost float64
	Gain float64
}

// Pareto draws trades, the cost to the right on a logarithmic axis, and through
// those that no other beats in both a line with their names, as a PNG. Less cost is
// better; a gain is better if it is larger, or with less smaller. Trades that are
// not finite, or of no cost, are left out, and with less those of a gain above 1.15
// times the least, whose number the note has.
func Pareto(title, note, cost, gain string, less bool, trades []Trade) ([]byte, error) {
	p := pareto{less: less}
	for _, t := range trades {
		if drawableLog(t.Cost) && finite(t.Gain) && math.Abs(t.Gain) < drawable {
			p.trades = append(p.trades, t)
			if !slices.Contains(p.kinds, t.Kind) {
				p.kinds = append(p.kinds, t.Kind)
			}
		}
	}
	p.front = Front(p.trades, less)
	if n := p.cut(); n > 0 {
		note += fmt.Sprintf(" · %d above the axis", n)
	}
	const width, height, legend = 900, 560, 150
	img, page := newCanvas(width, height)
	area := draw.Crop(page, margin, -margin, margin, -margin)
	heading := bold(textStyle(titleSize, ink, draw.XLeft, draw.YTop))
	under := textStyle(bodySize, faint, draw.XLeft, draw.YTop)
	across := area.Max.X - area.Min.X
	area.FillText(heading, vg.Point{X: area.Min.X, Y: area.Max.Y}, fit(title, heading, across))
	area.FillText(under, vg.Point{X: area.Min.X, Y: area.Max.Y - 20}, fit(note, under, across))
	axes := p.axes(cost, gain)
	axes.Add(p)
	axes.Draw(draw.Crop(area, 0, -legend, 0, -44))
	p.legend(draw.Crop(area, across-legend+14, 0, 0, -56))
	return encode(img)
}

// Front are the trades that no other beats in both, the cheapest first.
func Front(trades []Trade, less bool) []Trade {
	sorted := slices.Clone(trades)
	better := func(x, y float64) bool { return less && x < y || !less && x > y }
	slices.SortStableFunc(sorted, func(a, b Trade) int {
		if c := cmp.Compare(a.Cost, b.Cost); c != 0 {
			return c
		}
		if better(a.Gain, b.Gain) {
			return -1
		}
		return 1
	})
	var out []Trade
	for _, t := range sorted {
		if len(out) == 0 || better(t.Gain, out[len(out)-1].Gain) {
			out = append(out, t)
		}
	}
	return out
}

// cut leaves out trades that would press the others flat, and returns how many.
func (p *pareto) cut() int {
	if !p.less || len(p.front) == 0 {
		return 0
	}
	most, before := 1.15*p.front[len(p.front)-1].Gain, len(p.trades)
	far := func(t Trade) bool { return t.Gain > most && most > 0 }
	p.trades, p.front = slices.DeleteFunc(p.trades, far), slices.DeleteFunc(p.front, far)
	return before - len(p.trades)
}

type pareto struct {
	less   bool
	trades []Trade
	front  []Trade
	kinds  []string
}

func (p pareto) axes(cost, gain string) *plot.Plot {
	axes := plot.New()
	left, right, low, high := math.Inf(1), 0.0, math.Inf(1), math.Inf(-1)
	for _, t := range p.trades {
		left, right, low, high = min(left, t.Cost), max(right, t.Cost), min(low, t.Gain), max(high, t.Gain)
	}
	if len(p.trades) == 0 {
		left, right, low, high = 1, 10, 0, 1
	}
	pad := max((high-low)/20, 1e-3)
	axes.X.Min, axes.X.Max, axes.Y.Min, axes.Y.Max = left/1.2, right*1.3, low-pad, high+pad
	axes.X.Label.Text, axes.Y.Label.Text = cost, gain
	axes.X.Scale, axes.X.Tick.Marker = plot.LogScale{}, plot.ConstantTicks(decades(left/1.2, right*1.3))
	for _, axis := range []*plot.Axis{&axes.X, &axes.Y} {
		axis.Padding = 0
		axis.LineStyle = draw.LineStyle{Color: faint, Width: 0.75}
		axis.Tick.LineStyle = axis.LineStyle
		axis.Label.TextStyle = textStyle(bodySize, faint, draw.XCenter, draw.YBottom)
		axis.Label.Padding = 4
	}
	axes.X.Tick.Label = textStyle(bodySize, ink, draw.XCenter, draw.YTop)
	axes.Y.Tick.Label = textStyle(bodySize, ink, draw.XRight, draw.YCenter)
	return axes
}

// decades are 1, 2 and 5 times powers of ten.
func decades(low, high float64) (out []plot.Tick) {
	for power := math.Pow(10, math.Floor(math.Log10(low))); power <= high; power *= 10 {
		for _, m := range []float64{1, 2, 5} {
			if x := m * power; x >= low && x <= high {
				out = append(out, plot.Tick{Value: x, Label: strconv.FormatFloat(x, 'g', 6, 64)})
			}
		}
	}
	return out
}

// Plot draws the line of the front and, on top, the trades and names.
func (p pareto) Plot(c draw.Canvas, axes *plot.Plot) {
	toX, toY := axes.Transforms(&c)
	var line []vg.Point
	for _, t := range p.front {
		if len(line) > 0 {
			line = append(line, vg.Point{X: toX(t.Cost), Y: line[len(line)-1].Y})
		}
		line = append(line, vg.Point{X: toX(t.Cost), Y: toY(t.Gain)})
	}
	if len(line) > 1 {
		c.StrokeLines(draw.LineStyle{Color: ink, Width: 1.2}, line)
	}
	for _, t := range p.trades {
		styleOf(slices.Index(p.kinds, t.Kind)).marker.draw(c, vg.Point{X: toX(t.Cost), Y: toY(t.Gain)})
	}
	name := textStyle(bodySize-1, ink, draw.XLeft, draw.YTop)
	if !p.less {
		name.YAlign = draw.YBottom
	}
	last := vg.Point{X: -1000}
	for _, t := range p.front {
		at := vg.Point{X: toX(t.Cost) + 5, Y: toY(t.Gain) - 5}
		if !p.less {
			at.Y += 10
		}
		if at.X-last.X < 110 && math.Abs(float64(at.Y-last.Y)) < 11 {
			continue // it would cover the one before
		}
		last = at
		c.FillText(name, at, fit(oneLine(t.Name, 40), name, c.Max.X-at.X))
	}
}

func (p pareto) legend(c draw.Canvas) {
	label := textStyle(bodySize, ink, draw.XLeft, draw.YCenter)
	y, room := c.Max.Y, c.Max.X-c.Min.X-sampleSize-6
	for i, kind := range p.kinds {
		if y < c.Min.Y {
			return
		}
		styleOf(i).marker.draw(c, vg.Point{X: c.Min.X + sampleSize/2, Y: y})
		c.FillText(label, vg.Point{X: c.Min.X + sampleSize + 6, Y: y + lift}, fit(oneLine(kind, 40), label, room))
		y -= rowHeight
	}
}
