package kernel

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/tensor"
)

// The checks that all backends share. A backend calls Spec.Problems in
// Attention, Batch.Validate in Plan, and Args.Validate, BackwardArgs.Validate
// or ColumnStatsArgs.Validate in Run, and may trust what passed. They allocate
// only on errors.

// Problems lists everything in a Spec that no backend could compute.
func (s *Spec) Problems() []string {
	var out []string
	say := func(ok bool, format string, args ...any) {
		if !ok {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	say(s.Heads >= 1 && s.Heads <= MaxHeads, "Heads %d, want 1 to %d", s.Heads, MaxHeads)
	say(s.KVHeads >= 1, "KVHeads %d, want at least 1", s.KVHeads)
	if s.Heads >= 1 && s.KVHeads >= 1 {
		say(s.Heads%s.KVHeads == 0, "KVHeads %d does not divide Heads %d", s.KVHeads, s.Heads)
	}
	say(s.HeadDim >= 1 && s.HeadDim <= MaxHeadDim, "HeadDim %d, want 1 to %d", s.HeadDim, MaxHeadDim)
	say(s.ValueDim >= 1 && s.ValueDim <= MaxHeadDim, "ValueDim %d, want 1 to %d", s.ValueDim, MaxHeadDim)
	say(wide(s.DType), "DType %v, want f32, f16 or bf16", s.DType)
	say(stored(s.KVDType), "KVDType %v, want f32, f16, bf16, f8e4m3 or f8e5m2", s.KVDType)
	say(s.PageSize >= 0 && s.PageSize <= math.MaxInt32, "PageSize %d, want 0 (contiguous) or more", s.PageSize)
	say(s.Terms >= 1 && s.Terms <= MaxTerms, "%d terms, want 1 to %d", s.Terms, MaxTerms)
	say(s.RotaryDim >= 0 && s.RotaryDim%2 == 0 && s.RotaryDim <= max(s.HeadDim, 0), "RotaryDim %d, want even and at most HeadDim %d", s.RotaryDim, s.HeadDim)
	say(s.RotaryLayout <= Interleaved, "RotaryLayout %d, want half-split or interleaved", s.RotaryLayout)
	say(s.KeyStorage <= PostRoPE, "KeyStorage %d, want pre-RoPE or post-RoPE", s.KeyStorage)
	say(s.Policy <= Fast, "Policy %d, want exact or fast", s.Policy)
	say(s.Masks < MaskBlocks<<1, "Masks %#x has unknown bits", uint8(s.Masks))
	say(s.Scores < ScoreSinkLogit<<1, "Scores %#x has unknown bits", uint8(s.Scores))
	say(!math.IsNaN(s.Scale) && !math.IsInf(s.Scale, 0), "Scale %v, want finite", s.Scale)
	if s.Scores&ScoreSoftCap != 0 {
		say(s.SoftCap > 0 && !math.IsInf(s.SoftCap, 0), "SoftCap %v, want positive and finite", s.SoftCap)
	}
	s.codingProblems(say)
	say(!s.Backward || !s.KVDType.Float8(), "Backward with KVDType %v, want f32, f16 or bf16", s.KVDType)
	say(!s.Backward || s.PageSize == 0, "Backward with PageSize %d, want 0: gradients of shared pages are not defined", s.PageSize)
	return out
}

// Validate checks a Batch against the Spec of the kernel that plans it.
func (b *Batch) Validate(s *Spec) error {
	if b == nil {
		return absent("Batch")
	}
	n := len(b.SeqLens)
	if err := lengthOf("Batch.QueryStart", len(b.QueryStart), n+1); err != nil {
		return err
	}
	if b.QueryStart[0] != 0 {
		return &ValueError{"Batch.QueryStart[0]", fmt.Sprint(b.QueryStart[0]), "0"}
	}
	total := int64(0)
	for i := range n {
		if b.QueryStart[i+1] < b.QueryStart[i] {
			return &ValueError{fmt.Sprintf("Batch.QueryStart[%d]", i+1), fmt.Sprint(b.QueryStart[i+1]), fmt.Sprintf("at least %d", b.QueryStart[i])}
		}
		if b.SeqLens[i] < 0 {
			return &ValueError{fmt.Sprintf("Batch.SeqLens[%d]", i), fmt.Sprint(b.SeqLens[i]), "at least 0"}
		}
		total += int64(b.SeqLens[i])
	}
	if s.PageSize == 0 {
		if err := lengthOf("Batch.KeyStart", len(b.KeyStart), n); err != nil {
			return err
		}
		for i, k := range b.KeyStart {
			if k < 0 || int64(k)+int64(b.SeqLens[i]) > math.MaxInt32 {
				return &ValueError{fmt.Sprintf("Batch.KeyStart[%d]", i), fmt.Sprint(k), fmt.Sprintf("at least 0 and at most %d for %d keys", math.MaxInt32-b.SeqLens[i], b.SeqLens[i])}
			}
		}
	} else if err := b.validatePages(s); err != nil {
		return err
	}
	if err := b.validateTerms(s); err != nil {
		return err
	}
	if p := b.Positions; p != nil {
		if p.Query != nil && len(p.Query) != b.Tokens() {
			return lengthOf("Batch.Positions.Query", len(p.Query), b.Tokens())
		}
		if p.Key != nil && int64(len(p.Key)) != total {
			return lengthOf("Batch.Positions.Key", len(p.Key), int(total))
		}
	}
	return b.validateMasks(s, total)
}

func (b *Batch) validatePages(s *Spec) error {
	n := len(b.SeqLens)
	if err := lengthOf("Batch.Pages.Indptr", len(b.Pages.Indptr), n+1); err != nil {
		return err
	}
	for i := range n {
		lo, hi := b.Pages.Indptr[i], b.Pages.Indptr[i+1]
		if lo < 0 || hi < lo || int(hi) > len(b.Pages.Indices) {
			return &ValueError{fmt.Sprintf("Batch.Pages.Indptr[%d:%d]", i, i+2), fmt.Sprintf("%d, %d", lo, hi), fmt.Sprintf("ascending, at most %d", len(b.Pages.Indices))}
		}
		if need := (int64(b.SeqLens[i]) + int64(s.PageSize) - 1) / int64(s.PageSize); int64(hi-lo) < need {
			return &ValueError{fmt.Sprintf("pages of sequence %d", i), fmt.Sprint(hi - lo), fmt.Sprintf("%d for %d keys", need, b.SeqLens[i])}
		}
		for k := lo; k < hi; k++ {
			if b.Pages.Indices[k] < 0 {
				return &ValueError{fmt.Sprintf("Batch.Pages.Indices[%d]", k), fmt.Sprint(b.Pages.Indices[k]), "at least 0"}
			}
		}
	}
	if len(b.Pages.Coded) == 0 {
		return nil
	}
	if err := lengthOf("Batch.Pages.Coded", len(b.Pages.Coded), len(b.Pages.Indices)); err != nil {
		return err
	}
	if i := slices.Index(b.Pages.Coded, true); i >= 0 && s.Coding.IsZero() {
		return &ValueError{fmt.Sprintf("Batch.Pages.Coded[%d]", i), "true", "false: Spec.Coding is none"}
	}
	return nil
}

func (b *Batch) validateTerms(s *Spec) error {
	if len(b.Terms) < 1 || len(b.Terms) > s.Terms {
		return &ShapeError{"Batch.Terms", fmt.Sprint(len(b.Terms)), fmt.Sprintf("1 to %d", s.Terms)}
	}
	if err := lengthOf("Batch.ScoreScale", len(b.ScoreScale), len(b.Terms)*b.Tokens()); err != nil {
		return err
	}
	for i := range b.Terms {
		t := &b.Terms[i]
		for _, c := range t.Region.Chunk {
			if c.Size < 0 {
				return &ValueError{fmt.Sprintf("Batch.Terms[%d].Region.Chunk", i), fmt.Sprint(c.Size), "at least 0"}
			}
		}
		if t.Region.Prefix && s.Masks&MaskPrefix == 0 {
			return &ValueError{fmt.Sprintf("Batch.Terms[%d].Region.Prefix", i), "set", "Spec.Masks with MaskPrefix"}
		}
		if s.RotaryDim == 0 {
			continue
		}
		if err := t.RowQ.validate(&b.Rotary, s.RotaryDim, i, "RowQ"); err != nil {
			return err
		}
		if s.KeyStorage == PostRoPE {
			if t.RowK != b.Terms[0].RowK {
				return &ValueError{fmt.Sprintf("Batch.Terms[%d].RowK", i), "its own", "that of every term: keys are stored post-RoPE"}
			}
		} else if err := t.RowK.validate(&b.Rotary, s.RotaryDim, i, "RowK"); err != nil {
			return err
		}
	}
	return nil
}

func (m *RowMap) validate(t *RotaryTable, dim, term int, field string) error {
	rows := min(len(t.Cos), len(t.Sin)) / (dim / 2)
	if m.Count < 1 || m.Base < 0 || m.Mod < 0 || m.Div < 0 || int64(m.Base)+int64(m.Count) > int64(rows) {
		return &ValueError{fmt.Sprintf("Batch.Terms[%d].%s", term, field), fmt.Sprintf("%+v", *m), fmt.Sprintf("rows of a table of %d", rows)}
	}
	return nil
}

func (b *Batch) validateMasks(s *Spec, total int64) error {
	n := len(b.SeqLens)
	if s.Masks&MaskPrefix != 0 {
		if err := lengthOf("Batch.PrefixLens", len(b.PrefixLens), n); err != nil {
			return err
		}
	}
	if s.Masks&MaskDocument != 0 {
		if int64(len(b.Documents)) != total {
			return lengthOf("Batch.Documents", len(b.Documents), int(total))
		}
		at := 0
		for i, k := range b.SeqLens {
			if q := b.QueryLen(i); q > int(k) {
				return &ValueError{fmt.Sprintf("queries of sequence %d", i), fmt.Sprint(q), fmt.Sprintf("at most its %d keys: a query's document is that of its key", k)}
			}
			for j := at + 1; j < at+int(k); j++ {
				if b.Documents[j] < b.Documents[j-1] {
					return &ValueError{fmt.Sprintf("Batch.Documents[%d]", j), fmt.Sprint(b.Documents[j]), "not less than the id before it in its sequence"}
				}
			}
			at += int(k)
		}
	}
	if s.Masks&MaskTree != 0 {
		if err := lengthOf("Batch.Tree.Start", len(b.Tree.Start), n); err != nil {
			return err
		}
		for i, at := range b.Tree.Start {
			q := b.QueryLen(i)
			if q > int(b.SeqLens[i]) {
				return &ValueError{fmt.Sprintf("queries of sequence %d", i), fmt.Sprint(q), fmt.Sprintf("at most its %d keys: the tree's tokens are keys too", b.SeqLens[i])}
			}
			if words := int64(q) * int64((q+63)/64); at < 0 || int64(at)+words > int64(len(b.Tree.Bits)) {
				return &ValueError{fmt.Sprintf("Batch.Tree.Start[%d]", i), fmt.Sprint(at), fmt.Sprintf("start of %d words in %d", words, len(b.Tree.Bits))}
			}
		}
	}
	if s.Masks&MaskBlocks != 0 {
		return b.validateBlocks(s)
	}
	return nil
}

func (b *Batch) validateBlocks(s *Spec) error {
	m := &b.Blocks
	if m.QueryBlock < 1 || m.KeyBlock < 1 {
		return &ValueError{"Batch.Blocks block sizes", fmt.Sprintf("%d and %d", m.QueryBlock, m.KeyBlock), "at least 1"}
	}
	if err := lengthOf("Batch.Blocks.RowStart", len(m.RowStart), len(b.SeqLens)); err != nil {
		return err
	}
	for i, at := range m.RowStart {
		rows := m.QueryBlocks(b, i)
		if m.PerHead {
			rows *= int64(s.KVHeads)
		}
		if at < 0 || int64(at)+rows > int64(len(m.Indptr))-1 && rows > 0 {
			return &ValueError{fmt.Sprintf("Batch.Blocks.RowStart[%d]", i), fmt.Sprint(at), fmt.Sprintf("start of %d rows in %d", rows, len(m.Indptr)-1)}
		}
	}
	for r := 0; r+1 < len(m.Indptr); r++ {
		lo, hi := m.Indptr[r], m.Indptr[r+1]
		if lo < 0 || hi < lo || int(hi) > len(m.Indices) {
			return &ValueError{fmt.Sprintf("Batch.Blocks.Indptr[%d:%d]", r, r+2), fmt.Sprintf("%d, %d", lo, hi), fmt.Sprintf("ascending, at most %d", len(m.Indices))}
		}
		for k := lo + 1; k < hi; k++ {
			if m.Indices[k] <= m.Indices[k-1] {
				return &ValueError{fmt.Sprintf("Batch.Blocks.Indices[%d]", k), fmt.Sprint(m.Indices[k]), "ascending in its row"}
			}
		}
	}
	return nil
}

// absent is the error for a nil argument.
func absent(name string) error { return &ValueError{name, "nil", "arguments"} }

func lengthOf(name string, got, want int) error {
	if got == want {
		return nil
	}
	return &ShapeError{name, fmt.Sprintf("of length %d", got), fmt.Sprintf("length %d", want)}
}

// Validate checks the views of a Run against its Spec and Batch.
func (a *Args) Validate(s *Spec, b *Batch) error {
	if a == nil {
		return absent("Args")
	}
	tokens := int64(b.Tokens())
	if err := checkView("Query", &a.Query, s.DType, tokens, int64(s.Heads), int64(s.HeadDim)); err != nil {
		return err
	}
	if err := checkView("Out", &a.Out, s.DType, tokens, int64(s.Heads), int64(s.ValueDim)); err != nil {
		return err
	}
	if err := s.checkKeys("Key", &a.Key, b, s.KVDType, s.HeadDim); err != nil {
		return err
	}
	if err := s.checkKeys("Value", &a.Value, b, s.KVDType, s.ValueDim); err != nil {
		return err
	}
	if err := checkScales(&a.Key, &a.KeyScale, &a.Value, &a.ValueScale, int64(s.KVHeads)); err != nil {
		return err
	}
	if err := s.checkCoded(&a.CodedKey, &a.CodedValue, b); err != nil {
		return err
	}
	if !a.LSE.IsZero() {
		if err := checkView("LSE", &a.LSE, tensor.F32, tokens, int64(s.Heads)); err != nil {
			return err
		}
	}
	return a.ScoreArgs.validate(s, b)
}

// Validate checks the views of a Backward against its Spec and Batch.
func (a *BackwardArgs) Validate(s *Spec, b *Batch) error {
	if a == nil {
		return absent("BackwardArgs")
	}
	tokens, heads, kvHeads := int64(b.Tokens()), int64(s.Heads), int64(s.KVHeads)
	dout := s.DType
	if a.DOut.DType == tensor.F32 {
		dout = tensor.F32
	}
	rows := a.Key.Shape[0]
	for _, v := range [...]struct {
		name  string
		view  *tensor.View
		dtype tensor.DType
		shape [3]int64
	}{
		{"Query", &a.Query, s.DType, [3]int64{tokens, heads, int64(s.HeadDim)}},
		{"Out", &a.Out, s.DType, [3]int64{tokens, heads, int64(s.ValueDim)}},
		{"DOut", &a.DOut, dout, [3]int64{tokens, heads, int64(s.ValueDim)}},
		{"DQuery", &a.DQuery, tensor.F32, [3]int64{tokens, heads, int64(s.HeadDim)}},
		{"DKey", &a.DKey, tensor.F32, [3]int64{rows, kvHeads, int64(s.HeadDim)}},
		{"DValue", &a.DValue, tensor.F32, [3]int64{rows, kvHeads, int64(s.ValueDim)}},
	} {
		if err := checkView(v.name, v.view, v.dtype, v.shape[:]...); err != nil {
			return err
		}
	}
	if err := s.checkKeys("Key", &a.Key, b, s.KVDType, s.HeadDim); err != nil {
		return err
	}
	if err := s.checkKeys("Value", &a.Value, b, s.KVDType, s.ValueDim); err != nil {
		return err
	}
	if err := checkView("LSE", &a.LSE, tensor.F32, tokens, heads); err != nil {
		return err
	}
	if !a.DLSE.IsZero() {
		if err := checkView("DLSE", &a.DLSE, tensor.F32, tokens, heads); err != nil {
			return err
		}
	}
	if err := b.ownRows(); err != nil {
		return err
	}
	return a.ScoreArgs.validate(s, b)
}

// ownRows refuses sequences that share rows of keys: their gradients would be
// written twice.
func (b *Batch) ownRows() error {
	end := int64(0)
	for s, k := range b.KeyStart {
		if n := int64(b.SeqLens[s]); n > 0 {
			if int64(k) < end {
				return &ValueError{fmt.Sprintf("KeyStart[%d] of a Backward", s), fmt.Sprint(k), fmt.Sprintf("at least %d: rows ascending and not shared", end)}
			}
			end = int64(k) + n
		}
	}
	return nil
}

func (a *ScoreArgs) validate(s *Spec, b *Batch) error {
	heads := int64(s.Heads)
	if s.Scores&ScoreSlopes != 0 {
		if err := checkView("Slopes", &a.Slopes, tensor.F32, heads); err != nil {
			return err
		}
	}
	if s.Scores&ScoreRelBias != 0 {
		if a.RelBias.Rank != 2 || a.RelBias.Shape[1] < 1 {
			return &ShapeError{"RelBias", a.RelBias.String(), fmt.Sprintf("f32[%d,n] with n at least 1", heads)}
		}
		if err := checkView("RelBias", &a.RelBias, tensor.F32, heads, a.RelBias.Shape[1]); err != nil {
			return err
		}
	}
	if s.Scores&ScorePrefixBias != 0 {
		total := int64(0)
		for i, n := range b.SeqLens {
			if q := b.QueryLen(i); q > int(n) {
				return &ValueError{fmt.Sprintf("queries of sequence %d", i), fmt.Sprint(q), fmt.Sprintf("at most its %d keys: a query's prefix sum is that of its key", n)}
			}
			total += int64(n)
		}
		if err := checkView("PrefixBias", &a.PrefixBias, tensor.F32, total, heads); err != nil {
			return err
		}
	}
	if s.Scores&ScoreSinkLogit != 0 {
		return checkView("SinkLogit", &a.SinkLogit, tensor.F32, heads)
	}
	return nil
}

// checkKeys checks a Key or Value view, and that it holds every row of b.
func (s *Spec) checkKeys(name string, v *tensor.View, b *Batch, dtype tensor.DType, dim int) error {
	if s.PageSize > 0 {
		if err := checkView(name, v, dtype, v.Shape[0], int64(s.PageSize), int64(s.KVHeads), int64(dim)); err != nil {
			return err
		}
		for i, p := range b.Pages.Indices {
			if int64(p) >= v.Shape[0] && !b.Pages.IsCoded(i) {
				return &ValueError{fmt.Sprintf("Batch.Pages.Indices[%d]", i), fmt.Sprint(p), fmt.Sprintf("below the %d pages of %s", v.Shape[0], name)}
			}
		}
		return nil
	}
	if err := checkView(name, v, dtype, v.Shape[0], int64(s.KVHeads), int64(dim)); err != nil {
		return err
	}
	for i, k := range b.KeyStart {
		if end := int64(k) + int64(b.SeqLens[i]); end > v.Shape[0] {
			return &ShapeError{name, fmt.Sprintf("%v", v), fmt.Sprintf("at least %d rows for sequence %d", end, i)}
		}
	}
	return nil
}

// checkCoded checks the coded pages of a Run, and that they hold those of b.
func (s *Spec) checkCoded(key, value *CodedPages, b *Batch) error {
	if s.Coding.IsZero() {
		return nil
	}
	size, heads := int64(s.PageSize), int64(s.KVHeads)
	if err := key.check("CodedKey", &s.Coding.Key, size, heads, s.HeadDim); err != nil {
		return err
	}
	if err := value.check("CodedValue", &s.Coding.Value, size, heads, s.ValueDim); err != nil {
		return err
	}
	return checkCodedPages(b, min(key.Codes.Shape[0], value.Codes.Shape[0]), "CodedKey and CodedValue")
}

// checkCodedPages checks that the coded pages of b are below those there are.
func checkCodedPages(b *Batch, pages int64, name string) error {
	for i, p := range b.Pages.Indices {
		if int64(p) >= pages && b.Pages.IsCoded(i) {
			return &ValueError{fmt.Sprintf("Batch.Pages.Indices[%d]", i), fmt.Sprint(p), fmt.Sprintf("below the %d pages of %s", pages, name)}
		}
	}
	return nil
}

func checkView(name string, v *tensor.View, dtype tensor.DType, shape ...int64) error {
	if !isView(v, dtype, shape...) {
		want := tensor.View{Buf: noBuffer{}, DType: dtype, Rank: len(shape)}
		copy(want.Shape[:], shape)
		return &ShapeError{name, v.String(), want.String()}
	}
	if err := v.Check(); err != nil {
		return fmt.Errorf("kernel: %s: %w", name, err)
	}
	return nil
}

// isView reports whether v is there, of a type and a shape.
func isView(v *tensor.View, dtype tensor.DType, shape ...int64) bool {
	ok := v.Buf != nil && v.DType == dtype && v.Rank == len(shape)
	for i := range shape {
		ok = ok && v.Shape[i] == shape[i]
	}
	return ok
}

type noBuffer struct{}

func (noBuffer) Device() string { return "" }
func (noBuffer) Size() int64    { return 0 }

// Validate checks the views and slots of an append.
func (a *AppendArgs) Validate() error {
	if a == nil {
		return absent("AppendArgs")
	}
	if err := checkCaches("KeyCache", &a.KeyCache, "ValueCache", &a.ValueCache); err != nil {
		return err
	}
	tokens := int64(len(a.Slots))
	for _, c := range [...]struct {
		name              string
		row, cache, scale *tensor.View
	}{{"Key", &a.Key, &a.KeyCache, &a.KeyScale}, {"Value", &a.Value, &a.ValueCache, &a.ValueScale}} {
		if err := checkView(c.name, c.row, c.row.DType, tokens, c.cache.Shape[2], c.cache.Shape[3]); err != nil {
			return err
		}
		if !wide(c.row.DType) && (c.row.DType != c.cache.DType || !c.scale.IsZero()) {
			return &ShapeError{c.name, c.row.String(), "f32, f16 or bf16, or the type of its cache and no scale"}
		}
	}
	if err := checkScales(&a.KeyCache, &a.KeyScale, &a.ValueCache, &a.ValueScale, a.KeyCache.Shape[2]); err != nil {
		return err
	}
	slots := a.KeyCache.Shape[0] * a.KeyCache.Shape[1]
	for i, s := range a.Slots {
		if s < -1 || int64(s) >= slots {
			return &ValueError{fmt.Sprintf("Slots[%d]", i), fmt.Sprint(s), fmt.Sprintf("-1 (drop) to %d", slots-1)}
		}
	}
	return nil
}

// Validate checks the view and pages of a copy.
func (a *CopyArgs) Validate() error {
	if a == nil {
		return absent("CopyArgs")
	}
	c := &a.Cache
	if err := checkView("Cache", c, c.DType, c.Shape[0], c.Shape[1], c.Shape[2], c.Shape[3]); err != nil {
		return err
	}
	if err := lengthOf("Dst", len(a.Dst), len(a.Src)); err != nil {
		return err
	}
	for i := range a.Src {
		for _, p := range [...]int32{a.Src[i], a.Dst[i]} {
			if p < 0 || int64(p) >= c.Shape[0] {
				return &ValueError{fmt.Sprintf("page of copy %d", i), fmt.Sprint(p), fmt.Sprintf("0 to %d", c.Shape[0]-1)}
			}
		}
	}
	// few pages are copied at once; a set would allocate
	for i, p := range a.Dst {
		if slices.Contains(a.Src, p) || slices.Contains(a.Dst[:i], p) {
			return &ValueError{fmt.Sprintf("Dst[%d]", i), fmt.Sprint(p), "a page that is no other source or target"}
		}
	}
	return nil
}

// Validate checks the view, rows and table of a rotation.
func (a *RotateArgs) Validate() error {
	if a == nil {
		return absent("RotateArgs")
	}
	if a.X.Rank != 3 {
		return &ShapeError{"X", a.X.String(), "[tokens, heads, dim]"}
	}
	if err := checkView("X", &a.X, a.X.DType, int64(len(a.Rows)), a.X.Shape[1], a.X.Shape[2]); err != nil {
		return err
	}
	if !wide(a.X.DType) {
		return &ShapeError{"X", a.X.String(), "f32, f16 or bf16"}
	}
	if a.Dim < 2 || a.Dim%2 != 0 || int64(a.Dim) > a.X.Shape[2] {
		return &ValueError{"Dim", fmt.Sprint(a.Dim), fmt.Sprintf("even, 2 to %d", a.X.Shape[2])}
	}
	if a.Layout > Interleaved {
		return &ValueError{"Layout", a.Layout.String(), "half-split or interleaved"}
	}
	if a.Policy > Fast {
		return &ValueError{"Policy", a.Policy.String(), "exact or fast"}
	}
	rows := min(len(a.Table.Cos), len(a.Table.Sin)) / (a.Dim / 2)
	for i, r := range a.Rows {
		if r < -1 || int(r) >= rows {
			return &ValueError{fmt.Sprintf("Rows[%d]", i), fmt.Sprint(r), fmt.Sprintf("-1 (leave alone) to %d", rows-1)}
		}
	}
	return nil
}

// Validate checks the views of a merge.
func (a *MergeArgs) Validate() error {
	if a == nil {
		return absent("MergeArgs")
	}
	o := &a.Out
	if o.Rank != 3 {
		return &ShapeError{"Out", o.String(), "[tokens, heads, dim]"}
	}
	for _, v := range [...]struct {
		name string
		view *tensor.View
	}{{"Out", &a.Out}, {"OutA", &a.OutA}, {"OutB", &a.OutB}} {
		if err := checkView(v.name, v.view, v.view.DType, o.Shape[0], o.Shape[1], o.Shape[2]); err != nil {
			return err
		}
		if !wide(v.view.DType) {
			return &ShapeError{v.name, v.view.String(), "f32, f16 or bf16"}
		}
	}
	for _, v := range [...]struct {
		name string
		view *tensor.View
	}{{"LSE", &a.LSE}, {"LSEA", &a.LSEA}, {"LSEB", &a.LSEB}} {
		if err := checkView(v.name, v.view, tensor.F32, o.Shape[0], o.Shape[1]); err != nil {
			return err
		}
	}
	if a.Policy > Fast {
		return &ValueError{"Policy", a.Policy.String(), "exact or fast"}
	}
	return nil
}
