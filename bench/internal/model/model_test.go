package model

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/safetensors"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
)

func tiny() Config {
	c := Small()
	c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.FF, c.Context = 24, 2, 2, 1, 8, 32, 16
	return c
}

// loud is a model whose weights are so large that a fault shows in the logits.
func loud(t *testing.T, c Config, seed uint64) *Model {
	t.Helper()
	m, err := New(c, seed)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Params() {
		for i := range p.Data {
			if p.Rows > 1 {
				p.Data[i] *= 12
			} else {
				p.Data[i] += float32(i%5) * 0.1
			}
		}
	}
	return m
}

func rotary(c Config) attention.Rotary {
	return rope.Default{Base: rope.Base{HeadDim: c.HeadDim, Theta: c.Base}}
}

func newBackend(t *testing.T) *cpu.Backend {
	b := cpu.New(cpu.Options{Workers: 2})
	t.Cleanup(b.Close)
	return b
}

func randomTokens(r *rand.Rand, n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(r.IntN(Vocab))
	}
	return out
}

func apart(a, b []float32) float64 {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	worst := 0.0
	for i := range a {
		worst = max(worst, math.Abs(float64(a[i]-b[i])))
	}
	return worst
}

func prefill(t *testing.T, m *Model, b kernel.Backend, how Attending, last int, sequences ...[]int32) []float32 {
	t.Helper()
	p, err := NewPrefill(m, b, kernel.Exact, how)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	logits, err := p.Run(sequences, last)
	if err != nil {
		t.Fatal(err)
	}
	return append([]float32(nil), logits...)
}

// decode returns the logits after the last tokens of each sequence.
func decode(t *testing.T, m *Model, b kernel.Backend, how Attending, dc DecoderConfig, last int, sequences ...[]int32) []float32 {
	t.Helper()
	dc.Sequences, dc.Length = len(sequences), len(sequences[0])
	d, err := NewDecoder(m, b, kernel.Exact, how, dc)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out := make([]float32, len(sequences)*last*Vocab)
	for i := range dc.Length {
		tokens := make([]int32, len(sequences))
		for s := range sequences {
			tokens[s] = sequences[s][i]
		}
		row := i - (dc.Length - last)
		logits, err := d.Step(tokens, row >= 0)
		if err != nil {
			t.Fatal(err)
		}
		for s := range sequences {
			if row >= 0 {
				copy(out[(s*last+row)*Vocab:], logits[s*Vocab:][:Vocab])
			}
		}
	}
	if err := d.cache.CheckIntegrity(); err != nil {
		t.Error(err)
	}
	return out
}

func TestSaveLoadKeepsEveryBit(t *testing.T) {
	m := loud(t, tiny(), 1)
	f, err := m.File(map[string]string{"step": "7"})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "m.safetensors")
	if err := safetensors.Write(path, f); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range got.Params() {
		if d := apart(p.Data, m.Params()[i].Data); d != 0 {
			t.Errorf("%s differs by %g", p.Name, d)
		}
	}
}

func TestBadModelsAreRefused(t *testing.T) {
	m := loud(t, tiny(), 1)
	for _, c := range []struct {
		want   string
		change func(*safetensors.File)
	}{
		{"no \"config\"", func(f *safetensors.File) { f.Metadata = nil }},
		{"config", func(f *safetensors.File) { f.Metadata["config"] = "{" }},
		{"hidden_size", func(f *safetensors.File) { f.Metadata["config"] = "{}" }},
		{"vocab_size", func(f *safetensors.File) {
			f.Metadata["config"] = strings.Replace(f.Metadata["config"], "257", "32000", 1)
		}},
		{"rope_scaling", func(f *safetensors.File) {
			f.Metadata["config"] = strings.Replace(f.Metadata["config"], "{", `{"rope_scaling":{"type":"yarn"},`, 1)
		}},
		{"no tensor", func(f *safetensors.File) { delete(f.Tensors, "model.norm.weight") }},
		{"shape", func(f *safetensors.File) {
			t := f.Tensors["model.norm.weight"]
			t.Shape = []int{1, 24}
			f.Tensors["model.norm.weight"] = t
		}},
		{"finite", func(f *safetensors.File) {
			f.Tensors["model.norm.weight"].Bytes[2], f.Tensors["model.norm.weight"].Bytes[3] = 0xc0, 0x7f
		}},
	} {
		f, err := m.File(nil)
		if err != nil {
			t.Fatal(err)
		}
		c.change(f)
		if _, err := FromFile(f); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want an error with %q", err, c.want)
		}
	}
}

// The last layer is computed for the tokens asked for alone; batches are
// ragged.
func TestTailIsTheEndOfTheWhole(t *testing.T) {
	m, b, r := loud(t, tiny(), 2), newBackend(t), rand.New(rand.NewPCG(1, 1))
	how := Attending{Mask: attention.Causal(), Rotary: rotary(m.Config), Score: attention.Score{LogN: 16}}
	a, c := randomTokens(r, 40), randomTokens(r, 9)
	whole := prefill(t, m, b, how, 40, a)
	tail := prefill(t, m, b, how, 5, c, a)
	if d := apart(whole[35*Vocab:], tail[5*Vocab:]); d > 1e-4 {
		t.Errorf("logits differ by %g", d)
	}
	if d := apart(prefill(t, m, b, how, 5, c), tail[:5*Vocab]); d > 1e-4 {
		t.Errorf("a row alone differs from the row in a batch by %g", d)
	}
	if apart(whole[:5*Vocab], whole[5*Vocab:10*Vocab]) < 0.1 {
		t.Error("logits do not depend on tokens: this test cannot fail")
	}
}

func TestDecodeEqualsPrefill(t *testing.T) {
	m, b, r := loud(t, tiny(), 3), newBackend(t), rand.New(rand.NewPCG(2, 1))
	s := [][]int32{randomTokens(r, 50), randomTokens(r, 50), randomTokens(r, 50)}
	for name, how := range map[string]Attending{
		"rope":   {Mask: attention.Causal(), Rotary: rotary(m.Config)},
		"rerope": {Mask: attention.Causal(), Rotary: rotary(m.Config), Position: attention.ReRoPE{Window: 8}},
		"alibi": {Mask: attention.Causal(), Score: attention.Score{Slopes: true},
			Slopes: attention.ALiBiSlopes(m.Config.Heads)},
	} {
		if d := apart(prefill(t, m, b, how, 20, s...), decode(t, m, b, how, DecoderConfig{PageSize: 4}, 20, s...)); d > 1e-3 {
			t.Errorf("%s: logits differ by %g", name, d)
		}
	}
}

// Dropping keys from the cache and counting positions in what is left is what
// StreamingLLM's two Terms say.
func TestEvictionIsTheStreamingModule(t *testing.T) {
	m, b, r := loud(t, tiny(), 4), newBackend(t), rand.New(rand.NewPCG(3, 1))
	s := [][]int32{randomTokens(r, 60), randomTokens(r, 60)}
	plain := Attending{Mask: attention.Causal(), Rotary: rotary(m.Config)}
	terms := plain
	terms.Position = attention.StreamingLLM{Sinks: 3, Recent: 9}
	want := prefill(t, m, b, terms, 20, s...)
	got := decode(t, m, b, plain, DecoderConfig{Evict: &Eviction{Sinks: 3, Recent: 9}}, 20, s...)
	if d := apart(got, want); d > 1e-3 {
		t.Errorf("logits differ by %g", d)
	}
	if apart(want, prefill(t, m, b, plain, 20, s...)) < 0.1 {
		t.Error("eviction changes nothing: this test cannot fail")
	}
}

func TestBadRunsAreErrors(t *testing.T) {
	m, b := loud(t, tiny(), 5), newBackend(t)
	how := Attending{Mask: attention.Causal(), Rotary: rotary(m.Config)}
	p, err := NewPrefill(m, b, kernel.Fast, how)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range [][][]int32{{}, {{}}, {{1}}, {{257, 1}}, {{-1, 1}}} {
		if _, err := p.Run(s, 2); err == nil {
			t.Errorf("%v: no error", s)
		}
	}
	if _, err := NewPrefill(m, b, kernel.Fast, Attending{}); err == nil {
		t.Error("no mask, and no error")
	}
	perLayer := how
	perLayer.Layer = func(int, *attention.Config) error { return nil }
	if _, err := NewDecoder(m, b, kernel.Fast, perLayer, DecoderConfig{Sequences: 1}); err == nil {
		t.Error("a decoder with layers of their own, and no error")
	}
	if _, err := NewGradient(m, b, kernel.Fast, perLayer); err == nil {
		t.Error("a gradient with layers of their own, and no error")
	}
	if _, err := NewDecoder(m, b, kernel.Fast, how, DecoderConfig{Sequences: 1, PageSize: 2, Evict: &Eviction{1, 1}}); err == nil {
		t.Error("eviction of pages of two tokens, and no error")
	}
	d, err := NewDecoder(m, b, kernel.Fast, how, DecoderConfig{Sequences: 1, Length: 2, PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := d.Step([]int32{1}, true); (err != nil) != (i == 2) {
			t.Errorf("token %d of a cache of 2: %v", i, err)
		}
	}
}
