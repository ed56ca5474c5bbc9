// Yutao Sun et al., "You Only Cache Once: Decoder-Decoder Architectures for Language Models", 2024, https://arxiv.org/abs/2405.05254

package attention

import "fmt"

// YOCO is a decoder on a decoder: the lower half of the layers attends to a
// window, each to keys of its own, and all of the upper half to one set of keys
// and values, made from the output of the lower half.
//
// Claim: strong, for models trained so; the paper retrieves over a million
// tokens.
//
// Cost: one layer's cache of n tokens and Layers/2 of Window tokens, for Layers
// of n. Prefill may leave out the upper half but for the last token: its layers
// write nothing.
//
// Limits: for models trained so. The paper's gated retention in place of the
// window is no attention and not here.
type YOCO struct {
	Layers int // of the model, even, at least 2
	Window int // keys that a lower layer sees, the query's own included, at least 1
}

// Name returns "yoco".
func (YOCO) Name() string { return "yoco" }

func (m YOCO) check() error {
	if m.Layers < 2 || m.Layers%2 != 0 {
		return fmt.Errorf("attention: yoco: Layers is %d, want even, at least 2", m.Layers)
	}
	if err := parameter("Window", m.Window, 1); err != nil {
		return fmt.Errorf("attention: yoco: %w", err)
	}
	return nil
}

// Map returns which layers share: the first of the upper half writes for it.
func (m YOCO) Map() (LayerMap, error) {
	if err := m.check(); err != nil {
		return LayerMap{}, err
	}
	out := OwnLayers(m.Layers/2 + 1)
	for len(out.Reads) < m.Layers {
		out.Reads = append(out.Reads, m.Layers/2)
	}
	return out, nil
}

// Mask returns what a layer sees.
func (m YOCO) Mask(layer int) (Mask, error) {
	if err := m.check(); err != nil {
		return Mask{}, err
	}
	if layer < 0 || layer >= m.Layers {
		return Mask{}, fmt.Errorf("attention: yoco: layer %d, want 0 to %d", layer, m.Layers-1)
	}
	if layer < m.Layers/2 {
		return Window(m.Window), nil
	}
	return Causal(), nil
}
