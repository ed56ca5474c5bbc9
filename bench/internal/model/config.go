// Package model is a Llama-style language model over bytes, whose attention is
// package attention: RMSNorm (Zhang and Sennrich, arXiv 1910.07467), rotary
// positions, grouped queries, SwiGLU (Shazeer, arXiv 2002.05202), no biases,
// tied embeddings. It runs whole sequences, runs token by token over a paged
// cache, and trains.
package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Bytes is the number of tokens that stand for a byte. BOS follows them.
const (
	Bytes = 256
	BOS   = 256
	Vocab = 257
)

// Config is the shape of a model, with the names of Hugging Face's
// LlamaConfig.
type Config struct {
	Architectures []string `json:"architectures"`
	Dim           int      `json:"hidden_size"`
	Layers        int      `json:"num_hidden_layers"`
	Heads         int      `json:"num_attention_heads"`
	KVHeads       int      `json:"num_key_value_heads"`
	HeadDim       int      `json:"head_dim"`
	FF            int      `json:"intermediate_size"`
	Vocab         int      `json:"vocab_size"`
	Context       int      `json:"max_position_embeddings"` // the trained length, BOS included
	Base          float64  `json:"rope_theta"`
	Epsilon       float64  `json:"rms_norm_eps"`
	BOS           int      `json:"bos_token_id"`
	Tied          bool     `json:"tie_word_embeddings"`

	Scaling json.RawMessage `json:"rope_scaling,omitempty"` // refused: methods are chosen on the command line
}

// Small is the shape of the model that bench ships.
func Small() Config {
	return Config{
		Architectures: []string{"LlamaForCausalLM"},
		Dim:           128, Layers: 3, Heads: 4, KVHeads: 2, HeadDim: 32, FF: 384, Vocab: Vocab,
		Context: 128, Base: 500, Epsilon: 1e-5, BOS: BOS, Tied: true,
	}
}

func parseConfig(text string) (Config, error) {
	var c Config
	if text == "" {
		return c, errors.New(`model: the file has no "config" in its metadata`)
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return c, fmt.Errorf("model: config: %w", err)
	}
	if c.HeadDim == 0 && c.Heads > 0 {
		c.HeadDim = c.Dim / c.Heads
	}
	if c.KVHeads == 0 {
		c.KVHeads = c.Heads
	}
	return c, c.check()
}

func (c *Config) check() error {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"hidden_size", c.Dim}, {"num_hidden_layers", c.Layers}, {"num_attention_heads", c.Heads}, {"num_key_value_heads", c.KVHeads},
		{"head_dim", c.HeadDim}, {"intermediate_size", c.FF}, {"max_position_embeddings", c.Context},
	} {
		if f.value < 1 || f.value > 1<<20 {
			return fmt.Errorf("model: config: %s is %d, want 1 to %d", f.name, f.value, 1<<20)
		}
	}
	switch {
	case c.Vocab != Vocab || c.BOS != BOS:
		return fmt.Errorf("model: config: vocab_size %d and bos_token_id %d, want %d and %d: tokens are bytes", c.Vocab, c.BOS, Vocab, BOS)
	case !c.Tied:
		return errors.New("model: config: tie_word_embeddings is false, want true")
	case !(c.Base > 1) || math.IsInf(c.Base, 0):
		return fmt.Errorf("model: config: rope_theta is %v, want more than 1", c.Base)
	case !(c.Epsilon > 0 && c.Epsilon < 1):
		return fmt.Errorf("model: config: rms_norm_eps is %v, want between 0 and 1", c.Epsilon)
	case len(c.Scaling) > 0 && string(c.Scaling) != "null":
		return fmt.Errorf("model: config: rope_scaling is %s, want none: bench applies methods itself", c.Scaling)
	}
	return nil
}

// qkv is the number of rows of the joint projection to queries, keys and values.
func (c *Config) qkv() int { return (c.Heads + 2*c.KVHeads) * c.HeadDim }

// Attending says how the layers of a model attend. The zero values are those
// of attention.Config.
type Attending struct {
	Rotary   attention.Rotary
	Position attention.Position
	Mask     attention.Mask
	Score    attention.Score
	Slopes   []float32 // of the heads, with Score.Slopes

	// For Prefill alone. Layer, where not nil, changes the Config of a layer; Blocks
	// makes Step.Blocks of a step. Own, where not nil, attends in place of all of
	// these, one sequence and layer at a time: from rows of queries, keys and values
	// that are not rotated, [tokens, heads, HeadDim], to out.
	Layer  func(layer int, c *attention.Config) error
	Blocks func(queryLens, keyLens []int) (kernel.BlockSparse, error)
	Own    func(b kernel.Backend, layer int, query, key, value, out tensor.View) error
}
