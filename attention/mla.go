// DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model", 2024, https://arxiv.org/abs/2405.04434

package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// MLA is multi-head latent attention: of a token the cache holds one row for all
// heads, a latent vector c that keys and values are projected from, and a part r
// that alone is rotated (decoupled RoPE).
//
//	key of head h     [r, UpKey[h]·c]      Rope + Nope features
//	value of head h   UpValue[h]·c         Value features
//
// It is computed in two ways, equal but for rounding:
//
//	naive      keys and values of all heads are made from the rows: for prefill
//	absorbed   q_nope·(UpKey·c) = (UpKeyᵀ·q_nope)·c, and values stay latent until
//	           after the sum: one KV head of Rope + Latent features, whose values
//	           are its last Latent ones: for decode
//
// Claim: none on length; the cache of DeepSeek-V2 and V3 has 576 numbers a token
// and layer instead of 2·Heads·HeadDim.
//
// Cost a pair and head: naive 2·(Rope+Nope+Value) FLOPs, absorbed
// 2·(Rope+2·Latent); with V3's sizes 640 and 2176. Bytes a key: naive
// Heads·(Rope+Nope+Value) numbers, 128·320 with V3's, absorbed Rope+Latent, 576,
// read once for all heads. So decode, which waits for memory, is absorbed.
//
// Limits: the rotated features stand first in a row, where the kernel rotates;
// published rows of [c, r] have to be turned around. A kvcache holds values
// too: give it ValueDim 1, of which nothing is read. The projections below are
// plain Go over F32 in host memory; a model does them in its matrix products.
type MLA struct {
	Heads  int // query heads; 128 in V3
	Latent int // features of c; 512
	Rope   int // features of r, even, also of a query's rotated part; 64
	Nope   int // features of a key of a head that are not rotated; 128
	Value  int // features of a value of a head; 128
}

// Name returns "mla".
func (MLA) Name() string { return "mla" }

func (m MLA) check() error {
	if m.Heads < 1 || m.Heads > kernel.MaxHeads || m.Latent < 1 || m.Nope < 1 || m.Value < 1 || m.Rope < 0 || m.Rope%2 != 0 {
		return fmt.Errorf("attention: mla: %+v, want Heads 1 to %d, Latent, Nope and Value at least 1, and Rope even and at least 0", m, kernel.MaxHeads)
	}
	if n := max(m.Latent, m.Nope, m.Value); n > kernel.MaxHeadDim || m.Rope > kernel.MaxHeadDim-max(m.Latent, m.Nope) {
		return fmt.Errorf("attention: mla: %+v, want rows of at most %d features", m, kernel.MaxHeadDim)
	}
	return nil
}

// Row is the number of features of a token in the cache.
func (m MLA) Row() int { return m.Rope + m.Latent }

// Naive sets the shape of a Config for keys and values made by Expand.
func (m MLA) Naive(c *Config) error {
	if err := m.check(); err != nil {
		return err
	}
	c.Heads, c.KVHeads, c.HeadDim, c.ValueDim = m.Heads, m.Heads, m.Rope+m.Nope, m.Value
	m.scale(c)
	return nil
}

// Absorbed sets the shape of a Config for rows of the cache as keys, and Values of
// them as values.
func (m MLA) Absorbed(c *Config) error {
	if err := m.check(); err != nil {
		return err
	}
	c.Heads, c.KVHeads, c.HeadDim, c.ValueDim = m.Heads, 1, m.Row(), m.Latent
	m.scale(c)
	return nil
}

func (m MLA) scale(c *Config) {
	if c.Scale == 0 {
		c.Scale = 1 / math.Sqrt(float64(m.Rope+m.Nope))
	}
}

// Values is the part of rows [rows, 1, Row] or [pages, PageSize, 1, Row] that holds
// the values: no copy.
func (m MLA) Values(rows tensor.View) (tensor.View, error) {
	if rows.Rank < 3 || rows.Shape[rows.Rank-1] != int64(m.Row()) {
		return tensor.View{}, fmt.Errorf("attention: mla: rows are %v, want a last dimension of %d", &rows, m.Row())
	}
	return rows.Slice(rows.Rank-1, int64(m.Rope), int64(m.Row())), nil
}

// Absorb turns queries [tokens, Heads, Rope+Nope] into those of the absorbed form,
// [tokens, Heads, Rope+Latent], by UpKey [Heads, Nope, Latent].
func (m MLA) Absorb(query, upKey []float32) ([]float32, error) {
	n, err := m.sizes(len(query), m.Heads*(m.Rope+m.Nope), len(upKey), m.Nope)
	if err != nil {
		return nil, fmt.Errorf("attention: mla: Absorb: %w", err)
	}
	out := make([]float32, 0, n*m.Heads*m.Row())
	for t := range n * m.Heads {
		q, w := query[t*(m.Rope+m.Nope):][:m.Rope+m.Nope], upKey[t%m.Heads*m.Nope*m.Latent:]
		out = append(out, q[:m.Rope]...)
		for l := range m.Latent {
			sum := 0.0
			for d, x := range q[m.Rope:] {
				sum += float64(x) * float64(w[d*m.Latent+l])
			}
			out = append(out, float32(sum))
		}
	}
	return out, nil
}

// Expand makes the keys [n, Heads, Rope+Nope] and values [n, Heads, Value] of the
// naive form from rows [n, Row], by UpKey [Heads, Nope, Latent] and UpValue
// [Heads, Value, Latent].
func (m MLA) Expand(rows, upKey, upValue []float32) (key, value []float32, err error) {
	n, err := m.sizes(len(rows), m.Row(), len(upKey), m.Nope)
	if err == nil {
		_, err = m.sizes(len(rows), m.Row(), len(upValue), m.Value)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("attention: mla: Expand: %w", err)
	}
	for t := range n {
		row := rows[t*m.Row():][:m.Row()]
		for h := range m.Heads {
			key = append(key, row[:m.Rope]...)
			key = m.up(key, row[m.Rope:], upKey[h*m.Nope*m.Latent:], m.Nope)
			value = m.up(value, row[m.Rope:], upValue[h*m.Value*m.Latent:], m.Value)
		}
	}
	return key, value, nil
}

// Output turns outputs of the absorbed form, [tokens, Heads, Latent], into values,
// [tokens, Heads, Value], by UpValue [Heads, Value, Latent].
func (m MLA) Output(out, upValue []float32) ([]float32, error) {
	n, err := m.sizes(len(out), m.Heads*m.Latent, len(upValue), m.Value)
	if err != nil {
		return nil, fmt.Errorf("attention: mla: Output: %w", err)
	}
	y := make([]float32, 0, n*m.Heads*m.Value)
	for t := range n * m.Heads {
		y = m.up(y, out[t*m.Latent:][:m.Latent], upValue[t%m.Heads*m.Value*m.Latent:], m.Value)
	}
	return y, nil
}

// up appends the first n rows of w times c.
func (m MLA) up(dst, c, w []float32, n int) []float32 {
	for d := range n {
		sum := 0.0
		for l, x := range c {
			sum += float64(x) * float64(w[d*m.Latent+l])
		}
		dst = append(dst, float32(sum))
	}
	return dst
}

// sizes is the number of rows of so many numbers.
func (m MLA) sizes(have, row, weights, features int) (int, error) {
	if err := m.check(); err != nil {
		return 0, err
	}
	if have%row != 0 || weights != m.Heads*features*m.Latent {
		return 0, fmt.Errorf("%d numbers and %d weights, want rows of %d and %d·%d·%d weights", have, weights, row, m.Heads, features, m.Latent)
	}
	return have / row, nil
}
