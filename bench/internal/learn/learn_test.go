package learn

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
)

func tiny() (model.Config, Options, []byte) {
	c := model.Small()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FF, c.Context = 32, 2, 2, 1, 16, 64, 48
	text := []byte(strings.Repeat("func (t *Trainer) Step() error { return nil }\n", 40))
	return c, Options{Batch: 8, Rate: 1e-2, Warm: 5, Decay: 20, Steps: 80, Recall: 2, Least: 0}, text
}

func newTrainer(t *testing.T, workers int, seed uint64) *Trainer {
	t.Helper()
	b := cpu.New(cpu.Options{Workers: workers})
	t.Cleanup(b.Close)
	c, o, text := tiny()
	trainer, err := New(c, b, kernel.Fast, o, text, seed)
	if err != nil {
		t.Fatal(err)
	}
	return trainer
}

func weights(m *model.Model) (all []float32) {
	for _, p := range m.Params() {
		all = append(all, p.Data...)
	}
	return all
}

func TestItLearns(t *testing.T) {
	trainer := newTrainer(t, 2, 1)
	first := 0.0
	if err := trainer.Run(t.Context(), 0, func() error {
		if trainer.Progress.Step == 1 {
			first = trainer.Progress.Loss
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	p := trainer.Progress
	if !(first > 5 && p.Loss < 0.5*first) {
		t.Errorf("the loss went from %.2f to %.2f, want less than half", first, p.Loss)
	}
	if p.Step != 80 || p.DecayFrom != 60 || p.Rate > 0.1*trainer.Options.Rate {
		t.Errorf("ended with %+v", p)
	}
}

// A seed fixes every weight; so does a stop in between, and another number of
// workers changes nothing.
func TestSeedFixesEveryBit(t *testing.T) {
	one, other := newTrainer(t, 1, 3), newTrainer(t, 2, 3)
	path := filepath.Join(t.TempDir(), "m.safetensors")
	for i := range 12 {
		if err := one.Step(); err != nil {
			t.Fatal(err)
		}
		if i == 6 {
			if err := other.Save(path); err != nil {
				t.Fatal(err)
			}
			b := cpu.New(cpu.Options{Workers: 3})
			t.Cleanup(b.Close)
			_, _, text := tiny()
			var err error
			if other, err = Resume(path, b, kernel.Fast, text); err != nil {
				t.Fatal(err)
			}
		}
		if err := other.Step(); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(weights(one.Model), weights(other.Model)) || one.Progress != other.Progress {
		t.Errorf("%+v and %+v", one.Progress, other.Progress)
	}
	third := newTrainer(t, 2, 4)
	if slices.Equal(weights(third.Model), weights(newTrainer(t, 2, 3).Model)) {
		t.Error("the seed changes nothing")
	}
	if m, err := model.Load(path); err != nil || m.Count() != third.Model.Count() {
		t.Errorf("the saved model: %v", err)
	}
}

func TestStopIsBetweenSteps(t *testing.T) {
	trainer := newTrainer(t, 2, 1)
	ctx, stop := context.WithCancel(t.Context())
	err := trainer.Run(ctx, 0, func() error {
		if trainer.Progress.Step == 3 {
			stop()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || trainer.Progress.Step != 3 {
		t.Errorf("%v after step %d", err, trainer.Progress.Step)
	}
}

func TestDecayStartsOnceRecallIsLearnt(t *testing.T) {
	trainer := newTrainer(t, 2, 1)
	trainer.Options.Recall, trainer.Options.Least = 0.5, 3
	trainer.Progress.Recall = 0.99
	for range 5 {
		if err := trainer.Step(); err != nil {
			t.Fatal(err)
		}
	}
	if got := trainer.Progress.DecayFrom; got != 3 {
		t.Errorf("decay from %d, want 3", got)
	}
}

// Every number asked for was given before, under its name, and distances are
// on no grid.
func TestPlantedNumbersCanBeFound(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	pattern := regexp.MustCompile(`\n// (KEY|GET) ([a-z]{3}) = ([0-9]{5})\n`)
	distances := map[int]bool{}
	for range 500 {
		buf := make([]byte, 128)
		asked := plant(r, buf)
		known, at := map[string]int{}, 0
		numbers := map[string]string{}
		for _, m := range pattern.FindAllSubmatchIndex(buf, -1) {
			name, number := string(buf[m[4]:m[5]]), string(buf[m[6]:m[7]])
			if string(buf[m[2]:m[3]]) == "KEY" {
				known[name], numbers[name] = m[6], number
				continue
			}
			if numbers[name] != number || asked[at] != m[6] {
				t.Fatalf("%q: asked at %v", buf, asked)
			}
			distances[m[6]-known[name]] = true
			at++
		}
		if at == 0 || at != len(asked) {
			t.Fatalf("%d questions, %v named: %q", at, asked, buf)
		}
	}
	if len(distances) < 60 {
		t.Errorf("%d distances", len(distances))
	}
}

func TestBadOptionsAreErrors(t *testing.T) {
	c, o, text := tiny()
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	for _, change := range []func(*Options){
		func(o *Options) { o.Batch = 0 }, func(o *Options) { o.Decay = 0 }, func(o *Options) { o.Steps = 3 }, func(o *Options) { o.Rate = -1 },
	} {
		bad := o
		change(&bad)
		if _, err := New(c, b, kernel.Fast, bad, text, 1); err == nil {
			t.Errorf("%+v: no error", bad)
		}
	}
	if _, err := New(c, b, kernel.Fast, o, text[:48], 1); err == nil {
		t.Error("a text of one window: no error")
	}
	if _, err := Resume(filepath.Join(t.TempDir(), "none"), b, kernel.Fast, text); err == nil {
		t.Error("a checkpoint that is not there: no error")
	}
}
