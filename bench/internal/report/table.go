package report

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"
)

const (
	tableName    = 22 // runes of a method's name
	tableColumns = 9  // lengths side by side; with the name, under 110 runes
)

// Table writes bits per byte and recall as tables for a terminal, a row per
// method and a column per length. The best of a column bears an asterisk; a
// pair that was not measured is "–".
func Table(w io.Writer, r *Run) error {
	g, err := newGrid(r)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintln(&b, oneLine(g.subject(), 108))
	if r.Partial {
		have, want := g.measured()
		fmt.Fprintf(&b, "PARTIAL: stopped after %d of %d results; – was not measured\n", have, want)
	}
	for _, m := range []measure{bits, recall} {
		for from := 0; from < len(g.lengths); from += tableColumns {
			fmt.Fprintf(&b, "\n%s, %s (* best of its column)\n", m.title, m.better)
			g.block(&b, m, g.lengths[from:min(from+tableColumns, len(g.lengths))])
		}
	}
	_, err = io.WriteString(w, trailing.ReplaceAllString(b.String(), "\n"))
	return err
}

var trailing = regexp.MustCompile(` +\n`)

// subject says in one line what was measured.
func (g *grid) subject() string {
	parts := []string{}
	if name := g.run.Model.Name; name != "" {
		parts = append(parts, name)
	}
	if n := g.run.Model.TrainedLength; n > 0 {
		parts = append(parts, fmt.Sprintf("trained at %d tokens", n))
	}
	if n := g.run.Sequences; n > 0 {
		parts = append(parts, plural(n, "text"))
	}
	if n := g.run.Passkeys; n > 0 {
		parts = append(parts, plural(n, "passkey"))
	}
	out := strings.Join(parts, ", ")
	if g.run.Sequences > 0 || g.run.Passkeys > 0 {
		out += " per length"
	}
	return out
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func (g *grid) block(w io.Writer, m measure, lengths []int) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	head, under := pad("method"), pad("")
	for _, n := range lengths {
		head += "\t" + g.times(n) + " "
		under += fmt.Sprintf("\t%d ", n)
	}
	if g.run.Model.TrainedLength > 0 {
		fmt.Fprintln(t, head+"\t")
		fmt.Fprintln(t, under+"\t")
	} else {
		fmt.Fprintln(t, pad("method")+strings.TrimPrefix(under, pad(""))+"\t")
	}
	for _, method := range g.methods {
		row := pad(oneLine(method.Name, tableName))
		for _, n := range lengths {
			mark := " "
			if best, ok := g.bestAt(m, n); ok && g.value(m, method.Name, n) == best {
				mark = "*"
			}
			row += "\t" + g.cellText(m, method.Name, n) + mark
		}
		fmt.Fprintln(t, row+"\t")
	}
	t.Flush() // a strings.Builder takes everything
}

// pad makes the first column align left in a table that aligns right.
func pad(s string) string { return s + strings.Repeat(" ", tableName-len([]rune(s))) }
