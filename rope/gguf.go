// GGUF metadata: the "{arch}.rope." keys of llama.cpp,
// https://github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py.

package rope

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/longctx/longctx/kernel"
)

// GGUFTensors are the frequency factors of a GGUF file, nil where it has none.
type GGUFTensors struct {
	Freqs []float32 // rope_freqs.weight
	Short []float32 // rope_factors_short.weight
	Long  []float32 // rope_factors_long.weight
}

// GGUFPairing says how an architecture pairs features and deals out axes.
type GGUFPairing struct {
	Layout kernel.RotaryLayout
	// InterleavedSections: the axes of "rope.dimension_sections" alternate.
	InterleavedSections bool
}

// ggufArchs are the architectures whose mode of rotation in llama.cpp,
// llama_model_rope_type, is known here: "norm" is Interleaved, "neox",
// "mrope" and "imrope" are HalfSplit.
var ggufArchs = map[GGUFPairing][]string{
	{Layout: kernel.Interleaved}: {
		"arcee", "arctic", "baichuan", "chameleon", "chatglm", "cohere2", "command-r", "deci", "deepseek",
		"deepseek2", "ernie4_5", "ernie4_5-moe", "glm4", "granite", "granitemoe", "internlm2", "llada", "llama",
		"llama4", "minicpm", "mistral3", "olmo", "plm", "smollm3", "xverse"},
	{Layout: kernel.HalfSplit}: {
		"apertus", "codeshell", "dbrx", "exaone", "exaone4", "falcon", "falcon-h1", "gemma", "gemma2", "gemma3",
		"gemma3n", "gemma4", "glm4moe", "gpt-oss", "gptneox", "grok", "lfm2", "minicpm3", "minimax-m2", "nemotron",
		"olmo2", "olmoe", "openelm", "phi2", "phi3", "phimoe", "qwen", "qwen2", "qwen2moe",
		"qwen2vl", "qwen3", "qwen3moe", "qwen3next", "seed_oss", "stablelm", "starcoder2"},
	{Layout: kernel.HalfSplit, InterleavedSections: true}: {"qwen35", "qwen35moe", "qwen3vl", "qwen3vlmoe"},
}

// GGUFArch returns the pairing of an architecture ("general.architecture").
// The file itself does not say it, and the weights of a converted model are
// permuted to fit. An architecture not in the table is an error, not a guess:
// look it up in llama.cpp and pass the GGUFPairing yourself.
func GGUFArch(arch string) (GGUFPairing, error) {
	for pairing, names := range ggufArchs {
		if slices.Contains(names, arch) {
			return pairing, nil
		}
	}
	all := slices.Concat(slices.Collect(maps.Values(ggufArchs))...)
	slices.Sort(all)
	return GGUFPairing{}, &KeyError{"general.architecture", fmt.Sprintf("is %q, whose pairing of features is not known", arch), all}
}

// The keys after "{arch}.rope.".
var ggufKeys = []string{
	"dimension_count", "dimension_count_swa", "dimension_sections", "freq_base", "freq_base_swa", "scale_linear",
	"scaling.alpha", "scaling.attn_factor", "scaling.factor", "scaling.finetuned", "scaling.original_context_length", "scaling.type",
	"scaling.yarn_attn_factor", "scaling.yarn_beta_fast", "scaling.yarn_beta_slow", "scaling.yarn_ext_factor", "scaling.yarn_log_multiplier",
}

// ParseGGUF reads the positions of a model from the metadata of a GGUF file:
// kv has its keys and values, as numbers, strings, booleans and slices of
// numbers of any Go type. Metadata not understood in full gives a *KeyError or
// *ValueError.
//
// It follows what llama.cpp computes:
//
//   - "attn_factor" and "yarn_attn_factor" are ggml's: with YaRN the factor A
//     is their product times 1 + 0.1·ln s. (llama.cpp since its pull request
//     17945 recomputes A and no longer reads the second.)
//   - "yarn_log_multiplier" m gives A = g(1)/g(m), see YaRN. Models with latent
//     attention store 0.1·m, have A = 1 and scores times g(m)². A zero is as
//     none, and what llama.cpp does with other m and factors is refused.
//   - YaRN always moves its ramp to whole pairs, for gpt-oss too, whose Hugging
//     Face configuration says otherwise.
//   - Two lists of factors make LongRoPE, whatever "scaling.type" says, with A
//     = attn_factor; Freqs divides the frequencies of layers that attend to
//     everything.
//   - "freq_base_swa" or "dimension_count_swa" make a SlidingAttention method.
//     It has no scaling, which is right for Gemma; another architecture with
//     scaling is refused, as the file does not say whether it applies.
func ParseGGUF(arch string, kv map[string]any, tensors GGUFTensors, pairing GGUFPairing) (*Config, error) {
	g := &ggufParser{reader: &reader{}, arch: arch, kv: kv}
	prefix := arch + ".rope."
	for _, key := range slices.Sorted(maps.Keys(kv)) {
		if name, ok := strings.CutPrefix(key, prefix); ok && !slices.Contains(ggufKeys, name) {
			g.fail(key, "is not known", ggufKeys)
		}
	}
	c := &Config{Methods: map[string]Method{}, MaxLength: g.integer("context_length")}
	b := g.base(pairing)
	m := g.method(b, tensors, c.MaxLength)
	if tensors.Freqs != nil {
		m = Divided{m, float64s(tensors.Freqs)}
	}
	sliding, ok := g.sliding(b, m)
	if g.err != nil {
		return nil, g.err
	}
	if ok {
		c.Methods[FullAttention], c.Methods[SlidingAttention] = m, sliding
	} else {
		c.Methods[""] = m
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, nil
}

type ggufParser struct {
	*reader
	arch string
	kv   map[string]any
}

// number reads a number above zero, or a zero if it is absent.
func (g *ggufParser) number(name string) float64 {
	key := g.arch + "." + name
	v, ok := g.kv[key]
	if !ok {
		return 0
	}
	x, ok := toFloat(v)
	if !ok || !(x > 0 && x <= maxFloat) {
		g.fail(key, fmt.Sprintf("is %.40v (%T), want a number above 0", v, v), nil)
		return 0
	}
	return x
}

func (g *ggufParser) integer(name string) int { return g.whole(g.arch+"."+name, g.number(name)) }

func (g *ggufParser) base(pairing GGUFPairing) Base {
	b := Base{Theta: g.number("rope.freq_base"), RotaryDim: g.integer("rope.dimension_count"), Layout: pairing.Layout}
	b.HeadDim = g.integer("attention.key_length")
	switch {
	case g.latent():
		if b.HeadDim = b.RotaryDim; b.HeadDim == 0 {
			g.fail(g.arch+".rope.dimension_count", "is missing for a model with latent attention", nil)
		}
	case b.HeadDim == 0:
		width, heads := g.integer("embedding_length"), g.integer("attention.head_count")
		if heads == 0 || width == 0 || width%heads != 0 {
			g.fail(g.arch+".attention.key_length", "is missing, and embedding_length is no multiple of attention.head_count", nil)
			return b
		}
		b.HeadDim = width / heads
	}
	key := g.arch + ".rope.dimension_sections"
	v, ok := g.kv[key]
	if !ok {
		return b
	}
	s, ok := toFloats(v)
	if !ok || len(s) < 3 || len(s) > 4 || len(s) == 4 && s[3] != 0 {
		g.fail(key, fmt.Sprintf("is %.60v, want the pairs of three axes and none of a fourth", v), nil)
		return b
	}
	for i := range b.MRoPE.Sections {
		if !(s[i] >= 0 && s[i] <= kernel.MaxHeadDim && s[i] == math.Trunc(s[i])) {
			g.fail(key, fmt.Sprintf("has %v, want numbers of pairs", s[i]), nil)
			return b
		}
		b.MRoPE.Sections[i] = int(s[i])
	}
	if b.MRoPE.Sections != [3]int{} {
		// ggml's modes with sections pair half-split, also for an
		// architecture that is "norm" without them (glm4)
		b.Layout, b.MRoPE.Interleaved = kernel.HalfSplit, pairing.InterleavedSections
	}
	return b
}

// latent reports a model with multi-head latent attention.
func (g *ggufParser) latent() bool {
	_, ok := g.kv[g.arch+".attention.kv_lora_rank"]
	return ok
}

func (g *ggufParser) scalingType() string {
	key := g.arch + ".rope.scaling.type"
	v, ok := g.kv[key]
	if !ok {
		return "linear" // by a factor of 1, if there is none
	}
	kinds := []string{"none", "linear", "yarn", "longrope"}
	if s, ok := v.(string); ok && slices.Contains(kinds, s) {
		return s
	}
	g.fail(key, fmt.Sprintf("is %.40v", v), kinds)
	return "none"
}

func (g *ggufParser) method(b Base, tensors GGUFTensors, contextLength int) Method {
	kind := g.scalingType()
	s := g.factor()
	if v, ok := g.kv[g.arch+".rope.scaling.finetuned"]; ok {
		if _, ok := v.(bool); !ok { // how the weights came to be: no parameter
			g.fail(g.arch+".rope.scaling.finetuned", fmt.Sprintf("is %.40v, want true or false", v), nil)
		}
	}
	original := g.integer("rope.scaling.original_context_length")
	if original == 0 {
		original = contextLength
	}
	a := orDefault(g.number("rope.scaling.attn_factor"), 1)
	alpha := g.number("rope.scaling.alpha")
	if alpha != 0 && (s != 1 || kind == "yarn" || kind == "longrope") {
		g.fail(g.arch+".rope.scaling.alpha", "stands beside another scaling: only one can hold", nil)
	}
	if lists := tensors.Short != nil || tensors.Long != nil; kind == "longrope" || lists {
		g.noYaRN("longrope")
		switch {
		case tensors.Short == nil || tensors.Long == nil:
			g.fail(g.arch+".rope.scaling.type", "is longrope, which needs the tensors rope_factors_short and rope_factors_long", nil)
		case kind == "yarn" || s != 1:
			g.fail(g.arch+".rope.scaling.type", "stands beside lists of factors for LongRoPE: only one can hold", nil)
		case original == 0:
			g.fail(g.arch+".rope.scaling.original_context_length", "is missing for longrope", nil)
		}
		return LongRoPE{Base: b, Short: float64s(tensors.Short), Long: float64s(tensors.Long),
			OriginalLength: original, AttentionFactor: a}
	}
	if kind == "yarn" {
		return g.yarn(b, s, a, original)
	}
	g.noYaRN(kind)
	if a != 1 {
		g.fail(g.arch+".rope.scaling.attn_factor", fmt.Sprintf("is %v, want 1 for type %s", a, kind), nil)
	}
	switch {
	case kind == "none" && s != 1:
		g.fail(g.arch+".rope.scaling.factor", fmt.Sprintf("is %v, but the type is none", s), nil)
	case alpha != 0:
		return NTKAlpha{b, alpha}
	case s != 1:
		return Linear{b, s}
	}
	return Default{b}
}

// factor reads the factor and its older name.
func (g *ggufParser) factor() float64 {
	s, older := g.zeroOrNumber("rope.scaling.factor"), g.zeroOrNumber("rope.scale_linear")
	if s != 0 && older != 0 && s != older {
		g.fail(g.arch+".rope.scale_linear", fmt.Sprintf("is %v, but scaling.factor is %v", older, s), nil)
	}
	return orDefault(orDefault(s, older), 1)
}

// zeroOrNumber is number for keys in which a zero is written for "none".
func (g *ggufParser) zeroOrNumber(name string) float64 {
	if x, ok := toFloat(g.kv[g.arch+"."+name]); ok && x == 0 {
		return 0
	}
	return g.number(name)
}

// noYaRN refuses keys that only YaRN reads.
func (g *ggufParser) noYaRN(kind string) {
	for _, name := range ggufKeys {
		key := g.arch + ".rope." + name
		if _, ok := g.kv[key]; ok && strings.HasPrefix(name, "scaling.yarn_") {
			g.fail(key, "is for type yarn, but the type is "+kind, nil)
		}
	}
}

func (g *ggufParser) yarn(b Base, s, a float64, original int) Method {
	if original == 0 {
		g.fail(g.arch+".rope.scaling.original_context_length", "is missing for yarn", nil)
	}
	ext := g.arch + ".rope.scaling.yarn_ext_factor"
	if v, ok := g.kv[ext]; ok {
		// ggml: a negative number is "not set"
		if x, ok := toFloat(v); !ok || !(x < 0 || x == 1) {
			g.fail(ext, fmt.Sprintf("is %.40v, want 1 or a negative number", v), nil)
		}
	}
	m := YaRN{Base: b, Factor: s, OriginalLength: original,
		BetaFast: g.number("rope.scaling.yarn_beta_fast"), BetaSlow: g.number("rope.scaling.yarn_beta_slow")}
	a *= orDefault(g.number("rope.scaling.yarn_attn_factor"), 1)
	key := g.arch + ".rope.scaling.yarn_log_multiplier"
	all := g.zeroOrNumber("rope.scaling.yarn_log_multiplier")
	switch {
	case all == 0 && a == 1:
		// A = g(1), as YaRN has it
	case all == 0:
		m.AttentionFactor = a * yarnScale(s, 1)
	case !g.latent():
		m.AttentionFactor = a * yarnScale(s, 1) / yarnScale(s, all)
	default:
		// float32(0.1·m) is stored; llama.cpp takes A = g(m)/g(m) for
		// deepseek2 and g(1)/g(m) for others, which agree for m = 1 alone
		all = math.Round(all*10*1e6) / 1e6
		if a != 1 || all != 1 && g.arch != "deepseek2" {
			g.fail(key, fmt.Sprintf("is %v beside an attention factor of %v, a model of latent attention whose rule is not known", all/10, a), nil)
		}
		m.MScale, m.MScaleAllDim, m.ScaleScores = all, all, true
	}
	return m
}

// sliding is the method of sliding layers, if the file has one.
func (g *ggufParser) sliding(b Base, full Method) (Method, bool) {
	theta, dim := g.number("rope.freq_base_swa"), g.integer("rope.dimension_count_swa")
	if theta == 0 && dim == 0 {
		return nil, false
	}
	if _, plain := full.(Default); !plain && !strings.HasPrefix(g.arch, "gemma") {
		g.fail(g.arch+".rope.freq_base_swa", "stands beside "+full.Name()+", which may or may not hold for sliding layers", nil)
	}
	b.Theta = orDefault(theta, b.Theta)
	if n := g.integer("attention.key_length_swa"); n != 0 {
		b.HeadDim, b.RotaryDim = n, dim
	} else if dim != 0 {
		b.RotaryDim = dim
	}
	return Default{b}, true
}

func float64s(x []float32) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}

func toFloat(v any) (float64, bool) {
	switch x := v.(type) {
	case float64:
		return x, true
	case float32:
		return float64(x), true
	case int:
		return float64(x), true
	case int8:
		return float64(x), true
	case int16:
		return float64(x), true
	case int32:
		return float64(x), true
	case int64:
		return float64(x), true
	case uint:
		return float64(x), true
	case uint8:
		return float64(x), true
	case uint16:
		return float64(x), true
	case uint32:
		return float64(x), true
	case uint64:
		return float64(x), true
	}
	return 0, false
}

func toFloats(v any) ([]float64, bool) {
	switch x := v.(type) {
	case []any:
		return each(x)
	case []int:
		return each(x)
	case []int32:
		return each(x)
	case []int64:
		return each(x)
	case []uint32:
		return each(x)
	case []uint64:
		return each(x)
	}
	return nil, false
}

func each[T any](x []T) ([]float64, bool) {
	y := make([]float64, len(x))
	for i, v := range x {
		f, ok := toFloat(v)
		if !ok {
			return nil, false
		}
		y[i] = f
	}
	return y, true
}
