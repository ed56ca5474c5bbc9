// Hugging Face configurations: config.json of the transformers library,
// https://github.com/huggingface/transformers, modeling_rope_utils.py.

package rope

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/longctx/longctx/kernel"
)

// Layer types of models whose layers do not all rotate alike.
const (
	FullAttention    = "full_attention"
	SlidingAttention = "sliding_attention"
)

// Config is what a model's configuration says of positions.
type Config struct {
	// Methods by layer type. A model whose layers rotate alike has one, under
	// "".
	Methods   map[string]Method
	MaxLength int                 // longest supported sequence; 0: not said
	DualChunk *DualChunkAttention // nil: not configured
}

// Method is the method of a layer type. Every type has the same where the
// configuration makes no difference.
func (c *Config) Method(layerType string) (Method, error) {
	if m, ok := c.Methods[layerType]; ok {
		return m, nil
	}
	if m, ok := c.Methods[""]; ok {
		return m, nil
	}
	return nil, &KeyError{layerType, "is no layer type of this model", slices.Sorted(maps.Keys(c.Methods))}
}

// DualChunkAttention configures dual chunk attention (An et al.,
// "Training-Free Long-Context Scaling of Large Language Models",
// https://arxiv.org/abs/2402.17463), which is a module of package attention.
type DualChunkAttention struct {
	ChunkSize      int
	LocalSize      int
	OriginalLength int // trained length
	// Sparse holds the keys of MInference beside it as they stand.
	Sparse map[string]json.RawMessage
}

// hfKeys are the keys allowed for each type, beside commonKeys.
var hfKeys = map[string][]string{
	"default":      {},
	"linear":       {"factor"},
	"dynamic":      {"factor", originalKey, "alpha"},
	"yarn":         {"factor", originalKey, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned"},
	"longrope":     {"factor", originalKey, "short_factor", "long_factor", "attention_factor", "short_mscale", "long_mscale"},
	"llama3":       {"factor", originalKey, "low_freq_factor", "high_freq_factor"},
	"proportional": {"factor"},
}

// alphaKeys accompany "alpha" in Hunyuan's configurations, whose code does not
// read them.
var alphaKeys = []string{"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}

var commonKeys = []string{"rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved"}

const originalKey = "original_max_position_embeddings"

// oldNames are types under other names.
var oldNames = map[string]string{"su": "longrope", "mrope": "default"}

// classTheta is the default of the model class, which configurations from
// before the key "rope_theta" rely on.
var classTheta = map[string]float64{
	"llama": 10000, "mistral": 10000, "gemma": 10000, "gemma2": 10000, "phi3": 10000, "qwen2": 10000,
}

// interleavedModels pair neighbouring features in their own code; a
// configuration seldom says so.
var interleavedModels = map[string]bool{
	"gptj": true, "codegen": true, "cohere": true, "cohere2": true, "glm": true, "glm4": true,
	"deepseek_v2": true, "deepseek_v3": true, "llama4_text": true, "ernie4_5": true, "ernie4_5_moe": true,
}

// ParseHF reads the positions of a model from its config.json; of a model with
// a "text_config" it reads that. A configuration that is not understood in
// full gives a *KeyError or *ValueError.
//
// Layout is half-split but for a model_type whose own code interleaves (gptj,
// codegen, cohere, cohere2, glm, glm4, deepseek_v2 and v3, llama4_text,
// ernie4_5) and where "rope_interleave" says; other models that interleave
// cannot be told from the file, and need Rotation.Layout set. A model with
// latent attention (qk_rope_head_dim) has HeadDim and scores of its rotated
// part. A missing "rope_theta" is an error but for llama, mistral, gemma,
// gemma2, phi3 and qwen2, whose classes default to 10000.
func ParseHF(configJSON []byte) (*Config, error) {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(configJSON, &top); err != nil {
		return nil, fmt.Errorf("rope: config.json: %w", err)
	}
	if text, ok := present(top, "text_config"); ok {
		top = nil
		if err := json.Unmarshal(text, &top); err != nil {
			return nil, &KeyError{"text_config", "is no object", nil}
		}
	}
	r := &reader{}
	p := &hfParser{reader: r, top: top}
	c := &Config{Methods: map[string]Method{}, MaxLength: r.integer(top, "", "max_position_embeddings")}
	p.model = r.text(top, "", "model_type")
	p.dualChunk(c)
	p.methods(c)
	if r.err != nil {
		return nil, r.err
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// validate lowers each method once, so that what is parsed can be used.
func (c *Config) validate() error {
	for _, layerType := range slices.Sorted(maps.Keys(c.Methods)) {
		m := c.Methods[layerType]
		for _, length := range []int{0, c.MaxLength} {
			if _, err := m.Rotation(length); err != nil {
				if layerType != "" {
					return fmt.Errorf("%w (layer type %q)", err, layerType)
				}
				return err
			}
		}
	}
	return nil
}

// hfParser reads one model. Its methods return zero values after a fault,
// which reader keeps.
type hfParser struct {
	*reader
	top   map[string]json.RawMessage
	model string
}

func (p *hfParser) methods(c *Config) {
	section := "rope_parameters"
	raw, ok := present(p.top, section)
	if old, both := present(p.top, "rope_scaling"); both {
		if ok {
			p.fail("rope_scaling", "stands beside rope_parameters: only one can hold", nil)
			return
		}
		section, raw, ok = "rope_scaling", old, true
	}
	var dict map[string]json.RawMessage
	if ok {
		if json.Unmarshal(raw, &dict) != nil {
			p.fail(section, "is no object", nil)
			return
		}
	}
	layers := p.byLayer(section, dict)
	local := p.positive(p.top, "", "rope_local_base_freq")
	if layers == nil {
		if local == 0 {
			c.Methods[""] = p.method(section, "", dict, c)
			return
		}
		// Gemma 3: sliding layers have a base of their own and no scaling
		c.Methods[FullAttention] = p.method(section, FullAttention, dict, c)
		base := p.base("", SlidingAttention, nil)
		base.Theta = local
		c.Methods[SlidingAttention] = Default{base}
		return
	}
	if local != 0 {
		p.fail("rope_local_base_freq", "stands beside parameters by layer type: only one can hold", nil)
	}
	for _, name := range slices.Sorted(maps.Keys(layers)) {
		if name == "" {
			p.fail(section, "has a layer type without a name", nil)
			return
		}
		c.Methods[name] = p.method(section+"."+name, name, layers[name], c)
	}
}

// byLayer returns the dictionaries of the layer types, or nil if dict is one
// for all. A layer type that is null has none.
func (p *hfParser) byLayer(section string, dict map[string]json.RawMessage) map[string]map[string]json.RawMessage {
	layers := map[string]map[string]json.RawMessage{}
	flat := ""
	for _, key := range slices.Sorted(maps.Keys(dict)) {
		raw := dict[key]
		var d map[string]json.RawMessage
		if isNull(raw) {
			continue
		}
		if json.Unmarshal(raw, &d) != nil {
			flat = key
			continue
		}
		layers[key] = d
	}
	if len(layers) == 0 {
		return nil
	}
	if flat != "" {
		p.fail(section+"."+flat, "stands beside dictionaries by layer type", nil)
	}
	return layers
}

// either reads a number that may stand in the dictionary or beside it.
func (p *hfParser) either(path string, dict map[string]json.RawMessage, key string) float64 {
	in, out := p.positive(dict, path, key), p.positive(p.top, "", key)
	// layer types may well differ from the top; one dictionary for all may not
	if in != 0 && out != 0 && in != out && !strings.Contains(path, ".") {
		p.fail(path+"."+key, fmt.Sprintf("is %v, but %v at the top", in, out), nil)
	}
	return orDefault(in, out)
}

func (p *hfParser) base(path, layerType string, dict map[string]json.RawMessage) Base {
	b := Base{Theta: p.either(path, dict, "rope_theta"), Partial: p.either(path, dict, "partial_rotary_factor")}
	// GPT-NeoX and GPT-J have names of their own
	b.Partial = orDefault(b.Partial, p.positive(p.top, "", "rotary_pct"))
	b.RotaryDim = p.integer(p.top, "", "rotary_dim")
	b.Theta = orDefault(orDefault(b.Theta, p.positive(p.top, "", "rotary_emb_base")), classTheta[p.model])
	heads := p.integer(p.top, "", "num_attention_heads")
	switch latent, global := p.integer(p.top, "", "qk_rope_head_dim"), p.integer(p.top, "", "global_head_dim"); {
	case latent != 0:
		b.HeadDim = latent
	case global != 0 && layerType == FullAttention:
		b.HeadDim = global
	default:
		b.HeadDim = p.integer(p.top, "", "head_dim")
	}
	if hidden := p.integer(p.top, "", "hidden_size"); b.HeadDim == 0 {
		if heads == 0 || hidden == 0 || hidden%heads != 0 {
			p.fail("head_dim", "is missing, and hidden_size is no multiple of num_attention_heads", nil)
			return b
		}
		b.HeadDim = hidden / heads
	}
	if interleave, said := p.boolean(p.top, "", "rope_interleave"); said && interleave || !said && interleavedModels[p.model] {
		b.Layout = kernel.Interleaved
	}
	if s := p.numbers(dict, path, "mrope_section"); s != nil {
		if len(s) != 3 {
			p.fail(join(path, "mrope_section"), fmt.Sprintf("has %d numbers, want 3", len(s)), nil)
			return b
		}
		for i, x := range s {
			if x < 0 || x > kernel.MaxHeadDim || x != float64(int(x)) {
				p.fail(join(path, "mrope_section"), fmt.Sprintf("has %v, want numbers of pairs", x), nil)
				return b
			}
			b.MRoPE.Sections[i] = int(x)
		}
	}
	b.MRoPE.Interleaved, _ = p.boolean(dict, path, "mrope_interleaved")
	return b
}

// ropeType reads "rope_type" and its older name "type".
func (p *hfParser) ropeType(path string, dict map[string]json.RawMessage) string {
	name := p.text(dict, path, "rope_type")
	older := p.text(dict, path, "type")
	for _, n := range []*string{&name, &older} {
		if now, ok := oldNames[*n]; ok {
			*n = now
		}
	}
	switch {
	case name == "" && older == "":
		if strings.HasPrefix(path, "rope_scaling") {
			p.fail(path+".rope_type", "is missing", allTypes())
		}
		return "default"
	case name == "":
		name = older
	case older != "" && older != name:
		p.fail(path+".type", fmt.Sprintf("is %q, but rope_type is %q", older, name), nil)
	}
	if _, ok := hfKeys[name]; !ok {
		p.fail(join(path, "rope_type"), fmt.Sprintf("is %q, which is not known", name), allTypes())
	}
	return name
}

func allTypes() []string {
	names := slices.AppendSeq(slices.Collect(maps.Keys(oldNames)), maps.Keys(hfKeys))
	slices.Sort(names)
	return names
}

func (p *hfParser) method(path, layerType string, dict map[string]json.RawMessage, c *Config) Method {
	kind := "default"
	if dict != nil {
		kind = p.ropeType(path, dict)
	}
	alpha := kind == "dynamic" && p.positive(dict, path, "alpha") != 0
	allowed := slices.Concat(commonKeys, hfKeys[kind])
	if alpha {
		allowed = slices.Concat(allowed, alphaKeys)
	}
	slices.Sort(allowed)
	for _, key := range slices.Sorted(maps.Keys(dict)) {
		if !slices.Contains(allowed, key) {
			p.fail(path+"."+key, "is not known for type "+kind, allowed)
		}
	}
	b := p.base(path, layerType, dict)
	if b.Theta == 0 {
		p.fail("rope_theta", "is missing", nil)
	}
	required := func(key string) float64 {
		x := p.positive(dict, path, key)
		if x == 0 {
			p.fail(path+"."+key, "is missing for type "+kind, nil)
		}
		return x
	}
	original := func() int {
		n := p.whole(path+"."+originalKey, p.either(path, dict, originalKey))
		if n == 0 {
			p.fail(path+"."+originalKey, "is missing for type "+kind, nil)
		}
		return n
	}
	optional := func(key string) float64 { return p.notNegative(dict, path, key) }
	switch kind {
	case "linear":
		return Linear{b, required("factor")}
	case "dynamic":
		if alpha {
			if s := p.positive(dict, path, "factor"); s != 0 && s != 1 {
				p.fail(path+".factor", fmt.Sprintf("is %v beside alpha: only one can hold", s), nil)
			}
			return NTKAlpha{b, p.positive(dict, path, "alpha")}
		}
		n := p.whole(path+"."+originalKey, p.either(path, dict, originalKey))
		if n == 0 {
			n = c.MaxLength
		}
		if n == 0 {
			p.fail("max_position_embeddings", "is missing for type dynamic", nil)
		}
		return DynamicNTK{Base: b, Factor: required("factor"), MaxLength: n}
	case "yarn":
		truncate, said := p.boolean(dict, path, "truncate")
		p.boolean(dict, path, "finetuned") // how the weights came to be: no parameter
		m := YaRN{Base: b, Factor: required("factor"), OriginalLength: original(),
			BetaFast: optional("beta_fast"), BetaSlow: optional("beta_slow"), NoTruncate: said && !truncate,
			MScale: optional("mscale"), MScaleAllDim: optional("mscale_all_dim"),
			AttentionFactor: p.positive(dict, path, "attention_factor")}
		_, latent := present(p.top, "qk_rope_head_dim")
		m.ScaleScores = latent && m.MScaleAllDim != 0
		return m
	case "longrope":
		short, long := p.numbers(dict, path, "short_factor"), p.numbers(dict, path, "long_factor")
		if short == nil || long == nil {
			p.fail(path+".short_factor", "or long_factor is missing for type longrope", nil)
		}
		return LongRoPE{Base: b, Short: short, Long: long, OriginalLength: original(), MaxLength: c.MaxLength,
			Factor: p.positive(dict, path, "factor"), AttentionFactor: p.positive(dict, path, "attention_factor"),
			ShortMScale: p.positive(dict, path, "short_mscale"), LongMScale: p.positive(dict, path, "long_mscale")}
	case "llama3":
		return Llama3{Base: b, Factor: required("factor"), LowFreqFactor: required("low_freq_factor"),
			HighFreqFactor: required("high_freq_factor"), OriginalLength: original()}
	case "proportional":
		return Proportional{b, p.positive(dict, path, "factor")}
	}
	return Default{b}
}

func (p *hfParser) dualChunk(c *Config) {
	const path = "dual_chunk_attention_config"
	raw, ok := present(p.top, path)
	if !ok {
		return
	}
	var dict map[string]json.RawMessage
	if json.Unmarshal(raw, &dict) != nil {
		p.fail(path, "is no object", nil)
		return
	}
	d := &DualChunkAttention{ChunkSize: p.integer(dict, path, "chunk_size"), LocalSize: p.integer(dict, path, "local_size"),
		OriginalLength: p.integer(dict, path, originalKey)}
	for _, key := range slices.Sorted(maps.Keys(dict)) {
		switch {
		case key == "chunk_size" || key == "local_size" || key == originalKey:
		case strings.HasPrefix(key, "sparse_attention_"):
			if d.Sparse == nil {
				d.Sparse = map[string]json.RawMessage{}
			}
			d.Sparse[key] = dict[key]
		default:
			p.fail(path+"."+key, "is not known", []string{"chunk_size", "local_size", originalKey, "sparse_attention_…"})
		}
	}
	if d.ChunkSize == 0 || d.LocalSize == 0 || d.LocalSize >= d.ChunkSize {
		p.fail(path, "wants 0 < local_size < chunk_size", nil)
	}
	c.DualChunk = d
}
