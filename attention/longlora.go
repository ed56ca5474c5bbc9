// Yukang Chen et al., "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models", 2023, https://arxiv.org/abs/2309.12307

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// ShiftedGroups is shifted sparse attention (S²): tokens are divided into groups
// of Size, and for the upper half of the KV heads the groups lie Size/2 later,
// so that two layers carry a token's content from group to group.
//
//	lower half of the KV heads   ⌊i/Size⌋ = ⌊j/Size⌋
//	upper half                   ⌊(i+Size/2)/Size⌋ = ⌊(j+Size/2)/Size⌋
//
// Claim: none by itself. It makes fine-tuning at a long length cheap; the model
// is then run with Causal.
//
// Cost: at most Size keys a query, Size/2 on average under a causal mask:
// n·Size·(HeadDim+ValueDim) FLOPs a query head.
//
// Limits: KVHeads is even. The published code rolls the sequence, so that for the
// upper half its last Size/2 tokens share a group with its first, which then see
// what comes later; here the first Size/2 tokens are a group of their own.
type ShiftedGroups struct {
	Size int // tokens of a group, even, at least 2
}

// Name returns "longlora".
func (ShiftedGroups) Name() string { return "longlora" }

// Mask returns Causal with kernel.MaskBlocks: Blocks are its data.
func (ShiftedGroups) Mask() Mask {
	m := Causal()
	m.Kinds |= kernel.MaskBlocks
	return m
}

// Blocks lists for Step.Blocks what each KV head sees, in halves of groups.
// keyLens nil is queryLens.
func (m ShiftedGroups) Blocks(queryLens, keyLens []int, kvHeads int) (kernel.BlockSparse, error) {
	none := kernel.BlockSparse{}
	if m.Size < 2 || m.Size%2 != 0 || m.Size >= kernel.MaxBound {
		return none, fmt.Errorf("attention: longlora: Size is %d, want even, 2 to 2³¹−2", m.Size)
	}
	if kvHeads < 2 || kvHeads%2 != 0 {
		return none, fmt.Errorf("attention: longlora: %d KV heads, want an even number of at least 2: half of them are shifted", kvHeads)
	}
	if keyLens == nil {
		keyLens = queryLens
	}
	if len(keyLens) != len(queryLens) {
		return none, fmt.Errorf("attention: longlora: %d key lengths, want %d as query lengths", len(keyLens), len(queryLens))
	}
	half := int64(m.Size / 2)
	out := kernel.BlockSparse{QueryBlock: int32(half), KeyBlock: int32(half), PerHead: true, Indptr: []int32{0}}
	for s, n := range keyLens {
		q := queryLens[s]
		if q < 0 || q > n || n >= kernel.MaxBound {
			return none, fmt.Errorf("attention: longlora: sequence %d has %d queries and %d keys, want 0 to as many queries as keys, below 2³¹−1", s, q, n)
		}
		out.RowStart = append(out.RowStart, int32(len(out.Indptr)-1))
		if q == 0 {
			continue
		}
		for g := range kvHeads {
			shift := int64(0)
			if g >= kvHeads/2 {
				shift = 1
			}
			for b := int64(n-q) / half; b <= int64(n-1)/half; b++ {
				// the first half of the group of block b, then b itself if it is the second
				first := (b+shift)/2*2 - shift
				for c := max(first, 0); c <= b; c++ {
					out.Indices = append(out.Indices, int32(c))
				}
				out.Indptr = append(out.Indptr, int32(len(out.Indices)))
			}
		}
	}
	return out, nil
}
