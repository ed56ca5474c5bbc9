package prefix

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// Module is a passage whose keys and values were computed apart, in whole pages,
// to be put into many prompts at any place (Gim et al., "Prompt Cache",
// https://arxiv.org/abs/2311.04934; Yao et al., "CacheBlend",
// https://arxiv.org/abs/2405.16444; Hu et al., "EPIC",
// https://arxiv.org/abs/2410.15332).
type Module struct {
	Pages []kvcache.Page
	First int32 // position at which its first key was computed; the others follow
}

// NewModule holds the keys from <= j < to of a sequence, multiples of PageSize,
// whose positions follow one another. cache.Release(m.Pages...) ends it.
func NewModule(c *kvcache.Cache, id kvcache.ID, from, to int) (Module, error) {
	positions, err := c.Positions(id, nil)
	if err != nil {
		return Module{}, fmt.Errorf("prefix: %w", err)
	}
	pages, err := c.Hold(id, from, to, nil)
	if err != nil {
		return Module{}, fmt.Errorf("prefix: %w", err)
	}
	m := Module{Pages: pages}
	if from < to {
		m.First = positions[from]
	}
	for j := from; j < to; j++ {
		if positions[j] != m.First+int32(j-from) {
			return Module{}, fmt.Errorf("prefix: %w", joinRelease(c, pages,
				valueError(fmt.Sprintf("NewModule: position of key %d", j), positions[j], "%d, that after the one before", m.First+int32(j-from))))
		}
	}
	return m, nil
}

func joinRelease(c *kvcache.Cache, pages []kvcache.Page, err error) error {
	if e := c.Release(pages...); e != nil {
		return e
	}
	return err
}

// Placed is a Module whose first key goes to position At.
type Placed struct {
	Module
	At int32
}

// Compose starts a sequence of modules, one after the other, each at its place.
// The places need not follow one another: a Prompt Cache leaves gaps for what
// is not there. A module comes once in a sequence.
//
// In a cache of PreRoPE keys it shares all pages and costs none; ops and r may
// be nil. PostRoPE keys that were computed elsewhere are copied, pages and all,
// and turned by the way they have moved, At − First, in float32 and rounded
// again: r is the rotation they were turned by, which does not change with the
// length of a sequence. Coded and FP8 keys cannot be turned: *ValueError.
//
// Each module knows nothing of those before it. What to do about it is to choose
// tokens (FirstTokens, Deviation and Highest), to make their pages the
// sequence's own (Cache.Rewrite), and to compute them anew (Recompute).
func Compose(c *kvcache.Cache, ops kernel.Ops, r *kernel.Rotation, parts []Placed) (kvcache.ID, error) {
	var pages []kvcache.Page
	var positions, moved []int32
	size := c.Config().PageSize
	for i, p := range parts {
		n := len(p.Pages) * size
		if p.At < 0 || p.First < 0 || int64(p.At)+int64(n) > math.MaxInt32 {
			return 0, valueError(fmt.Sprintf("Compose: parts[%d]", i), fmt.Sprintf("at %d, computed at %d", p.At, p.First), "positions 0 to 2³¹−1 for %d keys", n)
		}
		for j := range n {
			if p.At != p.First {
				moved = append(moved, int32(len(positions)))
			}
			positions = append(positions, p.At+int32(j))
		}
		pages = append(pages, p.Pages...)
	}
	turn := c.Config().KeyStorage == kernel.PostRoPE && len(moved) > 0
	if turn && (ops == nil || r == nil) {
		return 0, valueError("Compose: ops and rotation", "nil", "those by which the keys are turned")
	}
	if turn && c.Config().DType.Float8() {
		return 0, valueError("Compose: Config.DType", c.Config().DType, "f32, f16 or bf16, to turn keys again")
	}
	id, err := c.Start(pages, positions)
	if err != nil {
		return 0, fmt.Errorf("prefix: %w", err)
	}
	if turn {
		if err := rotate(c, ops, r, id, moved, parts); err != nil {
			_ = c.Free(id)
			return 0, err
		}
	}
	return id, nil
}

// rotate turns the keys of the modules that have moved, in pages of their own.
func rotate(c *kvcache.Cache, ops kernel.Ops, r *kernel.Rotation, id kvcache.ID, moved []int32, parts []Placed) error {
	slots, err := c.Rewrite(id, moved, nil)
	if err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	turn := *r
	turn.Factor = 1 // is in the keys
	size := c.Config().PageSize
	args := kernel.RotateArgs{Rows: make([]int32, size), Dim: r.Dim, Layout: r.Layout, Policy: kernel.Exact,
		Table: kernel.RotaryTable{Cos: make([]float32, r.Dim/2), Sin: make([]float32, r.Dim/2)}}
	for _, p := range parts {
		if p.At == p.First {
			continue
		}
		way := float64(p.At) - float64(p.First)
		turn.Fill(args.Table.Cos, args.Table.Sin, [3]float64{way, way, way}, kernel.KeySide)
		for range p.Pages {
			for layer := range c.Config().Layers {
				args.X = pageOf(c.KeyView(layer), int64(slots[0])/int64(size))
				if err := ops.Rotate(&args); err != nil {
					return fmt.Errorf("prefix: turning keys: %w", err)
				}
			}
			slots = slots[size:]
		}
	}
	return nil
}

// pageOf is a page of [pages, PageSize, KVHeads, dim].
func pageOf(v tensor.View, page int64) tensor.View {
	v.Offset += page * v.Stride[0]
	copy(v.Shape[:], v.Shape[1:4])
	copy(v.Stride[:], v.Stride[1:4])
	v.Rank = 3
	v.Shape[3], v.Stride[3] = 0, 0
	return v
}
