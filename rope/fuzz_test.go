package rope_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/longctx/longctx/rope"
)

// finite checks every number of a parsed configuration's rotations.
func finite(t *testing.T, c *rope.Config) {
	t.Helper()
	if len(c.Methods) == 0 {
		t.Fatal("no method")
	}
	for name, m := range c.Methods {
		for _, n := range []int{0, 1, c.MaxLength, 1 << 20} {
			r, err := m.Rotation(n)
			if err != nil {
				if n != 1<<20 { // a base may outgrow float64 at a length not promised
					t.Errorf("%q: parsed, but at length %d: %v", name, n, err)
				}
				continue
			}
			bad := func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }
			if bad(r.Factor) || r.Factor <= 0 || bad(r.ScoreScale) || r.ScoreScale <= 0 || r.Dim != 2*len(r.InvFreq) || r.Dim == 0 {
				t.Errorf("%q: rotation is %+v", name, r)
			}
			for _, f := range r.InvFreq {
				if bad(f) || f < 0 {
					t.Errorf("%q: frequency is %v", name, f)
				}
			}
			if r.Axis != nil && len(r.Axis) != len(r.InvFreq) {
				t.Errorf("%q: %d axes of %d pairs", name, len(r.Axis), len(r.InvFreq))
			}
		}
	}
}

func FuzzParseHF(f *testing.F) {
	four := `[` + strings.Repeat("1.5,", 3) + `2]`
	for _, s := range []string{
		`{"head_dim":8,"rope_theta":1e4}`,
		`{"hidden_size":64,"num_attention_heads":8,"rope_parameters":{"full_attention":{"rope_theta":1e6,"rope_type":"proportional","partial_rotary_factor":0.25},"sliding_attention":{"rope_theta":1e4}}}`,
		`{"head_dim":8,"rope_theta":1e4,"max_position_embeddings":99,"rope_scaling":{"type":"dynamic","factor":2}}`,
		`{"head_dim":8,"rope_theta":1e4,"rope_scaling":{"type":"dynamic","alpha":1000}}`,
		`{"qk_rope_head_dim":8,"rope_theta":1e4,"rope_scaling":{"type":"yarn","factor":40,"original_max_position_embeddings":4096,"mscale":1,"mscale_all_dim":1,"truncate":false}}`,
		`{"head_dim":8,"rope_theta":1e4,"max_position_embeddings":99,"rope_scaling":{"type":"su","original_max_position_embeddings":10,"short_factor":` + four + `,"long_factor":` + four + `}}`,
		`{"head_dim":8,"rope_theta":1e4,"rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":8192}}`,
		`{"text_config":{"head_dim":8,"rope_theta":1e4,"rope_local_base_freq":3,"rope_scaling":{"type":"linear","factor":1e308}}}`,
		`{"head_dim":12,"rope_theta":1e4,"rope_scaling":{"type":"mrope","mrope_section":[2,2,2],"mrope_interleaved":true}}`,
		`{"head_dim":8,"rope_theta":1e4,"dual_chunk_attention_config":{"chunk_size":8,"local_size":2}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		c, err := rope.ParseHF(config)
		if err == nil {
			finite(t, c)
		} else if c != nil || !strings.HasPrefix(err.Error(), "rope: ") {
			t.Errorf("got %v beside error %v", c, err)
		}
	})
}

func FuzzParseGGUF(f *testing.F) {
	for _, s := range []string{
		`{"x.embedding_length":64,"x.attention.head_count":8}`,
		`{"x.attention.key_length":8,"x.context_length":99,"x.rope.scaling.type":"yarn","x.rope.scaling.factor":16,"x.rope.scaling.yarn_log_multiplier":1}`,
		`{"x.attention.key_length":8,"x.rope.dimension_count":4,"x.rope.scaling.original_context_length":7,"x.rope.scaling.type":"longrope"}`,
		`{"x.attention.key_length":12,"x.rope.dimension_sections":[2,2,2,0],"x.rope.freq_base":1e308,"x.rope.scaling.alpha":1000}`,
		`{"x.attention.kv_lora_rank":8,"x.rope.dimension_count":8,"x.context_length":9,"x.rope.scaling.type":"yarn","x.rope.scaling.factor":4,"x.rope.scaling.yarn_log_multiplier":0.1}`,
		`{"x.attention.key_length":8,"x.rope.freq_base_swa":100,"x.rope.scale_linear":0}`,
	} {
		f.Add([]byte(s), byte(0), float32(1.5))
		f.Add([]byte(s), byte(4), float32(1e30))
	}
	f.Fuzz(func(t *testing.T, config []byte, pairs byte, factor float32) {
		var kv map[string]any
		if json.Unmarshal(config, &kv) != nil {
			return
		}
		list := make([]float32, pairs%64)
		for i := range list {
			list[i] = factor
		}
		for _, tensors := range []rope.GGUFTensors{{}, {Freqs: list}, {Short: list, Long: list}} {
			c, err := rope.ParseGGUF("x", kv, tensors, rope.GGUFPairing{InterleavedSections: pairs > 127})
			if err == nil {
				finite(t, c)
			} else if c != nil || !strings.HasPrefix(err.Error(), "rope: ") {
				t.Errorf("got %v beside error %v", c, err)
			}
		}
	})
}
