package attention_test

import (
	"bufio"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
)

// firstLines are the first lines of the files of the package.
func firstLines(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if s := bufio.NewScanner(f); s.Scan() && !strings.HasSuffix(name, "_test.go") {
			out[name] = s.Text()
		}
		f.Close()
	}
	return out
}

// Every file that begins with a paper is in the table, and every row of the table
// has such a file.
func TestModulesAreTheFilesWithPapers(t *testing.T) {
	lines := firstLines(t)
	papers := map[string]int{}
	for _, m := range attention.Modules() {
		papers[m.Paper]++
		if m.Name == "" || m.Claim == "" || m.Backends == "" || m.Composes == "" || !strings.HasPrefix(m.Paper, "https://") {
			t.Errorf("%+v is not described", m)
		}
		if !slices.Contains([]string{"position", "mask", "score", "levels", "layers", "composite", "selector", "loss"}, m.Kind) || !slices.Contains([]string{"strong", "weak", "none"}, m.Claim) {
			t.Errorf("%s: kind %q, claim %q", m.Name, m.Kind, m.Claim)
		}
	}
	files := map[string]int{}
	for name, line := range lines {
		at := strings.LastIndex(line, "https://")
		if at < 0 {
			continue
		}
		files[line[at:]]++
		if papers[line[at:]] == 0 {
			t.Errorf("%s: %s is not in the table", name, line[at:])
		}
	}
	for paper, n := range papers {
		if files[paper] != n {
			t.Errorf("%s: %d modules, %d files that begin with it", paper, n, files[paper])
		}
	}
}

func TestModulesAreMadeByName(t *testing.T) {
	b := backend(t, 1)
	seen := map[string]bool{}
	for _, sizes := range []attention.ModelSizes{{Trained: 64, Layers: 4, Heads: 2, KVHeads: 2, HeadDim: 8}, {Trained: 4096, Layers: 32, Heads: 32, KVHeads: 8, HeadDim: 128}} {
		for _, m := range attention.Modules() {
			found, err := attention.FindModule(m.Name)
			if err != nil || found.Paper != m.Paper {
				t.Fatalf("%s: %+v, %v", m.Name, found, err)
			}
			if found.New == nil {
				t.Fatalf("%s cannot be made", m.Name)
			}
			value := found.New(sizes)
			if n, ok := value.(interface{ Name() string }); ok && n.Name() != m.Name {
				t.Errorf("%s makes a %s", m.Name, n.Name())
			}
			if _, ok := value.(attention.Position); ok != (m.Kind == "position") {
				t.Errorf("%s of kind %s is a Position: %v", m.Name, m.Kind, ok)
			}
			takes(t, b, sizes, m.Name, value)
			seen[reflect.TypeOf(value).Name()] = true
		}
	}
	if n := len(attention.Modules()); len(seen) != n {
		t.Errorf("%d types of %d modules", len(seen), n)
	}
	_, err := attention.FindModule("rope")
	wantError(t, "rope", err, `"rope"`, "rerope", "quest")
}

// takes fails unless the settings of a module are taken where it is used.
func takes(t *testing.T, b kernel.Backend, s attention.ModelSizes, name string, value any) {
	t.Helper()
	config := attention.Config{Heads: s.Heads, KVHeads: s.KVHeads, HeadDim: s.HeadDim, Mask: attention.Causal()}
	bare := config
	bare.Mask = attention.Mask{}
	var err error
	closed := func(c interface{ Close() error }, e error) {
		if err = e; e == nil {
			err = c.Close()
		}
	}
	switch m := value.(type) {
	case attention.Position:
		config.Position, config.Rotary = m, plain{dim: s.HeadDim}
	case attention.Longformer:
		config.Mask, err = m.Decoder()
	case attention.Zebra:
		config.Mask, err = m.Mask(1)
	case attention.ShiftedGroups:
		config.Mask = m.Mask()
		_, err = m.Blocks([]int{100}, nil, s.KVHeads)
	case attention.KERPLE:
		_, err = m.Table(s.Trained)
	case attention.FIRE:
		_, err = m.Table(2 * s.Trained)
	case attention.Forgetting:
		_, err = m.Extend(nil, make([]float32, s.Heads))
	case attention.EntropyScale:
		err = m.Apply(&config, 2)
	case attention.BiPE:
		_, _, err = m.Levels(2 * s.Trained)
	case attention.HiRoPE:
		r, _ := plain{dim: s.HeadDim}.Rotation(1)
		_, err = m.Rotation(r)
	case interface {
		Map() (attention.LayerMap, error)
	}:
		var layers attention.LayerMap
		if layers, err = m.Map(); err == nil {
			err = layers.Check()
		}
	case attention.MLA:
		if err = m.Naive(&config); err == nil {
			err = m.Absorbed(&config)
		}
	case attention.Diff:
		config.ValueDim = 2 * s.HeadDim
	case attention.Dilated:
		closed(m.New(b, bare))
	case attention.CoPE:
		closed(m.New(b, bare))
	case attention.PCW:
		config.Mask, err = m.Mask(1)
	case attention.APE:
		closed(m.New(b, bare))
	case attention.TinyBERT:
		_, err = m.TeacherLayer(0, s.Layers/2, s.Layers)
	case attention.MagicPIG:
		closed(m.New(b, bare))
	case attention.RetrievalAttention:
		closed(m.New(b, bare))
	case attention.Quest:
		if m.Pages < 1 || m.Recent < 1 {
			t.Errorf("%s: %+v", name, m)
		}
	case attention.SparQ, attention.Loki, attention.DoubleSparse, attention.InfLLM, attention.LongHeads, attention.PQCache,
		attention.ReAttention, attention.SqueezedAttention, attention.NSA:
		takesSelector(t, b, s, name, m)
	case attention.MoBA, attention.MInference, attention.FlexPrefill, attention.XAttention, attention.SpargeAttn, attention.SampleAttention:
		config.Mask.Kinds |= kernel.MaskBlocks
		err = prefillsWith(b, m)
	default:
		t.Errorf("%s: a %T is not in this test", name, value)
	}
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
	a, err := attention.New(b, config)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	a.Close()
}
