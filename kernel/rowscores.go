package kernel

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/tensor"
)

// Scores of single keys, from something smaller than the keys: some of their
// features, a projection, or codes.

// KeyTable says which rows of paged tensors are the keys of which sequence.
type KeyTable struct {
	QueryStart []int32    // [n+1] as in Batch
	SeqLens    []int32    // [n] keys
	Pages      BlockTable // ⌈SeqLens/PageSize⌉ pages of each sequence, none coded
}

// RowScoresArgs asks for the score of each key with each query, over some of the
// features: rule 19. For query token t of sequence s, head h of KV head g, and key
// j of s,
//
//	Out[t, h, j] = Scale · Σ_c Query[t,h,c]·Key[j,g,c]   over c in Channels of (t, g)
//
// and −Inf where s has no key j. Masks are the caller's: TopK counts from the
// front. It is what SparQ (Ribar et al., https://arxiv.org/abs/2312.04985), Loki
// (Singhania et al., https://arxiv.org/abs/2406.02542) and Double Sparsity (Yang
// et al., https://arxiv.org/abs/2408.07092) choose keys by. With slots side by
// side in Key, of stride 1, only the channels asked for are read.
type RowScoresArgs struct {
	Query tensor.View // [tokens, Heads, dim]
	Key   tensor.View // [pages, PageSize, KVHeads, dim], F32, F16 or BF16
	// Channels are the features to sum over, in this order: as many for each
	// token and KV head, [tokens·KVHeads·r]. Nil: all, ascending.
	Channels []int32
	KeyTable
	Scale  float32 // positive
	Policy Policy

	Out tensor.View // [tokens, Heads, m] F32, m at least the most keys of a sequence
}

// CodeScoresArgs asks for the score of each key with each query, where a key is
// Parts codes and Table has the score of each code: rule 20, asymmetric distances
// of product quantisation (Jégou et al., 2011). With n codes a part,
//
//	Out[t, h, j] = Σ_p Table[t, h, p·n + Codes[j,g,p] mod n]
//
// and −Inf where the sequence has no key j.
type CodeScoresArgs struct {
	Table tensor.View // [tokens, Heads, Parts·n] F32; n a power of two, 2 to 256
	Codes tensor.View // [pages, PageSize, KVHeads, Parts] U8
	KeyTable

	Out tensor.View // [tokens, Heads, m] F32, m at least the most keys of a sequence
}

// Validate checks the views and tables of a RowScores.
func (a *RowScoresArgs) Validate() error {
	if a == nil {
		return absent("RowScoresArgs")
	}
	q, k := &a.Query, &a.Key
	if err := checkView("Query", q, q.DType, q.Shape[0], q.Shape[1], q.Shape[2]); err != nil {
		return err
	}
	if err := checkView("Key", k, k.DType, k.Shape[0], k.Shape[1], k.Shape[2], q.Shape[2]); err != nil {
		return err
	}
	if !wide(q.DType) || !wide(k.DType) {
		return &ShapeError{"Query and Key", q.String() + ", " + k.String(), "f32, f16 or bf16"}
	}
	if err := checkView("Out", &a.Out, tensor.F32, q.Shape[0], q.Shape[1], a.Out.Shape[2]); err != nil {
		return err
	}
	if !(a.Scale > 0 && a.Scale <= math.MaxFloat32) {
		return &ValueError{"Scale", fmt.Sprint(a.Scale), "positive and finite"}
	}
	if a.Policy > Fast {
		return &ValueError{"Policy", a.Policy.String(), "exact or fast"}
	}
	if err := a.KeyTable.validate("Key", k, q, &a.Out); err != nil {
		return err
	}
	if lists := q.Shape[0] * k.Shape[2]; a.Channels != nil && (lists == 0 && len(a.Channels) > 0 || lists > 0 && int64(len(a.Channels))%lists != 0) {
		return &ShapeError{"Channels", fmt.Sprintf("%d channels", len(a.Channels)), fmt.Sprintf("as many for each of %d tokens and %d KV heads", q.Shape[0], k.Shape[2])}
	}
	for i, c := range a.Channels {
		if c < 0 || int64(c) >= q.Shape[2] {
			return &ValueError{fmt.Sprintf("Channels[%d]", i), fmt.Sprint(c), fmt.Sprintf("0 to %d", q.Shape[2]-1)}
		}
	}
	return nil
}

// Validate checks the views and tables of a CodeScores.
func (a *CodeScoresArgs) Validate() error {
	if a == nil {
		return absent("CodeScoresArgs")
	}
	t, c := &a.Table, &a.Codes
	if err := checkView("Table", t, tensor.F32, t.Shape[0], t.Shape[1], t.Shape[2]); err != nil {
		return err
	}
	if err := checkView("Codes", c, tensor.U8, c.Shape[0], c.Shape[1], c.Shape[2], c.Shape[3]); err != nil {
		return err
	}
	if parts := c.Shape[3]; parts < 1 || t.Shape[2]%parts != 0 || !codeCount(t.Shape[2]/parts) {
		return &ShapeError{"Table", t.String(), fmt.Sprintf("2, 4, … 256 scores for each of the %d parts of Codes", parts)}
	}
	if err := checkView("Out", &a.Out, tensor.F32, t.Shape[0], t.Shape[1], a.Out.Shape[2]); err != nil {
		return err
	}
	return a.KeyTable.validate("Codes", c, t, &a.Out)
}

func codeCount(n int64) bool { return n >= 2 && n <= 256 && n&(n-1) == 0 }

// validate checks the tables against keys [pages, PageSize, KVHeads, …], queries
// [tokens, Heads, …] and scores [tokens, Heads, columns].
func (k *KeyTable) validate(name string, keys, queries, out *tensor.View) error {
	size, n := keys.Shape[1], len(k.SeqLens)
	if size < 1 || keys.Shape[2] < 1 || queries.Shape[1]%keys.Shape[2] != 0 {
		return &ShapeError{name, keys.String(), fmt.Sprintf("pages of at least 1 key, and KV heads that divide the %d of queries", queries.Shape[1])}
	}
	if err := lengthOf("QueryStart", len(k.QueryStart), n+1); err != nil {
		return err
	}
	if err := lengthOf("Pages.Indptr", len(k.Pages.Indptr), n+1); err != nil {
		return err
	}
	if k.QueryStart[0] != 0 || int64(k.QueryStart[n]) != queries.Shape[0] {
		return &ShapeError{"QueryStart", fmt.Sprint(k.QueryStart), fmt.Sprintf("ascending from 0 to the %d tokens of queries", queries.Shape[0])}
	}
	for s, keys := range k.SeqLens {
		if k.QueryStart[s+1] < k.QueryStart[s] {
			return &ValueError{fmt.Sprintf("QueryStart[%d]", s+1), fmt.Sprint(k.QueryStart[s+1]), fmt.Sprintf("at least %d", k.QueryStart[s])}
		}
		lo, hi := int64(k.Pages.Indptr[s]), int64(k.Pages.Indptr[s+1])
		if lo < 0 || hi < lo || hi > int64(len(k.Pages.Indices)) {
			return &ValueError{fmt.Sprintf("Pages.Indptr[%d:%d]", s, s+2), fmt.Sprintf("%d, %d", lo, hi), fmt.Sprintf("ascending, at most %d", len(k.Pages.Indices))}
		}
		if keys < 0 || (int64(keys)+size-1)/size != hi-lo {
			return &ValueError{fmt.Sprintf("SeqLens[%d]", s), fmt.Sprint(keys), fmt.Sprintf("keys of %d pages of %d", hi-lo, size)}
		}
		if int64(keys) > out.Shape[2] {
			return &ShapeError{"Out", out.String(), fmt.Sprintf("room for the %d keys of sequence %d", keys, s)}
		}
	}
	for i, p := range k.Pages.Indices {
		if p < 0 || int64(p) >= keys.Shape[0] {
			return &ValueError{fmt.Sprintf("Pages.Indices[%d]", i), fmt.Sprint(p), fmt.Sprintf("0 to %d", keys.Shape[0]-1)}
		}
	}
	for i, coded := range k.Pages.Coded {
		if coded {
			return &ValueError{fmt.Sprintf("Pages.Coded[%d]", i), "true", "false: scores are of plain pages"}
		}
	}
	return nil
}
