package rope_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
)

func parse(t *testing.T, config string) *rope.Config {
	t.Helper()
	c, err := rope.ParseHF([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Both generations of configurations, and old names, parse to one value.
func TestParseHFGenerationsAgree(t *testing.T) {
	list := "[" + strings.Repeat("1.5,", 31) + "2]"
	factors := append(make([]float64, 0), ones(32)...)
	for i := range factors {
		factors[i] = 1.5
	}
	factors[31] = 2
	b := rope.Base{HeadDim: 64, Theta: 5e5}
	part := rope.Base{HeadDim: 128, Theta: 5e5, Partial: .5}
	axes := rope.Base{HeadDim: 64, Theta: 5e5, MRoPE: rope.MRoPE{Sections: [3]int{8, 12, 12}}}
	dealt := axes
	dealt.MRoPE = rope.MRoPE{Sections: [3]int{12, 10, 10}, Interleaved: true}
	for _, c := range []struct {
		kind, keys string
		want       rope.Method
	}{
		{"linear", `"factor":8`, rope.Linear{Base: b, Factor: 8}},
		{"dynamic", `"factor":2.0`, rope.DynamicNTK{Base: b, Factor: 2, MaxLength: 131072}},
		{"dynamic", `"factor":1.0,"alpha":1000.0,"beta_fast":32,"beta_slow":1,"mscale":1.0,"mscale_all_dim":1.0`, rope.NTKAlpha{Base: b, Alpha: 1000}},
		{"yarn", `"factor":4.0,"original_max_position_embeddings":32768`, rope.YaRN{Base: b, Factor: 4, OriginalLength: 32768}},
		{"yarn", `"factor":4.0,"original_max_position_embeddings":32768.0,"beta_fast":16,"beta_slow":2,"mscale":0.5,"mscale_all_dim":0.7,"attention_factor":1.2,"truncate":false`,
			rope.YaRN{Base: b, Factor: 4, OriginalLength: 32768, BetaFast: 16, BetaSlow: 2, MScale: .5, MScaleAllDim: .7, AttentionFactor: 1.2, NoTruncate: true}},
		{"yarn", `"factor":4.0,"original_max_position_embeddings":32768,"attention_factor":null,"truncate":true,"finetuned":true`, rope.YaRN{Base: b, Factor: 4, OriginalLength: 32768}},
		{"longrope", `"short_factor":` + list + `,"long_factor":` + list + `,"original_max_position_embeddings":4096`,
			rope.LongRoPE{Base: b, Short: factors, Long: factors, OriginalLength: 4096, MaxLength: 131072}},
		{"su", `"short_factor":` + list + `,"long_factor":` + list + `,"original_max_position_embeddings":4096,"short_mscale":1.1,"long_mscale":1.2`,
			rope.LongRoPE{Base: b, Short: factors, Long: factors, OriginalLength: 4096, MaxLength: 131072, ShortMScale: 1.1, LongMScale: 1.2}},
		{"llama3", `"factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":8192`,
			rope.Llama3{Base: b, Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalLength: 8192}},
		{"proportional", `"partial_rotary_factor":0.5`, rope.Proportional{Base: rope.Base{HeadDim: 64, Theta: 5e5, Partial: .5}}},
		{"default", `"partial_rotary_factor":0.5`, rope.Default{Base: part}},
		{"mrope", `"mrope_section":[8,12,12]`, rope.Default{Base: axes}},
		{"default", `"mrope_section":[12,10,10],"mrope_interleaved":true`, rope.Default{Base: dealt}},
	} {
		head := `"head_dim":64,"max_position_embeddings":131072,`
		if d, ok := c.want.(rope.Default); ok && d.HeadDim == 128 {
			head = `"hidden_size":512,"num_attention_heads":4,"max_position_embeddings":131072,`
		}
		for _, config := range []string{
			`{` + head + `"rope_theta":500000.0,"rope_scaling":{"type":"` + c.kind + `",` + c.keys + `}}`,
			`{` + head + `"rope_theta":500000,"rope_scaling":{"rope_type":"` + c.kind + `",` + c.keys + `},"rope_parameters":null}`,
			`{` + head + `"rope_parameters":{"rope_type":"` + c.kind + `","rope_theta":5e5,` + c.keys + `}}`,
			`{` + head + `"rope_theta":5e5,"rope_parameters":{"rope_type":"` + c.kind + `","type":"` + c.kind + `","rope_theta":5e5,` + c.keys + `}}`,
			`{"head_dim":8,"text_config":{` + head + `"rope_parameters":{"rope_type":"` + c.kind + `","rope_theta":5e5,` + c.keys + `}}}`,
		} {
			got := parse(t, config)
			if !reflect.DeepEqual(got.Methods, map[string]rope.Method{"": c.want}) || got.MaxLength != 131072 {
				t.Errorf("%s\n got %+v, %d\nwant %+v", config, got.Methods[""], got.MaxLength, c.want)
			}
		}
		nested := `{` + head + `"rope_theta":7e7,"rope_parameters":{"full_attention":{"rope_type":"` + c.kind + `","rope_theta":5e5,` + c.keys + `},
			"sliding_attention":{"rope_type":"default","rope_theta":1e4}}}`
		if m, err := parse(t, nested).Method(rope.FullAttention); err != nil || !reflect.DeepEqual(m, c.want) {
			t.Errorf("%s\n got %+v, %v\nwant %+v", nested, m, err, c.want)
		}
	}
}

// What models' files look like beyond the dictionary.
func TestParseHFModels(t *testing.T) {
	list := "[" + strings.Repeat("1.5,", 31) + "2]"
	for name, c := range map[string]struct {
		config string
		check  func(*rope.Config) bool
	}{
		"Llama 2, before rope_theta": {`{"model_type":"llama","hidden_size":4096,"num_attention_heads":32,"max_position_embeddings":4096,"rope_scaling":null}`,
			func(c *rope.Config) bool {
				return reflect.DeepEqual(c.Methods[""], rope.Default{Base: rope.Base{HeadDim: 128, Theta: 1e4}})
			}},
		"GPT-NeoX": {`{"model_type":"gpt_neox","hidden_size":6144,"num_attention_heads":64,"rotary_pct":0.25,"rotary_emb_base":10000}`,
			func(c *rope.Config) bool {
				return reflect.DeepEqual(c.Methods[""], rope.Default{Base: rope.Base{HeadDim: 96, Theta: 1e4, Partial: .25}})
			}},
		"rotary_dim": {`{"head_dim":128,"rotary_dim":64,"rope_theta":5000000}`,
			func(c *rope.Config) bool {
				return reflect.DeepEqual(c.Methods[""], rope.Default{Base: rope.Base{HeadDim: 128, Theta: 5e6, RotaryDim: 64}})
			}},
		"Phi-3, trained length at the top": {`{"head_dim":64,"rope_theta":1e4,"max_position_embeddings":131072,"original_max_position_embeddings":4096,
			"rope_scaling":{"type":"su","short_factor":` + list + `,"long_factor":` + list + `}}`,
			func(c *rope.Config) bool { return c.Methods[""].(rope.LongRoPE).OriginalLength == 4096 }},
		"DeepSeek-V3": {`{"model_type":"deepseek_v3","hidden_size":7168,"num_attention_heads":128,"qk_rope_head_dim":64,"rope_theta":10000,"max_position_embeddings":163840,
			"rope_scaling":{"type":"yarn","factor":40,"original_max_position_embeddings":4096,"beta_fast":32,"beta_slow":1,"mscale":1.0,"mscale_all_dim":1.0}}`,
			func(c *rope.Config) bool {
				m := c.Methods[""].(rope.YaRN)
				r, err := m.Rotation(0)
				return err == nil && m.HeadDim == 64 && m.Layout == kernel.Interleaved && r.Factor == 1 && r.ScoreScale > 1.8738 && r.ScoreScale < 1.8739
			}},
		"mscale_all_dim without latent attention": {`{"head_dim":128,"rope_parameters":{"rope_type":"yarn","rope_theta":1e6,"factor":16,
			"original_max_position_embeddings":16384,"mscale":1,"mscale_all_dim":1}}`,
			func(c *rope.Config) bool {
				r, err := c.Methods[""].Rotation(0)
				return err == nil && r.Factor == 1 && r.ScoreScale == 1
			}},
		"Gemma 3": {`{"text_config":{"head_dim":256,"rope_theta":1000000.0,"rope_local_base_freq":10000.0,"rope_scaling":{"factor":8.0,"rope_type":"linear"}}}`,
			func(c *rope.Config) bool {
				return reflect.DeepEqual(c.Methods, map[string]rope.Method{
					rope.FullAttention:    rope.Linear{Base: rope.Base{HeadDim: 256, Theta: 1e6}, Factor: 8},
					rope.SlidingAttention: rope.Default{Base: rope.Base{HeadDim: 256, Theta: 1e4}}})
			}},
		"Gemma 4": {`{"head_dim":256,"global_head_dim":512,"rope_parameters":{"full_attention":{"rope_type":"proportional","rope_theta":1e6,"partial_rotary_factor":0.25},
			"sliding_attention":{"rope_type":"default","rope_theta":1e4},"other":null}}`,
			func(c *rope.Config) bool {
				return reflect.DeepEqual(c.Methods, map[string]rope.Method{
					rope.FullAttention:    rope.Proportional{Base: rope.Base{HeadDim: 512, Theta: 1e6, Partial: .25}},
					rope.SlidingAttention: rope.Default{Base: rope.Base{HeadDim: 256, Theta: 1e4}}})
			}},
		"Qwen2-VL, saved anew": {`{"head_dim":128,"rope_theta":1e6,"rope_scaling":{"type":"mrope","rope_type":"default","mrope_section":[16,24,24]}}`,
			func(c *rope.Config) bool {
				return c.Methods[""].(rope.Default).MRoPE == rope.MRoPE{Sections: [3]int{16, 24, 24}}
			}},
		"Qwen 1M": {`{"head_dim":128,"rope_theta":1e7,"dual_chunk_attention_config":{"chunk_size":262144,"local_size":8192,"original_max_position_embeddings":262144,
			"sparse_attention_enabled":true}}`,
			func(c *rope.Config) bool {
				d := c.DualChunk
				return d != nil && d.ChunkSize == 262144 && d.LocalSize == 8192 && d.OriginalLength == 262144 && string(d.Sparse["sparse_attention_enabled"]) == "true"
			}},
	} {
		if got, err := rope.ParseHF([]byte(c.config)); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !c.check(got) {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

// Nothing that is not understood passes: the error names the key, and what
// there is.
func TestParseHFRefuses(t *testing.T) {
	for _, c := range []struct{ config, says string }{
		{``, "config.json"}, {`[]`, "config.json"}, {`{"head_dim":64}`, `"rope_theta" is missing`},
		{`{"rope_theta":1e4}`, `"head_dim" is missing`}, {`{"hidden_size":100,"num_attention_heads":3,"rope_theta":1e4}`, "multiple"},
		{`{"head_dim":"64","rope_theta":1e4}`, `"head_dim" is "64"`}, {`{"head_dim":64.5,"rope_theta":1e4}`, "whole"},
		{`{"head_dim":64,"rope_theta":0}`, "above 0"}, {`{"head_dim":64,"rope_theta":-1}`, "-1"}, {`{"head_dim":63,"rope_theta":1e4}`, "RotaryDim is 63"},
		{`{"head_dim":64,"rope_theta":1e4,"text_config":7}`, "text_config"},
		{hf(`"type":"linear"`), `"rope_scaling.factor" is missing`},
		{hf(`"type":"linear","factor":0`), "above 0"}, {hf(`"type":"linear","factor":"2"`), "want a number"},
		{hf(`"type":"linear","factor":2,"facter":3`), `"rope_scaling.facter" is not known for type linear (have factor, mrope_interleaved`},
		{hf(`"type":"default","factor":2`), "factor"}, {hf(`"type":"linear","factor":2,"beta_fast":3`), "beta_fast"},
		{hf(`"type":"yarm","factor":2`), `is "yarm", which is not known (have default, dynamic, linear, llama3`},
		{hf(`"factor":2`), `"rope_scaling.rope_type" is missing`}, {hf(`"type":"linear","rope_type":"yarn","factor":2`), `is "linear", but rope_type is "yarn"`},
		{hf(`"type":"yarn","factor":2`), "original_max_position_embeddings"}, {hf(`"type":"dynamic","factor":2`), "max_position_embeddings"},
		{hf(`"type":"dynamic","factor":2,"alpha":3`), "beside alpha"}, {hf(`"type":"dynamic","factor":2,"beta_fast":3`), "beta_fast"},
		{hf(`"type":"longrope","original_max_position_embeddings":8`), "short_factor"},
		{hf(`"type":"longrope","original_max_position_embeddings":8,"factor":2,"short_factor":[1],"long_factor":[1]`), "len(Short) is 1"},
		{hf(`"type":"llama3","factor":2,"original_max_position_embeddings":8,"high_freq_factor":4`), "low_freq_factor"},
		{hf(`"type":"yarn","factor":2,"original_max_position_embeddings":8,"truncate":1`), "true or false"},
		{hf(`"type":"default","mrope_section":[1,2]`), "want 3"}, {hf(`"type":"default","mrope_section":[1,2,3]`), "Sections"},
		{hf(`"type":"default","mrope_section":[1e300,-2,3]`), "mrope_section"}, {hf(`"type":"default","rope_theta":5`), "at the top"},
		{`{"head_dim":64,"rope_theta":1e4,"original_max_position_embeddings":9,"rope_scaling":{"type":"yarn","factor":2,"original_max_position_embeddings":8}}`, "at the top"},
		{`{"head_dim":64,"rope_theta":1e4,"rope_scaling":{"type":"linear","factor":2},"rope_parameters":{"rope_type":"default"}}`, "only one"},
		{`{"head_dim":64,"rope_theta":1e4,"rope_scaling":[]}`, "no object"},
		{`{"head_dim":64,"rope_theta":1e4,"rope_parameters":{"full_attention":{"rope_type":"default"},"rope_type":"default"}}`, "layer type"},
		{`{"head_dim":64,"rope_theta":1e4,"rope_parameters":{"":{"rope_type":"default"}}}`, "without a name"},
		{`{"head_dim":64,"rope_theta":1e4,"rope_parameters":{"full_attention":{"rope_type":"linear","factor":2,"x":1}}}`, `"rope_parameters.full_attention.x"`},
		{`{"head_dim":64,"rope_theta":1e4,"rope_local_base_freq":5,"rope_parameters":{"full_attention":{"rope_type":"default"}}}`, "rope_local_base_freq"},
		{`{"head_dim":64,"rope_theta":1e4,"dual_chunk_attention_config":{"chunk_size":8}}`, "local_size"},
		{`{"head_dim":64,"rope_theta":1e4,"dual_chunk_attention_config":{"chunk_size":8,"local_size":4,"x":1}}`, "x"},
		{`{"head_dim":64,"rope_theta":1e4,"dual_chunk_attention_config":3}`, "no object"},
	} {
		got, err := rope.ParseHF([]byte(c.config))
		if err == nil || got != nil || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "rope: ") {
			t.Errorf("%s\ngives %v, want an error that says %s", c.config, err, c.says)
		}
	}
	var key *rope.KeyError
	if _, err := rope.ParseHF([]byte(hf(`"type":"yarm"`))); !errors.As(err, &key) || key.Key != "rope_scaling.rope_type" || len(key.Allowed) != 9 {
		t.Errorf("error is %#v", err)
	}
	if _, err := parse(t, `{"head_dim":64,"rope_parameters":{"full_attention":{"rope_type":"default","rope_theta":5}}}`).Method("x"); !errors.As(err, &key) {
		t.Errorf("an unknown layer type gives %v", err)
	}
}

func hf(keys string) string {
	return `{"head_dim":64,"rope_theta":1e4,"rope_scaling":{` + keys + `}}`
}
