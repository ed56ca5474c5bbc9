package report

import (
	"bytes"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"image/color"
	"math"
	"strings"
	"time"
)

//go:embed *.html.tmpl
var pageFiles embed.FS

var pages = template.Must(template.ParseFS(pageFiles, "*"))

// page is what report.html.tmpl shows.
type page struct {
	Run      *Run
	Subject  string
	Stopped  string // why results are missing, empty when none are
	Tables   []pageTable
	Depth    template.URL
	Methods  []Method
	Measured []string
	Notes    []string
	Took     string
}

type pageTable struct {
	Title, Better string
	Picture       template.URL
	Lengths       []pageLength
	Rows          []pageRow
}

type pageLength struct {
	Times  string
	Tokens int
}

type pageRow struct {
	Name, Title string
	Cells       []pageCell
}

type pageCell struct {
	Text string
	Fill template.CSS // a colour
	Best bool
}

func (g *grid) page(pictures map[string][]byte) ([]byte, error) {
	p := page{
		Run: g.run, Subject: g.subject(), Methods: g.methods,
		Depth:    dataURI(pictures["recall-by-depth.png"]),
		Tables:   []pageTable{g.pageTable(bits), g.pageTable(recall)},
		Measured: g.howMeasured(), Notes: g.notes(),
	}
	p.Tables[0].Picture = dataURI(pictures["bits-per-byte.png"])
	p.Tables[1].Picture = dataURI(pictures["recall.png"])
	if s := g.run.Seconds; finite(s) && s > 0 && s < 1e9 {
		p.Took = (time.Duration(s * float64(time.Second))).Round(100 * time.Millisecond).String()
	}
	if have, want := g.measured(); g.run.Partial {
		p.Stopped = fmt.Sprintf("The run was stopped: %d of %d results are here. “%s” was not measured.", have, want, missing)
	}
	var b bytes.Buffer
	err := pages.ExecuteTemplate(&b, "report.html.tmpl", p)
	return b.Bytes(), err
}

func dataURI(png []byte) template.URL {
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(png))
}

func (g *grid) pageTable(m measure) pageTable {
	t := pageTable{Title: m.title, Better: m.better}
	for _, n := range g.lengths {
		t.Lengths = append(t.Lengths, pageLength{g.times(n), n})
	}
	good, bad := g.scale(m)
	for _, method := range g.methods {
		row := pageRow{Name: method.Name, Title: method.Title}
		for _, n := range g.lengths {
			x := g.value(m, method.Name, n)
			best, ok := g.bestAt(m, n)
			row.Cells = append(row.Cells, pageCell{
				Text: g.cellText(m, method.Name, n),
				Fill: tint((bad - x) / (bad - good)),
				Best: ok && x == best,
			})
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// scale gives the values of the deepest and of no tint: recall from all to
// none, bits per byte from the least to half as much again.
func (g *grid) scale(m measure) (good, bad float64) {
	if m.title == recall.title {
		return 1, 0
	}
	good = math.Inf(1)
	for _, n := range g.lengths {
		if best, ok := g.bestAt(m, n); ok {
			good = min(good, best)
		}
	}
	return good, 1.5 * good
}

// tint is light enough under dark text for every t. A t which is no number,
// or is outside 0 to 1, is no tint.
func tint(t float64) template.CSS {
	if !(t > 0) {
		return "#ffffff"
	}
	c := mix(color.RGBA{0xff, 0xff, 0xff, 0xff}, color.RGBA{0x9c, 0xcd, 0xee, 0xff}, min(t, 1))
	return template.CSS(fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B))
}

func (g *grid) howMeasured() []string {
	first := "Bits per byte: the model's surprise, −log₂ of the probability it gave each byte. The same bytes are scored at every length; only the context before them grows."
	if n := g.run.Sequences; n > 0 {
		first += fmt.Sprintf(" %s per length.", plural(n, "text"))
	}
	second := "Recall: a line with a key and a number lies in the context, and the model is asked for the number at the end. It counts only if every digit is the model's first choice."
	if n := g.run.Passkeys; n > 0 {
		second += fmt.Sprintf(" %s per length, spread over the depths.", plural(n, "passkey"))
	}
	third := "Every method ran the same weights on the same texts and passkeys."
	if n := g.run.Model.TrainedLength; n > 0 {
		third += fmt.Sprintf(" The model was trained at %d tokens: 1× is what it knows, the rest it never saw.", n)
	}
	return []string{first, second, third}
}

// notes are what a reader must know not to be misled.
func (g *grid) notes() []string {
	notes := []string{"Bits per byte alone misleads: a window of recent tokens wins it while it cannot recall what lies outside. Read the two together."}
	if s := g.misled(); s != "" {
		notes = append(notes, s)
	}
	if n := g.run.Passkeys; n > 0 {
		points := 196 * math.Sqrt(0.25/float64(n)) // 1.96 standard errors of a half
		notes = append(notes, fmt.Sprintf("With %s per length a recall near 50%% is known to about ±%.0f points (95%%); a smaller difference between two methods says little.", plural(n, "passkey"), points))
	}
	if n := g.run.Model.Parameters; n > 0 && n < 1e9 {
		notes = append(notes, fmt.Sprintf("The model is small (%s parameters). The shapes of the curves carry over to larger models better than the numbers do.", thousands(n)))
	}
	for _, r := range g.results {
		if !finite(r.BitsPerByte) || !finite(r.Recall) {
			return append(notes, "NaN and ∞ mark results that were not finite. They are in no picture; in CSV they are empty, in JSON null.")
		}
	}
	return notes
}

// misled names the case at the longest length, if this run has it.
func (g *grid) misled() string {
	n := g.lengths[len(g.lengths)-1]
	least, ok := g.bestAt(bits, n)
	most, found := g.bestAt(recall, n)
	if !ok || !found {
		return ""
	}
	for _, m := range g.methods {
		if x := g.value(recall, m.Name, n); g.value(bits, m.Name, n) == least && x < most/2 {
			return fmt.Sprintf("Here too: at %d tokens %s has the fewest bits per byte, %s, and recalls %s%% where the best recalls %s%%.",
				n, m.Name, bitsText(least), percentText(x), percentText(most))
		}
	}
	return ""
}

func thousands(n int) string {
	s := fmt.Sprint(n)
	var out strings.Builder
	for i, digit := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			out.WriteRune('\u202f')
		}
		out.WriteRune(digit)
	}
	return out.String()
}

// Size is the parameters of the model, readable.
func (p page) Size() string { return thousands(p.Run.Model.Parameters) }
