package policy

// Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache
// Compression", https://arxiv.org/abs/2406.11430
//
// Keys of small norm get much weight, so they stay. Needs: keys. Cost: one pass
// over the keys. Limits: the first layers of some models do not behave so; keep
// them whole.

// L2Norm keeps the keys of the smallest norms.
func L2Norm() *Policy { return &Policy{Score: KeyNorm{}} }

// KeyNorm scores a key by −‖k‖₂.
type KeyNorm struct{}

func (KeyNorm) Needs() Needs { return Keys }

// Score is −‖k‖₂.
func (KeyNorm) Score(h *Head, dst []float32) error {
	if len(dst) == 0 {
		return nil
	}
	x := make([]float64, h.Key.Shape[1])
	for j := range dst {
		dst[j] = -float32(norm2(rowInto(x, &h.Key, j)))
	}
	return nil
}
