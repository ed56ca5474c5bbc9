// Chenxin An et al., "Training-Free Long-Context Scaling of Large Language Models", 2024, https://arxiv.org/abs/2402.17463

package attention

import (
	"fmt"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
)

// DCA is dual chunk attention, also known as ChunkLlama. Positions start anew
// every s = Chunk − Local tokens; keys are at j mod s, queries at
//
//	⌊i/s⌋ = ⌊j/s⌋       i mod s                  distance i−j
//	⌊i/s⌋ = ⌊j/s⌋ + 1   min(i mod s + s, Chunk)  distance i−j up to Local, at most Chunk beyond
//	⌊i/s⌋ > ⌊j/s⌋ + 1   min(2s−1, Chunk)
//
// Claim: strong; passkey retrieval to 100k tokens with models trained on 4k.
// Qwen 2 and 2.5 ship with it.
//
// Cost beside Absolute: two more rotated copies of each query, 3·RotaryDim
// FLOPs each. All Terms rotate a key alike, so KeyStorage may also be PostRoPE:
// store key j rotated to j mod s. No more bytes; a tile of keys across a chunk
// boundary is multiplied twice.
//
// Limits: chunks are counted in indices, so positions must be the indices.
// Causal only: a key of a later chunk is in no Term and so seen by no query.
type DCA struct {
	Chunk int // largest rotated distance, below the trained length
	Local int // distances up to it are kept, and up to s; 0 to Chunk−1

	// MScale is the trained length L from which scores of a step of length
	// n > L are multiplied by (0.05·ln(n/L) + 1)², as the published code does
	// and the paper does not. It makes every score depend on the length of the
	// step, so fix Step.Length for a request. 0: off.
	MScale int
}

// DCAFor returns the published setting for a model trained on sequences of
// trained tokens: chunks of three quarters of it, an eighth of it local.
func DCAFor(trained int) DCA { return DCA{Chunk: trained / 4 * 3, Local: trained / 8} }

// Name returns "dca".
func (DCA) Name() string { return "dca" }

// Terms returns the Terms of the same, the previous, and earlier chunks.
func (m DCA) Terms(length int) ([]Term, error) {
	if err := parameter("Chunk", m.Chunk, 1); err != nil {
		return nil, err
	}
	if m.Local < 0 || m.Local >= m.Chunk {
		return nil, fmt.Errorf("Local is %d, want 0 to Chunk−1 = %d", m.Local, m.Chunk-1)
	}
	if m.MScale < 0 {
		return nil, fmt.Errorf("MScale is %d, want 0 (off) or a trained length", m.MScale)
	}
	s := m.stride()
	key := Identity.Wrap(s)
	chunks := func(lo, hi int32) kernel.Region {
		r := kernel.Everywhere
		r.Chunk[0] = kernel.ChunkRange{Size: int32(s), Range: between(lo, hi)}
		return r
	}
	scale := m.scale(length)
	return []Term{
		{Region: chunks(0, 1), PosQ: key, PosK: key, Scale: scale},
		{Region: chunks(1, 2), PosQ: key.Shift(float64(s)).AtMost(float64(m.Chunk)), PosK: key, Scale: scale},
		{Region: chunks(2, kernel.MaxBound), PosQ: Constant(float64(m.farthest())), PosK: key, Scale: scale},
	}, nil
}

func (m DCA) stride() int { return m.Chunk - m.Local }

// farthest is min(2s−1, Chunk), the largest rotated distance of a sequence of
// many chunks.
func (m DCA) farthest() int { return m.stride() + min(m.stride()-1, m.Local) }

func (m DCA) scale(length int) float64 {
	if m.MScale == 0 || length <= m.MScale {
		return 1
	}
	a := float64(0.05*xmath.Log(float64(length)/float64(m.MScale))) + 1
	return a * a
}

// LongestLength is the longest sequence whose rotated distances stay below the
// trained length: any where min(2s−1, Chunk) is below it.
func (m DCA) LongestLength(trained int) int {
	if m.farthest() < trained {
		return NoLimit
	}
	return trained
}
