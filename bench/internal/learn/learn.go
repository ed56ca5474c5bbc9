package learn

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
)

// Options say how to train.
type Options struct {
	Batch  int     // windows a step
	Rate   float64 // the highest learning rate, after Warm steps
	Warm   int     // steps in which the rate rises from 0
	Decay  int     // steps in which it falls to 1/50, at the end
	Steps  int     // at most, Decay included
	Recall float64 // of the running mean, at which the grid, and then the full rate, is left
	Least  int     // steps free of the grid before Recall is looked at
}

// Defaults are the options of bench train.
func Defaults() Options {
	return Options{Batch: 16, Rate: 3e-3, Warm: 100, Decay: 2500, Steps: 20000, Recall: 0.97, Least: 4000}
}

func (o *Options) check() error {
	for _, f := range []struct {
		name  string
		value int
		least int
	}{{"Batch", o.Batch, 4}, {"Warm", o.Warm, 1}, {"Decay", o.Decay, 1}, {"Steps", o.Steps, o.Decay}, {"Least", o.Least, 0}} {
		if f.value < f.least {
			return fmt.Errorf("learn: %s is %d, want at least %d", f.name, f.value, f.least)
		}
	}
	if !(o.Rate > 0 && o.Rate < 1) || math.IsNaN(o.Recall) {
		return fmt.Errorf("learn: Rate is %v and Recall %v, want a rate between 0 and 1 and a number", o.Rate, o.Recall)
	}
	return nil
}

// Progress is where training stands. The means are running, of the last fifty
// steps or so.
type Progress struct {
	Step      int     `json:"step"`
	FreeFrom  int     `json:"free_from"`     // step at which planted lines left the grid; −1: not yet
	DecayFrom int     `json:"decay_from"`    // −1: not yet
	Bits      float64 `json:"bits_per_byte"` // of windows without numbers
	Recall    float64 `json:"recall"`        // share of numbers asked for that are right
	Loss      float64 `json:"loss"`          // of the last step
	Rate      float64 `json:"rate"`
}

// Trainer trains a model.
type Trainer struct {
	Model    *model.Model
	Options  Options
	Progress Progress

	text     []byte
	policy   kernel.Policy
	random   *rand.PCG
	adam     *model.AdamW
	gradient *model.Gradient
}

// New starts training: a new model of the given shape, with weights and windows
// drawn from the seed.
func New(c model.Config, b kernel.Backend, policy kernel.Policy, o Options, text []byte, seed uint64) (*Trainer, error) {
	m, err := model.New(c, seed)
	if err != nil {
		return nil, err
	}
	t := &Trainer{
		Model: m, Options: o, Progress: Progress{FreeFrom: -1, DecayFrom: -1, Bits: 8},
		random: rand.NewPCG(seed, 2), adam: model.NewAdamW(m),
	}
	return t, t.open(b, policy, text)
}

func (t *Trainer) open(b kernel.Backend, policy kernel.Policy, text []byte) error {
	if err := t.Options.check(); err != nil {
		return err
	}
	c := t.Model.Config
	if len(text) <= c.Context {
		return fmt.Errorf("learn: a text of %d bytes, want more than a window of %d", len(text), c.Context)
	}
	t.text, t.policy = text, policy
	how := model.Attending{Mask: attention.Causal(), Rotary: rope.Default{Base: rope.Base{HeadDim: c.HeadDim, Theta: c.Base}}}
	var err error
	t.gradient, err = model.NewGradient(t.Model, b, policy, how)
	return err
}

// Close frees what the kernel holds.
func (t *Trainer) Close() error { return t.gradient.Close() }

// Done reports whether the decay has ended.
func (t *Trainer) Done() bool {
	p := &t.Progress
	return p.DecayFrom >= 0 && p.Step >= p.DecayFrom+t.Options.Decay
}

// StartDecay lets the learning rate fall from now on.
func (t *Trainer) StartDecay() {
	if t.Progress.DecayFrom < 0 {
		t.Progress.DecayFrom = t.Progress.Step
	}
}

// Step trains on one batch.
func (t *Trainer) Step() error {
	p, o := &t.Progress, &t.Options
	switch {
	case p.Step >= o.Steps-o.Decay || p.FreeFrom >= 0 && p.Step >= p.FreeFrom+o.Least && p.Recall > o.Recall:
		t.StartDecay()
	case p.FreeFrom < 0 && p.Recall > o.Recall:
		p.FreeFrom, p.Recall = p.Step, 0
	}
	p.Rate = t.rate()
	b := draw(rand.New(t.random), t.text, o.Batch, t.Model.Config.Context, p.FreeFrom < 0)
	loss, err := t.gradient.Loss(b.inputs, b.targets, b.weights)
	if err != nil {
		return err
	}
	if err := t.gradient.Backward(); err != nil {
		return err
	}
	if _, err := t.adam.Step(t.Model.Params(), t.gradient.Params(), p.Rate); err != nil {
		return err
	}
	p.Step++
	p.Loss = loss
	t.note(b)
	return nil
}

func (t *Trainer) rate() float64 {
	p, o := &t.Progress, &t.Options
	rate := o.Rate * min(1, float64(p.Step+1)/float64(o.Warm))
	if p.DecayFrom >= 0 {
		rate *= max(0.02, 1-float64(p.Step-p.DecayFrom)/float64(o.Decay))
	}
	return rate
}

// note updates the running means.
func (t *Trainer) note(b *batch) {
	const keep = 0.98
	p := &t.Progress
	bits := 0.0
	for _, r := range b.plain {
		bits += t.gradient.Losses()[r] / math.Ln2
	}
	if n := len(b.plain); n > 0 {
		p.Bits = keep*p.Bits + (1-keep)*bits/float64(n)
	}
	right := 0
	for _, r := range b.asked {
		ok := true
		for d := range numberLength {
			ok = ok && t.gradient.Predicted()[r+d] == b.targets[r+d]
		}
		if ok {
			right++
		}
	}
	if n := len(b.asked); n > 0 {
		p.Recall = keep*p.Recall + (1-keep)*float64(right)/float64(n)
	}
}

// Run trains until Done. Each is called after every step. Minutes above 0 start
// the decay early enough that it ends in about that time. It returns the
// context's error after the step in which it comes.
func (t *Trainer) Run(ctx context.Context, minutes float64, each func() error) error {
	start, first := time.Now(), t.Progress.Step
	for !t.Done() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.Step(); err != nil {
			return err
		}
		if minutes > 0 {
			spent := time.Since(start).Minutes()
			if done := float64(t.Progress.Step - first); spent+spent/done*float64(t.Options.Decay) > minutes {
				t.StartDecay()
			}
		}
		if err := each(); err != nil {
			return err
		}
	}
	return nil
}
