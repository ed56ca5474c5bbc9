package kerneltest

import (
	"errors"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// operands are valid arguments of the operations.
type operands struct {
	appendKV kernel.AppendArgs
	copy     kernel.CopyArgs
	rotate   kernel.RotateArgs
	merge    kernel.MergeArgs
	encode   kernel.EncodeArgs

	pageBounds kernel.PageBoundsArgs
	pageScores kernel.PageScoresArgs
	topK       kernel.TopKArgs
	gather     kernel.GatherArgs
	scores     kernel.ScoresArgs
	scoreLoss  kernel.ScoreLossArgs
	rowScores  kernel.RowScoresArgs
	codeScores kernel.CodeScoresArgs
}

func newOperands(m *memory) (*operands, error) {
	o := new(operands)
	table, _ := angles(4, 4)
	o.appendKV.Slots = []int32{3, -1, 0}
	o.copy.Src, o.copy.Dst = []int32{0, 1}, []int32{2, 3}
	o.encode.Coding, o.encode.Src, o.encode.Dst, o.encode.Encoded = coding(kernel.Int8, 3), []int32{2, 0}, []int32{0, 2}, make([]bool, 2)
	k, v := &o.encode.CodedKey, &o.encode.CodedValue
	o.pageBounds.Pages, o.pageBounds.Rows = []int32{3, 1}, []int32{2, 2}
	o.pageScores = kernel.PageScoresArgs{QueryStart: []int32{0, 2, 3}, Pages: kernel.BlockTable{Indptr: []int32{0, 2, 3}, Indices: []int32{3, 1, 0}}, Scale: 1}
	keys := func() kernel.KeyTable {
		return kernel.KeyTable{QueryStart: []int32{0, 2, 3}, SeqLens: []int32{4, 1}, Pages: kernel.BlockTable{Indptr: []int32{0, 2, 3}, Indices: []int32{3, 1, 0}}}
	}
	o.rowScores = kernel.RowScoresArgs{KeyTable: keys(), Scale: 1, Channels: make([]int32, 3*2*2)}
	o.codeScores = kernel.CodeScoresArgs{KeyTable: keys()}
	o.topK = kernel.TopKArgs{Counts: []int32{7, 0, 3}, K: 2, Out: make([]int32, 12)}
	o.gather = kernel.GatherArgs{Dst: []int32{7, 0}, Start: []int32{0, 1, 3}, Src: []int32{1, 2, 3}, Weights: []float32{1, 0.5, 2}}
	o.scores = kernel.ScoresArgs{QueryStart: []int32{0, 2, 3}, KeyStart: []int32{0, 1, 4}, Scale: 1}
	l := &o.scoreLoss
	*l = kernel.ScoreLossArgs{QueryStart: []int32{0, 2, 3}, KeyStart: []int32{0, 1, 4}, Gradient: 1}
	o.rotate = kernel.RotateArgs{Rows: []int32{0, -1, 3}, Table: table, Dim: 4}
	for _, v := range []struct {
		view   *tensor.View
		output bool
		shape  []int64
	}{
		{&o.encode.Key, false, []int64{3, 2, 2, 4}}, {&o.encode.Value, false, []int64{3, 2, 2, 6}},
		{&k.Codes, true, []int64{3, 2, 2, 4}}, {&k.Scale, true, []int64{3, 2, 4}}, {&k.Zero, true, []int64{3, 2, 4}},
		{&v.Codes, true, []int64{3, 2, 2, 6}}, {&v.Scale, true, []int64{3, 2, 2, 2}}, {&v.Zero, true, []int64{3, 2, 2, 2}},
		{&o.appendKV.Key, false, []int64{3, 2, 4}}, {&o.appendKV.Value, false, []int64{3, 2, 6}},
		{&o.appendKV.KeyCache, true, []int64{4, 2, 2, 4}}, {&o.appendKV.ValueCache, true, []int64{4, 2, 2, 6}},
		{&o.copy.Cache, true, []int64{4, 2, 2, 4}}, {&o.rotate.X, true, []int64{3, 2, 6}},
		{&o.merge.OutA, false, []int64{3, 2, 6}}, {&o.merge.LSEA, false, []int64{3, 2}},
		{&o.merge.OutB, false, []int64{3, 2, 6}}, {&o.merge.LSEB, false, []int64{3, 2}},
		{&o.merge.Out, true, []int64{3, 2, 6}}, {&o.merge.LSE, true, []int64{3, 2}},
		{&o.pageBounds.Key, false, []int64{4, 2, 2, 4}}, {&o.pageBounds.Min, true, []int64{4, 2, 4}}, {&o.pageBounds.Max, true, []int64{4, 2, 4}},
		{&o.pageScores.Query, false, []int64{3, 4, 4}}, {&o.pageScores.Min, false, []int64{4, 2, 4}}, {&o.pageScores.Max, false, []int64{4, 2, 4}},
		{&o.pageScores.Out, true, []int64{3, 4, 2}}, {&o.topK.Scores, false, []int64{3, 2, 7}},
		{&o.gather.Cache, true, []int64{4, 2, 2, 4}},
		{&o.scores.Query, false, []int64{3, 4, 5}}, {&o.scores.Key, false, []int64{4, 4, 5}}, {&o.scores.Out, true, []int64{4, 5}},
		{&l.Student.Query, false, []int64{3, 4, 5}}, {&l.Student.Key, false, []int64{4, 4, 5}},
		{&l.Teacher.Query, false, []int64{3, 4, 6}}, {&l.Teacher.Key, false, []int64{4, 4, 6}},
		{&l.Out, true, []int64{3, 4}}, {&l.DQuery, true, []int64{3, 4, 5}}, {&l.DKey, true, []int64{4, 4, 5}},
		{&o.rowScores.Query, false, []int64{3, 4, 4}}, {&o.rowScores.Key, false, []int64{4, 2, 2, 4}}, {&o.rowScores.Out, true, []int64{3, 4, 4}},
		{&o.codeScores.Table, false, []int64{3, 4, 8}}, {&o.codeScores.Codes, false, []int64{4, 2, 2, 2}}, {&o.codeScores.Out, true, []int64{3, 4, 4}},
	} {
		dtype := tensor.F32
		switch v.view {
		case &k.Codes, &o.encode.CodedValue.Codes, &o.codeScores.Codes:
			dtype = tensor.U8
		case &k.Scale, &k.Zero, &o.encode.CodedValue.Scale, &o.encode.CodedValue.Zero:
			dtype = tensor.F16
		}
		b, err := m.put("operand", dtype, Layout{}, v.output, true, v.shape...)
		if err == nil {
			b.fill(make([]float32, b.view.Len()))
		}
		if err != nil {
			return nil, err
		}
		if *v.view, err = m.hand(b); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// calls are the operations by name, with their views.
var calls = []struct {
	name  string
	call  func(b kernel.Backend, o *operands) error
	views func(o *operands) []*tensor.View
}{
	{"append", func(b kernel.Backend, o *operands) error { return b.AppendKV(&o.appendKV) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.appendKV.Key, &o.appendKV.Value, &o.appendKV.KeyCache, &o.appendKV.ValueCache}
	}},
	{"encode", func(b kernel.Backend, o *operands) error { return b.EncodePages(&o.encode) }, func(o *operands) []*tensor.View {
		e := &o.encode
		return []*tensor.View{&e.Key, &e.Value, &e.CodedKey.Codes, &e.CodedKey.Scale, &e.CodedKey.Zero, &e.CodedValue.Codes, &e.CodedValue.Scale, &e.CodedValue.Zero}
	}},
	{"copy", func(b kernel.Backend, o *operands) error { return b.CopyPages(&o.copy) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.copy.Cache}
	}},
	{"gather", func(b kernel.Backend, o *operands) error { return b.GatherRows(&o.gather) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.gather.Cache}
	}},
	{"rotate", func(b kernel.Backend, o *operands) error { return b.Rotate(&o.rotate) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.rotate.X}
	}},
	{"merge", func(b kernel.Backend, o *operands) error { return b.Merge(&o.merge) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.merge.OutA, &o.merge.LSEA, &o.merge.OutB, &o.merge.LSEB, &o.merge.Out, &o.merge.LSE}
	}},
	{"pagebounds", func(b kernel.Backend, o *operands) error { return b.PageBounds(&o.pageBounds) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.pageBounds.Key, &o.pageBounds.Min, &o.pageBounds.Max}
	}},
	{"pagescores", func(b kernel.Backend, o *operands) error { return b.PageScores(&o.pageScores) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.pageScores.Query, &o.pageScores.Min, &o.pageScores.Max, &o.pageScores.Out}
	}},
	{"topk", func(b kernel.Backend, o *operands) error { return b.TopK(&o.topK) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.topK.Scores}
	}},
	{"scores", func(b kernel.Backend, o *operands) error { return b.Scores(&o.scores) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.scores.Query, &o.scores.Key, &o.scores.Out}
	}},
	{"scoreloss", func(b kernel.Backend, o *operands) error { return b.ScoreLoss(&o.scoreLoss) }, func(o *operands) []*tensor.View {
		l := &o.scoreLoss
		return []*tensor.View{&l.Student.Query, &l.Student.Key, &l.Teacher.Query, &l.Teacher.Key, &l.Out, &l.DQuery, &l.DKey}
	}},
	{"rowscores", func(b kernel.Backend, o *operands) error { return b.RowScores(&o.rowScores) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.rowScores.Query, &o.rowScores.Key, &o.rowScores.Out}
	}},
	{"codescores", func(b kernel.Backend, o *operands) error { return b.CodeScores(&o.codeScores) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.codeScores.Table, &o.codeScores.Codes, &o.codeScores.Out}
	}},
}

// operandFault spoils what is not a view.
type operandFault struct {
	name  string
	spoil func(o *operands)
}

var operandFaults = map[string][]operandFault{
	"append": {
		{"slot-too-large", func(o *operands) { o.appendKV.Slots[0] = 8 }},
		{"slot-negative", func(o *operands) { o.appendKV.Slots[0] = -2 }},
		{"slots-short", func(o *operands) { o.appendKV.Slots = o.appendKV.Slots[:2] }},
		{"zero", func(o *operands) { o.appendKV = kernel.AppendArgs{} }},
		{"scale-of-f32", func(o *operands) { o.appendKV.KeyScale = tensor.New(tensor.F32, 2) }},
		{"scale-of-one-head", func(o *operands) {
			o.appendKV.ValueCache, o.appendKV.ValueScale = tensor.New(tensor.F8E4M3, 4, 2, 2, 6), tensor.New(tensor.F32, 1)
		}},
		{"scale-of-f8-rows", func(o *operands) {
			o.appendKV.Value, o.appendKV.ValueCache = tensor.New(tensor.F8E4M3, 3, 2, 6), tensor.New(tensor.F8E4M3, 4, 2, 2, 6)
			o.appendKV.ValueScale = tensor.New(tensor.F32, 2)
		}},
		{"f8-rows-of-another-type", func(o *operands) {
			o.appendKV.Value, o.appendKV.ValueCache = tensor.New(tensor.F8E5M2, 3, 2, 6), tensor.New(tensor.F8E4M3, 4, 2, 2, 6)
		}},
		{"u8", func(o *operands) {
			o.appendKV.Value, o.appendKV.ValueCache = tensor.New(tensor.U8, 3, 2, 6), tensor.New(tensor.U8, 4, 2, 2, 6)
		}},
	},
	"encode": {
		{"codec-none", func(o *operands) { o.encode.Coding = kernel.Coding{} }},
		{"codec-unknown", func(o *operands) { o.encode.Coding.Value.Codec = 5 }},
		{"codec-int4", func(o *operands) { o.encode.Coding.Key.Codec = kernel.Int4 }},
		{"source-too-large", func(o *operands) { o.encode.Src[1] = 3 }},
		{"source-negative", func(o *operands) { o.encode.Src[1] = -1 }},
		{"target-too-large", func(o *operands) { o.encode.Dst[1] = 3 }},
		{"target-negative", func(o *operands) { o.encode.Dst[1] = -1 }},
		{"target-twice", func(o *operands) { o.encode.Dst[1] = o.encode.Dst[0] }},
		{"targets-short", func(o *operands) { o.encode.Dst = o.encode.Dst[:1] }},
		{"results-short", func(o *operands) { o.encode.Encoded = o.encode.Encoded[:1] }},
		{"scale-of-f32", func(o *operands) { o.encode.KeyScale = tensor.New(tensor.F32, 2) }},
		{"codes-as-plain", func(o *operands) { o.encode.Key = tensor.New(tensor.U8, 3, 2, 2, 4) }},
		{"groups-do-not-divide", func(o *operands) {
			o.encode.CodedValue.Scale, o.encode.CodedValue.Zero = tensor.New(tensor.F16, 3, 2, 2, 4), tensor.New(tensor.F16, 3, 2, 2, 4)
		}},
		{"features-577", func(o *operands) {
			o.encode.Key, o.encode.CodedKey = tensor.New(tensor.F32, 3, 2, 2, 577), kernel.CodedPages{
				Codes: tensor.New(tensor.U8, 3, 2, 2, 577), Scale: tensor.New(tensor.F16, 3, 2, 577), Zero: tensor.New(tensor.F16, 3, 2, 577)}
		}},
		{"features-apart", func(o *operands) { o.encode.CodedKey.Codes.Stride[3] = 0 }},
		{"zero", func(o *operands) { o.encode = kernel.EncodeArgs{} }},
	},
	"copy": {
		{"source-too-large", func(o *operands) { o.copy.Src[1] = 4 }},
		{"source-negative", func(o *operands) { o.copy.Src[1] = -1 }},
		{"target-too-large", func(o *operands) { o.copy.Dst[1] = 4 }},
		{"target-negative", func(o *operands) { o.copy.Dst[1] = -1 }},
		{"targets-short", func(o *operands) { o.copy.Dst = o.copy.Dst[:1] }},
		{"zero", func(o *operands) { o.copy = kernel.CopyArgs{} }},
	},
	"rotate": {
		{"row-too-large", func(o *operands) { o.rotate.Rows[2] = 4 }},
		{"row-negative", func(o *operands) { o.rotate.Rows[2] = -2 }},
		{"rows-short", func(o *operands) { o.rotate.Rows = o.rotate.Rows[:2] }},
		{"dim-0", func(o *operands) { o.rotate.Dim = 0 }},
		{"dim-odd", func(o *operands) { o.rotate.Dim = 3 }},
		{"dim-too-large", func(o *operands) { o.rotate.Dim = 8 }},
		{"table-sines-short", func(o *operands) { o.rotate.Table.Sin = o.rotate.Table.Sin[:7] }},
		{"layout", func(o *operands) { o.rotate.Layout = 7 }},
		{"policy", func(o *operands) { o.rotate.Policy = 7 }},
		{"f8", func(o *operands) { o.rotate.X = tensor.New(tensor.F8E4M3, 3, 2, 6) }},
		{"zero", func(o *operands) { o.rotate = kernel.RotateArgs{} }},
	},
	"merge": {
		{"policy", func(o *operands) { o.merge.Policy = 7 }},
		{"f8", func(o *operands) { o.merge.Out = tensor.New(tensor.F8E5M2, 3, 2, 6) }},
		{"zero", func(o *operands) { o.merge = kernel.MergeArgs{} }},
	},
	"pagebounds": boundsFaults,
	"pagescores": scoresFaults,
	"topk":       topKFaults,
	"gather":     gatherFaults,
	"scores":     tapFaults,
	"scoreloss":  scoreLossFaults,
	"rowscores":  rowFaults,
	"codescores": codeFaults,
}

func (t *builder) operationErrors() {
	for _, c := range calls {
		try := func(t *trial, name string, spoil func(o *operands)) {
			t.with(func(m *memory) error {
				o, err := newOperands(m)
				if err != nil {
					return err
				}
				o.rotate.Policy, o.merge.Policy = t.policy, t.policy
				spoil(o)
				var panicked *panicError
				if err := guard(func() error { return c.call(t.backend, o) }); err == nil {
					t.wrong("%s: no error", name)
				} else if errors.As(err, &panicked) {
					t.wrong("%s: %v", name, err)
				}
				return m.untouched()
			})
		}
		t.operation("errors", c.name+"/views", func(t *trial) {
			for i := range c.views(new(operands)) {
				for _, f := range viewFaults {
					if f.name == "heads" && len(c.views(new(operands))) == 1 {
						continue // a tensor alone may have any number of heads
					}
					try(t, f.name, func(o *operands) { f.spoil(c.views(o)[i]) })
				}
			}
		})
		for _, f := range operandFaults[c.name] {
			t.operation("errors", c.name+"/"+f.name, func(t *trial) { try(t, f.name, f.spoil) })
		}
		t.operation("errors", c.name+"/valid", func(t *trial) {
			t.with(func(m *memory) error {
				o, err := newOperands(m)
				if err != nil {
					return err
				}
				return c.call(t.backend, o)
			})
		})
	}
}
