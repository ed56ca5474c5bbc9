package rope_test

import (
	"maps"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
)

func float32s(x []float64) []float32 {
	y := make([]float32, len(x))
	for i, v := range x {
		y[i] = float32(v)
	}
	return y
}

// metadata adds keys to those of a model with heads of 64.
func metadata(arch string, keys map[string]any) map[string]any {
	kv := map[string]any{"general.architecture": arch, "tokenizer.ggml.model": "gpt2",
		arch + ".embedding_length": uint32(512), arch + ".attention.head_count": uint32(8), arch + ".context_length": uint32(4096)}
	for k, v := range keys {
		kv[arch+"."+k] = v
	}
	return kv
}

func TestParseGGUF(t *testing.T) {
	norm, neox := rope.GGUFPairing{Layout: kernel.Interleaved}, rope.GGUFPairing{Layout: kernel.HalfSplit}
	b := rope.Base{HeadDim: 64, Layout: kernel.Interleaved}
	h := rope.Base{HeadDim: 64, RotaryDim: 64, Theta: 1e6}
	list := rope.GGUFTensors{Short: float32s(ones(32)), Long: float32s(ones(32))}
	one := func(m rope.Method) map[string]rope.Method { return map[string]rope.Method{"": m} }
	for name, c := range map[string]struct {
		arch    string
		keys    map[string]any
		tensors rope.GGUFTensors
		pairing rope.GGUFPairing
		want    map[string]rope.Method
	}{
		"nothing said": {"llama", nil, rope.GGUFTensors{}, norm, one(rope.Default{Base: b})},
		"none":         {"llama", map[string]any{"rope.scaling.type": "none", "rope.scaling.finetuned": false}, rope.GGUFTensors{}, norm, one(rope.Default{Base: b})},
		"zero factor":  {"llama", map[string]any{"rope.scaling.factor": float32(0)}, rope.GGUFTensors{}, norm, one(rope.Default{Base: b})},
		"old key":      {"llama", map[string]any{"rope.scale_linear": float32(4)}, rope.GGUFTensors{}, norm, one(rope.Linear{Base: b, Factor: 4})},
		"linear": {"qwen2", map[string]any{"rope.scaling.type": "linear", "rope.scaling.factor": float32(8), "rope.freq_base": float32(1e6), "rope.dimension_count": uint32(64)},
			rope.GGUFTensors{}, neox, one(rope.Linear{Base: h, Factor: 8})},
		"partial": {"phi2", map[string]any{"rope.dimension_count": uint64(32), "attention.key_length": int32(80)},
			rope.GGUFTensors{}, neox, one(rope.Default{Base: rope.Base{HeadDim: 80, RotaryDim: 32}})},
		"alpha": {"hunyuan_vl", map[string]any{"rope.scaling.alpha": float32(1000)}, rope.GGUFTensors{}, norm, one(rope.NTKAlpha{Base: b, Alpha: 1000})},
		"yarn": {"llama", map[string]any{"rope.scaling.type": "yarn", "rope.scaling.factor": float32(16)},
			rope.GGUFTensors{}, norm, one(rope.YaRN{Base: b, Factor: 16, OriginalLength: 4096})},
		"yarn in full": {"llama", map[string]any{"rope.scaling.type": "yarn", "rope.scaling.factor": float32(16), "rope.scaling.original_context_length": uint32(2048),
			"rope.scaling.yarn_beta_fast": float32(16), "rope.scaling.yarn_beta_slow": float32(2), "rope.scaling.yarn_ext_factor": float32(-1)},
			rope.GGUFTensors{}, norm, one(rope.YaRN{Base: b, Factor: 16, OriginalLength: 2048, BetaFast: 16, BetaSlow: 2})},
		"latent": {"deepseek2", map[string]any{"rope.scaling.type": "yarn", "rope.scaling.factor": float32(40), "rope.dimension_count": uint32(64),
			"attention.key_length": uint32(576), "attention.kv_lora_rank": uint32(512), "rope.scaling.yarn_log_multiplier": float32(0.0707)},
			rope.GGUFTensors{}, norm, one(rope.YaRN{Base: rope.Base{HeadDim: 64, RotaryDim: 64, Layout: kernel.Interleaved}, Factor: 40, OriginalLength: 4096,
				MScale: .707, MScaleAllDim: .707, ScaleScores: true})},
		"longrope": {"phi3", map[string]any{"rope.scaling.type": "longrope", "rope.scaling.attn_factor": float32(1.25), "rope.scaling.original_context_length": uint32(1024)},
			list, neox, one(rope.LongRoPE{Base: rope.Base{HeadDim: 64}, Short: ones(32), Long: ones(32), OriginalLength: 1024, AttentionFactor: 1.25})},
		"factors": {"llama", nil, rope.GGUFTensors{Freqs: float32s(ones(32))}, norm, one(rope.Divided{Method: rope.Default{Base: b}, Factors: ones(32)})},
		"sliding": {"gemma3", map[string]any{"rope.scaling.type": "linear", "rope.scaling.factor": float32(8), "rope.freq_base": float32(1e6), "rope.freq_base_swa": float32(1e4)},
			rope.GGUFTensors{}, neox, map[string]rope.Method{
				rope.FullAttention: rope.Linear{Base: rope.Base{HeadDim: 64, Theta: 1e6}, Factor: 8}, rope.SlidingAttention: rope.Default{Base: rope.Base{HeadDim: 64, Theta: 1e4}}}},
		"sections": {"qwen3vl", map[string]any{"rope.dimension_sections": []int32{12, 10, 10, 0}}, rope.GGUFTensors{},
			rope.GGUFPairing{InterleavedSections: true}, one(rope.Default{Base: rope.Base{HeadDim: 64, MRoPE: rope.MRoPE{Sections: [3]int{12, 10, 10}, Interleaved: true}}})},
		"sections of a norm architecture": {"glm4", map[string]any{"rope.dimension_sections": []any{int32(8), int32(12), int32(12), int32(0)}}, rope.GGUFTensors{},
			norm, one(rope.Default{Base: rope.Base{HeadDim: 64, MRoPE: rope.MRoPE{Sections: [3]int{8, 12, 12}}}})},
		"sections of zero": {"glm4", map[string]any{"rope.dimension_sections": []uint32{0, 0, 0, 0}}, rope.GGUFTensors{}, norm, one(rope.Default{Base: b})},
	} {
		got, err := rope.ParseGGUF(c.arch, metadata(c.arch, c.keys), c.tensors, c.pairing)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(got.Methods, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, got.Methods, c.want)
		}
	}
}

// ggml multiplies its attn_factor by 1 + 0.1·ln s, where Hugging Face's
// attention_factor is the whole factor (llama.cpp #17945).
func TestParseGGUFAttentionFactor(t *testing.T) {
	g := func(m float64) float64 { return 1 + 0.1*m*math.Log(16) }
	for name, c := range map[string]struct {
		keys map[string]any
		want float64
	}{
		"none":        {nil, g(1)},
		"attn_factor": {map[string]any{"rope.scaling.attn_factor": 0.5}, 0.5 * g(1)},
		"inverse":     {map[string]any{"rope.scaling.attn_factor": 1 / g(1)}, 1},
		"both":        {map[string]any{"rope.scaling.attn_factor": 0.5, "rope.scaling.yarn_attn_factor": 3.0}, 1.5 * g(1)},
		"log 1":       {map[string]any{"rope.scaling.yarn_log_multiplier": 1.0}, 1},
		"log 0.5":     {map[string]any{"rope.scaling.yarn_log_multiplier": 0.5}, g(1) / g(.5)},
		"log 0":       {map[string]any{"rope.scaling.yarn_log_multiplier": 0.0}, g(1)},
	} {
		kv := metadata("llama", map[string]any{"rope.scaling.type": "yarn", "rope.scaling.factor": 16.0})
		maps.Copy(kv, metadata("llama", c.keys))
		cfg, err := rope.ParseGGUF("llama", kv, rope.GGUFTensors{}, rope.GGUFPairing{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		r := lower(t, cfg.Methods[""], 0)
		if math.Abs(r.Factor-c.want) > 1e-14 || r.ScoreScale != 1 {
			t.Errorf("%s: factor is %v, want %v", name, r.Factor, c.want)
		}
	}
}

// Llama 3.1 as Hugging Face computes it and as GGUF files carry it: the base
// and one divisor a pair.
func TestFrequencyFactorsOfLlama3(t *testing.T) {
	b := rope.Base{HeadDim: 128, Theta: 5e5}
	want, plain := lower(t, rope.Llama3{Base: b, Factor: 8, OriginalLength: 8192}, 0), lower(t, rope.Default{Base: b}, 0)
	freqs := make([]float32, 64)
	for i := range freqs {
		freqs[i] = float32(plain.InvFreq[i] / want.InvFreq[i])
	}
	cfg, err := rope.ParseGGUF("llama", metadata("llama", map[string]any{"attention.key_length": uint32(128), "rope.freq_base": float32(5e5)}),
		rope.GGUFTensors{Freqs: freqs}, rope.GGUFPairing{})
	if err != nil {
		t.Fatal(err)
	}
	got := lower(t, cfg.Methods[""], 0)
	for i, f := range got.InvFreq {
		if math.Abs(f/want.InvFreq[i]-1) > 0x1p-24 {
			t.Errorf("pair %d is %v, want %v", i, f, want.InvFreq[i])
		}
	}
}

func TestParseGGUFRefuses(t *testing.T) {
	yarn := func(keys map[string]any) map[string]any {
		k := map[string]any{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
		maps.Copy(k, keys)
		return k
	}
	freqs := rope.GGUFTensors{Freqs: float32s(ones(31))}
	list := rope.GGUFTensors{Short: float32s(ones(32)), Long: float32s(ones(32))}
	for _, c := range []struct {
		keys    map[string]any
		tensors rope.GGUFTensors
		says    string
	}{
		{map[string]any{"rope.scaling.yarn_beta": 1.0}, rope.GGUFTensors{}, `"x.rope.scaling.yarn_beta" is not known (have dimension_count`},
		{map[string]any{"rope.scaling.type": "yarm"}, rope.GGUFTensors{}, "have none, linear, yarn, longrope"},
		{map[string]any{"rope.scaling.type": 3}, rope.GGUFTensors{}, "scaling.type"},
		{map[string]any{"rope.freq_base": "1e6"}, rope.GGUFTensors{}, "want a number"},
		{map[string]any{"rope.freq_base": math.NaN()}, rope.GGUFTensors{}, "want a number"},
		{map[string]any{"rope.freq_base": float32(0)}, rope.GGUFTensors{}, "above 0"},
		{map[string]any{"rope.dimension_count": 3.5}, rope.GGUFTensors{}, "whole"},
		{map[string]any{"rope.dimension_count": 66}, rope.GGUFTensors{}, "RotaryDim is 66"},
		{map[string]any{"rope.scaling.finetuned": 1}, rope.GGUFTensors{}, "finetuned"},
		{map[string]any{"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, rope.GGUFTensors{}, "the type is none"},
		{map[string]any{"rope.scale_linear": 3.0, "rope.scaling.factor": 2.0}, rope.GGUFTensors{}, "scale_linear"},
		{map[string]any{"rope.scaling.yarn_beta_fast": 3.0}, rope.GGUFTensors{}, "is for type yarn"},
		{map[string]any{"rope.scaling.attn_factor": 3.0}, rope.GGUFTensors{}, "attn_factor"},
		{map[string]any{"rope.scaling.alpha": 3.0, "rope.scaling.factor": 2.0}, rope.GGUFTensors{}, "alpha"},
		{map[string]any{"rope.scaling.type": "longrope"}, rope.GGUFTensors{}, "rope_factors_short"},
		{map[string]any{"rope.scaling.factor": 2.0}, list, "only one"},
		{yarn(nil), list, "only one"},
		{yarn(map[string]any{"rope.scaling.yarn_ext_factor": 0.5}), rope.GGUFTensors{}, "yarn_ext_factor"},
		{yarn(map[string]any{"rope.freq_base_swa": 1e4}), rope.GGUFTensors{}, "freq_base_swa"},
		{yarn(map[string]any{"attention.kv_lora_rank": 512}), rope.GGUFTensors{}, "dimension_count"},
		{yarn(map[string]any{"attention.kv_lora_rank": 512, "rope.dimension_count": 64, "rope.scaling.yarn_log_multiplier": 0.05}), rope.GGUFTensors{}, "yarn_log_multiplier"},
		{map[string]any{"rope.dimension_sections": []int32{8, 8, 8, 8}}, rope.GGUFTensors{}, "fourth"},
		{map[string]any{"rope.dimension_sections": []int32{8, 8, 8, 0}}, rope.GGUFTensors{}, "Sections"},
		{map[string]any{"rope.dimension_sections": []any{"8", 8, 8, 0}}, rope.GGUFTensors{}, "dimension_sections"},
		{map[string]any{"attention.head_count": 7}, rope.GGUFTensors{}, "key_length"},
		{nil, freqs, "len(Factors) is 31"},
	} {
		_, err := rope.ParseGGUF("x", metadata("x", c.keys), c.tensors, rope.GGUFPairing{})
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v gives %v, want an error that says %s", c.keys, err, c.says)
		}
	}
}

func TestGGUFArch(t *testing.T) {
	for arch, want := range map[string]rope.GGUFPairing{
		"llama": {Layout: kernel.Interleaved}, "deepseek2": {Layout: kernel.Interleaved}, "qwen2": {}, "gpt-oss": {}, "qwen3vl": {InterleavedSections: true},
	} {
		if got, err := rope.GGUFArch(arch); err != nil || got != want {
			t.Errorf("%s is %+v, %v, want %+v", arch, got, err, want)
		}
	}
	if _, err := rope.GGUFArch("unheard-of"); err == nil || !strings.Contains(err.Error(), "llama") {
		t.Errorf("an unknown architecture gives %v", err)
	}
}
