package selected

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
)

// scene is a model with loud weights, a text, and the logits of its last tokens.
func scene(t *testing.T) (m *model.Model, b kernel.Backend, rotary rope.YaRN, tokens []int32, want []float32) {
	t.Helper()
	c := model.Small()
	c.Dim, c.Layers, c.FF = 32, 2, 32
	m, err := model.New(c, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Params() {
		for i := range p.Data {
			p.Data[i] *= 8
		}
	}
	cpuBackend := cpu.New(cpu.Options{Workers: 2})
	t.Cleanup(func() { cpuBackend.Close() })
	r := rand.New(rand.NewPCG(1, 2))
	tokens = []int32{model.BOS}
	for len(tokens) < 205 { // the last page is not full
		tokens = append(tokens, int32(r.IntN(256)))
	}
	rotary = rope.YaRN{Base: rope.Base{HeadDim: c.HeadDim, Theta: c.Base}, Factor: 2, OriginalLength: c.Context}
	p, err := model.NewPrefill(m, cpuBackend, kernel.Exact, model.Attending{Mask: attention.Causal(), Rotary: rotary})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	logits, err := p.Run([][]int32{tokens, tokens[:100]}, 3)
	if err != nil {
		t.Fatal(err)
	}
	return m, cpuBackend, rotary, tokens, append([]float32(nil), logits...)
}

// attend returns the largest difference of logits from want, and what was judged.
func attend(t *testing.T, s *Selector, share float64, m *model.Model, b kernel.Backend, rotary rope.YaRN, tokens []int32, want []float32) (apart float64, j Judgement) {
	t.Helper()
	rotation, err := rotary.Rotation(len(tokens))
	if err != nil {
		t.Fatal(err)
	}
	r := &Runner{Config: m.Config, Rotation: rotation, Page: 8, Share: share, Judged: 40, Selector: s}
	p, err := model.NewPrefill(m, b, kernel.Exact, model.Attending{Mask: attention.Causal(), Own: r.Own})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	logits, err := p.Run([][]int32{tokens, tokens[:100]}, 3)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range logits {
		apart = max(apart, math.Abs(float64(x-want[i])))
	}
	return apart, r.Judgement()
}

func TestDenseIsTheModel(t *testing.T) {
	m, b, rotary, tokens, want := scene(t)
	if apart, j := attend(t, nil, 1, m, b, rotary, tokens, want); apart > 1e-3 || j != (Judgement{1, 1, 0}) {
		t.Errorf("dense is %g from the model: %+v", apart, j)
	}
}

func TestSelectorsOfAllKeysAreDense(t *testing.T) {
	m, b, rotary, tokens, want := scene(t)
	for _, s := range Selectors() {
		apart, j := attend(t, &s, 1, m, b, rotary, tokens, want)
		if s.Name == "magicpig" { // takes keys by chance
			if !(j.Seen < 1 && j.Mass < 1) {
				t.Errorf("magicpig: %+v", j)
			}
			continue
		}
		if apart > 1e-3 || j.Seen != 1 || math.Abs(j.Mass-1) > 1e-4 || j.Error > 1e-4 {
			t.Errorf("%s of all keys: logits %g apart, %+v", s.Name, apart, j)
		}
	}
}

func TestSelectorsOfAQuarterSeeLess(t *testing.T) {
	m, b, rotary, tokens, want := scene(t)
	for _, s := range Selectors() {
		apart, j := attend(t, &s, 0.25, m, b, rotary, tokens, want)
		most := 0.8
		switch s.Name {
		case "flexprefill", "spargeattn", "sampleattention": // have a share of weights and no budget
			most = 1
		}
		if !(j.Seen > 0.1 && j.Seen <= most && j.Mass > 0.1 && j.Mass < 1.0001 && j.Error < 2) || (j.Mass > 0.9999) != (j.Error < 1e-3) || (apart > 1e-4) != (j.Error > 1e-5) {
			t.Errorf("%s of a quarter: logits %g apart, %+v", s.Name, apart, j)
		}
	}
}

func TestEverySelectorIsHere(t *testing.T) {
	here := map[string]bool{}
	for _, s := range Selectors() {
		here[s.Name] = true
	}
	for _, s := range attention.Selectors() {
		if !here[s.Name] && !here[s.Name+"-a-shape"] {
			t.Errorf("%s is not judged", s.Name)
		}
	}
	if _, err := Select("quest,none"); err == nil {
		t.Error("a selector named none: no error")
	}
	if got, err := Select("moba,quest"); err != nil || len(got) != 2 || got[0].Name != "moba" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestRunnerRefuses(t *testing.T) {
	m, b, rotary, tokens, _ := scene(t)
	rotation, err := rotary.Rotation(len(tokens))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Runner{{Share: 1, Judged: 1}, {Page: 8, Judged: 1}, {Page: 8, Share: 2, Judged: 1}, {Page: 8, Share: 1}} {
		r.Config, r.Rotation = m.Config, rotation
		p, err := model.NewPrefill(m, b, kernel.Exact, model.Attending{Mask: attention.Causal(), Own: r.Own})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Run([][]int32{tokens}, 1); err == nil {
			t.Errorf("%+v: no error", r)
		}
		p.Close()
	}
}
