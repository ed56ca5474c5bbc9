package codec

import (
	"math"
	"math/rand/v2"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// Zandieh et al., "QJL: 1-Bit Quantized JL Transform for KV Cache Quantization with
// Zero Overhead", https://arxiv.org/abs/2406.03482
//
// A key k is held as the signs of its sketch S·k, S of m rows of normal numbers, and
// its length. With S·q whole, √(π/2)/m·‖k‖·⟨S·q, sign(S·k)⟩ is q·k in the mean. Here
// the length is the root mean square of the sketch, near ‖k‖, and keys that are not
// coded are their sketch itself, of less variance. Values are held as KIVI holds
// them.
//
// Limits: the error of a score goes with 1/√m; queries and keys are multiplied by S
// in host memory.
type QJL struct {
	Sketch int    // rows of S for each feature of a key; 4
	Seed   uint64 // of S
}

// Apply makes the keys of a cache sketches. HeadDim grows to that of a sketch.
func (q QJL) Apply(c *kvcache.Config) {
	coded(kernel.Int4, kiviResidual)(c)
	c.KeyStorage = kernel.PostRoPE
	c.HeadDim *= q.Sketch
	c.Coding.Key = kernel.Quantizer{Codec: kernel.Int1, Group: c.HeadDim, RMS: true, Levels: true}
	level := float32(math.Sqrt(math.Pi / 2))
	table := tensor.New(tensor.F32, int64(c.KVHeads), 2)
	for i := range table.F32s() {
		table.F32s()[i] = level * float32(2*(i%2)-1)
	}
	for range c.Layers {
		c.Levels = append(c.Levels, kvcache.Levels{Key: table})
	}
}

// Bases are S, and S over its rows, of keys and queries of dim features.
func (q QJL) Bases(dim, _ int) Bases {
	m := dim * q.Sketch
	r := rand.New(rand.NewPCG(q.Seed, uint64(m)))
	key := matrix(dim, m, func(int, int) float64 { return r.NormFloat64() })
	query := matrix(dim, m, func(i, d int) float64 { return float64(key.F32s()[i*m+d]) / float64(m) })
	return Bases{Query: query, Key: key}
}
