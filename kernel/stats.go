package kernel

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/tensor"
)

// Reductions that say which keys and pages matter: of the weights of a Run over
// its queries, and of the keys of a page.

// ColumnStatsArgs asks how much weight the queries of a Run with the same Batch
// gave to each key: for key j of sequence s and query head h
//
//	Out[row of j, h] = Σ_i w(i,j)^Power,  w(i,j) = exp(s[j] − LSE[i,h])
//
// over the query tokens i of s that see j: rule 15. Sums of weights are what
// H2O (Zhang et al., https://arxiv.org/abs/2306.14048) keeps keys by; those of
// the last few queries, SnapKV (Li et al., https://arxiv.org/abs/2404.14469);
// those of the last one, TOVA (Oren et al., https://arxiv.org/abs/2401.06104);
// sums of squares, KV-Compress (Rehg, https://arxiv.org/abs/2410.00161). With
// Maximum it is the largest weight instead of the sum, as KVzip has it (Kim et
// al., https://arxiv.org/abs/2505.23416).
type ColumnStatsArgs struct {
	Query tensor.View // as in Args
	Key   tensor.View
	LSE   tensor.View // as Run left it

	KeyScale tensor.View // as in Args
	CodedKey CodedPages
	ScoreArgs

	Power   int         // of a weight: 1 or 2
	Window  int         // only the last Window query tokens of each sequence; 0: all
	Maximum bool        // over the queries, in place of the sum
	Out     tensor.View // [Σ SeqLens, Heads] F32; row of a key: keys before its sequence + index
}

// PageBoundsArgs asks for the least and the largest value of each feature over
// the first slots of pages: rule 16. For listed page p = Pages[i]
//
//	Min[p, g, d] = min over slots < Rows[i] of Key[p, slot, g, d]
//
// and Max likewise; other rows of Min and Max stay. A page without rows has
// +Inf and −Inf. A NaN in a slot that counts makes both NaN.
type PageBoundsArgs struct {
	Key      tensor.View // [pages, PageSize, KVHeads, dim], FP8 included
	KeyScale tensor.View // [KVHeads] F32, optional, of FP8 pages: bounds of f32(q)·scale
	Pages    []int32     // each at most once
	Rows     []int32     // [len(Pages)] slots that count, 0 to PageSize

	Min, Max tensor.View // [pages, KVHeads, dim] F32, or the type of F16 and BF16 pages: exact in either
}

// PageScoresArgs asks for an upper bound of the scores that the keys of each
// page can have with each query: rule 17, by which Quest (Tang et al.,
// https://arxiv.org/abs/2406.10774, section 3.3) chooses pages. For query token t of sequence s, head h of
// KV head g, and page p, the n-th of s,
//
//	Out[t, h, n] = Scale · Σ_d max(q_d·Min[p,g,d], q_d·Max[p,g,d])
//
// and −Inf where s has no n-th page. Up to rounding it is at least
// Scale·Query[t,h]·k for each key k within the bounds, and equal where the page
// holds one key. Queries are to be turned as the keys are that were bounded.
type PageScoresArgs struct {
	Query      tensor.View // [tokens, Heads, dim]
	Min, Max   tensor.View // [pages, KVHeads, dim], as PageBounds left them
	QueryStart []int32     // [n+1] as in Batch
	Pages      BlockTable  // rows of Min and Max in the order of each sequence; none is Coded
	Scale      float32     // positive
	Policy     Policy

	Out tensor.View // [tokens, Heads, m] F32, m at least the most pages of a sequence
}

// Validate checks the views of a ColumnStats against its Spec and Batch.
func (a *ColumnStatsArgs) Validate(s *Spec, b *Batch) error {
	if a == nil {
		return absent("ColumnStatsArgs")
	}
	tokens, heads, keys := int64(b.Tokens()), int64(s.Heads), int64(0)
	for _, n := range b.SeqLens {
		keys += int64(n)
	}
	if a.Power != 1 && a.Power != 2 {
		return &ValueError{"Power", fmt.Sprint(a.Power), "1 or 2"}
	}
	if a.Window < 0 {
		return &ValueError{"Window", fmt.Sprint(a.Window), "at least 0 (0: all queries)"}
	}
	if err := checkView("Query", &a.Query, s.DType, tokens, heads, int64(s.HeadDim)); err != nil {
		return err
	}
	if err := s.checkKeys("Key", &a.Key, b, s.KVDType, s.HeadDim); err != nil {
		return err
	}
	if err := checkScale("KeyScale", &a.Key, &a.KeyScale, int64(s.KVHeads)); err != nil {
		return err
	}
	if !s.Coding.IsZero() {
		if err := a.CodedKey.check("CodedKey", &s.Coding.Key, int64(s.PageSize), int64(s.KVHeads), s.HeadDim); err != nil {
			return err
		}
		if err := checkCodedPages(b, a.CodedKey.Codes.Shape[0], "CodedKey"); err != nil {
			return err
		}
	}
	if err := checkView("LSE", &a.LSE, tensor.F32, tokens, heads); err != nil {
		return err
	}
	if err := checkView("Out", &a.Out, tensor.F32, keys, heads); err != nil {
		return err
	}
	return a.ScoreArgs.validate(s, b)
}

// Validate checks the views and pages of a PageBounds.
func (a *PageBoundsArgs) Validate() error {
	if a == nil {
		return absent("PageBoundsArgs")
	}
	k := &a.Key
	if err := checkView("Key", k, k.DType, k.Shape[0], k.Shape[1], k.Shape[2], k.Shape[3]); err != nil {
		return err
	}
	if !stored(k.DType) {
		return &ShapeError{"Key", k.String(), "f32, f16, bf16, f8e4m3 or f8e5m2"}
	}
	if err := checkScale("KeyScale", k, &a.KeyScale, k.Shape[2]); err != nil {
		return err
	}
	for _, v := range [...]struct {
		name string
		view *tensor.View
	}{{"Min", &a.Min}, {"Max", &a.Max}} {
		dtype := tensor.F32
		if v.view.DType == k.DType && wide(k.DType) {
			dtype = k.DType
		}
		if err := checkView(v.name, v.view, dtype, k.Shape[0], k.Shape[2], k.Shape[3]); err != nil {
			return err
		}
	}
	if err := lengthOf("Rows", len(a.Rows), len(a.Pages)); err != nil {
		return err
	}
	for i, p := range a.Pages {
		if p < 0 || int64(p) >= k.Shape[0] {
			return &ValueError{fmt.Sprintf("Pages[%d]", i), fmt.Sprint(p), fmt.Sprintf("0 to %d", k.Shape[0]-1)}
		}
		if n := a.Rows[i]; n < 0 || int64(n) > k.Shape[1] {
			return &ValueError{fmt.Sprintf("Rows[%d]", i), fmt.Sprint(n), fmt.Sprintf("0 to %d", k.Shape[1])}
		}
	}
	return nil
}

// Validate checks the views and tables of a PageScores.
func (a *PageScoresArgs) Validate() error {
	if a == nil {
		return absent("PageScoresArgs")
	}
	q, lo := &a.Query, &a.Min
	if err := checkView("Query", q, q.DType, q.Shape[0], q.Shape[1], q.Shape[2]); err != nil {
		return err
	}
	if err := checkView("Min", lo, lo.DType, lo.Shape[0], lo.Shape[1], q.Shape[2]); err != nil {
		return err
	}
	if err := checkView("Max", &a.Max, a.Max.DType, lo.Shape[0], lo.Shape[1], q.Shape[2]); err != nil {
		return err
	}
	for _, v := range [...]struct {
		name string
		view *tensor.View
	}{{"Query", q}, {"Min", lo}, {"Max", &a.Max}} {
		if !wide(v.view.DType) {
			return &ShapeError{v.name, v.view.String(), "f32, f16 or bf16"}
		}
	}
	if heads := lo.Shape[1]; heads < 1 || q.Shape[1]%heads != 0 {
		return &ShapeError{"Min", lo.String(), fmt.Sprintf("a number of heads that divides the %d of Query", q.Shape[1])}
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
	return a.validateTables()
}

func (a *PageScoresArgs) validateTables() error {
	n := len(a.QueryStart) - 1
	if n < 0 || a.QueryStart[0] != 0 || int64(a.QueryStart[n]) != a.Query.Shape[0] {
		return &ShapeError{"QueryStart", fmt.Sprint(a.QueryStart), fmt.Sprintf("ascending from 0 to the %d tokens of Query", a.Query.Shape[0])}
	}
	if err := lengthOf("Pages.Indptr", len(a.Pages.Indptr), n+1); err != nil {
		return err
	}
	for i := range n {
		if a.QueryStart[i+1] < a.QueryStart[i] {
			return &ValueError{fmt.Sprintf("QueryStart[%d]", i+1), fmt.Sprint(a.QueryStart[i+1]), fmt.Sprintf("at least %d", a.QueryStart[i])}
		}
		lo, hi := a.Pages.Indptr[i], a.Pages.Indptr[i+1]
		if lo < 0 || hi < lo || int(hi) > len(a.Pages.Indices) {
			return &ValueError{fmt.Sprintf("Pages.Indptr[%d:%d]", i, i+2), fmt.Sprintf("%d, %d", lo, hi), fmt.Sprintf("ascending, at most %d", len(a.Pages.Indices))}
		}
		if int64(hi-lo) > a.Out.Shape[2] {
			return &ShapeError{"Out", a.Out.String(), fmt.Sprintf("room for the %d pages of sequence %d", hi-lo, i)}
		}
	}
	for i, p := range a.Pages.Indices {
		if p < 0 || int64(p) >= a.Min.Shape[0] {
			return &ValueError{fmt.Sprintf("Pages.Indices[%d]", i), fmt.Sprint(p), fmt.Sprintf("0 to %d", a.Min.Shape[0]-1)}
		}
	}
	for i, coded := range a.Pages.Coded {
		if coded {
			return &ValueError{fmt.Sprintf("Pages.Coded[%d]", i), "true", "false: bounds are of plain pages"}
		}
	}
	return nil
}
