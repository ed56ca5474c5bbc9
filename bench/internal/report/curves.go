package report

import (
	"image/color"
	"math"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

const (
	bodySize   vg.Length = 11
	titleSize  vg.Length = 15
	rowHeight  vg.Length = 15.5 // of a curve's label
	labelGap   vg.Length = 26   // from the data to the labels, for the leaders
	sampleSize vg.Length = 30   // of a line beside a label
	margin     vg.Length = 14
	lift       vg.Length = 1.2 // of centred text: lower-case letters lie low in their line
)

func curvePicture(c chart) ([]byte, error) {
	img, page := newCanvas(860, c.height())
	c.draw(draw.Crop(page, margin, -margin, margin, -margin))
	return encode(img)
}

func (c chart) height() vg.Length {
	return max(440, rowHeight*vg.Length(len(c.curves))+120)
}

// overviewNames are the methods of the picture for a first look; when fewer
// than two were run, it shows the first ten that were.
var overviewNames = []string{"rope", "pi", "ntk", "yarn", "rerope+logn", "self-extend", "dca", "streaming-llm", "window", "nope"}

func (g *grid) overviewMethods() []Method {
	var chosen []Method
	for _, name := range overviewNames {
		for _, m := range g.methods {
			if m.Name == name {
				chosen = append(chosen, m)
			}
		}
	}
	if len(chosen) >= 2 {
		return chosen
	}
	return g.methods[:min(len(overviewNames), len(g.methods))]
}

func (g *grid) overviewPicture() ([]byte, error) {
	const width, height, gutter = 960, 400, 22
	methods := g.overviewMethods()
	img, page := newCanvas(width, height)
	half := (width - 2*margin - gutter) / 2
	for i, m := range []measure{bits, recall} {
		left := margin + vg.Length(i)*(half+gutter)
		g.chart(m, methods).draw(draw.Crop(page, left, left+half-width, margin, -margin))
	}
	return encode(img)
}

// draw fills c with the title, the axes, the curves and, in the order in which
// the curves end, their labels.
func (c chart) draw(area draw.Canvas) {
	heading := bold(textStyle(titleSize, ink, draw.XLeft, draw.YTop))
	width := area.Max.X - area.Min.X
	area.FillText(heading, vg.Point{X: area.Min.X, Y: area.Max.Y}, fit(c.title, heading, width))
	under := textStyle(bodySize, faint, draw.XLeft, draw.YTop)
	area.FillText(under, vg.Point{X: area.Min.X, Y: area.Max.Y - 20}, fit(c.note, under, width))

	names, values := c.labelWidths(width)
	body := draw.Crop(area, 0, -(labelGap + sampleSize + 6 + names + 10 + values), 0, -44)
	p := c.axes(body.Max.X - body.Min.X)
	p.Add(curvePlotter{c})
	p.Draw(body)

	data := p.DataCanvas(body)
	_, toY := p.Transforms(&data)
	toX, _ := p.Transforms(&data)
	c.labels(area, data, toX, toY, names)
}

// axes is an empty plot of a width with c's axes.
func (c chart) axes(width vg.Length) *plot.Plot {
	p := plot.New()
	p.X.Min, p.X.Max = c.lengths[0]-0.12, c.lengths[len(c.lengths)-1]+0.12
	p.Y.Min, p.Y.Max = c.low, c.high
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.ConstantTicks(c.labelledTicks(width)), plot.ConstantTicks(c.yTicks)
	p.X.Label.Text = "context length, log scale"
	if long := "context length, in trained lengths (and tokens), log scale"; !math.IsNaN(c.trained) && textStyle(bodySize, ink, 0, 0).Width(long) < width {
		p.X.Label.Text = long
	}
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Padding = 0
		axis.LineStyle = draw.LineStyle{Color: faint, Width: 0.75}
		axis.Tick.LineStyle = axis.LineStyle
		axis.Tick.Length = 4
		axis.Label.TextStyle = textStyle(bodySize, faint, draw.XCenter, draw.YBottom)
		axis.Label.Padding = 4
	}
	p.X.Tick.Label = textStyle(c.tickSize(), ink, draw.XCenter, draw.YTop)
	p.Y.Tick.Label = textStyle(bodySize, ink, draw.XRight, draw.YCenter)
	return p
}

// tickSize shrinks where many lengths share the axis.
func (c chart) tickSize() vg.Length {
	if len(c.ticks) > 8 {
		return bodySize - 3
	}
	return bodySize
}

// labelledTicks are as many as have room beside each other, the trained length
// among them.
func (c chart) labelledTicks(width vg.Length) []plot.Tick {
	style, widest, trained := textStyle(c.tickSize(), ink, draw.XCenter, draw.YTop), vg.Length(0), 0
	for i, tick := range c.ticks {
		for line := range strings.SplitSeq(tick.Label, "\n") {
			widest = max(widest, style.Width(line))
		}
		if tick.Value == c.trained {
			trained = i
		}
	}
	const yLabels = 60
	every := stride(len(c.ticks), max(width-yLabels, 1), widest+4)
	var out []plot.Tick
	for i := trained % every; i < len(c.ticks); i += every {
		out = append(out, c.ticks[i])
	}
	return out
}

func (c chart) labelWidths(width vg.Length) (names, values vg.Length) {
	style := textStyle(bodySize, ink, draw.XLeft, draw.YCenter)
	for _, curve := range c.curves {
		names = max(names, style.Width(curve.name))
		values = max(values, style.Width(curve.label))
	}
	return min(names, 0.25*width), values
}

// labels names the curves beside their ends, each tied to its end by a thin
// line unless that is above the axis.
func (c chart) labels(area, data draw.Canvas, toX, toY func(float64) vg.Length, names vg.Length) {
	ends := make([]vg.Point, len(c.curves))
	want := make([]float64, len(c.curves))
	for i, curve := range c.curves {
		ends[i].Y = data.Min.Y
		if last := curve.last(); last >= 0 {
			ends[i] = vg.Point{X: toX(c.lengths[last]), Y: min(toY(curve.y[last]), data.Max.Y)}
		}
		want[i] = float64(ends[i].Y)
	}
	left := data.Max.X + labelGap
	text := textStyle(bodySize, ink, draw.XLeft, draw.YCenter)
	number := textStyle(bodySize, faint, draw.XLeft, draw.YCenter)
	for i, y := range spread(want, float64(rowHeight), float64(area.Min.Y+rowHeight/2), float64(data.Max.Y)) {
		curve, at := c.curves[i], vg.Length(y)
		if last := curve.last(); last >= 0 && curve.y[last] <= c.high {
			leader := draw.LineStyle{Color: mix(curve.style.line.Color.(color.RGBA), color.RGBA{0xff, 0xff, 0xff, 0xff}, 0.55), Width: 0.6}
			if last < len(c.lengths)-1 || last == 0 {
				leader.Dashes = []vg.Length{1, 3} // or it would pass for a curve
			}
			area.StrokeLines(leader, []vg.Point{{X: ends[i].X + 4, Y: ends[i].Y}, {X: max(ends[i].X+4, data.Max.X), Y: ends[i].Y}, {X: left - 3, Y: at}})
		}
		area.StrokeLine2(curve.style.line, left, at, left+sampleSize, at)
		curve.style.marker.draw(area, vg.Point{X: left + sampleSize/2, Y: at})
		x := left + sampleSize + 6
		area.FillText(text, vg.Point{X: x, Y: at + lift}, fit(curve.name, text, names))
		area.FillText(number, vg.Point{X: x + names + 10, Y: at + lift}, curve.label)
	}
}

// spread moves falling places as little as it can, in the sense of least
// squares, so that neighbours are gap apart and all lie from low to high. With
// i·gap added they need only not rise, so it is an isotonic regression, done by
// pooling neighbours that rise (Barlow et al., Statistical inference under
// order restrictions, 1972).
func spread(want []float64, gap, low, high float64) []float64 {
	type pool struct{ sum, count float64 }
	var pools []pool
	for i, y := range want {
		pools = append(pools, pool{y + float64(i)*gap, 1})
		for n := len(pools); n > 1 && pools[n-1].sum*pools[n-2].count > pools[n-2].sum*pools[n-1].count; n-- {
			pools[n-2].sum += pools[n-1].sum
			pools[n-2].count += pools[n-1].count
			pools = pools[:n-1]
		}
	}
	out := make([]float64, 0, len(want))
	floor := low + float64(len(want)-1)*gap
	for _, p := range pools {
		for range int(p.count) {
			y := min(max(p.sum/p.count, floor), max(high, floor))
			out = append(out, y-float64(len(out))*gap)
		}
	}
	return out
}

// curvePlotter draws the grid and the curves, the first on top.
type curvePlotter struct{ chart }

func (c curvePlotter) Plot(canvas draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&canvas)
	for _, tick := range c.yTicks {
		canvas.StrokeLine2(draw.LineStyle{Color: rule, Width: 0.75}, canvas.Min.X, toY(tick.Value), canvas.Max.X, toY(tick.Value))
	}
	if !math.IsNaN(c.trained) {
		line := draw.LineStyle{Color: faint, Width: 0.75, Dashes: []vg.Length{3, 3}}
		canvas.StrokeLine2(line, toX(c.trained), canvas.Min.Y, toX(c.trained), canvas.Max.Y)
	}
	for i := len(c.curves) - 1; i >= 0; i-- {
		c.plotCurve(canvas, c.curves[i], toX, toY)
	}
}

// plotCurve breaks the line where a value is missing.
func (c curvePlotter) plotCurve(canvas draw.Canvas, curve curve, toX, toY func(float64) vg.Length) {
	var lines [][]vg.Point
	var line, points []vg.Point
	for i, y := range curve.y {
		if !finite(y) {
			lines, line = append(lines, line), nil
			continue
		}
		at := vg.Point{X: toX(c.lengths[i]), Y: toY(y)}
		line, points = append(line, at), append(points, at)
	}
	for _, line := range append(lines, line) {
		if len(line) > 1 {
			canvas.StrokeLines(curve.style.line, canvas.ClipLinesXY(line)...)
		}
	}
	for _, at := range points {
		if canvas.Contains(at) {
			curve.style.marker.draw(canvas, at)
		}
	}
}
