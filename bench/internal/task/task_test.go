package task

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/longctx/longctx/bench/internal/method"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
)

func material(seed uint64) *Material {
	r := rand.New(rand.NewPCG(9, 9))
	text := make([]byte, Need(1024))
	for i := range text {
		text[i] = "abcdefghij \n"[r.IntN(12)]
	}
	return &Material{Text: text, Trained: 64, Seed: seed}
}

func asBytes(t *testing.T, tokens []int32) []byte {
	t.Helper()
	if tokens[0] != model.BOS {
		t.Fatalf("starts with %d, want BOS", tokens[0])
	}
	var out []byte
	for _, x := range tokens[1:] {
		out = append(out, byte(x))
	}
	return out
}

// The targets are the same at every length, each is the byte after its input,
// and a longer context ends as a shorter one does.
func TestContextGrowsToTheLeft(t *testing.T) {
	m := material(1)
	short, err := m.Windows(7, 64, 1024)
	if err != nil {
		t.Fatal(err)
	}
	long, err := m.Windows(7, 1024, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for i := range short {
		if !bytes.Equal(short[i].Targets, long[i].Targets) || len(short[i].Targets) != 64 {
			t.Fatalf("targets of trial %d differ", i)
		}
		a, b := asBytes(t, short[i].Tokens), asBytes(t, long[i].Tokens)
		if len(a) != 63 || len(b) != 1023 || !bytes.HasSuffix(b, a) {
			t.Fatalf("context of trial %d is no end of the longer one", i)
		}
		if !bytes.Equal(a, short[i].Targets[:63]) {
			t.Fatalf("trial %d: inputs are not the targets a byte late", i)
		}
	}
}

func TestRecallPlantsOneKeyAtItsDepth(t *testing.T) {
	m := material(1)
	var before []Trial
	for _, n := range []int{64, 256, 1024} {
		trials, err := m.Recall(20, n, 1024)
		if err != nil {
			t.Fatal(err)
		}
		for i, trial := range trials {
			text := string(asBytes(t, trial.Tokens)) + string(trial.Targets[4])
			if len(trial.Tokens) != n {
				t.Fatalf("%d tokens, want %d", len(trial.Tokens), n)
			}
			key, get := strings.Index(text, "\n// KEY "), strings.LastIndex(text, "\n// GET ")
			if strings.Count(text, "KEY") != 1 || strings.Count(text, "GET") != 1 || text[key+8:key+19] != text[get+8:] || text[get+14:] != string(trial.Targets) {
				t.Fatalf("%q", text)
			}
			if want := DepthOf(trial.Depth) * float64(get-20); math.Abs(float64(key)-want) > 1 || trial.Depth != i%Depths {
				t.Errorf("length %d: key at byte %d, want %.1f", n, key, want)
			}
			if before != nil && !bytes.Equal(before[i].Targets, trial.Targets) {
				t.Errorf("trial %d asks for another number at another length", i)
			}
		}
		before = trials
	}
}

func TestSeedFixesTrials(t *testing.T) {
	draw := func(seed uint64) []Trial {
		a, err := material(seed).Windows(5, 128, 1024)
		if err != nil {
			t.Fatal(err)
		}
		b, err := material(seed).Recall(10, 128, 1024)
		if err != nil {
			t.Fatal(err)
		}
		return append(a, b...)
	}
	if !reflect.DeepEqual(draw(1), draw(1)) {
		t.Error("one seed, two sets of trials")
	}
	if reflect.DeepEqual(draw(1), draw(2)) {
		t.Error("two seeds, one set of trials")
	}
}

func TestWhatCannotBeDrawnIsAnError(t *testing.T) {
	m := material(1)
	if _, err := m.Windows(1, 32, 1024); err == nil {
		t.Error("shorter than trained: no error")
	}
	if _, err := m.Recall(1, 40, 1024); err == nil {
		t.Error("no room for the lines: no error")
	}
	m.Text = m.Text[:Need(1024)-1]
	if _, err := m.Windows(1, 64, 1024); err == nil || !strings.Contains(err.Error(), "want at least") {
		t.Errorf("text too short: %v", err)
	}
}

func TestScores(t *testing.T) {
	logits := make([]float32, 2*model.Vocab)
	logits[7], logits[model.Vocab+9] = 100, 3
	if got := correct(logits, []byte{7, 8}); got != 1 {
		t.Errorf("%d right, want 1", got)
	}
	want := math.Log(256 + math.Exp(3)) // the first costs nothing, the second is not the likeliest
	if got := crossEntropy(logits, []byte{7, 8}); math.Abs(got-want) > 1e-6 {
		t.Errorf("%g nats, want %g", got, want)
	}
}

// A model of zeros knows nothing: 257 tokens alike, whatever runs it.
func TestMeasureOfAnEmptyModel(t *testing.T) {
	c := model.Small()
	c.Dim, c.Layers, c.FF, c.Context = 32, 1, 32, 64
	net, err := model.New(c, 1)
	if err != nil {
		t.Fatal(err)
	}
	clear(net.Embed.Data)
	b := cpu.New(cpu.Options{Workers: 2})
	defer b.Close()
	e := Evaluator{Model: net, Backend: b, Policy: kernel.Exact, Batch: 300}
	m := material(1)
	windows, _ := m.Windows(3, 128, 128)
	recall, _ := m.Recall(20, 128, 128)
	for _, name := range []string{"rope", "streaming-llm"} {
		chosen, err := method.Select(name)
		if err != nil {
			t.Fatal(err)
		}
		done := 0
		p, err := e.Measure(t.Context(), chosen[0], 128, windows, recall, func(n int) { done += n })
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(p.BitsPerByte-math.Log2(257)) > 1e-6 || p.Windows != 3 || p.Trials != 20 || p.Recall != 0 || p.Asked[3] != 2 || p.Kernel == "" {
			t.Errorf("%s: %+v", name, p)
		}
		if done != 23*128 {
			t.Errorf("%s: %d tokens done, want %d", name, done, 23*128)
		}
		ctx, stop := context.WithCancel(t.Context())
		if _, err := e.Measure(ctx, chosen[0], 128, windows, recall, func(int) { stop() }); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: stopped with %v", name, err)
		}
	}
}
