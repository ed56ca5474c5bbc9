package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// statsErrors: what is wrong in a ColumnStats is said, and nothing is written.
func (t *builder) statsErrors() {
	e := func(name string, check func(*trial)) { t.operation("errors", "columnstats/"+name, check) }
	for i, name := range []string{"Query", "Key", "LSE", "Out"} {
		for _, page := range []int{0, 2} {
			e(fmt.Sprintf("page=%d/%s", page, name), func(t *trial) {
				t.spoiledViews(page, kernel.NoCodec, func(s *setting) *tensor.View {
					return []*tensor.View{&s.stats.Query, &s.stats.Key, &s.stats.LSE, &s.stats.Out}[i]
				}, atColumnStats)
			})
		}
	}
	for i, name := range []string{"CodedKey.Codes", "CodedKey.Scale", "CodedKey.Zero"} {
		e(name, func(t *trial) {
			t.spoiledViews(2, kernel.Int8, func(s *setting) *tensor.View {
				k := &s.stats.CodedKey
				return []*tensor.View{&k.Codes, &k.Scale, &k.Zero}[i]
			}, atColumnStats)
		})
	}
	for _, f := range []fault{
		{"power-0", 0, kernel.NoCodec, func(s *setting) { s.stats.Power = 0 }},
		{"power-3", 2, kernel.NoCodec, func(s *setting) { s.stats.Power = 3 }},
		{"power-negative", 0, kernel.NoCodec, func(s *setting) { s.stats.Power = -1 }},
		{"window-negative", 0, kernel.NoCodec, func(s *setting) { s.stats.Window = -1 }},
		{"window-least", 0, kernel.NoCodec, func(s *setting) { s.stats.Window = math.MinInt }},
		{"scale-of-f32", 2, kernel.NoCodec, func(s *setting) { s.stats.KeyScale = tensor.New(tensor.F32, 1) }},
		{"scale-of-two-heads", 2, kernel.Int8, func(s *setting) { s.stats.KeyScale = tensor.New(tensor.F32, 2) }},
		{"few-coded-pages", 2, kernel.Int8, func(s *setting) {
			for _, v := range []*tensor.View{&s.stats.CodedKey.Codes, &s.stats.CodedKey.Scale, &s.stats.CodedKey.Zero} {
				v.Shape[0] = 1
			}
		}},
		{"few-pages", 2, kernel.NoCodec, func(s *setting) { s.stats.Key.Shape[0] = 4 }},
		{"few-rows", 0, kernel.NoCodec, func(s *setting) { s.stats.Key.Shape[0] = 7 }},
		{"no-slopes", 0, kernel.NoCodec, func(s *setting) { s.spec.Scores = kernel.ScoreSlopes }},
		{"no-prefix-bias", 2, kernel.NoCodec, func(s *setting) { s.spec.Scores = kernel.ScorePrefixBias }},
		{"not-asked-for", 0, kernel.NoCodec, func(s *setting) { s.spec.ColumnStats = false }},
		{"zero", 0, kernel.NoCodec, func(s *setting) { s.stats = kernel.ColumnStatsArgs{} }},
	} {
		e(f.name, func(t *trial) { t.spoiled(f, atColumnStats) })
	}
}

var (
	boundsFaults = []operandFault{
		{"page-too-large", func(o *operands) { o.pageBounds.Pages[1] = 4 }},
		{"page-negative", func(o *operands) { o.pageBounds.Pages[1] = -1 }},
		{"rows-too-many", func(o *operands) { o.pageBounds.Rows[1] = 3 }},
		{"rows-negative", func(o *operands) { o.pageBounds.Rows[1] = -1 }},
		{"rows-short", func(o *operands) { o.pageBounds.Rows = o.pageBounds.Rows[:1] }},
		{"narrower", func(o *operands) { o.pageBounds.Min = tensor.New(tensor.F16, 4, 2, 4) }},
		{"f16-of-f8", func(o *operands) {
			o.pageBounds.Key, o.pageBounds.Max = tensor.New(tensor.F8E4M3, 4, 2, 2, 4), tensor.New(tensor.F16, 4, 2, 4)
		}},
		{"f8", func(o *operands) {
			o.pageBounds.Key, o.pageBounds.Max = tensor.New(tensor.F8E4M3, 4, 2, 2, 4), tensor.New(tensor.F8E4M3, 4, 2, 4)
		}},
		{"codes", func(o *operands) { o.pageBounds.Key = tensor.New(tensor.U8, 4, 2, 2, 4) }},
		{"scale-of-f32", func(o *operands) { o.pageBounds.KeyScale = tensor.New(tensor.F32, 2) }},
		{"zero", func(o *operands) { o.pageBounds = kernel.PageBoundsArgs{} }},
	}
	scoresFaults = []operandFault{
		{"page-too-large", func(o *operands) { o.pageScores.Pages.Indices[1] = 4 }},
		{"page-negative", func(o *operands) { o.pageScores.Pages.Indices[1] = -1 }},
		{"coded", func(o *operands) { o.pageScores.Pages.Coded = []bool{false, true, false} }},
		{"indptr-short", func(o *operands) { o.pageScores.Pages.Indptr = o.pageScores.Pages.Indptr[:2] }},
		{"indptr-descends", func(o *operands) { o.pageScores.Pages.Indptr[1] = 4 }},
		{"indptr-negative", func(o *operands) { o.pageScores.Pages.Indptr[0] = -1 }},
		{"more-pages-than-columns", func(o *operands) { o.pageScores.Out.Shape[2] = 1 }},
		{"querystart-none", func(o *operands) { o.pageScores.QueryStart, o.pageScores.Pages.Indptr = nil, nil }},
		{"querystart-not-from-0", func(o *operands) { o.pageScores.QueryStart[0] = 1 }},
		{"querystart-descends", func(o *operands) { o.pageScores.QueryStart[1] = 4 }},
		{"querystart-short", func(o *operands) { o.pageScores.QueryStart[2] = 2 }},
		{"heads-do-not-divide", func(o *operands) {
			o.pageScores.Query, o.pageScores.Out = tensor.New(tensor.F32, 3, 5, 4), tensor.New(tensor.F32, 3, 5, 2)
		}},
		{"scale-0", func(o *operands) { o.pageScores.Scale = 0 }},
		{"scale-negative", func(o *operands) { o.pageScores.Scale = -1 }},
		{"scale-nan", func(o *operands) { o.pageScores.Scale = float32(math.NaN()) }},
		{"scale-infinite", func(o *operands) { o.pageScores.Scale = float32(math.Inf(1)) }},
		{"policy", func(o *operands) { o.pageScores.Policy = 7 }},
		{"f8", func(o *operands) { o.pageScores.Min = tensor.New(tensor.F8E4M3, 4, 2, 4) }},
		{"zero", func(o *operands) { o.pageScores = kernel.PageScoresArgs{} }},
	}
)
