package report

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestTableFits: no line is wider than 110 runes, every method has a row in
// each block, and a line is one line whatever the names hold.
func TestTableFits(t *testing.T) {
	for name, r := range runs() {
		var b strings.Builder
		if err := Table(&b, r); err != nil {
			t.Fatal(err)
		}
		g, err := newGrid(r)
		if err != nil {
			t.Fatal(err)
		}
		heads := 1
		if r.Model.TrainedLength > 0 {
			heads = 2
		}
		blocks := 2 * ((len(g.lengths) + tableColumns - 1) / tableColumns)
		want := 1 + blocks*(2+heads+len(g.methods))
		if r.Partial {
			want++
		}
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if len(lines) != want {
			t.Errorf("%s: %d lines, want %d", name, len(lines), want)
		}
		for _, line := range lines {
			if n := utf8.RuneCountInString(line); n > 110 {
				t.Errorf("%s: %d runes: %s", name, n, line)
			}
		}
	}
}

// TestTableGolden is a table by hand: what was not measured is a dash, the best
// of a column has the mark, no recall at all has none.
func TestTableGolden(t *testing.T) {
	r := &Run{
		Model: Model{Name: "m", TrainedLength: 128}, Lengths: []int{192, 128}, Passkeys: 1, Partial: true,
		Methods: []Method{{Name: "a"}, {Name: "b"}},
		Results: []Result{
			{Method: "a", Length: 128, BitsPerByte: 2.5, Recall: 1},
			{Method: "a", Length: 192, BitsPerByte: math.NaN(), Recall: 0},
			{Method: "b", Length: 128, BitsPerByte: 2.25, Recall: 0.125},
		},
	}
	var b strings.Builder
	if err := Table(&b, r); err != nil {
		t.Fatal(err)
	}
	want := `m, trained at 128 tokens, 1 passkey per length
PARTIAL: stopped after 3 of 4 results; – was not measured

Bits per byte, lower is better (* best of its column)
  method                      1×    1.5×
                             128     192
  a                       2.500     NaN
  b                       2.250*      –

Recall (%), higher is better (* best of its column)
  method                      1×   1.5×
                             128    192
  a                       100.0*   0.0
  b                        12.5      –
`
	if squeeze(b.String()) != squeeze(want) {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// squeeze makes the golden table independent of how wide columns are.
func squeeze(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.Join(strings.Fields(lines[i]), " ")
	}
	return strings.Join(lines, "\n")
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestTableReportsItsWriter(t *testing.T) {
	if err := Table(failing{}, synthetic([]string{"rope"}, []int{128}, 1)); err == nil {
		t.Error("no error from a writer that fails")
	}
}

// checkCSV: the file read back gives every number bit for bit, and an empty
// cell for every number that is not there.
func checkCSV(t *testing.T, data []byte, g *grid) {
	rows, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if want := 1 + len(g.methods)*len(g.lengths); len(rows) != want {
		t.Fatalf("%d rows, want %d", len(rows), want)
	}
	column := map[string]int{}
	for i, name := range rows[0] {
		column[name] = i
	}
	at := 1
	for _, m := range g.methods {
		for _, n := range g.lengths {
			row, r := rows[at], g.at(m.Name, n)
			at++
			if row[column["method"]] != m.Name || row[column["length"]] != strconv.Itoa(n) {
				t.Fatalf("row %v, want %q at %d", row, m.Name, n)
			}
			if r == nil {
				if rest := strings.Join(row[3:], ""); rest != "" {
					t.Errorf("%q at %d was not measured, row %v", m.Name, n, row)
				}
				continue
			}
			for name, want := range map[string]float64{"bits_per_byte": r.BitsPerByte, "recall": r.Recall, "digit_accuracy": r.Digits, "seconds": r.Seconds} {
				text := row[column[name]]
				if got, err := strconv.ParseFloat(text, 64); finite(want) && (err != nil || got != want) || !finite(want) && text != "" {
					t.Errorf("%q at %d: %s is %q, want %v", m.Name, n, name, text, want)
				}
			}
			for _, d := range r.ByDepth {
				got := row[column[fmt.Sprintf("correct_at_%g", d.Depth)]] + "/" + row[column[fmt.Sprintf("total_at_%g", d.Depth)]]
				if want := fmt.Sprintf("%d/%d", d.Correct, d.Total); got != want {
					t.Errorf("%q at %d, depth %g: %s, want %s", m.Name, n, d.Depth, got, want)
				}
			}
		}
	}
}
