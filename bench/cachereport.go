package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/longctx/longctx/bench/internal/atomicfile"
	"github.com/longctx/longctx/bench/internal/report"
)

// write prints the results and writes them to the folder.
func (o *cacheFlags) write(std streams, r *cacheResults) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	sheet := &report.Sheet{Title: "What a cache keeps in less memory", Command: r.Command, Partial: r.Partial, Tables: cacheTables(r), Machine: r.Machine, Seconds: r.Seconds}
	if o.asJSON {
		_, err = std.out.Write(data)
	} else {
		err = sheet.Text(std.out)
	}
	if err != nil {
		return err
	}
	type file struct {
		name string
		data []byte
	}
	files := []file{{"cache.json", data}}
	if len(r.Quality) > 0 {
		bits, err := cachePlot(r, false)
		if err != nil {
			return err
		}
		recall, err := cachePlot(r, true)
		if err != nil {
			return err
		}
		table, err := cacheCSV(r)
		if err != nil {
			return err
		}
		sheet.Pictures = []report.Picture{{Alt: "Recall against memory", PNG: recall}, {Alt: "Bits per byte against memory", PNG: bits}}
		files = append(files, file{"cache.csv", table}, file{"cache-bits.png", bits}, file{"cache-recall.png", recall})
	}
	page, err := sheet.HTML()
	if err != nil {
		return err
	}
	for _, f := range append(files, file{"cache.html", page}) {
		if err := atomicfile.Write(filepath.Join(o.out, f.name), f.data); err != nil {
			return err
		}
		fmt.Fprintln(std.err, "wrote", filepath.Join(o.out, f.name))
	}
	return nil
}

// cacheTables are the tables of what was measured.
func cacheTables(r *cacheResults) (out []report.SheetTable) {
	add := func(title string, columns ...string) *report.SheetTable {
		out = append(out, report.SheetTable{Title: title, Columns: columns})
		return &out[len(out)-1]
	}
	row := func(t *report.SheetTable, format string, x ...any) {
		cells := make([]string, len(x))
		for i, verb := range strings.Fields(format) {
			cells[i] = fmt.Sprintf(verb, x[i])
		}
		t.Rows = append(t.Rows, cells)
	}
	if len(r.Quality) > 0 {
		t := add("Policies over codecs", "policy", "codec", "budget %", "memory %", "pages", "keys a head", "bits per byte", "recall %", "mass kept %", "tokens/s")
		for _, x := range r.Quality {
			row(t, "%s %s %.4g %.1f %.1f %.0f %.3f %.0f %.1f %.0f", x.Policy, x.Codec, x.Budget, x.Memory, x.Pages, x.Keys, x.BitsPerByte, 100*x.Recall, 100*x.Mass, x.TokensPerS)
		}
		t.Notes = append(t.Notes, "memory: of keys and values when the prompt was read, cut down and coded, of what all take in f16; pages: those in use then")
		for _, x := range r.Left {
			t.Notes = append(t.Notes, "left out: "+x.Name+": "+x.Why)
		}
	}
	if len(r.Prefix) > 0 {
		x := r.Prefix[0]
		t := add(fmt.Sprintf("%d users with %d tokens in common and %d of their own each turn", x.Users, x.Shared, x.Own),
			"turn", "hit rate %", "first token without ms", "with ms", "speed-up", "logits apart")
		for _, x := range r.Prefix {
			row(t, "%d %.1f %.1f %.1f %.1f %.1g", x.Turn, 100*x.HitRate, x.Without, x.With, x.Speedup, x.Apart)
		}
	}
	if len(r.Cascade) > 0 {
		x := r.Cascade[0]
		t := add(fmt.Sprintf("A layer's decode step of sequences with %d tokens in common and %d of their own, %d heads, %d KV heads, dim %d, f16",
			x.Shared, x.Own, cascadeHeads, cascadeKVHeads, cascadeDim), "sequences", "one pass ms", "cascade ms", "speed-up", "outputs apart")
		for _, x := range r.Cascade {
			row(t, "%d %.3f %.3f %.2f %.1g", x.Sequences, x.OnePass, x.Cascade, x.Speedup, x.Apart)
		}
	}
	if len(r.Swap) > 0 {
		t := add("Pages that move", "what", "GB/s", "pages/s", "beside", "GB/s")
		for _, x := range r.Swap {
			row(t, "%s %.2f %.0f %s %.2f", x.What, x.GBps, x.PagesS, x.Beside, x.RoofGBps)
		}
	}
	return out
}

func cacheCSV(r *cacheResults) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	w.Write([]string{"policy", "codec", "budget_percent", "memory_percent", "keys", "pages", "bits_per_byte", "recall", "mass", "tokens_per_s"})
	for _, x := range r.Quality {
		row := []string{x.Policy, x.Codec}
		for _, v := range []float64{x.Budget, x.Memory, x.Keys, x.Pages, x.BitsPerByte, x.Recall, x.Mass, x.TokensPerS} {
			row = append(row, strconv.FormatFloat(v, 'g', 6, 64))
		}
		w.Write(row) // errors stay in w
	}
	w.Flush()
	return b.Bytes(), w.Error()
}

// cachePlot is the Pareto plot of bits per byte, or of recall, over memory.
func cachePlot(r *cacheResults, recall bool) ([]byte, error) {
	var trades []report.Trade
	for _, x := range r.Quality {
		t := report.Trade{Name: x.Policy + " · " + x.Codec, Kind: x.Codec, Cost: x.Memory, Gain: x.BitsPerByte}
		if recall {
			t.Gain = 100 * x.Recall
		}
		if x.Policy == "none" {
			t.Name = x.Codec
		}
		trades = append(trades, t)
	}
	const cost = "memory of keys and values, % of all in f16"
	if recall {
		return report.Pareto("Recall of a planted number against memory", "each mark is a policy over a codec; the line joins those that no other beats", cost, "recall, %", false, trades)
	}
	return report.Pareto("Bits per byte against memory", "each mark is a policy over a codec; the line joins those that no other beats", cost, "bits per byte", true, trades)
}
