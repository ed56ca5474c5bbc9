// Kaiqiang Song et al., "Zebra: Extending Context Window with Layerwise Grouped Local-Global Attention", 2023, https://arxiv.org/abs/2312.08618

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// Zebra divides the layers into groups of Group: the first of each is global
// (Causal), the others see blocks of Block tokens alone, their own and the
// Back before it. No landmark stands for the blocks that are out of sight: what
// they hold reaches a token by the global layers.
//
//	layer ≡ 0 mod Group   i sees j <= i
//	other layers          i sees j <= i with ⌊i/Block⌋ − ⌊j/Block⌋ <= Back
//
// Claim: none beyond the trained length: long training made cheap, with the
// quality of full attention.
//
// Cost: a local layer computes at most (Back+1)·Block pairs a query and its
// cache may drop all but the last Back+1 blocks; 2·(HeadDim+ValueDim) FLOPs a
// pair. A global layer costs what Causal does.
//
// Limits: blocks are counted in indices. The first query of a block sees Back
// blocks and itself, the last one Back+1 blocks. Group 1 is Causal everywhere.
type Zebra struct {
	Group int // layers that share one global layer, at least 1
	Block int // tokens of a block, at least 1
	Back  int // blocks before its own that a query sees, at least 0
}

// Name returns "zebra".
func (Zebra) Name() string { return "zebra" }

// Mask returns the mask of a layer, counted from 0.
func (m Zebra) Mask(layer int) (Mask, error) {
	if m.Group < 1 || layer < 0 {
		return Mask{}, fmt.Errorf("attention: zebra: Group %d, layer %d, want Group at least 1 and layer at least 0", m.Group, layer)
	}
	if err := parameter("Block", m.Block, 1); err != nil {
		return Mask{}, fmt.Errorf("attention: zebra: %w", err)
	}
	if err := parameter("Back", m.Back, 0); err != nil {
		return Mask{}, fmt.Errorf("attention: zebra: %w", err)
	}
	if layer%m.Group == 0 {
		return Causal(), nil
	}
	r := kernel.Region{Diff: between(0, kernel.MaxBound), Key: kernel.All}
	r.Chunk[0] = kernel.ChunkRange{Size: int32(m.Block), Range: between(0, int32(m.Back)+1)}
	return intervals(r), nil
}
