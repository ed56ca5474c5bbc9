package report

import (
	"bytes"
	"strings"
	"testing"
)

// TestSheet: all that a sheet has is in its text and its page, where it is escaped.
func TestSheet(t *testing.T) {
	s := &Sheet{
		Title: "Title & more", Command: "bench x", Machine: map[string]string{"b": "two", "a": "<one>"}, Seconds: 7,
		Pictures: []Picture{{"what it shows", []byte("png")}},
		Tables:   []SheetTable{{"First", []string{"name", "value"}, [][]string{{"x<y", "1.5"}, {"z", "22"}}, []string{"a note"}}, {Title: "Second", Columns: []string{"c"}}},
	}
	for _, partial := range []bool{false, true} {
		s.Partial = partial
		var text bytes.Buffer
		if err := s.Text(&text); err != nil {
			t.Fatal(err)
		}
		page, err := s.HTML()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"First", "name", "x<y", "1.5", "22", "a note", "Second", "a: <one>; b: two; 7 s"} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("the text lacks %q:\n%s", want, &text)
			}
		}
		for _, want := range []string{"<h1>Title &amp; more</h1>", "bench x", `src="data:image/png;base64,cG5n"`, "what it shows", "<h2>First</h2>", "x&lt;y", "<td>1.5</td>", "<li>a note</li>", "&lt;one&gt;", "7 s", ".numbers {"} {
			if !strings.Contains(string(page), want) {
				t.Errorf("the page lacks %q:\n%s", want, page)
			}
		}
		if strings.Contains(text.String(), "PARTIAL") != partial || strings.Contains(string(page), "PARTIAL") != partial {
			t.Errorf("partial %v: %s%s", partial, &text, page)
		}
	}
}
