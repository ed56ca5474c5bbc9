package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/longctx/longctx/bench/internal/learn"
	"github.com/longctx/longctx/bench/internal/method"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/bench/internal/task"
	"github.com/longctx/longctx/bench/internal/text"
	"github.com/longctx/longctx/kernel"
)

// trainFlags are the flags of train beside those in learn.Options.
type trainFlags struct {
	options                learn.Options
	out, text, policy      string
	resume                 bool
	minutes                float64
	seed                   uint64
	workers, every, report int
}

func parseTrain(std streams, args []string) (*trainFlags, error) {
	o := trainFlags{options: learn.Defaults()}
	f := newFlags(std, "train", "Trains the model that comes with bench anew, through the library's backward pass,\n"+
		"on the source of Go's standard library. A seed fixes every weight, unless -minutes\nis given. Ctrl-C saves; -resume goes on.")
	f.IntVar(&o.options.Steps, "steps", o.options.Steps, "steps at most, the decay included")
	f.IntVar(&o.options.Decay, "decay", o.options.Decay, "steps in which the learning rate falls, at the end")
	f.IntVar(&o.options.Batch, "batch", o.options.Batch, "windows a step")
	f.Float64Var(&o.options.Rate, "rate", o.options.Rate, "highest learning rate")
	f.Float64Var(&o.options.Recall, "recall", o.options.Recall, "share of numbers recalled at which planted lines leave their grid, and later the decay starts")
	f.Float64Var(&o.minutes, "minutes", 0, "start the decay early enough to end in so many minutes; 0: no limit")
	f.Uint64Var(&o.seed, "seed", 1, "of weights and windows")
	f.StringVar(&o.out, "out", "model.safetensors", "`file` for the model; the state of training is beside it, with .resume")
	f.StringVar(&o.text, "text", "", "`file` to train on (default: GOROOT/src without the held-out folders)")
	f.StringVar(&o.policy, "policy", "fast", "exact or fast")
	f.BoolVar(&o.resume, "resume", false, "go on from the state beside -out, with the options and the seed it has")
	f.IntVar(&o.workers, "workers", 0, "processors to use; 0: all")
	f.IntVar(&o.every, "every", 1000, "steps between checkpoints")
	f.IntVar(&o.report, "report", 100, "steps between lines of progress")
	if err := parse(f, args); err != nil {
		return nil, err
	}
	if o.every < 1 || o.report < 1 || o.minutes < 0 || math.IsNaN(o.minutes) {
		return nil, fmt.Errorf("-every %d, -report %d, -minutes %v: want at least 1, 1 and 0", o.every, o.report, o.minutes)
	}
	return &o, nil
}

func train(ctx context.Context, std streams, args []string) error {
	o, err := parseTrain(std, args)
	if err != nil {
		return err
	}
	policy, err := parsePolicy(o.policy)
	if err != nil {
		return err
	}
	data, err := trainingText(o.text)
	if err != nil {
		return err
	}
	if err := writable(o.out); err != nil {
		return err
	}
	b, restore, err := host(o.workers)
	if err != nil {
		return err
	}
	defer restore()
	var t *learn.Trainer
	if o.resume {
		t, err = learn.Resume(o.out, b, policy, data)
	} else {
		t, err = learn.New(model.Small(), b, policy, o.options, data, o.seed)
	}
	if err != nil {
		return err
	}
	defer t.Close()
	fmt.Fprintf(std.out, "%d weights, %d bytes of text, from step %d\n", t.Model.Count(), len(data), t.Progress.Step)
	stopped := t.Run(ctx, o.minutes, o.watch(ctx, std.out, t, b, policy))
	if stopped != nil && !errors.Is(stopped, context.Canceled) {
		return stopped
	}
	if err := t.Save(o.out); err != nil {
		return err
	}
	fmt.Fprintf(std.out, "step %d, saved to %s\n", t.Progress.Step, o.out)
	if stopped == nil {
		return judgeModel(ctx, std.out, t.Model, b, policy)
	}
	return stopped
}

// writable reports that files cannot be made beside path: better before hours
// of training than after.
func writable(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".longctx-*")
	if err != nil {
		return fmt.Errorf("-out: %w", err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// watch reports and saves between steps.
func (o *trainFlags) watch(ctx context.Context, out io.Writer, t *learn.Trainer, b kernel.Backend, policy kernel.Policy) func() error {
	start, first := time.Now(), t.Progress.Step
	return func() error {
		p := &t.Progress
		if p.Step%o.report == 0 {
			spent := time.Since(start)
			note := ""
			if p.DecayFrom >= 0 {
				note = fmt.Sprintf(", %d steps to go", p.DecayFrom+t.Options.Decay-p.Step)
			}
			tokens := float64((p.Step - first) * t.Options.Batch * t.Model.Config.Context)
			fmt.Fprintf(out, "step %d after %v: %.3f bits per byte, recall %.2f, rate %.1e, %.0f tokens a second%s\n",
				p.Step, spent.Round(time.Second), p.Bits, p.Recall, p.Rate, tokens/spent.Seconds(), note)
		}
		if p.Step%o.every == 0 {
			if err := t.Save(o.out); err != nil {
				return err
			}
			return judgeModel(ctx, out, t.Model, b, policy)
		}
		return nil
	}
}

// judgeModel reports how a model does on held-out text at its trained length.
func judgeModel(ctx context.Context, out io.Writer, m *model.Model, b kernel.Backend, policy kernel.Policy) error {
	n := m.Config.Context
	data, _, err := loadText("", task.Need(n))
	if err != nil {
		return err
	}
	material := task.Material{Text: data, Trained: n, Seed: 1}
	windows, err := material.Windows(32, n, n)
	if err != nil {
		return err
	}
	recall, err := material.Recall(50, n, n)
	if err != nil {
		return err
	}
	rope, err := method.Select("rope")
	if err != nil {
		return err
	}
	e := task.Evaluator{Model: m, Backend: b, Policy: policy}
	p, err := e.Measure(ctx, rope[0], n, windows, recall, func(int) {})
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return nil // the trainer notices, and saves
		}
		return err
	}
	_, err = fmt.Fprintf(out, "held out: %.3f bits per byte, recall %.0f %%\n", p.BitsPerByte, 100*p.Recall)
	return err
}

func trainingText(path string) ([]byte, error) {
	if path != "" {
		return text.Read(path, task.Need(model.Small().Context))
	}
	root, err := text.Goroot()
	if err != nil {
		return nil, err
	}
	files, err := text.Sources(root, false)
	if err != nil {
		return nil, err
	}
	return text.Join(files), nil
}
