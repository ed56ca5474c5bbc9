package policy

// Kim et al., "KVzip: Query-Agnostic KV Cache Compression with Context
// Reconstruction", https://arxiv.org/abs/2505.23416
//
// The model reads the context a second time, behind a request to repeat it; a key
// is worth the largest weight that it gets then. What stays serves any question.
// Needs: maxima, over the queries of the second reading, which are then truncated.
// Cost: reading the context twice or more, and a ColumnStats with Maximum.

// KVzip lets the heads of all layers compete.
func KVzip() *Policy { return &Policy{Score: Largest{}, Budget: Adaptive{Model: true}} }

// Largest scores a key by Head.Max.
type Largest struct{}

func (Largest) Needs() Needs { return Maxima }

// Score is the largest weight.
func (Largest) Score(h *Head, dst []float32) error {
	copy(dst, h.Max)
	return nil
}
