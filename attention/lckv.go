// Haoyi Wu, Kewei Tu, "Layer-Condensed KV Cache for Efficient Inference of Large Language Models", 2024, https://arxiv.org/abs/2405.10637

package attention

import "fmt"

// LCKV pairs the queries of the layers between the first Bottom and the last Top
// with the keys and values of the highest of them. The others keep their own.
//
// Claim: none on length; the cache holds Bottom + Top + 1 layers.
//
// Cost: the FLOPs of attention stay; (Bottom+Top+1)/Layers of the bytes of the
// cache. A prompt needs several passes until the shared keys settle (seven in the
// paper), or goes token by token.
//
// Limits: for models trained so. Below the highest of the shared layers a token
// does not see its own key, which is not there yet (LayerMap.Mask); the first
// token of a sequence then sees none and has Out = 0.
type LCKV struct {
	Layers      int // of the model
	Bottom, Top int // layers with keys of their own, at least 0, together below Layers
}

// Name returns "lckv".
func (LCKV) Name() string { return "lckv" }

// Map returns which layers share.
func (m LCKV) Map() (LayerMap, error) {
	if m.Layers < 1 || m.Bottom < 0 || m.Top < 0 || m.Bottom >= m.Layers-m.Top {
		return LayerMap{}, fmt.Errorf("attention: lckv: Layers %d, Bottom %d, Top %d, want Bottom and Top at least 0 and together below Layers", m.Layers, m.Bottom, m.Top)
	}
	var out LayerMap
	target := m.Layers - m.Top - 1
	for l := range m.Layers {
		if l < m.Bottom || l >= target {
			out.Writes = append(out.Writes, l)
		}
		out.Reads = append(out.Reads, min(l, m.Bottom)+max(l-target, 0))
	}
	return out, nil
}
