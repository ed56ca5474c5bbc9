package report

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// RooflinePoint is something that was measured, x FLOP for each byte.
type RooflinePoint struct {
	Kind              string // points of a kind look alike
	Intensity, GFLOPs float64
}

// RooflineRoof is a limit: a slope of bandwidth, then the level of the peak.
type RooflineRoof struct {
	Name         string
	GFLOPs, GBps float64
}

// Roofline draws points under roofs, both axes logarithmic, as a PNG.
// Points and roofs that are not positive and finite are left out.
func Roofline(title, note string, roofs []RooflineRoof, points []RooflinePoint) ([]byte, error) {
	roofs = slices.DeleteFunc(slices.Clone(roofs), func(r RooflineRoof) bool { return !drawableLog(r.GFLOPs) || !drawableLog(r.GBps) })
	points = slices.DeleteFunc(slices.Clone(points), func(p RooflinePoint) bool { return !drawableLog(p.Intensity) || !drawableLog(p.GFLOPs) })
	r := roofline{roofs: roofs, points: points}
	for _, p := range points {
		if !slices.Contains(r.kinds, p.Kind) {
			r.kinds = append(r.kinds, p.Kind)
		}
	}
	slices.Sort(r.kinds)
	r.limits()
	const width, height, legend = 900, 520, 240
	img, page := newCanvas(width, height)
	area := draw.Crop(page, margin, -margin, margin, -margin)
	heading := bold(textStyle(titleSize, ink, draw.XLeft, draw.YTop))
	under := textStyle(bodySize, faint, draw.XLeft, draw.YTop)
	across := area.Max.X - area.Min.X
	area.FillText(heading, vg.Point{X: area.Min.X, Y: area.Max.Y}, fit(title, heading, across))
	area.FillText(under, vg.Point{X: area.Min.X, Y: area.Max.Y - 20}, fit(note, under, across))
	body := draw.Crop(area, 0, -legend, 0, -44)
	p := r.axes()
	p.Add(r)
	p.Draw(body)
	r.legend(draw.Crop(area, across-legend+14, 0, 0, -56))
	return encode(img)
}

func drawableLog(x float64) bool { return x > 1e-9 && x < 1e12 }

type roofline struct {
	roofs                  []RooflineRoof
	points                 []RooflinePoint
	kinds                  []string
	left, right, low, high float64
}

// limits takes whole decades around all points and the knees of the roofs.
func (r *roofline) limits() {
	r.left, r.right, r.low, r.high = math.Inf(1), 0, math.Inf(1), 0
	add := func(x, y float64) {
		r.left, r.right, r.low, r.high = min(r.left, x), max(r.right, x), min(r.low, y), max(r.high, y)
	}
	for _, p := range r.points {
		add(p.Intensity, p.GFLOPs)
	}
	for _, f := range r.roofs {
		add(f.GFLOPs/f.GBps, f.GFLOPs)
	}
	if len(r.points)+len(r.roofs) == 0 {
		add(1, 1)
	}
	decade := func(x float64, up float64) float64 { return math.Pow(10, math.Floor(math.Log10(x))+up) }
	r.left, r.low, r.right, r.high = decade(r.left, 0), decade(r.low, 0), decade(r.right, 1), decade(r.high, 1)
}

func (r *roofline) axes() *plot.Plot {
	p := plot.New()
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = r.left, r.right, r.low, r.high
	p.X.Label.Text, p.Y.Label.Text = "FLOP for each byte of memory", "GFLOP/s"
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Scale, axis.Padding = plot.LogScale{}, 0
		axis.Tick.Marker = plot.LogTicks{Prec: -1}
		axis.LineStyle = draw.LineStyle{Color: faint, Width: 0.75}
		axis.Tick.LineStyle = axis.LineStyle
		axis.Label.TextStyle = textStyle(bodySize, faint, draw.XCenter, draw.YBottom)
		axis.Label.Padding = 4
	}
	p.X.Tick.Label = textStyle(bodySize, ink, draw.XCenter, draw.YTop)
	p.Y.Tick.Label = textStyle(bodySize, ink, draw.XRight, draw.YCenter)
	return p
}

// Plot draws the roofs and, on top, the points.
func (r roofline) Plot(c draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&c)
	for i, f := range r.roofs {
		knee := f.GFLOPs / f.GBps
		start := max(r.left, r.low/f.GBps)
		line := []vg.Point{{X: toX(start), Y: toY(start * f.GBps)}, {X: toX(knee), Y: toY(f.GFLOPs)}, {X: toX(r.right), Y: toY(f.GFLOPs)}}
		if start >= knee {
			line = []vg.Point{{X: toX(start), Y: toY(f.GFLOPs)}, line[2]}
		}
		c.StrokeLines(r.roofStyle(i), c.ClipLinesXY(line)...)
	}
	for _, point := range r.points {
		styleOf(slices.Index(r.kinds, point.Kind)).marker.draw(c, vg.Point{X: toX(point.Intensity), Y: toY(point.GFLOPs)})
	}
}

func (r roofline) roofStyle(i int) draw.LineStyle {
	return draw.LineStyle{Color: ink, Width: 1.2, Dashes: lineDashes[i%len(lineDashes)]}
}

// legend names roofs and kinds from the top down.
func (r roofline) legend(c draw.Canvas) {
	label := textStyle(bodySize, ink, draw.XLeft, draw.YCenter)
	y := c.Max.Y
	room := c.Max.X - c.Min.X - sampleSize - 6
	entry := func(name string, sample func(x, y vg.Length)) {
		if y < c.Min.Y {
			return
		}
		sample(c.Min.X, y)
		c.FillText(label, vg.Point{X: c.Min.X + sampleSize + 6, Y: y + lift}, fit(name, label, room))
		y -= rowHeight
	}
	for i, f := range r.roofs {
		entry(oneLine(f.Name, 40), func(x, y vg.Length) { c.StrokeLine2(r.roofStyle(i), x, y, x+sampleSize, y) })
		entry(fmt.Sprintf("%.3g GFLOP/s, %.3g GB/s", f.GFLOPs, f.GBps), func(_, _ vg.Length) {})
	}
	for i, kind := range r.kinds {
		entry(oneLine(kind, 60), func(x, y vg.Length) { styleOf(i).marker.draw(c, vg.Point{X: x + sampleSize/2, Y: y}) })
	}
}
