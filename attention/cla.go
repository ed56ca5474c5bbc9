// William Brandon et al., "Reducing Transformer Key-Value Cache Size with Cross-Layer Attention", 2024, https://arxiv.org/abs/2405.12981

package attention

import "fmt"

// CLA is cross-layer attention: Group neighbouring layers share the keys and
// values that the first of them computes.
//
// Claim: none on length; the cache is Group times smaller, at about the quality
// of a model trained without.
//
// Cost: the FLOPs of attention stay; 1/Group of the bytes of the cache, and of
// the projections to keys and values. A step still reads the shared layer once
// for each of its readers.
//
// Limits: for models trained so. Where Layers is no multiple of Group the last
// group is smaller. Group 1 shares nothing.
type CLA struct {
	Layers int // of the model, at least 1
	Group  int // layers that share, at least 1; the paper has 2
}

// Name returns "cla".
func (CLA) Name() string { return "cla" }

// Map returns which layers share.
func (m CLA) Map() (LayerMap, error) {
	if m.Layers < 1 || m.Group < 1 {
		return LayerMap{}, fmt.Errorf("attention: cla: Layers %d, Group %d, want at least 1 of each", m.Layers, m.Group)
	}
	var out LayerMap
	for l := range m.Layers {
		if l%m.Group == 0 {
			out.Writes = append(out.Writes, l)
		}
		out.Reads = append(out.Reads, l/m.Group)
	}
	return out, nil
}
