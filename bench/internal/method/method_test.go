package method

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
)

// same are the methods that change nothing up to the trained length. The rest
// change the model there too, or see less.
var same = map[string]bool{
	"rope": true, "rope+logn": true, "pi": true, "ntk": true, "ntk-fixed": true, "ntk-mixed": true, "ntk-alpha": true,
	"dynamic-ntk": true, "yarn": true, "dynamic-yarn": true, "longrope": true, "llama3": true,
	"proportional": true, "abf": true, "self-extend": true, "window": true, "leaky-rerope": false,
	"nope": false, "xpos": false, "rerope": false, "rerope+logn": false, "dca": false, "string": false,
	"lm-infinite": false, "alibi": false, "ntk-by-parts": true, "longformer": true, "zebra": false, "longlora": false, "entropy-abf": true, "streaming-llm": true,
}

// whole are selectors of a share of weights, which may be all keys where these are alike.
var whole = map[string]bool{"flexprefill": true, "spargeattn": true, "sampleattention": true}

func run(t *testing.T, m *model.Model, b kernel.Backend, how Setup, tokens []int32) []float32 {
	t.Helper()
	if how.Evict != nil {
		d, err := model.NewDecoder(m, b, kernel.Fast, how.Attending, model.DecoderConfig{Sequences: 1, Evict: how.Evict})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		var logits []float32
		for _, x := range tokens {
			if logits, err = d.Step([]int32{x}, true); err != nil {
				t.Fatal(err)
			}
		}
		return logits
	}
	p, err := model.NewPrefill(m, b, kernel.Fast, how.Attending)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	logits, err := p.Run([][]int32{tokens}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return logits
}

func TestEveryMethodRuns(t *testing.T) {
	c := model.Small()
	c.Dim, c.Layers, c.FF, c.Context = 32, 2, 32, 64
	m, err := model.New(c, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Params() {
		for i := range p.Data {
			p.Data[i] *= 8
		}
	}
	b := cpu.New(cpu.Options{Workers: 2})
	defer b.Close()
	r := rand.New(rand.NewPCG(1, 2))
	tokens := []int32{model.BOS}
	for len(tokens) < 16*c.Context {
		tokens = append(tokens, int32(r.IntN(256)))
	}
	all, err := Select("all")
	if err != nil {
		t.Fatal(err)
	}
	plain := map[int][]float32{}
	for _, n := range []int{c.Context, 2 * c.Context, 16 * c.Context} {
		for _, method := range all {
			how, err := method.Setup(c, n)
			if err != nil {
				t.Error(err)
				continue
			}
			got := append([]float32(nil), run(t, m, b, how, tokens[:n])...)
			if method.Name == "rope" {
				plain[n] = got
			}
			worst := 0.0
			for i, x := range got {
				worst = max(worst, math.Abs(float64(x-plain[n][i])))
			}
			unchanged, known := same[method.Name]
			if how.Own != nil { // some round otherwise, see less or fall back on all keys
				unchanged, known = false, true
				if n == 16*c.Context && whole[method.Module] {
					continue
				}
			}
			if !known {
				t.Errorf("%s is not in this test", method.Name)
			}
			if n == c.Context && unchanged && !(worst < 1e-3) {
				t.Errorf("%s at the trained length differs from rope by %g", method.Name, worst)
			}
			if n == 16*c.Context && method.Name != "rope" && !(worst > 1e-3) {
				t.Errorf("%s at %d tokens differs from rope by %g: it does nothing", method.Name, n, worst)
			}
		}
	}
}

func TestSelect(t *testing.T) {
	got, err := Select(" Rerope+logn, rope,rope")
	if err != nil || len(got) != 2 || got[0].Name != "rope" || got[1].Name != "rerope+logn" {
		t.Errorf("%v, %v", got, err)
	}
	for _, list := range []string{"", ",", "rope,rop"} {
		if _, err := Select(list); err == nil || !strings.Contains(err.Error(), "streaming-llm") {
			t.Errorf("%q: %v, want the known names", list, err)
		}
	}
	for _, m := range table {
		if m.Module != "" {
			if _, err := attention.FindModule(m.Module); err != nil {
				t.Errorf("%s: %v", m.Name, err)
			}
		}
		if m.Title == "" || m.Claim == "" || m.Summary == "" || m.Paper == "" || !strings.HasPrefix(m.URL, "https://") {
			t.Errorf("%s is not described", m.Name)
		}
	}
}

// Every module has a method, or the reason why it has none.
func TestEveryModuleApplies(t *testing.T) {
	methods := map[string]bool{}
	for _, m := range table {
		methods[m.Module] = true
	}
	for _, m := range attention.Modules() {
		if methods[m.Name] == (WhyNot(m.Name) != "") {
			t.Errorf("%s: a method %v, and why not: %q; want one of both", m.Name, methods[m.Name], WhyNot(m.Name))
		}
	}
	for name := range notApplying {
		if _, err := attention.FindModule(name); err != nil {
			t.Error(err)
		}
	}
}
