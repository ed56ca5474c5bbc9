package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// LayerMap says which layers of a model share keys and values. A cache holds
// len(Writes) layers instead of len(Reads).
type LayerMap struct {
	Reads  []int // [layers] the cache layer that a layer attends to
	Writes []int // [cache layers] the layer that computes its keys and values, ascending
}

// OwnLayers is the map of a model whose layers share nothing.
func OwnLayers(layers int) LayerMap {
	var m LayerMap
	for l := range max(layers, 0) {
		m.Reads, m.Writes = append(m.Reads, l), append(m.Writes, l)
	}
	return m
}

// Check reports a map in which a layer reads what no layer writes, or writes what
// it does not read.
func (m LayerMap) Check() error {
	if len(m.Reads) == 0 {
		return fmt.Errorf("attention: LayerMap has no layers")
	}
	for l, c := range m.Reads {
		if c < 0 || c >= len(m.Writes) {
			return fmt.Errorf("attention: LayerMap.Reads[%d] is %d, want 0 to %d, a cache layer", l, c, len(m.Writes)-1)
		}
	}
	for c, l := range m.Writes {
		if l < 0 || l >= len(m.Reads) || c > 0 && l <= m.Writes[c-1] {
			return fmt.Errorf("attention: LayerMap.Writes[%d] is %d, want ascending layers, 0 to %d", c, l, len(m.Reads)-1)
		}
		if m.Reads[l] != c {
			return fmt.Errorf("attention: LayerMap.Reads[%d] is %d, want %d, which the layer writes", l, m.Reads[l], c)
		}
	}
	return nil
}

// Writer reports whether a layer computes keys and values.
func (m LayerMap) Writer(layer int) bool { return m.Writes[m.Reads[layer]] == layer }

// Mask returns what a layer sees, of what mask lets it see: all of it, or where
// the layer that writes comes later only the keys before the query's own, which
// are those that are already there.
func (m LayerMap) Mask(layer int, mask Mask) (Mask, error) {
	if err := m.Check(); err != nil {
		return Mask{}, err
	}
	if layer < 0 || layer >= len(m.Reads) {
		return Mask{}, fmt.Errorf("attention: LayerMap.Mask of layer %d, want 0 to %d", layer, len(m.Reads)-1)
	}
	if m.Writes[m.Reads[layer]] <= layer {
		return mask, nil
	}
	return mask.And(intervals(kernel.Region{Diff: between(1, kernel.MaxBound), Key: kernel.All}))
}
