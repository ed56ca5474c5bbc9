package rope_test

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
)

// A model trained on 4,096 tokens is extended to 65,536.
func ExampleYaRN() {
	method := rope.YaRN{
		Base:           rope.Base{HeadDim: 128, Theta: 1e4},
		Factor:         16,
		OriginalLength: 4096,
	}
	r, err := method.Rotation(65536)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("attention factor %.4f\n", r.Factor)
	for _, pair := range []int{0, 32, 63} {
		fmt.Printf("pair %d turns by %.4g a token\n", pair, r.InvFreq[pair])
	}
	table, err := rope.Table(r, rope.Text([]int32{0, 1, 65535}), kernel.QuerySide)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(table.Cos)/(r.Dim/2), "rows")
	// Output:
	// attention factor 1.2773
	// pair 0 turns by 1 a token
	// pair 32 turns by 0.005673 a token
	// pair 63 turns by 7.217e-06 a token
	// 3 rows
}

// The method of a model comes from its config.json, and a key that is not
// understood is an error.
func ExampleParseHF() {
	config, err := rope.ParseHF([]byte(`{
		"hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 131072, "rope_theta": 500000.0,
		"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
			"original_max_position_embeddings": 8192}}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	method, err := config.Method(rope.FullAttention)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(method.Name(), method.DependsOnLength(), config.MaxLength)

	_, err = rope.ParseHF([]byte(`{"head_dim": 128, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "scale": 8}}`))
	fmt.Println(err)
	// Output:
	// llama3 false 131072
	// rope: key "rope_scaling.scale" is not known for type linear (have factor, mrope_interleaved, mrope_section, partial_rotary_factor, rope_theta, rope_type, type)
}
