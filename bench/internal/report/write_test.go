package report

import (
	"bytes"
	"encoding/json"
	"html"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var allFiles = []string{"bits-per-byte.png", "overview.png", "recall-by-depth.png", "recall.png", "report.html", "results.csv", "results.json"}

var fiveLengths = []int{128, 256, 512, 1024, 2048}

// runs are the shapes a Run can have.
func runs() map[string]*Run {
	partial := synthetic(syntheticNames[:6], fiveLengths, 5)
	partial.Partial, partial.Results = true, partial.Results[:13]

	broken := synthetic(syntheticNames[:4], fiveLengths, 5)
	broken.Seconds = math.NaN()
	for i := range broken.Results {
		r := &broken.Results[i]
		bad := []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e308, -1e308, 0}[i%6]
		r.BitsPerByte, r.Recall, r.Digits, r.Seconds = bad, bad, bad, bad
	}

	unstarted := synthetic(syntheticNames[:3], fiveLengths, 5)
	unstarted.Partial, unstarted.Results = true, nil

	bare := synthetic([]string{"rope", "pi"}, []int{100}, 0)
	bare.Model, bare.Methods, bare.Lengths = Model{}, nil, nil

	long := []string{strings.Repeat("a very long name ", 9), "line\nbreak\ttab", "", "wide 文字 ±"}
	doublings := []int{}
	for n := 1; n <= 1<<17; n *= 2 {
		doublings = append(doublings, n)
	}
	return map[string]*Run{
		"full":      synthetic(syntheticNames[:25], fiveLengths, 10),
		"single":    synthetic([]string{"rope"}, []int{128}, 1),
		"partial":   partial,
		"broken":    broken,
		"unstarted": unstarted,
		"bare":      bare,
		"odd names": synthetic(long, doublings, 3),
	}
}

// TestWrite: every shape of Run gives every file and nothing else, each of them
// whole.
func TestWrite(t *testing.T) {
	for name, r := range runs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "new", "folder")
			files, err := Write(dir, r)
			if err != nil {
				t.Fatal(err)
			}
			if len(files) != len(allFiles) || !slices.Equal(list(t, dir), allFiles) {
				t.Fatalf("wrote %v, folder holds %v, want %v", files, list(t, dir), allFiles)
			}
			g, err := newGrid(r)
			if err != nil {
				t.Fatal(err)
			}
			checkPictures(t, dir, g)
			checkPage(t, read(t, dir, "report.html"), g)
			checkCSV(t, read(t, dir, "results.csv"), g)
			checkJSON(t, read(t, dir, "results.json"), r)
		})
	}
}

func list(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func read(t *testing.T, dir, name string) []byte {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// checkPictures: each picture decodes, is not blank, and shows the colour of
// each method it must show.
func checkPictures(t *testing.T, dir string, g *grid) {
	for _, name := range allFiles {
		if filepath.Ext(name) != ".png" {
			continue
		}
		img, err := png.Decode(bytes.NewReader(read(t, dir, name)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		colours := count(img)
		if len(colours) < 20 || len(colours) > 1<<16 {
			t.Errorf("%s has %d colours", name, len(colours))
		}
		size := img.Bounds().Size()
		if white := colours[color.RGBA{255, 255, 255, 255}]; white < size.X*size.Y/10 || size.X > 2400 {
			t.Errorf("%s: %v, %d white dots", name, size, white)
		}
		shown := g.methods
		switch name {
		case "recall-by-depth.png":
			continue
		case "overview.png":
			shown = g.overviewMethods()
		}
		for i, m := range shown {
			if colours[styleOf(i).line.Color.(color.RGBA)] < 10 {
				t.Errorf("%s: the colour of %q is not there", name, m.Name)
			}
		}
	}
}

func count(img image.Image) map[color.RGBA]int {
	out := map[color.RGBA]int{}
	b := img.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			out[color.RGBAModel.Convert(img.At(x, y)).(color.RGBA)]++
		}
	}
	return out
}

func checkPage(t *testing.T, page []byte, g *grid) {
	text := string(page)
	for _, m := range g.methods {
		if name := html.EscapeString(m.Name); !strings.Contains(strings.ReplaceAll(text, "&#43;", "+"), "<code>"+name+"</code>") {
			t.Errorf("the page has no description of %q", m.Name)
		}
	}
	if n := strings.Count(text, `<th scope="row" title=`) + strings.Count(text, `<tr><th scope="row">`); n < 2*len(g.methods) {
		t.Errorf("the page has %d rows, want at least %d", n, 2*len(g.methods))
	}
	if n := strings.Count(text, "<td style="); n != 2*len(g.methods)*len(g.lengths) {
		t.Errorf("the tables have %d cells, want %d", n, 2*len(g.methods)*len(g.lengths))
	}
	if strings.Contains(text, "PARTIAL") != g.run.Partial {
		t.Errorf("the page says PARTIAL: %v, want %v", !g.run.Partial, g.run.Partial)
	}
	if n := strings.Count(text, `src="data:image/png;base64,`); n != 3 {
		t.Errorf("%d embedded pictures, want 3", n)
	}
	for _, bad := range []string{"ZgotmplZ", "src=\"http", "<script", "<link"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
}

func checkJSON(t *testing.T, data []byte, want *Run) {
	var got Run
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	again, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(again, '\n'), data) {
		t.Error("the JSON read back and written again is other JSON")
	}
	if len(got.Results) != len(want.Results) {
		t.Fatalf("%d results read back, want %d", len(got.Results), len(want.Results))
	}
	for i, r := range want.Results {
		for _, pair := range [][2]float64{{got.Results[i].BitsPerByte, r.BitsPerByte}, {got.Results[i].Recall, r.Recall}, {got.Results[i].Digits, r.Digits}, {got.Results[i].Seconds, r.Seconds}} {
			if finite(pair[1]) && pair[0] != pair[1] || !finite(pair[1]) && !math.IsNaN(pair[0]) {
				t.Fatalf("result %d: %v read back, want %v", i, pair[0], pair[1])
			}
		}
		if !slices.Equal(got.Results[i].ByDepth, r.ByDepth) {
			t.Fatalf("result %d: depths %v read back, want %v", i, got.Results[i].ByDepth, r.ByDepth)
		}
	}
}

// TestPageEscapes: what comes from outside cannot become markup, a style or a
// link that runs.
func TestPageEscapes(t *testing.T) {
	evil := `"><script>alert(1)</script><!--`
	r := synthetic([]string{evil}, []int{128}, 2)
	r.Methods[0] = Method{evil, evil, evil, evil, evil, evil, "javascript:alert(1)"}
	r.Model.Name, r.Text, r.Policy = evil, evil, evil
	r.Machine, r.Parameters = map[string]string{evil: evil}, map[string]string{evil: evil}
	g, err := newGrid(r)
	if err != nil {
		t.Fatal(err)
	}
	page, err := g.page(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"<script", "<!--", `href="javascript`, `""><`} {
		if bytes.Contains(page, []byte(bad)) {
			t.Errorf("the page contains %q", bad)
		}
	}
	if n := bytes.Count(page, []byte("&lt;script&gt;")); n < 10 {
		t.Errorf("%d escaped names, want at least 10", n)
	}
}

// TestWriteIsDeterministic: the same run gives the same bytes.
func TestWriteIsDeterministic(t *testing.T) {
	render := func() []content {
		g, err := newGrid(synthetic(syntheticNames[:3], fiveLengths, 3))
		if err != nil {
			t.Fatal(err)
		}
		out, err := g.render()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	a, b := render(), render()
	for i := range a {
		if a[i].name != b[i].name || !bytes.Equal(a[i].data, b[i].data) {
			t.Errorf("%s differs between two renderings", a[i].name)
		}
	}
}

// TestWriteErrors: what cannot be written is an error which names it, and no
// half file stays.
func TestWriteErrors(t *testing.T) {
	r := synthetic([]string{"rope"}, []int{128}, 1)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if files, err := Write(filepath.Join(file, "folder"), r); err == nil || len(files) > 0 || !strings.Contains(err.Error(), file) {
		t.Errorf("folder below a file: files %v, error %v", files, err)
	}

	taken := t.TempDir()
	if err := os.MkdirAll(filepath.Join(taken, "report.html", "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := Write(taken, r)
	if err == nil || !strings.Contains(err.Error(), "report.html") {
		t.Errorf("report.html is a folder: error %v", err)
	}
	if left := list(t, taken); len(left) != len(files)+1 {
		t.Errorf("%d files reported, the folder holds %v", len(files), left)
	}

	closed := t.TempDir()
	if err := os.Chmod(closed, 0o555); err != nil {
		t.Fatal(err)
	}
	if probe := filepath.Join(closed, "probe"); os.WriteFile(probe, nil, 0o644) == nil {
		t.Skip("this user may write to a read-only folder")
	}
	if files, err := Write(closed, r); err == nil || len(files) > 0 || len(list(t, closed)) > 0 {
		t.Errorf("read-only folder: files %v, error %v, left %v", files, err, list(t, closed))
	}
}

// TestBadRuns: a run with nothing to show is an error that says what is wanted,
// and makes no folder.
func TestBadRuns(t *testing.T) {
	for name, r := range map[string]*Run{
		"nil":             nil,
		"no methods":      {Lengths: []int{128}},
		"no lengths":      {Methods: []Method{{Name: "rope"}}},
		"negative length": {Methods: []Method{{Name: "rope"}}, Lengths: []int{-1, 128}},
	} {
		dir := filepath.Join(t.TempDir(), "x")
		if _, err := Write(dir, r); err == nil || !strings.HasPrefix(err.Error(), "report: ") {
			t.Errorf("%s: Write says %v", name, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: a folder was made", name)
		}
		if err := Table(&bytes.Buffer{}, r); err == nil {
			t.Errorf("%s: Table gives no error", name)
		}
	}
}
