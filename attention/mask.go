package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// Mask says which keys a query sees: the union of disjoint Regions, restricted
// by the masks of Kinds, whose data comes with each Step. The functions below
// make the usual ones; And intersects two. A custom mask is a literal.
type Mask struct {
	Regions []kernel.Region
	Kinds   kernel.Masks
}

func intervals(r ...kernel.Region) Mask { return Mask{Regions: r} }

func between(lo, hi int32) kernel.Range { return kernel.Range{Lo: lo, Hi: hi} }

// Bidirectional lets every query see every key of its sequence.
func Bidirectional() Mask { return intervals(kernel.Everywhere) }

// Causal lets query i see keys j <= i.
func Causal() Mask {
	return intervals(kernel.Region{Diff: between(0, kernel.MaxBound), Key: kernel.All})
}

// Window lets query i see its own key and the window−1 before it; window is at
// least 1 (Beltagy et al., "Longformer", arXiv 2004.05150; Mistral's
// sliding_window).
func Window(window int) Mask {
	return intervals(kernel.Region{Diff: between(0, positive(window)), Key: kernel.All})
}

// WindowSinks is Window plus the first sinks keys (Xiao et al., "Efficient
// Streaming Language Models with Attention Sinks", arXiv 2309.17453), all at
// their true positions. For StreamingLLM's positions in the cache see
// StreamingLLM.
func WindowSinks(window, sinks int) Mask {
	if sinks == 0 {
		return Window(window)
	}
	return intervals(
		kernel.Region{Diff: between(0, positive(window)), Key: kernel.All},
		kernel.Region{Diff: between(bound(window), kernel.MaxBound), Key: between(0, bound(sinks))},
	)
}

// Chunked lets query i see keys j <= i of its own chunk ⌊i/size⌋ (Llama 4's
// chunked attention).
func Chunked(size int) Mask {
	r := kernel.Region{Diff: between(0, kernel.MaxBound), Key: kernel.All}
	r.Chunk[0] = kernel.ChunkRange{Size: positive(size), Range: between(0, 1)}
	return intervals(r)
}

// PrefixLM is Causal, and every query sees the first Step.PrefixLens keys of
// its sequence (Raffel et al., T5, arXiv 1910.10683, figure 4).
func PrefixLM() Mask {
	return Mask{
		Regions: []kernel.Region{
			{Diff: between(0, kernel.MaxBound), Key: kernel.All},
			{Diff: between(kernel.MinBound, 0), Key: kernel.All, Prefix: true},
		},
		Kinds: kernel.MaskPrefix,
	}
}

// Documents restricts queries to keys of the same id in Step.Documents:
// packing. And it with Causal or another mask.
func Documents() Mask {
	return Mask{Regions: []kernel.Region{kernel.Everywhere}, Kinds: kernel.MaskDocument}
}

// Tree is Causal, with the keys of the step's own query tokens restricted to
// the bits of Step.Tree: the ancestors of each token in a speculation tree
// (Miao et al., "SpecInfer", arXiv 2305.09781).
func Tree() Mask {
	m := Causal()
	m.Kinds = kernel.MaskTree
	return m
}

// Blocks restricts queries to the blocks of keys listed in Step.Blocks. And it
// with Causal or another mask.
func Blocks() Mask {
	return Mask{Regions: []kernel.Region{kernel.Everywhere}, Kinds: kernel.MaskBlocks}
}

// And lets a query see what both masks let it see.
func (m Mask) And(n Mask) (Mask, error) {
	out := Mask{Kinds: m.Kinds | n.Kinds}
	for _, a := range m.Regions {
		for _, b := range n.Regions {
			r, ok := a.Intersect(b)
			if !ok {
				return Mask{}, fmt.Errorf("attention: Mask.And: more than two chunk sizes in one region")
			}
			if !r.Empty() {
				out.Regions = append(out.Regions, r)
			}
		}
	}
	return out, nil
}

// bound makes an int a bound of a Range. Out-of-range values become −1, which
// New refuses with the name of the field.
func bound(n int) int32 {
	if n < 0 || n >= kernel.MaxBound {
		return -1
	}
	return int32(n)
}

// positive is bound for lengths of which 0 would mean another mask: no window
// in some libraries, no key at all here.
func positive(n int) int32 {
	if n == 0 {
		return -1
	}
	return bound(n)
}
