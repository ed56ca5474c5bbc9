package kerneltest_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kernel/kerneltest"
	"github.com/longctx/longctx/tensor"
)

// A suite that cannot fail proves nothing: these backends are wrong in one way
// each, and the cases named must notice.

// wrong wraps a right backend. Its hooks run around the calls.
type wrong struct {
	kernel.Backend
	choose   func(*kernel.Spec) error
	plan     func(*kernel.Batch) *kernel.Batch
	before   func(*kernel.Args)
	after    func(*kernel.Args)
	backward func(*kernel.BackwardArgs)
	appendKV func(*kernel.AppendArgs)
	copied   func(*kernel.CopyArgs)
	encoded  func(*kernel.EncodeArgs)
	gather   func(*kernel.GatherArgs)
	rotate   func(*kernel.RotateArgs)
	merged   func(*kernel.MergeArgs)
	stats    func(*kernel.ColumnStatsArgs)
	summed   func(*kernel.ColumnStatsArgs)
	bounds   func(*kernel.PageBoundsArgs)
	scores   func(*kernel.PageScoresArgs)
	bounded  func(*kernel.PageScoresArgs)
	choice   func(*kernel.TopKArgs) // before
	chosen   func(*kernel.TopKArgs) // after
	tapped   func(*kernel.ScoresArgs)
	loss     func(*kernel.ScoreLossArgs)  // before
	lost     func(*kernel.ScoreLossArgs)  // after
	rows     func(*kernel.RowScoresArgs)  // before
	codes    func(*kernel.CodeScoresArgs) // after
	deaf     bool                         // no errors
}

func (w *wrong) Attention(s kernel.Spec) (kernel.Attention, error) {
	if w.choose != nil {
		if err := w.choose(&s); err != nil {
			return nil, err
		}
	}
	a, err := w.Backend.Attention(s)
	if err != nil {
		return nil, err
	}
	return &wrongAttention{a, w}, nil
}

func (w *wrong) hear(err error) error {
	if w.deaf {
		return nil
	}
	return err
}

func (w *wrong) AppendKV(a *kernel.AppendArgs) error {
	b := *a
	if w.appendKV != nil {
		w.appendKV(&b)
	}
	return w.hear(w.Backend.AppendKV(&b))
}

func (w *wrong) CopyPages(a *kernel.CopyArgs) error {
	err := w.Backend.CopyPages(a)
	if w.copied != nil && err == nil {
		w.copied(a)
	}
	return w.hear(err)
}

func (w *wrong) EncodePages(a *kernel.EncodeArgs) error {
	err := w.Backend.EncodePages(a)
	if w.encoded != nil && err == nil {
		w.encoded(a)
	}
	return w.hear(err)
}

func (w *wrong) GatherRows(a *kernel.GatherArgs) error {
	b := *a
	if w.gather != nil {
		w.gather(&b)
	}
	return w.hear(w.Backend.GatherRows(&b))
}

func (w *wrong) Rotate(a *kernel.RotateArgs) error {
	b := *a
	if w.rotate != nil {
		w.rotate(&b)
	}
	return w.hear(w.Backend.Rotate(&b))
}

func (w *wrong) Merge(a *kernel.MergeArgs) error {
	err := w.Backend.Merge(a)
	if w.merged != nil && err == nil {
		w.merged(a)
	}
	return w.hear(err)
}

func (w *wrong) PageBounds(a *kernel.PageBoundsArgs) error {
	b := *a
	if w.bounds != nil {
		w.bounds(&b)
	}
	return w.hear(w.Backend.PageBounds(&b))
}

func (w *wrong) TopK(a *kernel.TopKArgs) error {
	b := *a
	if w.choice != nil {
		w.choice(&b)
	}
	err := w.Backend.TopK(&b)
	if err == nil && w.chosen != nil {
		w.chosen(&b)
	}
	return w.hear(err)
}

func (w *wrong) RowScores(a *kernel.RowScoresArgs) error {
	b := *a
	if w.rows != nil {
		w.rows(&b)
	}
	return w.hear(w.Backend.RowScores(&b))
}

func (w *wrong) CodeScores(a *kernel.CodeScoresArgs) error {
	err := w.Backend.CodeScores(a)
	if w.codes != nil && err == nil {
		w.codes(a)
	}
	return w.hear(err)
}

func (w *wrong) PageScores(a *kernel.PageScoresArgs) error {
	b := *a
	if w.scores != nil {
		w.scores(&b)
	}
	err := w.Backend.PageScores(&b)
	if w.bounded != nil && err == nil {
		w.bounded(&b)
	}
	return w.hear(err)
}

func (w *wrong) Scores(a *kernel.ScoresArgs) error {
	err := w.Backend.Scores(a)
	if err == nil && w.tapped != nil {
		w.tapped(a)
	}
	return w.hear(err)
}

func (w *wrong) ScoreLoss(a *kernel.ScoreLossArgs) error {
	b := *a
	if w.loss != nil {
		w.loss(&b)
	}
	err := w.Backend.ScoreLoss(&b)
	if err == nil && w.lost != nil {
		w.lost(&b)
	}
	return w.hear(err)
}

type wrongAttention struct {
	kernel.Attention
	w *wrong
}

func (a *wrongAttention) Plan(b *kernel.Batch) error {
	if a.w.plan != nil {
		b = a.w.plan(b)
	}
	return a.Attention.Plan(b)
}

func (a *wrongAttention) Run(args *kernel.Args) error {
	b := *args
	if a.w.before != nil {
		a.w.before(&b)
	}
	err := a.Attention.Run(&b)
	if a.w.after != nil && err == nil {
		a.w.after(args)
	}
	return a.w.hear(err)
}

func (a *wrongAttention) Backward(args *kernel.BackwardArgs) error {
	err := a.Attention.Backward(args)
	if a.w.backward != nil && err == nil {
		a.w.backward(args)
	}
	return err
}

func (a *wrongAttention) ColumnStats(args *kernel.ColumnStatsArgs) error {
	b := *args
	if a.w.stats != nil {
		a.w.stats(&b)
	}
	err := a.Attention.ColumnStats(&b)
	if a.w.summed != nil && err == nil {
		a.w.summed(&b)
	}
	return a.w.hear(err)
}

// flip changes the last bit of the last element of a view.
func flip(v *tensor.View) {
	at := v.Offset
	for d := range v.Rank {
		at += (v.Shape[d] - 1) * v.Stride[d]
	}
	if x := v.F32s(); x != nil {
		x[at] = math.Float32frombits(math.Float32bits(x[at]) ^ 1)
	} else if b := v.Bits8(); b != nil {
		b[at] ^= 1
	} else {
		v.Bits()[at] ^= 1
	}
}

func shift(b *kernel.Batch, change func(*kernel.Region)) *kernel.Batch {
	c := *b
	c.Terms = append([]kernel.Term(nil), b.Terms...)
	for i := range c.Terms {
		change(&c.Terms[i].Region)
	}
	return &c
}

func TestWrongBackendsAreCaught(t *testing.T) {
	defer cpu.UseVariant(cpu.Variant())
	if err := cpu.UseVariant("generic"); err != nil { // whose Fast is not its Exact
		t.Fatal(err)
	}
	right := cpu.New(cpu.Options{Workers: 1})
	defer right.Close()
	byName := map[string]kerneltest.Case{}
	for _, c := range kerneltest.Cases() {
		byName[c.String()] = c
	}
	const exact, fast = kernel.Exact, kernel.Fast
	type catch struct {
		name   string
		policy kernel.Policy
	}
	for _, w := range []struct {
		name  string
		wrong wrong
		catch []catch
		says  string
	}{
		{"last bit of Out", wrong{after: func(a *kernel.Args) { flip(&a.Out) }},
			[]catch{{"attention/batch/mixed", exact}, {"attention/types/bf16/bf16/paged", exact}, {"attention/extreme/nan-key", exact}}, "bits"},
		{"last bit of LSE", wrong{after: func(a *kernel.Args) {
			if !a.LSE.IsZero() {
				flip(&a.LSE)
			}
		}}, []catch{{"attention/decode/keys=1", exact}, {"attention/decode/keys=513", exact}}, "bits"},
		{"one element off by a thousandth", wrong{after: func(a *kernel.Args) { a.Out.Set(a.Out.At(0, 0, 0)*1.001+0.001, 0, 0, 0) }},
			[]catch{{"attention/decode/keys=513", fast}, {"attention/batch/mixed", fast}, {"attention/mask/tree", fast}}, "off"},
		{"mask one key short", wrong{plan: func(b *kernel.Batch) *kernel.Batch {
			return shift(b, func(r *kernel.Region) { r.Diff.Lo++ })
		}}, []catch{{"attention/mask/causal", fast}, {"attention/prefill/tokens=65", exact}, {"attention/mask/band", fast}}, ""},
		{"window one key long", wrong{plan: func(b *kernel.Batch) *kernel.Batch {
			return shift(b, func(r *kernel.Region) { r.Diff.Hi = max(r.Diff.Hi, r.Diff.Hi+1) })
		}}, []catch{{"attention/mask/window=20", fast}, {"attention/extreme/masked-nan/window", fast}}, ""},
		{"positions one off", wrong{plan: func(b *kernel.Batch) *kernel.Batch {
			c := *shift(b, func(*kernel.Region) {})
			for i := range c.Terms {
				c.Terms[i].RowQ.First++
			}
			return &c
		}}, []catch{{"attention/rotation/half-split/pre-RoPE", fast}, {"attention/positions/rerope", fast}}, ""},
		{"documents not looked at", wrong{plan: func(b *kernel.Batch) *kernel.Batch {
			c := *b
			c.Documents = make([]int32, len(b.Documents))
			return &c
		}}, []catch{{"attention/mask/documents", fast}, {"attention/extreme/masked-nan/documents", fast}}, ""},
		{"tree one bit wrong", wrong{plan: func(b *kernel.Batch) *kernel.Batch {
			c := *b
			c.Tree.Bits = append([]uint64(nil), b.Tree.Bits...)
			if len(c.Tree.Bits) > 2 {
				c.Tree.Bits[2] ^= 1 // the root, seen by the second query
			}
			return &c
		}}, []catch{{"attention/mask/tree", fast}}, ""},
		{"two pages exchanged", wrong{plan: func(b *kernel.Batch) *kernel.Batch {
			c := *b
			if p := append([]int32(nil), b.Pages.Indices...); len(p) > 1 {
				p[0], p[1] = p[1], p[0]
				c.Pages.Indices = p
			}
			return &c
		}}, []catch{{"attention/rotation/half-split/pre-RoPE/f16-paged", fast}, {"attention/pages=16/f32", exact}, {"identity/page-size/1", exact}}, ""},
		{"first row depends on the batch", wrong{after: func(a *kernel.Args) {
			if a.Out.Shape[0] > 1 {
				a.Out.Set(a.Out.At(0, 0, 0)*(1+1e-6), 0, 0, 0)
			}
		}}, []catch{{"identity/row-alone/0", exact}, {"identity/chunked-prefill/0", exact}}, "alone|chunks"},
		{"different from run to run", wrong{after: counter()}, []catch{{"identity/run-to-run/0", fast}, {"identity/backward/run-to-run", exact}}, "run"},
		{"writes before Out", wrong{after: func(a *kernel.Args) { a.Out.F32s()[0] = 1 }}, []catch{{"attention/layout=2/paged", fast}}, "around"},
		{"writes past a head", wrong{after: func(a *kernel.Args) {
			if s := a.Out.Stride[1]; s > a.Out.Shape[2] {
				a.Out.F32s()[a.Out.Offset+a.Out.Shape[2]] = 0
			}
		}}, []catch{{"attention/layout=2/paged", fast}}, "around"},
		{"writes to Key", wrong{after: func(a *kernel.Args) { flip(&a.Key) }}, []catch{{"attention/batch/mixed", fast}}, "changed"},
		{"a row left out", wrong{before: func(a *kernel.Args) { a.Out = tensor.New(a.Out.DType, a.Out.Shape[:3]...) }},
			[]catch{{"attention/batch/mixed", fast}, {"attention/batch/no-keys", exact}}, ""},
		{"empty rows of LSE 0", wrong{after: func(a *kernel.Args) {
			for i := range a.LSE.Shape[0] {
				if math.IsInf(float64(a.LSE.At(i, 0)), -1) {
					a.LSE.Set(0, i, 0)
				}
			}
		}}, []catch{{"attention/batch/no-keys", fast}, {"attention/batch/more-queries-than-keys", fast}}, "LSE"},
		{"no sink logit", wrong{choose: func(s *kernel.Spec) error { s.Scores &^= kernel.ScoreSinkLogit; return nil }},
			[]catch{{"attention/score/sinklogit/causal", fast}}, ""},
		{"NaN made 0", wrong{after: func(a *kernel.Args) {
			for i := range a.Out.Shape[0] {
				for h := range a.Out.Shape[1] {
					for d := range a.Out.Shape[2] {
						if x := a.Out.At(i, h, d); x != x {
							a.Out.Set(0, i, h, d)
						}
					}
				}
			}
		}}, []catch{{"attention/extreme/nan-query", fast}, {"attention/extreme/nan-value", exact}}, ""},
		{"panics", wrong{plan: func(*kernel.Batch) *kernel.Batch { panic("ouch") }}, []catch{{"attention/batch/mixed", exact}}, "ouch"},
		{"bare refusal", wrong{choose: func(*kernel.Spec) error { return fmt.Errorf("no: %w", errors.ErrUnsupported) }}, []catch{{"attention/batch/mixed", exact}}, "say what"},
		{"refusal", wrong{choose: func(*kernel.Spec) error {
			return &kernel.UnsupportedError{Backend: "wrong", Reasons: []string{"it is late"}}
		}}, []catch{{"attention/batch/mixed", exact}, {"identity/layout/0", exact}, {"errors/batch/zero", fast}}, "late"},
		{"Exact where Fast is asked is right, Fast where Exact is asked is not", wrong{choose: func(s *kernel.Spec) error { s.Policy = fast; return nil }},
			[]catch{{"attention/batch/mixed", exact}}, "bits"},
		{"last bit of DQuery", wrong{backward: func(a *kernel.BackwardArgs) { flip(&a.DQuery) }}, []catch{{"backward/score/all", exact}}, "DQuery"},
		{"DKey doubled", wrong{backward: func(a *kernel.BackwardArgs) {
			for i := range a.DKey.F32s() {
				a.DKey.F32s()[i] *= 2
			}
		}}, []catch{{"backward/score/all", fast}, {"backward/layout=0", exact}}, "DKey"},
		{"slots one off", wrong{appendKV: func(a *kernel.AppendArgs) {
			a.Slots = append([]int32(nil), a.Slots...)
			a.Slots[0], a.Slots[1] = a.Slots[1], a.Slots[0]
		}}, []catch{{"append/f32-to-f32", exact}}, "KeyCache"},
		{"drops not dropped", wrong{appendKV: func(a *kernel.AppendArgs) {
			a.Slots = append([]int32(nil), a.Slots...)
			for i, s := range a.Slots {
				if s < 0 {
					a.Slots[i] = a.Slots[0]
				}
			}
		}}, []catch{{"append/bf16-to-f16", exact}}, "Cache"},
		{"a copied page spoiled", wrong{copied: func(a *kernel.CopyArgs) { v := a.Cache.Slice(0, 1, 2); flip(&v) }}, []catch{{"copy/f16", exact}}, "Cache"},
		{"coded pages taken for plain", wrong{plan: func(b *kernel.Batch) *kernel.Batch {
			c := *b
			c.Pages.Coded = make([]bool, len(b.Pages.Coded))
			return &c
		}}, []catch{{"attention/format/int8/pages=16/odd", fast}, {"attention/format/int4/pages=64/all", exact}, {"identity/decoded/2", exact}}, ""},
		{"two coded pages exchanged", wrong{plan: func(b *kernel.Batch) *kernel.Batch {
			c := *b
			c.Pages.Indices = append([]int32(nil), b.Pages.Indices...)
			last := -1
			for i, coded := range b.Pages.Coded {
				if coded && last >= 0 {
					c.Pages.Indices[i], c.Pages.Indices[last] = c.Pages.Indices[last], c.Pages.Indices[i]
				}
				if coded {
					last = i
				}
			}
			return &c
		}}, []catch{{"attention/format/int4/pages=16/all", fast}, {"attention/format/int8/pages=17/old", exact}}, ""},
		{"scales ignored", wrong{before: func(a *kernel.Args) { a.KeyScale, a.ValueScale = tensor.View{}, tensor.View{} }},
			[]catch{{"attention/format/f8e4m3/scaled=true/contiguous", fast}, {"attention/format/f8e5m2/scaled=true/paged", fast}, {"identity/decoded/0", exact}, {"identity/decoded/3", exact}}, ""},
		{"scales and zeros exchanged", wrong{before: func(a *kernel.Args) {
			a.CodedValue.Scale, a.CodedValue.Zero = a.CodedValue.Zero, a.CodedValue.Scale
		}}, []catch{{"attention/format/int8/valuegroup=5", fast}, {"attention/format/int4/dim=64", fast}}, ""},
		{"outliers ignored", wrong{choose: sides(func(q *kernel.Quantizer) { q.Outliers = 0 })},
			[]catch{{"attention/format/coding=int2/levels/outliers=7+int4/g64/levels/outliers=3/pages=16", fast}, {"identity/coding=int2/levels/outliers=7+int4/g64/levels/outliers=3/decoded", exact}}, ""},
		{"low rank ignored", wrong{choose: sides(func(q *kernel.Quantizer) { q.Rank = 0 })},
			[]catch{{"attention/format/coding=int2/rank=2+int4/g64/rank=3/pages=64", fast}, {"identity/coding=int2/rank=2+int4/g64/rank=3/decoded", exact}}, ""},
		{"levels ignored", wrong{choose: sides(func(q *kernel.Quantizer) { q.Levels, q.RMS = false, false })},
			[]catch{{"attention/format/coding=int4/levels+int2/g16/levels/pages=16", fast}, {"identity/coding=int4/levels+int2/g16/levels/decoded", exact}}, ""},
		{"levels of another head", wrong{before: func(a *kernel.Args) { a.CodedValue.Levels.Stride[0] = 0 }},
			[]catch{{"attention/format/coding=int4/levels+int2/g16/levels/pages=5", fast}}, ""},
		{"FP8 of the other kind", wrong{choose: func(s *kernel.Spec) error {
			if s.KVDType.Float8() {
				s.KVDType = tensor.F8E4M3 + tensor.F8E5M2 - s.KVDType
			}
			return nil
		}, before: func(a *kernel.Args) {
			a.Key.DType, a.Value.DType = tensor.F8E4M3+tensor.F8E5M2-a.Key.DType, tensor.F8E4M3+tensor.F8E5M2-a.Value.DType
		}}, []catch{{"attention/format/f8e4m3/scaled=false/contiguous", fast}}, ""},
		{"append without scales", wrong{appendKV: func(a *kernel.AppendArgs) { a.KeyScale = tensor.View{} }},
			[]catch{{"append/f32-to-f8e4m3/scaled/layout=0", exact}}, "KeyCache"},
		{"a code one off", wrong{encoded: func(a *kernel.EncodeArgs) {
			v := a.CodedValue.Codes.Slice(0, int64(a.Dst[0]), int64(a.Dst[0])+1)
			flip(&v)
		}}, []catch{{"encode/int8/layout=0", exact}, {"encode/int4/f16", exact}}, "CodedValue.Codes"},
		{"an outlier one off", wrong{encoded: func(a *kernel.EncodeArgs) {
			if !a.CodedKey.Outliers.IsZero() {
				v := a.CodedKey.Outliers.Slice(0, int64(a.Dst[0]), int64(a.Dst[0])+1)
				flip(&v)
			}
		}}, []catch{{"encode/coding=int2/levels/outliers=7+int4/g64/levels/outliers=3", exact}}, "CodedKey.Outliers"},
		{"a low rank one off", wrong{encoded: func(a *kernel.EncodeArgs) {
			if !a.CodedValue.Right.IsZero() {
				v := a.CodedValue.Right.Slice(0, int64(a.Dst[0]), int64(a.Dst[0])+1)
				flip(&v)
			}
		}}, []catch{{"encode/coding=int2/rank=2+int4/g64/rank=3/f16", exact}}, "CodedValue.Right"},
		{"a scale of a page that is no target", wrong{encoded: func(a *kernel.EncodeArgs) {
			v := a.CodedKey.Scale.Slice(0, 3, 4)
			flip(&v)
		}}, []catch{{"encode/int8/bf16", exact}}, "CodedKey.Scale"},
		{"what has no place in F16 encoded", wrong{encoded: func(a *kernel.EncodeArgs) {
			for i := range a.Encoded {
				a.Encoded[i] = true
			}
		}}, []catch{{"encode/int4/layout=1", exact}, {"encode/int8/bf16", exact}}, "refused"},
		{"weights of gathered rows ignored", wrong{gather: func(a *kernel.GatherArgs) { a.Weights = nil }},
			[]catch{{"gather/f32/layout=0", exact}, {"gather/f8e5m2/layout=1", exact}, {"gather/dim=600", exact}}, "Cache"},
		{"two sources of a gathered row exchanged", wrong{gather: func(a *kernel.GatherArgs) {
			a.Src = append([]int32(nil), a.Src...)
			a.Src[0], a.Src[1] = a.Src[1], a.Src[0]
		}}, []catch{{"gather/many", exact}, {"gather/bf16/layout=2", exact}}, "Cache"},
		{"layouts confused", wrong{rotate: func(a *kernel.RotateArgs) { a.Layout = 1 - a.Layout }}, []catch{{"rotate/f32/half-split/dim=10/inverse=false", fast}}, "X"},
		{"inverse ignored", wrong{rotate: func(a *kernel.RotateArgs) { a.Inverse = false }}, []catch{{"rotate/bf16/interleaved/dim=32/inverse=true", fast}, {"rotate/there-and-back", exact}}, "X"},
		{"rotation on the tail", wrong{rotate: func(a *kernel.RotateArgs) { flip(&a.X) }}, []catch{{"rotate/f32/half-split/dim=10/inverse=false", fast}}, "not rotated"},
		{"last bit of a merge", wrong{merged: func(a *kernel.MergeArgs) { flip(&a.Out) }}, []catch{{"merge/f32-to-f32/in-place=false", exact}}, "Out"},
		{"merged LSE off", wrong{merged: func(a *kernel.MergeArgs) { a.LSE.Set(a.LSE.At(0, 0)+0.001, 0, 0) }}, []catch{{"merge/bf16-to-bf16/in-place=true", fast}, {"merge/halves/f32", fast}}, "LSE"},
		{"window ignored", wrong{stats: func(a *kernel.ColumnStatsArgs) { a.Window = 0 }},
			[]catch{{"columnstats/power=1/window=3", fast}, {"identity/columnstats/window/0", exact}, {"identity/columnstats/sums-to-one/1", fast}}, "ColumnStats"},
		{"window one query long", wrong{stats: func(a *kernel.ColumnStatsArgs) {
			if a.Window > 0 {
				a.Window++
			}
		}}, []catch{{"columnstats/prefill/tokens=300/window=127", fast}, {"identity/columnstats/window/2", exact}}, "ColumnStats"},
		{"sum for the largest weight", wrong{stats: func(a *kernel.ColumnStatsArgs) { a.Maximum = false }},
			[]catch{{"columnmax/prefill/tokens=300/window=0", fast}, {"columnmax/types/bf16/f16/paged", exact}}, "ColumnStats"},
		{"last bit of a largest weight", wrong{summed: func(a *kernel.ColumnStatsArgs) { flip(&a.Out) }},
			[]catch{{"columnmax/mixed", exact}}, "ColumnStats"},
		{"weights not squared", wrong{stats: func(a *kernel.ColumnStatsArgs) { a.Power = 1 }},
			[]catch{{"columnstats/power=2/window=0", fast}, {"columnstats/types/bf16/f16/paged", fast}}, "ColumnStats"},
		{"last bit of a sum of weights", wrong{summed: func(a *kernel.ColumnStatsArgs) { flip(&a.Out) }},
			[]catch{{"columnstats/score/all", exact}, {"columnstats/format/int4/odd", exact}}, "ColumnStats"},
		{"sums of unseen keys left alone", wrong{summed: func(a *kernel.ColumnStatsArgs) {
			for j := range a.Out.Shape[0] {
				if a.Out.At(j, 0) == 0 {
					a.Out.Set(float32(math.NaN()), j, 0)
				}
			}
		}}, []catch{{"columnstats/power=1/window=0", fast}, {"columnstats/mask/window", exact}}, "ColumnStats"},
		{"keys of few bits without scale", wrong{stats: func(a *kernel.ColumnStatsArgs) { a.KeyScale = tensor.View{} }},
			[]catch{{"columnstats/format/f8e4m3/scaled=true", fast}}, "ColumnStats"},
		{"bounds of one slot less", wrong{bounds: func(a *kernel.PageBoundsArgs) {
			a.Rows = append([]int32(nil), a.Rows...)
			for i := range a.Rows {
				a.Rows[i] = max(a.Rows[i]-1, 0)
			}
		}}, []catch{{"pagebounds/f16-to-f32", exact}, {"pagebounds/many", exact}}, "Min"},
		{"bounds of slots that do not count", wrong{bounds: func(a *kernel.PageBoundsArgs) {
			a.Rows = append([]int32(nil), a.Rows...)
			for i := range a.Rows {
				a.Rows[i] = int32(a.Key.Shape[1])
			}
		}}, []catch{{"pagebounds/layout=0", exact}}, "Max"},
		{"bounds exchanged", wrong{scores: func(a *kernel.PageScoresArgs) { a.Min, a.Max = a.Max, a.Min }},
			[]catch{{"pagescores/layout=1", fast}, {"pagescores/dim=300", exact}}, "Out"},
		{"last bit of a page's score", wrong{bounded: func(a *kernel.PageScoresArgs) {
			v := a.Out.Slice(2, 0, 1).Slice(0, 0, 1)
			flip(&v)
		}}, []catch{{"pagescores/dim=64", exact}}, "Out"},
		{"pages that are not there score 0", wrong{bounded: func(a *kernel.PageScoresArgs) {
			for n := range a.Out.Shape[2] {
				if math.IsInf(float64(a.Out.At(0, 0, n)), -1) {
					a.Out.Set(0, 0, 0, n)
				}
			}
		}}, []catch{{"pagescores/spare-columns", fast}, {"pagescores/no-pages", exact}}, "Inf"},
		{"scores that do not count are chosen", wrong{choice: func(a *kernel.TopKArgs) { a.Counts = nil }},
			[]catch{{"topk/n=300/k=17/kind=0/counts=true", exact}}, "indices"},
		{"of equal scores the last are chosen", wrong{chosen: func(a *kernel.TopKArgs) {
			row := a.Out[:a.K]
			for c, i := range row {
				for j := range int32(a.Scores.Shape[2]) {
					if j > i && !slices.Contains(row, j) && a.Scores.At(0, 0, int64(j)) == a.Scores.At(0, 0, int64(i)) {
						row[c] = j
						return
					}
				}
			}
		}}, []catch{{"topk/n=300/k=17/kind=1/counts=false", exact}}, "indices"},
		{"a NaN is chosen", wrong{chosen: func(a *kernel.TopKArgs) {
			if x := a.Scores.At(0, 0, 1); x != x || math.IsInf(float64(x), -1) {
				a.Out[0] = 1
			}
		}}, []catch{{"topk/n=300/k=17/kind=2/counts=false", exact}}, "indices"},
		{"last bit of a score before softmax", wrong{tapped: func(a *kernel.ScoresArgs) { flip(&a.Out) }},
			[]catch{{"scores/ragged", exact}}, "Out"},
		{"scores of two queries exchanged", wrong{tapped: func(a *kernel.ScoresArgs) {
			x, y := a.Out.At(0, 0), a.Out.At(0, 5)
			a.Out.Set(y, 0, 0)
			a.Out.Set(x, 0, 5)
		}}, []catch{{"scores/ragged", fast}, {"scores/bf16", fast}}, "Out"},
		{"the sign of a gradient", wrong{loss: func(a *kernel.ScoreLossArgs) { a.Gradient = -a.Gradient }}, []catch{{"scoreloss/ragged", fast}, {"scoreloss/groups", fast}}, "DQuery"},
		{"no score is set to 0", wrong{loss: func(a *kernel.ScoreLossArgs) { a.ZeroBelow = 0 }},
			[]catch{{"scoreloss/zero-below", exact}}, "Out"},
		{"last bit of a gradient of keys", wrong{lost: func(a *kernel.ScoreLossArgs) { flip(&a.DKey) }},
			[]catch{{"scoreloss/ragged", exact}}, "DKey"},
		{"gradients without the teacher's scale", wrong{loss: func(a *kernel.ScoreLossArgs) { a.Teacher.Scale = 1 }},
			[]catch{{"scoreloss/ragged", fast}, {"scoreloss/no-gradient", fast}}, "Out"},
		{"channels not looked at", wrong{rows: func(a *kernel.RowScoresArgs) { a.Channels = nil }},
			[]catch{{"rowscores/layout=1/channels=5", fast}, {"rowscores/dim=300/channels=300", exact}}, "Out"},
		{"channels in another order", wrong{rows: func(a *kernel.RowScoresArgs) {
			a.Channels = slices.Clone(a.Channels)
			n := len(a.Channels) / int(a.Query.Shape[0]*a.Key.Shape[2])
			for i := 0; i < len(a.Channels); i += n {
				slices.Reverse(a.Channels[i:][:n])
			}
		}}, []catch{{"rowscores/dim=300/channels=300", exact}}, "Out"},
		{"last key of a sequence left out", wrong{rows: func(a *kernel.RowScoresArgs) {
			a.SeqLens = slices.Clone(a.SeqLens)
			for s, n := range a.SeqLens {
				if n%int32(a.Key.Shape[1]) > 1 {
					a.SeqLens[s]--
				}
			}
		}}, []catch{{"rowscores/decode/keys=130/channels=0", fast}}, "Out"},
		{"last bit of a score by codes", wrong{codes: func(a *kernel.CodeScoresArgs) {
			v := a.Out.Slice(2, 0, 1).Slice(0, 0, 1)
			flip(&v)
		}}, []catch{{"codescores/codes=256/parts=16", exact}}, "Out"},
		{"deaf to errors", wrong{deaf: true}, []catch{{"errors/rowscores/views", fast}, {"errors/scores/views", fast}, {"errors/scoreloss/views", fast}, {"errors/scoreloss/one-gradient", exact}, {"errors/codescores/coded", exact}, {"errors/topk/views", fast}, {"errors/topk/k-0", exact}, {"errors/columnstats/power-3", exact}, {"errors/pagebounds/rows-too-many", exact}, {"errors/pagescores/views", fast},
			{"errors/run/contiguous/Query", exact}, {"errors/append/slot-too-large", exact}, {"errors/copy/views", fast},
			{"errors/gather/views", fast}, {"errors/gather/target-is-source", exact}, {"errors/encode/views", fast}, {"errors/encode/target-twice", exact}, {"errors/run/coded/CodedKey.Scale", exact}, {"errors/append/scale-of-f32", exact},
			{"errors/rotate/row-too-large", exact}, {"errors/merge/views", exact}, {"errors/order", exact}}, ""},
		{"Out written before the check", wrong{before: func(a *kernel.Args) {
			if a.Out.Buf != nil && len(a.Out.F32s()) > 0 {
				a.Out.F32s()[0] = 1
			}
		}}, []catch{{"errors/run/contiguous/Query", exact}}, "in spite"},
	} {
		t.Run(w.name, func(t *testing.T) {
			w.wrong.Backend = right
			for _, at := range w.catch {
				c, ok := byName[at.name]
				if !ok {
					t.Errorf("no case %s", at.name)
					continue
				}
				if r := kerneltest.Check(right, c, at.policy); !r.OK() {
					t.Errorf("the right backend: %v", &r)
				}
				r := kerneltest.Check(&w.wrong, c, at.policy)
				if r.OK() {
					t.Errorf("%s %v does not notice", at.name, at.policy)
				}
				said := false
				for _, s := range strings.Split(w.says, "|") {
					said = said || strings.Contains(r.String(), s)
				}
				if !said {
					t.Errorf("%s %v does not say %q: %v", at.name, at.policy, w.says, &r)
				}
			}
		})
	}
}

// counter makes every run a little different.
func counter() func(*kernel.Args) {
	n := float32(0)
	return func(a *kernel.Args) {
		n++
		a.Out.Set(n, 0, 0, 0)
	}
}
