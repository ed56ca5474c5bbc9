package report

import (
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

const (
	panelWidth vg.Length = 168
	panelGap   vg.Length = 16
	panelTitle vg.Length = 22
	axisLeft   vg.Length = 60
	axisBottom vg.Length = 46
	headHeight vg.Length = 52
	barWidth   vg.Length = 14
	barArea    vg.Length = 96
)

// depthPicture is a heat map per method: passkeys found, by length and depth.
func (g *grid) depthPicture() ([]byte, error) {
	columns := min(5, len(g.methods))
	rows := (len(g.methods) + columns - 1) / columns
	panelHeight := g.panelHeight()
	width := max(470, 2*margin+axisLeft+vg.Length(columns)*(panelWidth+panelGap)+barArea)
	height := 2*margin + headHeight + vg.Length(rows)*(panelHeight+panelTitle+panelGap) + axisBottom
	img, page := newCanvas(width, height)
	area := draw.Crop(page, margin, -margin, margin, -margin)
	heading := bold(textStyle(titleSize, ink, draw.XLeft, draw.YTop))
	area.FillText(heading, vg.Point{X: area.Min.X, Y: area.Max.Y}, "Passkeys found (%) by depth")
	under := textStyle(bodySize, faint, draw.XLeft, draw.YTop)
	note := "down: depth of the passkey, 0% = start of the context · across: context length"
	if len(g.depths) == 0 {
		note = "no passkeys were measured"
	}
	if g.run.Partial {
		note += " · PARTIAL"
	}
	area.FillText(under, vg.Point{X: area.Min.X, Y: area.Max.Y - 20}, fit(note, under, area.Max.X-area.Min.X))
	if len(g.depths) == 0 {
		return encode(img)
	}
	for i, method := range g.methods {
		x := area.Min.X + axisLeft + vg.Length(i%columns)*(panelWidth+panelGap)
		y := area.Max.Y - headHeight - vg.Length(i/columns+1)*(panelHeight+panelTitle+panelGap) + panelGap
		g.panel(area, method.Name, x, y)
		if i%columns == 0 {
			g.depthAxis(area, x, y)
		}
		if i+columns >= len(g.methods) {
			g.lengthAxis(area, x, y)
		}
	}
	right := area.Min.X + axisLeft + vg.Length(columns)*(panelWidth+panelGap) + 12
	colourBar(area, right, area.Max.Y-headHeight-panelTitle-panelHeight, panelHeight)
	return encode(img)
}

// panelHeight has room for a number in each cell, up to a dozen depths.
func (g *grid) panelHeight() vg.Length { return min(max(100, 13*vg.Length(len(g.depths))), 160) }

// panel draws one method with its lower left corner at x, y.
func (g *grid) panel(c draw.Canvas, method string, x, y vg.Length) {
	panelHeight := g.panelHeight()
	title := bold(textStyle(bodySize, ink, draw.XLeft, draw.YBottom))
	c.FillText(title, vg.Point{X: x, Y: y + panelHeight + 5}, fit(oneLine(method, 60), title, panelWidth))
	wide, high := panelWidth/vg.Length(len(g.lengths)), panelHeight/vg.Length(len(g.depths))
	for i, n := range g.lengths {
		for j, depth := range g.depths {
			left, low := x+vg.Length(i)*wide, y+panelHeight-vg.Length(j+1)*high
			g.depthCell(c, g.at(method, n).recallAt(depth), left, low, wide, high)
		}
	}
}

func (g *grid) depthCell(c draw.Canvas, found float64, x, y, wide, high vg.Length) {
	fill, on, label := color.RGBA(blank), color.Color(faint), missing
	if finite(found) {
		fill, on, label = shade(found), color.White, strconv.FormatFloat(100*found, 'f', 0, 64)
		if found > 0.55 {
			on = ink
		}
	}
	seam := vg.Length(0.5) // of white, as long as cells are wide enough to bear it
	if wide < 6 || high < 6 {
		seam = 0
	}
	box(c, fill, x+seam, y+seam, wide-2*seam, high-2*seam)
	if size := min(10, high-5, wide/2.2); size >= 7 {
		c.FillText(textStyle(size, on, draw.XCenter, draw.YCenter), vg.Point{X: x + wide/2, Y: y + high/2 + lift/2}, label)
	}
}

func (g *grid) depthAxis(c draw.Canvas, x, y vg.Length) {
	style := textStyle(9.5, ink, draw.XRight, draw.YCenter)
	panelHeight := g.panelHeight()
	high := panelHeight / vg.Length(len(g.depths))
	every := stride(len(g.depths), panelHeight, 12)
	for j := 0; j < len(g.depths); j += every {
		label := strconv.FormatFloat(100*g.depths[j], 'f', 0, 64) + "%"
		c.FillText(style, vg.Point{X: x - 5, Y: y + panelHeight - (vg.Length(j)+0.5)*high}, label)
	}
}

func (g *grid) lengthAxis(c draw.Canvas, x, y vg.Length) {
	style := textStyle(9.5, ink, draw.XCenter, draw.YTop)
	wide := panelWidth / vg.Length(len(g.lengths))
	widest := style.Width("(" + strconv.Itoa(g.lengths[len(g.lengths)-1]) + ")")
	every := stride(len(g.lengths), panelWidth, widest+1)
	for i := 0; i < len(g.lengths); i += every {
		label := strconv.Itoa(g.lengths[i])
		if times := g.times(g.lengths[i]); times != "" {
			label = times + "\n(" + label + ")"
		}
		c.FillText(style, vg.Point{X: x + (vg.Length(i)+0.5)*wide, Y: y - 4}, label)
	}
}

// stride is how many labels to step so that each has room.
func stride(count int, size, room vg.Length) int {
	return max(1, int(math.Ceil(float64(vg.Length(count)*room/size))))
}

func colourBar(c draw.Canvas, x, y, height vg.Length) {
	const steps = 64
	for i := range steps {
		low := y + height*vg.Length(i)/steps
		box(c, shade((float64(i)+0.5)/steps), x, low, barWidth, height/steps+0.5)
	}
	style := textStyle(bodySize, ink, draw.XLeft, draw.YCenter)
	for _, percent := range []int{0, 25, 50, 75, 100} {
		at := y + height*vg.Length(percent)/100
		c.FillText(style, vg.Point{X: x + barWidth + 6, Y: at + lift}, strconv.Itoa(percent)+"%")
	}
	box(c, blank, x, y-26, barWidth, 12)
	c.FillText(style, vg.Point{X: x + barWidth + 6, Y: y - 20 + lift}, "not measured")
}
