package learn

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
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

// Recall learnt on the grid ends the first stage, and has to be learnt again
// before the decay.
func TestStagesFollowRecall(t *testing.T) {
	trainer := newTrainer(t, 2, 1)
	trainer.Options.Recall, trainer.Options.Least = 0.5, 3
	steps := func(n int) {
		t.Helper()
		for range n {
			if err := trainer.Step(); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := &trainer.Progress
	steps(2)
	if p.FreeFrom != -1 || p.DecayFrom != -1 {
		t.Fatalf("with nothing learnt: %+v", *p)
	}
	p.Recall = 0.99
	steps(6)
	if p.FreeFrom != 2 || p.DecayFrom != -1 || p.Recall > 0.5 {
		t.Fatalf("learnt on the grid: %+v, want free from 2, and recall anew", *p)
	}
	p.Recall = 0.99
	steps(1)
	if p.DecayFrom != 8 {
		t.Errorf("learnt free of it: decay from %d, want 8", p.DecayFrom)
	}
}

// Every number asked for was given before, under its name. Distances are
// multiples of a line on the grid, and of nothing off it.
func TestPlantedNumbersCanBeFound(t *testing.T) {
	if d := plantedDistances(t, false); len(d) < 60 {
		t.Errorf("%d distances off the grid", len(d))
	}
	for d := range plantedDistances(t, true) {
		if d%line != 0 {
			t.Errorf("distance %d on the grid", d)
		}
	}
}

func plantedDistances(t *testing.T, grid bool) map[int]bool {
	r := rand.New(rand.NewPCG(1, 1))
	pattern := regexp.MustCompile(`\n// (KEY|GET) ([a-z]{3}) = ([0-9]{5})\n`)
	distances := map[int]bool{}
	for range 500 {
		buf := make([]byte, 128)
		asked := plant(r, buf, grid)
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
	return distances
}

// What is marked as known is a copy of what stands before it.
func TestRepeatedWordsAreKnown(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 1))
	for range 300 {
		buf := make([]byte, 128)
		known := repeat(r, buf)
		for _, k := range known {
			word := buf[k[0]-3 : k[1]]
			if first := bytes.Index(buf, word); first < 0 || first >= k[0]-3 {
				t.Fatalf("%q at %v: nothing before it to copy", buf, k)
			}
		}
		if len(known) == 0 {
			t.Fatal("no word repeated")
		}
	}
	if got := repeat(r, make([]byte, 10)); got != nil {
		t.Errorf("words in 10 bytes: %v", got)
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

// What would not continue the run is refused: another text, another policy, a
// state that is cut short or holds moments that AdamW cannot have.
func TestResumeRefusesAnotherRun(t *testing.T) {
	trainer := newTrainer(t, 1, 1)
	if err := trainer.Step(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "m.safetensors")
	if err := trainer.Save(path); err != nil {
		t.Fatal(err)
	}
	b := cpu.New(cpu.Options{Workers: 1})
	t.Cleanup(b.Close)
	_, _, text := tiny()
	if _, err := Resume(path, b, kernel.Fast, text); err != nil {
		t.Fatal(err)
	}
	if _, err := Resume(path, b, kernel.Exact, text); err == nil {
		t.Error("another policy: no error")
	}
	if _, err := Resume(path, b, kernel.Fast, append([]byte("x"), text...)); err == nil {
		t.Error("another text: no error")
	}
	for _, bad := range []float32{-1, float32(math.NaN()), float32(math.Inf(1))} {
		v := &trainer.adam.V[0].Data[3]
		good := *v
		*v = bad
		if err := trainer.Save(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Resume(path, b, kernel.Fast, text); err == nil {
			t.Errorf("a second moment of %v: no error", bad)
		}
		*v = good
	}
	whole, err := os.ReadFile(path + ".resume")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".resume", whole[:len(whole)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Resume(path, b, kernel.Fast, text); err == nil {
		t.Error("half a file: no error")
	}
}
