package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
)

// chart is one measure against length, a curve per method.
type chart struct {
	title, note string
	curves      []curve
	lengths     []float64 // log2
	ticks       []plot.Tick
	trained     float64 // log2, NaN when not known
	low, high   float64
	yTicks      []plot.Tick
}

type curve struct {
	name  string
	style style
	y     []float64 // one per length, NaN where nothing finite was measured
	label string    // its last value
}

// last is the last length with a value, −1 if there is none.
func (c curve) last() int {
	for i := len(c.y) - 1; i >= 0; i-- {
		if finite(c.y[i]) {
			return i
		}
	}
	return -1
}

func (g *grid) chart(m measure, methods []Method) chart {
	c := chart{title: m.title + " against context length", note: m.better, trained: math.NaN()}
	for _, n := range g.lengths {
		x := math.Log2(float64(n))
		c.lengths = append(c.lengths, x)
		label := strconv.Itoa(n)
		if times := g.times(n); times != "" {
			label = times + "\n(" + label + ")"
		}
		c.ticks = append(c.ticks, plot.Tick{Value: x, Label: label})
	}
	if n := g.run.Model.TrainedLength; n > 0 && n >= g.lengths[0] && n <= g.lengths[len(g.lengths)-1] {
		c.trained = math.Log2(float64(n))
		c.note += " · dashed upright: trained length"
	}
	for i, method := range methods {
		c.curves = append(c.curves, g.curve(m, method.Name, i))
	}
	if m.title == recall.title {
		c.low, c.high = -2.5, 102.5
		c.yTicks = ticks(0, 100, 20)
	} else {
		c.bitsAxis()
	}
	if g.run.Partial {
		c.note += " · PARTIAL: the run was stopped"
	}
	slices.SortStableFunc(c.curves, higher)
	return c
}

// drawable is far above any bits per byte that mean something, and low enough
// that no arithmetic on an axis overflows.
const drawable = 1e9

func (g *grid) curve(m measure, method string, index int) curve {
	out := curve{name: oneLine(method, 60), style: styleOf(index), label: missing}
	scale := 1.0
	if m.title == recall.title {
		scale = 100
	}
	for i, n := range g.lengths {
		y := g.value(m, method, n)
		if r := g.at(method, n); r != nil {
			out.label = m.text(y)
			if i < len(g.lengths)-1 {
				out.label += " at " + cmp.Or(g.times(n), strconv.Itoa(n))
			}
		}
		if !finite(y) || math.Abs(y) > drawable {
			y = math.NaN()
		}
		out.y = append(out.y, scale*y)
	}
	return out
}

// higher orders curves as their ends lie, from the top; a curve that ends
// earlier, or has no value, goes below those equal to it.
func higher(a, b curve) int {
	i, j := a.last(), b.last()
	if i < 0 || j < 0 {
		return j - i
	}
	for i >= 0 && j >= 0 {
		if d := b.y[j] - a.y[i]; d > 0 {
			return 1
		} else if d < 0 {
			return -1
		}
		i, j = i-1, j-1
	}
	return 0
}

// leastStep keeps the axis from blowing up differences that are noise.
const leastStep = 0.01

// bitsAxis cuts the axis at 1.6 times the least bits per byte: above that a
// method is lost, and how badly would press the others flat.
func (c *chart) bitsAxis() {
	least, most := math.Inf(1), math.Inf(-1)
	for _, curve := range c.curves {
		for _, y := range curve.y {
			if finite(y) {
				least, most = min(least, y), max(most, y)
			}
		}
	}
	if !finite(least) {
		c.low, c.high = 0, 1
		c.note += " · no finite value"
		return
	}
	c.high = most
	if cut := 1.6 * least; least > 0 && most > cut {
		c.high = cut
	}
	step := max(niceStep((c.high-least)/6), leastStep)
	c.low = step * math.Floor(least/step)
	c.high = max(step*math.Ceil(c.high/step), c.low+step)
	c.yTicks = ticks(c.low, c.high, step)
	pad := (c.high - c.low) / 40
	c.low -= pad
	if most <= c.high {
		c.high += pad
		return
	}
	c.note += fmt.Sprintf(" · axis cut at %s (↑ ended above)", c.yTicks[len(c.yTicks)-1].Label)
	for i := range c.curves {
		if last := c.curves[i].last(); last >= 0 && c.curves[i].y[last] > c.high {
			c.curves[i].label += " ↑"
		}
	}
}

// niceStep is the next of 1, 2, 2.5, 5 times a power of ten.
func niceStep(least float64) float64 {
	if !(least > 0) {
		return 0.1
	}
	power := math.Pow(10, math.Floor(math.Log10(least)))
	for _, m := range []float64{1, 2, 2.5, 5} {
		if m*power >= least {
			return m * power
		}
	}
	return 10 * power
}

func ticks(low, high, step float64) []plot.Tick {
	decimals := 0
	for s := step; decimals < 6 && math.Abs(s-math.Round(s)) > 1e-6; s *= 10 {
		decimals++
	}
	var out []plot.Tick
	for i := 0; i <= int(math.Round((high-low)/step)); i++ {
		y := low + float64(i)*step
		out = append(out, plot.Tick{Value: y, Label: strconv.FormatFloat(y, 'f', decimals, 64)})
	}
	return out
}
