package policy

// Rehg, "KV-Compress: Paged KV-Cache Compression with Variable Compression Rates per
// Attention Head", https://arxiv.org/abs/2410.00161
//
// The keys with the largest sums of squared weights stay, those of all heads and
// layers compared, and whole pages go. Needs: squares, at each step. Cost: a
// ColumnStats of all queries. Limits: the paper sums the squares of the queries of
// the prompt's end or of all of it; here of those that were observed.

// KVCompress drops whole blocks of page keys, the page size of the cache.
func KVCompress(page int) *Policy {
	return &Policy{Score: Squared{}, Budget: Adaptive{Model: true}, Block: page}
}

// Squared scores a key by Head.Square.
type Squared struct{}

func (Squared) Needs() Needs { return Squares }

// Score is the sum of squares.
func (Squared) Score(h *Head, dst []float32) error {
	copy(dst, h.Square)
	return nil
}
