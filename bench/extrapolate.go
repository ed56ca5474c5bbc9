package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/longctx/longctx/bench/internal/method"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/bench/internal/report"
	"github.com/longctx/longctx/bench/internal/task"
	"github.com/longctx/longctx/kernel"
)

// extrapolateFlags are the flags of extrapolate.
type extrapolateFlags struct {
	methods, lengths, model, text, out, policy string
	quick                                      bool
	workers, windows, trials                   int
	seed                                       uint64
}

func parseExtrapolate(std streams, args []string) (*extrapolateFlags, error) {
	var o extrapolateFlags
	f := newFlags(std, "extrapolate", "Runs a model on sequences longer than it was trained on, with one method after\n"+
		"another, and writes a table, plots, a page, CSV and JSON. Ctrl-C writes what is\nfinished.")
	f.StringVar(&o.methods, "methods", "", "names with commas, or all, or positions (all but selectors of keys), or quick (default \"positions\", with -quick \"quick\")")
	f.StringVar(&o.lengths, "lengths", "", "tokens, or multiples of the trained length such as 4x (default \"1x,2x,4x,8x,16x\", with -quick to 8x)")
	f.StringVar(&o.model, "model", "", "safetensors `file` of a byte-level Llama (default: the one that comes with bench)")
	f.StringVar(&o.text, "text", "", "`file` to judge by (default: source of Go that the model has not seen)")
	f.StringVar(&o.out, "out", "bench-results", "`folder` for the results")
	f.StringVar(&o.policy, "policy", "fast", "exact or fast")
	f.BoolVar(&o.quick, "quick", false, "fewer methods, lengths and trials: under a minute on two cores")
	f.IntVar(&o.workers, "workers", 0, "processors to use; 0: all")
	f.IntVar(&o.windows, "windows", 0, "sequences for bits per byte at each length (default 16, with -quick 10)")
	f.IntVar(&o.trials, "trials", 0, "keys planted at each length, a multiple of 10 (default 20, with -quick 10)")
	f.Uint64Var(&o.seed, "seed", 1, "of everything drawn")
	if err := parse(f, args); err != nil {
		return nil, err
	}
	pick := func(s *string, full, quick string) {
		if *s == "" {
			*s = full
			if o.quick {
				*s = quick
			}
		}
	}
	pick(&o.methods, "positions", "quick")
	pick(&o.lengths, "1x,2x,4x,8x,16x", "1x,2x,4x,8x")
	for _, n := range []struct {
		name        string
		value       *int
		full, quick int
		unit        int
	}{{"windows", &o.windows, 16, 10, 1}, {"trials", &o.trials, 20, 10, task.Depths}} {
		switch {
		case *n.value == 0 && o.quick:
			*n.value = n.quick
		case *n.value == 0:
			*n.value = n.full
		case *n.value < 0 || *n.value%n.unit != 0:
			return nil, fmt.Errorf("-%s is %d, want a positive multiple of %d", n.name, *n.value, n.unit)
		}
	}
	return &o, nil
}

// plan is a run of extrapolate made ready.
type plan struct {
	*extrapolateFlags
	model    *model.Model
	methods  []*method.Method
	lengths  []int
	material task.Material
	run      *report.Run
}

func prepare(o *extrapolateFlags) (*plan, error) {
	p := &plan{extrapolateFlags: o}
	var err error
	var modelSource, textSource string
	if p.methods, err = method.Select(o.methods); err != nil {
		return nil, err
	}
	if p.model, modelSource, err = loadModel(o.model); err != nil {
		return nil, err
	}
	c := p.model.Config
	if p.lengths, err = parseLengths(o.lengths, c.Context); err != nil {
		return nil, err
	}
	p.material = task.Material{Trained: c.Context, Seed: o.seed}
	if p.material.Text, textSource, err = loadText(o.text, task.Need(p.lengths[len(p.lengths)-1])); err != nil {
		return nil, err
	}
	p.run = &report.Run{
		Model: report.Model{
			Name: modelSource, Parameters: p.model.Count(), TrainedLength: c.Context,
			Layers: c.Layers, Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim,
		},
		Text: textSource, Lengths: p.lengths, Seed: o.seed, Policy: o.policy, Sequences: o.windows, Passkeys: o.trials,
		Parameters: map[string]string{
			"command":                         "bench extrapolate " + o.String(),
			"RoPE base":                       fmt.Sprintf("%g", c.Base),
			"bytes judged at each length":     fmt.Sprint(o.windows * c.Context),
			"bytes of text to draw them from": fmt.Sprint(len(p.material.Text)),
		},
	}
	for d := range task.Depths {
		p.run.Depths = append(p.run.Depths, task.DepthOf(d))
	}
	return p, p.addMethods()
}

// addMethods describes the methods with their parameters at the longest length
// they can be made ready for.
func (p *plan) addMethods() error {
	for _, m := range p.methods {
		info := report.Method{Name: m.Name, Title: m.Title, Does: m.Summary, Paper: m.Paper + ", " + m.URL, Claimed: m.Claim}
		var refused error
		for _, n := range p.lengths {
			how, err := m.Setup(p.model.Config, n)
			if err != nil {
				refused = err
			} else if how.Params != "" {
				info.Detail = fmt.Sprintf("%s at %d", how.Params, n)
			}
		}
		if refused != nil {
			info.Detail += fmt.Sprintf("; beyond that none: %v", refused)
		}
		p.run.Methods = append(p.run.Methods, info)
	}
	return nil
}

// String is the flags that matter for the numbers.
func (o *extrapolateFlags) String() string {
	return fmt.Sprintf("-methods %s -lengths %s -policy %s -windows %d -trials %d -seed %d", o.methods, o.lengths, o.policy, o.windows, o.trials, o.seed)
}

func extrapolate(ctx context.Context, std streams, args []string) error {
	o, err := parseExtrapolate(std, args)
	if err != nil {
		return err
	}
	policy, err := parsePolicy(o.policy)
	if err != nil {
		return err
	}
	p, err := prepare(o)
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
	p.run.Machine = machine(b)
	stopped := p.measure(ctx, std, b, policy)
	if stopped != nil && !errors.Is(stopped, context.Canceled) {
		return stopped
	}
	p.run.Partial, p.run.Seconds = stopped != nil, time.Since(start).Seconds()
	if err := report.Table(std.out, p.run); err != nil {
		return err
	}
	paths, err := report.Write(o.out, p.run)
	if err != nil {
		return err
	}
	fmt.Fprintf(std.out, "\n%s, after %v:", o.out, time.Since(start).Round(time.Second))
	for _, path := range paths {
		fmt.Fprint(std.out, " ", filepath.Base(path))
	}
	fmt.Fprintln(std.out)
	return stopped
}

// job is a method at a length, made ready.
type job struct {
	method *method.Method
	length int
	cost   int64 // of a token
}

// jobs lists what there is to do: all methods of one length before the next
// length, so that what is finished early can be compared.
func (p *plan) jobs(std streams) (jobs []job, total int64) {
	for _, n := range p.lengths {
		for _, m := range p.methods {
			how, err := m.Setup(p.model.Config, n)
			if err != nil {
				fmt.Fprintf(std.err, "left out at length %d: %v\n", n, err)
				continue
			}
			j := job{m, n, p.cost(&how, n)}
			jobs, total = append(jobs, j), total+j.cost*int64(n*(p.windows+p.trials))
		}
	}
	return jobs, total
}

// measure adds to p.run.Results until it is done, or told to stop.
func (p *plan) measure(ctx context.Context, std streams, b kernel.Backend, policy kernel.Policy) error {
	e := &task.Evaluator{Model: p.model, Backend: b, Policy: policy}
	jobs, total := p.jobs(std)
	bar := newBar(std, total)
	defer bar.Close()
	longest := p.lengths[len(p.lengths)-1]
	var windows, recall []task.Trial
	for i, j := range jobs {
		if i == 0 || jobs[i-1].length != j.length {
			var err error
			if windows, err = p.material.Windows(p.windows, j.length, longest); err != nil {
				return err
			}
			if recall, err = p.material.Recall(p.trials, j.length, longest); err != nil {
				return err
			}
		}
		bar.Describe(fmt.Sprintf("%-14s %6d", j.method.Name, j.length))
		point, err := e.Measure(ctx, j.method, j.length, windows, recall, func(tokens int) { bar.Add64(int64(tokens) * j.cost) })
		if err != nil {
			return err
		}
		p.run.Results = append(p.run.Results, resultOf(&point, p.model.Config.Context))
	}
	return nil
}

func resultOf(p *task.Point, trained int) report.Result {
	r := report.Result{
		Method: p.Method, Length: p.Length, BitsPerByte: p.BitsPerByte, Bytes: p.Windows * trained,
		Recall: p.Recall, Digits: p.Digits, Seconds: p.Seconds,
	}
	for d := range task.Depths {
		r.ByDepth = append(r.ByDepth, report.Depth{Depth: task.DepthOf(d), Correct: p.Right[d], Total: p.Asked[d]})
	}
	return r
}

// cost of a token, in arbitrary units: what it multiplies in matrices, and the
// keys it sees, which take longer for each multiplication.
func (p *plan) cost(how *method.Setup, length int) int64 {
	c := p.model.Config
	span := how.Span(length)
	keys := span
	if span == length {
		keys = length / 2
	}
	matrices := p.model.Count()
	if how.Evict != nil {
		matrices *= 3 // few rows at a time
	}
	return int64(matrices+6*c.Layers*c.Heads*c.HeadDim*keys) / 1000
}

func newBar(std streams, total int64) *progressbar.ProgressBar {
	return progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(std.err), progressbar.OptionSetWidth(30), progressbar.OptionThrottle(200*time.Millisecond),
		progressbar.OptionSetPredictTime(true), progressbar.OptionClearOnFinish(), progressbar.OptionSetElapsedTime(true),
		progressbar.OptionSetTheme(progressbar.Theme{Saucer: "=", SaucerHead: ">", SaucerPadding: " ", BarStart: "[", BarEnd: "]"}))
}

func listMethods(_ context.Context, std streams, args []string) error {
	f := newFlags(std, "methods", "Lists the methods that extrapolate knows.")
	if err := parse(f, args); err != nil {
		return err
	}
	all, err := method.Select("all")
	if err != nil {
		return err
	}
	fmt.Fprint(std.out, "L is the trained length, n the tested one, s = max(1, n/L). Marked quick\nis what -quick runs; a control is made for models trained with it.\n\n")
	for _, m := range all {
		mark := ""
		switch {
		case m.Quick:
			mark = "[quick]"
		case m.Control:
			mark = "[control]"
		}
		fmt.Fprintf(std.out, "%-14s %-9s %s\n%24s %s, %s\n", m.Name, mark, m.Summary, "", m.Paper, m.URL)
	}
	return nil
}
