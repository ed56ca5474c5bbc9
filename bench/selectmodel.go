package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/atomicfile"
	"github.com/longctx/longctx/bench/internal/method"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/bench/internal/report"
	"github.com/longctx/longctx/bench/internal/selected"
	"github.com/longctx/longctx/bench/internal/task"
	"github.com/longctx/longctx/kernel"
)

// judgedTokens are the last tokens of a text that decode selectors are for.
const judgedTokens = 64

// selectModelFlags are the flags of select -model.
type selectModelFlags struct {
	weights, selectors, lengths, budgets, method, text, out string
	page, windows, trials, workers                          int
	seed                                                    uint64
	asJSON                                                  bool
}

// modelLine is a line of the table of select -model.
type modelLine struct {
	Selector    string  `json:"selector"`
	Kind        string  `json:"kind"`
	Length      int     `json:"length"`
	Budget      float64 `json:"budget_percent"`
	Seen        float64 `json:"keys_seen"` // shares from here on but for bits
	Mass        float64 `json:"mass_recalled"`
	Error       float64 `json:"output_error"`
	BitsPerByte float64 `json:"bits_per_byte"`
	Perplexity  float64 `json:"perplexity"` // of a byte
	Recall      float64 `json:"recall"`
}

// modelResults are those of a run.
type modelResults struct {
	Machine map[string]string `json:"machine"`
	Command string            `json:"command"`
	Partial bool              `json:"partial"`
	Seconds float64           `json:"seconds"`
	Lines   []modelLine       `json:"lines"`
}

// modelJudge is a run made ready.
type modelJudge struct {
	*selectModelFlags
	model     *model.Model
	method    *method.Method
	lengths   []int
	shares    []float64
	selectors []selected.Selector
	material  task.Material
	results   modelResults
}

func (o *selectModelFlags) prepare() (*modelJudge, error) {
	j := &modelJudge{selectModelFlags: o}
	var err error
	if j.selectors, err = selected.Select(o.selectors); err != nil {
		return nil, err
	}
	if j.model, _, err = loadModel(o.weights); err != nil {
		return nil, err
	}
	c := j.model.Config
	if j.lengths, err = parseLengths(o.lengths, c.Context); err != nil {
		return nil, err
	}
	for word := range strings.SplitSeq(o.budgets, ",") {
		x, err := strconv.ParseFloat(word, 64)
		if err != nil || !(x > 0 && x <= 100) {
			return nil, fmt.Errorf("-budgets has %q, want percents above 0, at most 100", word)
		}
		j.shares = append(j.shares, x/100)
	}
	methods, err := method.Select(o.method)
	if err != nil {
		return nil, err
	}
	if len(methods) != 1 {
		return nil, fmt.Errorf("-method is %q, want one method", o.method)
	}
	j.method = methods[0]
	for _, n := range j.lengths {
		if _, err := j.rotation(n); err != nil {
			return nil, err
		}
	}
	if o.page < 1 || o.page > 256 || o.windows < 1 || o.trials < 1 || o.trials%task.Depths != 0 {
		return nil, fmt.Errorf("-page is %d, -windows %d, -trials %d, want 1 to 256, at least 1, and a positive multiple of %d", o.page, o.windows, o.trials, task.Depths)
	}
	if c.Context <= judgedTokens {
		return nil, fmt.Errorf("a model trained at %d tokens, want more than the %d that are judged", c.Context, judgedTokens)
	}
	j.material = task.Material{Trained: c.Context, Seed: o.seed}
	j.material.Text, _, err = loadText(o.text, task.Need(j.lengths[len(j.lengths)-1]))
	return j, err
}

// rotation is that of the method, which may change frequencies alone.
func (j *modelJudge) rotation(length int) (kernel.Rotation, error) {
	how, err := j.method.Setup(j.model.Config, length)
	if err != nil {
		return kernel.Rotation{}, err
	}
	if how.Rotary == nil || how.Position != nil || how.Evict != nil || how.Own != nil || how.Layer != nil || how.Blocks != nil || how.Score != (attention.Score{}) || len(how.Mask.Regions) != 1 || how.Mask.Regions[0] != attention.Causal().Regions[0] {
		return kernel.Rotation{}, fmt.Errorf("-method is %s, want one that changes frequencies alone", j.method.Name)
	}
	return how.Rotary.Rotation(length)
}

func (o *selectModelFlags) run(ctx context.Context, std streams, args []string) error {
	j, err := o.prepare()
	if err != nil {
		return err
	}
	b, restore, err := host(o.workers)
	if err != nil {
		return err
	}
	defer restore()
	if err := os.MkdirAll(o.out, 0o755); err != nil { // before the work, not after
		return err
	}
	start := time.Now()
	j.results = modelResults{Machine: machine(b), Command: "bench select " + strings.Join(args, " ")}
	stopped := j.measure(ctx, std, b)
	if stopped != nil && !errors.Is(stopped, context.Canceled) {
		return stopped
	}
	j.results.Partial, j.results.Seconds = stopped != nil, time.Since(start).Seconds()
	if err := j.write(std); err != nil {
		return err
	}
	return stopped
}

// measure judges all selectors at a length before the next length.
func (j *modelJudge) measure(ctx context.Context, std streams, b kernel.Backend) error {
	total := int64(0)
	for _, n := range j.lengths {
		total += int64(n) * int64(j.windows+j.trials) * int64(1+len(j.selectors)*len(j.shares))
	}
	bar := newBar(std, total)
	defer bar.Close()
	longest := j.lengths[len(j.lengths)-1]
	e := &task.Evaluator{Model: j.model, Backend: b, Policy: kernel.Exact}
	for _, n := range j.lengths {
		windows, err := j.material.Windows(j.windows, n, longest)
		if err != nil {
			return err
		}
		for i := range windows { // those that every selector is for
			t := &windows[i].Targets
			*t = (*t)[len(*t)-judgedTokens:]
		}
		recall, err := j.material.Recall(j.trials, n, longest)
		if err != nil {
			return err
		}
		judge := func(s *selected.Selector, share float64) error {
			line := modelLine{Selector: "dense", Kind: "dense", Length: n, Budget: 100 * share}
			rotation, err := j.rotation(n)
			if err != nil {
				return err
			}
			if s != nil {
				if line.Selector, line.Kind = s.Name, "decode"; s.Prefill {
					line.Kind = "prefill"
				}
			}
			bar.Describe(fmt.Sprintf("%-25s %5d %5.4g%%", line.Selector, n, line.Budget))
			r := &selected.Runner{Config: j.model.Config, Rotation: rotation, Page: j.page, Share: share, Judged: judgedTokens, Selector: s}
			how := model.Attending{Mask: attention.Causal(), Own: r.Own}
			line.BitsPerByte, line.Recall, err = e.Attend(ctx, how, windows, recall, func(n int) { bar.Add64(int64(n)) })
			if err != nil {
				return err
			}
			x := r.Judgement()
			line.Seen, line.Mass, line.Error, line.Perplexity = x.Seen, x.Mass, x.Error, math.Exp2(line.BitsPerByte)
			j.results.Lines = append(j.results.Lines, line)
			return nil
		}
		if err := judge(nil, 1); err != nil {
			return err
		}
		for i := range j.selectors {
			for _, share := range j.shares {
				if err := judge(&j.selectors[i], share); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// write prints the results and writes them to the folder.
func (j *modelJudge) write(std streams) error {
	data, err := json.MarshalIndent(&j.results, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if j.asJSON {
		if _, err := std.out.Write(data); err != nil {
			return err
		}
	} else if err := j.print(std.out); err != nil {
		return err
	}
	files := []struct {
		name string
		make func() ([]byte, error)
	}{
		{"select-model.json", func() ([]byte, error) { return data, nil }},
		{"select-model.csv", j.csv},
		{"select-model-bits.png", func() ([]byte, error) { return j.plot(false) }},
		{"select-model-recall.png", func() ([]byte, error) { return j.plot(true) }},
	}
	if len(j.results.Lines) == 0 {
		files = files[:1]
	}
	for _, f := range files {
		content, err := f.make()
		if err == nil {
			err = atomicfile.Write(filepath.Join(j.out, f.name), content)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(std.err, "wrote", filepath.Join(j.out, f.name))
	}
	return nil
}

func (j *modelJudge) print(w io.Writer) error {
	c := j.model.Config
	fmt.Fprintf(w, "%d layers, %d heads, %d KV heads, dim %d, trained at %d tokens; %s; pages of %d; exact; %d windows, %d passkeys\n"+
		"decode selectors: the last %d tokens, after a dense prompt; prefill selectors: all tokens\n", c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.Context, j.method.Name, j.page, j.windows, j.trials, judgedTokens)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "selector\tkind\tlength\tbudget %\tkeys seen %\tmass recalled %\toutput error\tbits per byte\tperplexity\trecall %\t")
	for _, x := range j.results.Lines {
		fmt.Fprintf(t, "%s\t%s\t%d\t%.4g\t%.1f\t%.1f\t%.2g\t%.3f\t%.2f\t%.0f\t\n", x.Selector, x.Kind, x.Length, x.Budget, 100*x.Seen, 100*x.Mass, x.Error, x.BitsPerByte, x.Perplexity, 100*x.Recall)
	}
	return t.Flush()
}

func (j *modelJudge) csv() ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	w.Write([]string{"selector", "kind", "length", "budget_percent", "keys_seen", "mass_recalled", "output_error", "bits_per_byte", "perplexity", "recall"})
	for _, x := range j.results.Lines {
		row := []string{x.Selector, x.Kind, strconv.Itoa(x.Length)}
		for _, v := range []float64{x.Budget, x.Seen, x.Mass, x.Error, x.BitsPerByte, x.Perplexity, x.Recall} {
			row = append(row, strconv.FormatFloat(v, 'g', 6, 64))
		}
		w.Write(row) // errors stay in w
	}
	w.Flush()
	return b.Bytes(), w.Error()
}

// plot is the Pareto plot of bits per byte, or of recall, over keys seen, at the longest
// length that was measured.
func (j *modelJudge) plot(recall bool) ([]byte, error) {
	var trades []report.Trade
	n := j.results.Lines[len(j.results.Lines)-1].Length
	for _, x := range j.results.Lines {
		if x.Length != n {
			continue
		}
		t := report.Trade{Name: x.Selector, Kind: x.Kind, Cost: 100 * x.Seen, Gain: x.BitsPerByte}
		if recall {
			t.Gain = 100 * x.Recall
		}
		trades = append(trades, t)
	}
	const cost = "keys that a KV head reads, % of those up to the query"
	note := fmt.Sprintf("%d tokens · each mark is a selector at a budget; the line joins those that no other beats", n)
	if recall {
		return report.Pareto("Recall of a planted number against keys read", note, cost, "recall, %", false, trades)
	}
	return report.Pareto("Bits per byte against keys read", note, cost, "bits per byte", true, trades)
}
