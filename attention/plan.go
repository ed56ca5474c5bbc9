package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
)

// Plan prepares a step. It checks everything that does not depend on the
// tensors, and reuses its memory from step to step. On an error the plan before
// is gone.
func (a *Attention) Plan(step Step) error {
	a.planned = false
	b := &a.batch
	if err := a.planLengths(&step, b); err != nil {
		return err
	}
	if err := a.planMasks(&step, b); err != nil {
		return err
	}
	if err := a.planPositions(&step, b); err != nil {
		return err
	}
	if err := a.planTerms(&step, b); err != nil {
		return err
	}
	if err := a.kernel.Plan(b); err != nil {
		return fmt.Errorf("attention: %w", err)
	}
	a.planned = true
	return nil
}

// planLengths sets QueryStart, SeqLens and where the keys are.
func (a *Attention) planLengths(step *Step, b *kernel.Batch) error {
	n := len(step.QueryLens)
	if n == 0 {
		return fmt.Errorf("attention: Step.QueryLens is empty, want at least one sequence")
	}
	total := int64(0)
	b.QueryStart = append(b.QueryStart[:0], 0)
	for i, q := range step.QueryLens {
		if q < 0 || q > math.MaxInt32 || total+int64(q) > math.MaxInt32 {
			return fmt.Errorf("attention: Step.QueryLens[%d] is %d after %d tokens, want 0 or more and at most 2³¹−1 in all", i, q, total)
		}
		total += int64(q)
		b.QueryStart = append(b.QueryStart, int32(total))
	}
	b.KeyStart, b.SeqLens = b.KeyStart[:0], b.SeqLens[:0]
	b.Pages = kernel.BlockTable{Indptr: b.Pages.Indptr[:0], Indices: b.Pages.Indices[:0], Coded: b.Pages.Coded[:0]}
	if step.KV != nil {
		return a.planPages(step, b)
	}
	if a.spec.PageSize > 0 {
		return fmt.Errorf("attention: Config.PageSize is %d, want Step.KV to name the pages", a.spec.PageSize)
	}
	lens := step.KeyLens
	if lens == nil {
		lens = step.QueryLens
	}
	if len(lens) != n {
		return fmt.Errorf("attention: Step.KeyLens has %d sequences, want %d as Step.QueryLens", len(lens), n)
	}
	if step.KeyStarts != nil && len(step.KeyStarts) != n {
		return fmt.Errorf("attention: Step.KeyStarts has %d sequences, want %d as Step.QueryLens", len(step.KeyStarts), n)
	}
	row := int64(0)
	for i, k := range lens {
		if step.KeyStarts != nil {
			row = int64(step.KeyStarts[i])
		}
		if k < 0 || row < 0 || k > math.MaxInt32 || row > math.MaxInt32 || row+int64(k) > math.MaxInt32 {
			return fmt.Errorf("attention: sequence %d has %d keys from row %d, want 0 or more and rows below 2³¹", i, k, row)
		}
		b.SeqLens, b.KeyStart = append(b.SeqLens, int32(k)), append(b.KeyStart, int32(row))
		row += int64(k)
	}
	return nil
}

func (a *Attention) planPages(step *Step, b *kernel.Batch) error {
	if got := step.KV.PageSize(); got != a.spec.PageSize {
		return fmt.Errorf("attention: Step.KV has pages of %d tokens, want Config.PageSize %d", got, a.spec.PageSize)
	}
	if step.KeyLens != nil || step.KeyStarts != nil {
		return fmt.Errorf("attention: Step.KeyLens and KeyStarts are for contiguous keys, want nil with Step.KV")
	}
	if got := step.KV.KeyStorage(); a.spec.RotaryDim > 0 && got != a.spec.KeyStorage {
		return fmt.Errorf("attention: Step.KV holds %v keys, want %v", got, a.spec.KeyStorage)
	}
	if err := step.KV.LowerKV(b); err != nil {
		return fmt.Errorf("attention: Step.KV: %w", err)
	}
	if len(b.SeqLens) != len(step.QueryLens) {
		return fmt.Errorf("attention: Step.KV has %d sequences, want %d as Step.QueryLens", len(b.SeqLens), len(step.QueryLens))
	}
	return nil
}

func (a *Attention) planMasks(step *Step, b *kernel.Batch) error {
	b.PrefixLens = b.PrefixLens[:0]
	for i, p := range step.PrefixLens {
		if p < 0 || p > math.MaxInt32 {
			return fmt.Errorf("attention: Step.PrefixLens[%d] is %d, want 0 to 2³¹−1", i, p)
		}
		b.PrefixLens = append(b.PrefixLens, int32(p))
	}
	b.Documents, b.Tree, b.Blocks = step.Documents, step.Tree, step.Blocks
	return nil
}

// planPositions sets explicit positions where there are any.
func (a *Attention) planPositions(step *Step, b *kernel.Batch) error {
	b.Positions = nil
	query, key := step.QueryPos, step.KeyPos
	if step.ByRank {
		if query != nil || key != nil {
			return fmt.Errorf("attention: Step.ByRank with QueryPos or KeyPos, want one of them")
		}
		return nil
	}
	if key == nil && step.KV != nil {
		if key = step.KV.KeyPositions(a.keyPos[:0]); key != nil {
			a.keyPos = key
		}
	}
	if key == nil && query == nil {
		return nil
	}
	total := 0
	for _, n := range b.SeqLens {
		total += int(n)
	}
	if key != nil && len(key) != total {
		return fmt.Errorf("attention: %d key positions, want %d, one for each key", len(key), total)
	}
	if query == nil {
		var err error
		if query, err = a.ownPositions(b, key); err != nil {
			return err
		}
	}
	if len(query) != b.Tokens() {
		return fmt.Errorf("attention: %d query positions, want %d, one for each query token", len(query), b.Tokens())
	}
	a.explicit = kernel.Positions{Query: query, Key: key}
	b.Positions = &a.explicit
	return nil
}

// ownPositions takes for each query the position of its own key.
func (a *Attention) ownPositions(b *kernel.Batch, key []int32) ([]int32, error) {
	a.queryPos = a.queryPos[:0]
	for s, n := range b.SeqLens {
		if q := b.QueryLen(s); q > int(n) {
			return nil, fmt.Errorf("attention: sequence %d has %d queries and %d keys with positions of their own, want Step.QueryPos", s, q, n)
		}
		a.queryPos = append(a.queryPos, key[b.QueryIndex(s):n]...)
		key = key[n:]
	}
	return a.queryPos, nil
}

// planTerms lowers the position module: regions, rotation table, score scales.
func (a *Attention) planTerms(step *Step, b *kernel.Batch) error {
	length := step.Length
	if length < 0 {
		return fmt.Errorf("attention: Step.Length is %d, want 0 (the longest sequence) or more", length)
	}
	if length == 0 {
		length = 1
		for _, n := range b.SeqLens {
			length = max(length, int(n))
		}
	}
	terms, err := a.config.Position.Terms(length)
	if err != nil {
		return fmt.Errorf("attention: position %s: %w", a.config.Position.Name(), err)
	}
	terms, err = compose(a.config.Mask, terms)
	if err != nil {
		return fmt.Errorf("attention: %w", err)
	}
	if len(terms) == 0 { // nothing is visible to anyone
		terms = []Term{{Region: kernel.Region{}}}
	}
	if len(terms) > a.spec.Terms {
		return fmt.Errorf("attention: position %s has %d terms at length %d, want at most %d as at length 1", a.config.Position.Name(), len(terms), length, a.spec.Terms)
	}
	rotScale := 1.0
	b.Terms = b.Terms[:0]
	for _, t := range terms {
		b.Terms = append(b.Terms, kernel.Term{Region: t.Region})
	}
	if a.config.Rotary != nil {
		r, err := a.config.Rotary.Rotation(length)
		if err == nil {
			err = checkRotation(&r, a.spec.HeadDim)
		}
		if err == nil && (r.Dim != a.spec.RotaryDim || r.Layout != a.spec.RotaryLayout) {
			err = fmt.Errorf("rotates %d features %v at length %d, want %d %v as at length 1", r.Dim, r.Layout, length, a.spec.RotaryDim, a.spec.RotaryLayout)
		}
		if err != nil {
			return fmt.Errorf("attention: Rotary: %w", err)
		}
		if r.ScoreScale != 0 {
			rotScale = r.ScoreScale
		}
		if err := a.planTable(b, terms, r); err != nil {
			return err
		}
	}
	a.planScales(b, terms, rotScale)
	return nil
}

// planTable fills the rotation table for the positions that occur.
func (a *Attention) planTable(b *kernel.Batch, terms []Term, r kernel.Rotation) error {
	a.table.reset(r)
	query, key := span{0, -1}, span{0, -1}
	for s, n := range b.SeqLens {
		if b.QueryLen(s) > 0 {
			query = query.union(span{b.QueryIndex(s), int64(n) - 1})
		}
		key = key.union(span{0, int64(n) - 1})
	}
	if p := b.Positions; p != nil {
		if p.Query != nil {
			query = spanOf(p.Query)
		}
		if p.Key != nil {
			key = spanOf(p.Key)
		}
	}
	var at [kernel.MaxTerms][2]int
	for i := range terms {
		var err error
		if at[i][0], err = a.table.segmentFor(terms[i].PosQ, kernel.QuerySide, query); err != nil {
			return err
		}
		if a.spec.KeyStorage == kernel.PreRoPE {
			if at[i][1], err = a.table.segmentFor(terms[i].PosK, kernel.KeySide, key); err != nil {
				return err
			}
		}
	}
	// rows move while the table grows, so rows are named once it is whole
	for i := range terms {
		b.Terms[i].RowQ = a.table.rowMap(terms[i].PosQ, at[i][0])
		if a.spec.KeyStorage == kernel.PreRoPE {
			b.Terms[i].RowK = a.table.rowMap(terms[i].PosK, at[i][1])
		}
	}
	b.Rotary = a.table.out
	return nil
}

func spanOf(positions []int32) span {
	out := span{0, -1}
	for _, p := range positions {
		out = out.union(span{int64(p), int64(p)})
	}
	return out
}

// planScales sets ScoreScale: everything that multiplies a score, from float64
// with one rounding.
func (a *Attention) planScales(b *kernel.Batch, terms []Term, rotScale float64) {
	b.ScoreScale = b.ScoreScale[:0]
	logN := 0.0
	if a.config.Score.LogN > 0 {
		logN = xmath.Log(float64(a.config.Score.LogN))
	}
	for _, t := range terms {
		scale := math.Log2E * a.spec.Scale * rotScale
		if t.Scale != 0 {
			scale *= t.Scale
		}
		for s := range b.SeqLens {
			i0 := b.QueryIndex(s)
			for q := range int64(b.QueryLen(s)) {
				c := scale
				if i := i0 + q; logN > 0 && i > 0 {
					c *= max(1, xmath.Log(float64(i+1))/logN)
				}
				b.ScoreScale = append(b.ScoreScale, float32(c))
			}
		}
	}
}
