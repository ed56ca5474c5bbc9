package model

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/longctx/longctx/bench/internal/safetensors"
	"github.com/longctx/longctx/tensor"
)

// Param is a matrix of weights, row-major; a vector has one row.
type Param struct {
	Name       string
	Rows, Cols int
	Data       []float32
}

// Layer is one block: x += Out·attend(QKV·norm(x)), x += Down·(silu(g)·u) with
// (g, u) = GateUp·norm(x). QKV is the projections to queries, keys and values
// one below the other; GateUp likewise.
type Layer struct {
	AttnNorm, QKV, Out    *Param
	MLPNorm, GateUp, Down *Param
}

// Model is the weights of a model. Nothing but training changes them.
type Model struct {
	Config Config
	Embed  *Param // [Vocab, Dim], the output projection too
	Layers []Layer
	Norm   *Param
}

// blank is a model of zeros.
func blank(c Config) *Model {
	m := &Model{
		Config: c,
		Embed:  newParam("embed", c.Vocab, c.Dim),
		Norm:   newParam("norm", 1, c.Dim),
	}
	for i := range c.Layers {
		p := fmt.Sprintf("layers.%d.", i)
		m.Layers = append(m.Layers, Layer{
			AttnNorm: newParam(p+"attn_norm", 1, c.Dim),
			QKV:      newParam(p+"qkv", c.qkv(), c.Dim),
			Out:      newParam(p+"out", c.Dim, c.Heads*c.HeadDim),
			MLPNorm:  newParam(p+"mlp_norm", 1, c.Dim),
			GateUp:   newParam(p+"gate_up", 2*c.FF, c.Dim),
			Down:     newParam(p+"down", c.Dim, c.FF),
		})
	}
	return m
}

func newParam(name string, rows, cols int) *Param {
	return &Param{name, rows, cols, make([]float32, rows*cols)}
}

// New is a model with random weights: norms 1, matrices normal of deviation
// 0.02, those that write to the residual stream 0.02/√(2·Layers) (Radford et
// al., GPT-2).
func New(c Config, seed uint64) (*Model, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	m, r := blank(c), rand.New(rand.NewPCG(seed, 1))
	residual := make(map[*Param]bool)
	for _, l := range m.Layers {
		residual[l.Out], residual[l.Down] = true, true
	}
	for _, p := range m.Params() {
		deviation := 0.02
		if residual[p] {
			deviation /= math.Sqrt(2 * float64(c.Layers))
		}
		for i := range p.Data {
			if p.Rows == 1 {
				p.Data[i] = 1
			} else {
				p.Data[i] = float32(r.NormFloat64() * deviation)
			}
		}
	}
	return m, nil
}

// Params lists all weights, always in the same order.
func (m *Model) Params() []*Param {
	out := []*Param{m.Embed}
	for _, l := range m.Layers {
		out = append(out, l.AttnNorm, l.QKV, l.Out, l.MLPNorm, l.GateUp, l.Down)
	}
	return append(out, m.Norm)
}

// Count is the number of weights.
func (m *Model) Count() int {
	n := 0
	for _, p := range m.Params() {
		n += len(p.Data)
	}
	return n
}

// part is a tensor of the file: rows of a Param.
type part struct {
	name  string
	param *Param
	from  int // first row
	rows  int
	shape []int
}

// parts says where the tensors of a file lie in the weights, by the names of
// Hugging Face's Llama.
func (m *Model) parts() []part {
	c := m.Config
	var out []part
	add := func(name string, p *Param, from, rows int) {
		shape := []int{rows, p.Cols}
		if p.Rows == 1 {
			shape = shape[1:]
		}
		out = append(out, part{name + ".weight", p, from, rows, shape})
	}
	add("model.embed_tokens", m.Embed, 0, c.Vocab)
	for i, l := range m.Layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
		add(p+"input_layernorm", l.AttnNorm, 0, 1)
		add(p+"self_attn.q_proj", l.QKV, 0, q)
		add(p+"self_attn.k_proj", l.QKV, q, kv)
		add(p+"self_attn.v_proj", l.QKV, q+kv, kv)
		add(p+"self_attn.o_proj", l.Out, 0, c.Dim)
		add(p+"post_attention_layernorm", l.MLPNorm, 0, 1)
		add(p+"mlp.gate_proj", l.GateUp, 0, c.FF)
		add(p+"mlp.up_proj", l.GateUp, c.FF, c.FF)
		add(p+"mlp.down_proj", l.Down, 0, c.Dim)
	}
	add("model.norm", m.Norm, 0, 1)
	return out
}

// FromFile takes the weights from a safetensors file with the names of Hugging
// Face's Llama and the config as JSON under "config" in its metadata.
func FromFile(f *safetensors.File) (*Model, error) {
	c, err := parseConfig(f.Metadata["config"])
	if err != nil {
		return nil, err
	}
	m := blank(c)
	for _, p := range m.parts() {
		data, err := f.F32(p.name, p.shape...)
		if err != nil {
			return nil, fmt.Errorf("model: %w", err)
		}
		copy(p.param.Data[p.from*p.param.Cols:], data)
	}
	for _, p := range m.Params() {
		if i := slices.IndexFunc(p.Data, func(x float32) bool { return math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) }); i >= 0 {
			return nil, fmt.Errorf("model: %s has %v at element %d, want finite weights", p.Name, p.Data[i], i)
		}
	}
	return m, nil
}

// Load reads the named file; see FromFile.
func Load(path string) (*Model, error) {
	f, err := safetensors.Read(path)
	if err != nil {
		return nil, err
	}
	m, err := FromFile(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// File is what FromFile reads, in float32. Metadata is added to the config.
func (m *Model) File(metadata map[string]string) (*safetensors.File, error) {
	config, err := json.Marshal(m.Config)
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	f := &safetensors.File{Metadata: map[string]string{}, Tensors: map[string]safetensors.Tensor{}}
	for k, v := range metadata {
		f.Metadata[k] = v
	}
	f.Metadata["config"] = string(config)
	for _, p := range m.parts() {
		n := p.param.Cols
		f.Tensors[p.name] = safetensors.FromF32(tensor.F32, p.param.Data[p.from*n:(p.from+p.rows)*n], p.shape...)
	}
	return f, nil
}
