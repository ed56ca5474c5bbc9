package report

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/longctx/longctx/bench/internal/atomicfile"
)

// Write makes the folder dir and in it bits-per-byte.png, recall.png,
// recall-by-depth.png, overview.png, report.html, results.csv and
// results.json. Everything is drawn before anything is written, and each file
// appears whole or not at all. The files returned are those written, also
// beside an error.
func Write(dir string, r *Run) (files []string, err error) {
	g, err := newGrid(r)
	if err != nil {
		return nil, err
	}
	contents, err := g.render()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("report: folder for the report: %w", err)
	}
	for _, c := range contents {
		path := filepath.Join(dir, c.name)
		if err := atomicfile.Write(path, c.data); err != nil {
			return files, fmt.Errorf("report: %w", err)
		}
		files = append(files, path)
	}
	return files, nil
}

type content struct {
	name string
	data []byte
}

func (g *grid) render() ([]content, error) {
	pictures := []struct {
		name string
		draw func() ([]byte, error)
	}{
		{"bits-per-byte.png", func() ([]byte, error) { return curvePicture(g.chart(bits, g.methods)) }},
		{"recall.png", func() ([]byte, error) { return curvePicture(g.chart(recall, g.methods)) }},
		{"recall-by-depth.png", g.depthPicture},
		{"overview.png", g.overviewPicture},
	}
	var contents []content
	byName := map[string][]byte{}
	for _, p := range pictures {
		data, err := p.draw()
		if err != nil {
			return nil, fmt.Errorf("report: %s: %w", p.name, err)
		}
		byName[p.name] = data
		contents = append(contents, content{p.name, data})
	}
	page, err := g.page(byName)
	if err != nil {
		return nil, fmt.Errorf("report: report.html: %w", err)
	}
	table, err := g.csvFile()
	if err != nil {
		return nil, fmt.Errorf("report: results.csv: %w", err)
	}
	raw, err := json.MarshalIndent(g.run, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("report: results.json: %w", err)
	}
	return append(contents, content{"report.html", page}, content{"results.csv", table}, content{"results.json", append(raw, '\n')}), nil
}
