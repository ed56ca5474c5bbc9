package report

import (
	"bytes"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// Sheet is tables and pictures of a run, for a terminal and as a page.
type Sheet struct {
	Title    string
	Command  string
	Partial  bool // the run was stopped
	Pictures []Picture
	Tables   []SheetTable
	Machine  map[string]string
	Seconds  float64
}

// Picture is a PNG and what it shows.
type Picture struct {
	Alt string
	PNG []byte
}

// URI is the picture for a page.
func (p Picture) URI() template.URL { return dataURI(p.PNG) }

// SheetTable is a table of a Sheet, with notes below it.
type SheetTable struct {
	Title   string
	Columns []string
	Rows    [][]string
	Notes   []string
}

// Text writes the tables for a terminal.
func (s *Sheet) Text(w io.Writer) error {
	var b bytes.Buffer
	if s.Partial {
		fmt.Fprint(&b, "PARTIAL: stopped before the end\n\n")
	}
	for _, x := range s.Tables {
		fmt.Fprintln(&b, x.Title)
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, row := range append([][]string{x.Columns}, x.Rows...) {
			fmt.Fprintln(t, strings.Join(row, "\t")+"\t")
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for _, note := range x.Notes {
			fmt.Fprintln(&b, note)
		}
		fmt.Fprintln(&b)
	}
	for _, k := range slices.Sorted(maps.Keys(s.Machine)) {
		fmt.Fprintf(&b, "%s: %s; ", k, s.Machine[k])
	}
	fmt.Fprintf(&b, "%.0f s\n", s.Seconds)
	_, err := b.WriteTo(w)
	return err
}

// HTML is the sheet as one self-contained page.
func (s *Sheet) HTML() ([]byte, error) {
	var b bytes.Buffer
	err := pages.ExecuteTemplate(&b, "sheet.html.tmpl", s)
	return b.Bytes(), err
}
