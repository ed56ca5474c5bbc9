package report

import (
	"bytes"
	"encoding/csv"
	"strconv"
)

// csvFile has a row per method and length. Cells of pairs that were not
// measured, and of numbers that are not finite, are empty.
func (g *grid) csvFile() ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	head := []string{"method", "length", "trained_length", "bits_per_byte", "bytes", "recall", "digit_accuracy", "seconds"}
	for _, d := range g.depths {
		at := strconv.FormatFloat(d, 'g', -1, 64)
		head = append(head, "correct_at_"+at, "total_at_"+at)
	}
	w.Write(head) // errors stay in w
	for _, m := range g.methods {
		for _, n := range g.lengths {
			w.Write(g.csvRow(m.Name, n))
		}
	}
	w.Flush()
	return b.Bytes(), w.Error()
}

func (g *grid) csvRow(method string, length int) []string {
	row := []string{method, strconv.Itoa(length), strconv.Itoa(g.run.Model.TrainedLength)}
	r := g.at(method, length)
	if r == nil {
		return append(row, make([]string, 5+2*len(g.depths))...)
	}
	row = append(row, csvNumber(r.BitsPerByte), strconv.Itoa(r.Bytes), csvNumber(r.Recall), csvNumber(r.Digits), csvNumber(r.Seconds))
	for _, depth := range g.depths {
		if d := r.depth(depth); d != nil {
			row = append(row, strconv.Itoa(d.Correct), strconv.Itoa(d.Total))
		} else {
			row = append(row, "", "")
		}
	}
	return row
}

func csvNumber(x float64) string {
	if !finite(x) {
		return ""
	}
	return strconv.FormatFloat(x, 'g', -1, 64)
}
