package report

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// grid is a Run put in order: its methods and lengths without repeats, and the
// result of each pair.
type grid struct {
	run     *Run
	methods []Method
	lengths []int     // rising
	depths  []float64 // rising
	results map[cell]*Result
}

type cell struct {
	method string
	length int
}

func newGrid(r *Run) (*grid, error) {
	if r == nil {
		return nil, errors.New("report: no run (nil)")
	}
	g := &grid{run: r, results: map[cell]*Result{}}
	known := map[string]bool{}
	add := func(m Method) {
		if !known[m.Name] {
			known[m.Name] = true
			g.methods = append(g.methods, m)
		}
	}
	for _, m := range r.Methods {
		add(m)
	}
	g.lengths = slices.Clone(r.Lengths)
	g.depths = slices.Clone(r.Depths)
	for i := range r.Results {
		result := &r.Results[i]
		add(Method{Name: result.Method})
		g.lengths = append(g.lengths, result.Length)
		for _, d := range result.ByDepth {
			g.depths = append(g.depths, d.Depth)
		}
		g.results[cell{result.Method, result.Length}] = result
	}
	g.lengths = ordered(g.lengths)
	g.depths = slices.DeleteFunc(ordered(g.depths), func(d float64) bool { return !finite(d) })
	switch {
	case len(g.methods) == 0:
		return nil, errors.New("report: the run has no methods, want at least 1")
	case len(g.lengths) == 0:
		return nil, errors.New("report: the run has no lengths, want at least 1")
	case g.lengths[0] <= 0:
		return nil, fmt.Errorf("report: length %d, want at least 1", g.lengths[0])
	}
	return g, nil
}

func ordered[T cmp.Ordered](list []T) []T {
	slices.Sort(list)
	return slices.Compact(list)
}

func (g *grid) at(method string, length int) *Result { return g.results[cell{method, length}] }

// recallAt is the recall of one depth. It is NaN where nothing was measured.
func (r *Result) recallAt(depth float64) float64 {
	if d := r.depth(depth); d != nil && d.Total > 0 {
		return float64(d.Correct) / float64(d.Total)
	}
	return math.NaN()
}

func (r *Result) depth(depth float64) *Depth {
	if r == nil {
		return nil
	}
	for i := range r.ByDepth {
		if r.ByDepth[i].Depth == depth {
			return &r.ByDepth[i]
		}
	}
	return nil
}

// times is a length in trained lengths: "4×". It is empty when the trained
// length is not known.
func (g *grid) times(length int) string {
	trained := g.run.Model.TrainedLength
	if trained <= 0 {
		return ""
	}
	times := float64(length) / float64(trained)
	if times >= 100 {
		return strconv.FormatFloat(times, 'f', 0, 64) + "×"
	}
	return strconv.FormatFloat(times, 'g', 3, 64) + "×"
}

// measure is one of the two numbers of a result.
type measure struct {
	title, better string
	value         func(*Result) float64
	text          func(float64) string
	best          func(a, b float64) bool // a is better than b
}

var (
	bits = measure{
		title: "Bits per byte", better: "lower is better",
		value: func(r *Result) float64 { return r.BitsPerByte }, text: bitsText,
		best: func(a, b float64) bool { return a < b },
	}
	recall = measure{
		title: "Recall (%)", better: "higher is better",
		value: func(r *Result) float64 { return r.Recall }, text: percentText,
		best: func(a, b float64) bool { return a > b && a > 0 },
	}
)

// cellText is what a table says of a method at a length.
func (g *grid) cellText(m measure, method string, length int) string {
	result := g.at(method, length)
	if result == nil {
		return missing
	}
	return m.text(m.value(result))
}

// value is NaN where nothing was measured.
func (g *grid) value(m measure, method string, length int) float64 {
	if result := g.at(method, length); result != nil {
		return m.value(result)
	}
	return math.NaN()
}

// bestAt is the best finite value of a length, if there is one worth a mark.
func (g *grid) bestAt(m measure, length int) (best float64, ok bool) {
	for _, method := range g.methods {
		x := g.value(m, method.Name, length)
		switch {
		case !finite(x):
		case !ok:
			best, ok = x, true
		case m.best(x, best):
			best = x
		}
	}
	return best, ok && (m.title != recall.title || best > 0)
}

// measured counts the pairs of method and length with a result.
func (g *grid) measured() (have, want int) {
	for _, m := range g.methods {
		for _, n := range g.lengths {
			if want++; g.at(m.Name, n) != nil {
				have++
			}
		}
	}
	return have, want
}

// oneLine makes a name safe for a row of a table, cut to at most limit runes.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return s
}
