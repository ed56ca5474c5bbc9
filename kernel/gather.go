package kernel

import (
	"fmt"
	"slices"

	"github.com/longctx/longctx/tensor"
)

// GatherArgs makes rows of a paged cache of other rows of it, in all heads, as
// eviction and merging need: rule 19. Slot Dst[i] becomes
//
//	Σ_k Weights[k]·row(Src[k]) over Start[i] <= k < Start[i+1]
//
// and where that is one row of weight 1 it is copied bit for bit. Slots are
// page·PageSize + offset. A scale of FP8 pages has no part in it: a sum of scaled
// rows is the scaled sum.
type GatherArgs struct {
	Cache   tensor.View // [pages, PageSize, KVHeads, dim]: keys or values of a layer
	Dst     []int32     // each at most once, and no slot of Src
	Start   []int32     // [len(Dst)+1] ascending from 0 to len(Src)
	Src     []int32
	Weights []float32 // [len(Src)]; nil: all are 1
}

// Weight is Weights[k].
func (a *GatherArgs) Weight(k int32) float32 {
	if a.Weights == nil {
		return 1
	}
	return a.Weights[k]
}

// Validate checks the views and slots of a gather.
func (a *GatherArgs) Validate() error {
	if a == nil {
		return absent("GatherArgs")
	}
	c := &a.Cache
	if err := checkView("Cache", c, c.DType, c.Shape[0], c.Shape[1], c.Shape[2], c.Shape[3]); err != nil {
		return err
	}
	if !stored(c.DType) {
		return &ShapeError{"Cache", c.String(), "f32, f16, bf16, f8e4m3 or f8e5m2"}
	}
	if err := a.validateLists(); err != nil {
		return err
	}
	slots := c.Shape[0] * c.Shape[1]
	for _, l := range [...]struct {
		name  string
		slots []int32
	}{{"Dst", a.Dst}, {"Src", a.Src}} {
		for i, s := range l.slots {
			if s < 0 || int64(s) >= slots {
				return &ValueError{fmt.Sprintf("%s[%d]", l.name, i), fmt.Sprint(s), fmt.Sprintf("0 to %d", slots-1)}
			}
		}
	}
	return a.validateWrites()
}

// validateWrites sees that a slot that is written is written once and not read. It
// marks them in one bit for each slot from the first to the last.
func (a *GatherArgs) validateWrites() error {
	if len(a.Dst) == 0 {
		return nil
	}
	lo, hi := slices.Min(a.Dst), slices.Max(a.Dst)
	written := make([]uint64, (int64(hi)-int64(lo))/64+1)
	for i, s := range a.Dst {
		if w, bit := &written[(s-lo)/64], uint64(1)<<((s-lo)%64); *w&bit == 0 {
			*w |= bit
		} else {
			return &ValueError{fmt.Sprintf("Dst[%d]", i), fmt.Sprint(s), "a slot not named before"}
		}
	}
	for i, s := range a.Src {
		if s >= lo && s <= hi && written[(s-lo)/64]>>((s-lo)%64)&1 == 1 {
			return &ValueError{fmt.Sprintf("Src[%d]", i), fmt.Sprint(s), "a slot that is not written"}
		}
	}
	return nil
}

func (a *GatherArgs) validateLists() error {
	if err := lengthOf("Start", len(a.Start), len(a.Dst)+1); err != nil {
		return err
	}
	if a.Weights != nil {
		if err := lengthOf("Weights", len(a.Weights), len(a.Src)); err != nil {
			return err
		}
	}
	if a.Start[0] != 0 || int(a.Start[len(a.Dst)]) != len(a.Src) {
		return &ShapeError{"Start", fmt.Sprintf("from %d to %d", a.Start[0], a.Start[len(a.Dst)]), fmt.Sprintf("from 0 to the %d of Src", len(a.Src))}
	}
	for i := range a.Dst {
		if a.Start[i+1] <= a.Start[i] {
			return &ValueError{fmt.Sprintf("Start[%d]", i+1), fmt.Sprint(a.Start[i+1]), fmt.Sprintf("above %d: a row is made of at least one", a.Start[i])}
		}
	}
	return nil
}
