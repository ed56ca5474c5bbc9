package report

import (
	"bytes"
	"image/color"
	"math"

	stdfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// dotsPerInch gives 2 dots a point: sharp on a dense screen.
const dotsPerInch = 144

var (
	ink   = color.RGBA{0x1f, 0x24, 0x28, 0xff}
	faint = color.RGBA{0x5c, 0x66, 0x70, 0xff}
	rule  = color.RGBA{0xe3, 0xe6, 0xe9, 0xff}
	blank = color.RGBA{0xe8, 0xe8, 0xe8, 0xff} // a cell that was not measured
)

// newCanvas is a white picture of a size in points.
func newCanvas(width, height vg.Length) (*vgimg.Canvas, draw.Canvas) {
	c := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dotsPerInch))
	return c, draw.New(c)
}

func encode(c *vgimg.Canvas) ([]byte, error) {
	var b bytes.Buffer
	_, err := vgimg.PngCanvas{Canvas: c}.WriteTo(&b)
	return b.Bytes(), err
}

func textStyle(size vg.Length, c color.Color, x text.XAlignment, y text.YAlignment) text.Style {
	return text.Style{
		Color:   c,
		Font:    font.Font{Typeface: "Liberation", Variant: "Sans", Size: size},
		XAlign:  x,
		YAlign:  y,
		Handler: plot.DefaultTextHandler,
	}
}

func bold(s text.Style) text.Style {
	s.Font.Weight = stdfont.WeightBold
	return s
}

// fit cuts s until it is no wider than width.
func fit(s string, style text.Style, width vg.Length) string {
	if style.Width(s) <= width {
		return s
	}
	runes := []rune(s)
	for len(runes) > 1 && style.Width(string(runes)+"…") > width {
		runes = runes[:len(runes)-1]
	}
	return string(runes) + "…"
}

func box(c draw.Canvas, fill color.Color, x, y, width, height vg.Length) {
	c.FillPolygon(fill, []vg.Point{{X: x, Y: y}, {X: x + width, Y: y}, {X: x + width, Y: y + height}, {X: x, Y: y + height}})
}

// style is how a method is drawn: no two of 28 share both colour and dashes,
// and the marker is a third sign for readers who see neither well.
type style struct {
	line   draw.LineStyle
	marker marker
}

// The colours of Okabe and Ito, Color universal design,
// https://jfly.uni-koeln.de/color/, without their yellow, which white drowns.
var lineColors = []color.RGBA{
	{0x00, 0x72, 0xb2, 0xff}, // blue
	{0xd5, 0x5e, 0x00, 0xff}, // vermilion
	{0x00, 0x9e, 0x73, 0xff}, // green
	{0xcc, 0x79, 0xa7, 0xff}, // purple
	{0x00, 0x00, 0x00, 0xff}, // black
	{0xe6, 0x9f, 0x00, 0xff}, // orange
	{0x56, 0xb4, 0xe9, 0xff}, // sky
}

var lineDashes = [][]vg.Length{nil, {6, 2.5}, {1.5, 2}, {8, 2.5, 1.5, 2.5}}

// shapes are regular polygons: corners, and the angle of the first.
var shapes = []struct {
	corners int
	angle   float64
}{{24, 0}, {4, math.Pi / 4}, {3, math.Pi / 2}, {4, 0}, {3, -math.Pi / 2}}

func styleOf(i int) style {
	colour := lineColors[i%len(lineColors)]
	return style{
		line:   draw.LineStyle{Color: colour, Width: 1.5, Dashes: lineDashes[i/len(lineColors)%len(lineDashes)]},
		marker: marker{shape: i % len(shapes), hollow: i/len(shapes)%2 == 1, colour: colour},
	}
}

type marker struct {
	shape  int
	hollow bool
	colour color.Color
}

func (m marker) draw(c draw.Canvas, at vg.Point) {
	m.fill(c, at, 4, color.White)
	m.fill(c, at, 3.2, m.colour)
	if m.hollow {
		m.fill(c, at, 1.9, color.White)
	}
}

func (m marker) fill(c draw.Canvas, at vg.Point, radius vg.Length, fill color.Color) {
	shape := shapes[m.shape]
	if shape.corners == 3 {
		radius *= 1.25 // a triangle looks smaller than its circle
	}
	points := make([]vg.Point, shape.corners)
	for i := range points {
		sin, cos := math.Sincos(shape.angle + 2*math.Pi*float64(i)/float64(shape.corners))
		points[i] = vg.Point{X: at.X + radius*vg.Length(cos), Y: at.Y + radius*vg.Length(sin)}
	}
	c.FillPolygon(fill, points)
}

// viridis are nine points of the palette of Smith, van der Walt and Firing
// (https://bids.github.io/colormap/, CC0): equal steps look equal, also in grey
// and to readers who confuse red and green.
var viridis = []color.RGBA{
	{0x44, 0x01, 0x54, 0xff}, {0x47, 0x2d, 0x7b, 0xff}, {0x3b, 0x52, 0x8b, 0xff},
	{0x2c, 0x72, 0x8e, 0xff}, {0x21, 0x91, 0x8c, 0xff}, {0x28, 0xae, 0x80, 0xff},
	{0x5e, 0xc9, 0x62, 0xff}, {0xad, 0xdc, 0x30, 0xff}, {0xfd, 0xe7, 0x25, 0xff},
}

// shade is the colour of t, from 0 to 1.
func shade(t float64) color.RGBA {
	t = min(max(t, 0), 1) * float64(len(viridis)-1)
	i := min(int(t), len(viridis)-2)
	return mix(viridis[i], viridis[i+1], t-float64(i))
}

func mix(a, b color.RGBA, t float64) color.RGBA {
	part := func(a, b uint8) uint8 { return uint8(math.Round(float64(a) + t*(float64(b)-float64(a)))) }
	return color.RGBA{part(a.R, b.R), part(a.G, b.G), part(a.B, b.B), 0xff}
}
