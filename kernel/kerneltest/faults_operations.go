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
}

func newOperands(m *memory) (*operands, error) {
	o := new(operands)
	table, _ := angles(4, 4)
	o.appendKV.Slots = []int32{3, -1, 0}
	o.copy.Src, o.copy.Dst = []int32{0, 1}, []int32{2, 3}
	o.rotate = kernel.RotateArgs{Rows: []int32{0, -1, 3}, Table: table, Dim: 4}
	for _, v := range []struct {
		view   *tensor.View
		output bool
		shape  []int64
	}{
		{&o.appendKV.Key, false, []int64{3, 2, 4}}, {&o.appendKV.Value, false, []int64{3, 2, 6}},
		{&o.appendKV.KeyCache, true, []int64{4, 2, 2, 4}}, {&o.appendKV.ValueCache, true, []int64{4, 2, 2, 6}},
		{&o.copy.Cache, true, []int64{4, 2, 2, 4}}, {&o.rotate.X, true, []int64{3, 2, 6}},
		{&o.merge.OutA, false, []int64{3, 2, 6}}, {&o.merge.LSEA, false, []int64{3, 2}},
		{&o.merge.OutB, false, []int64{3, 2, 6}}, {&o.merge.LSEB, false, []int64{3, 2}},
		{&o.merge.Out, true, []int64{3, 2, 6}}, {&o.merge.LSE, true, []int64{3, 2}},
	} {
		b, _, err := m.filled("operand", tensor.F32, Layout{}, v.output, 1, v.shape...)
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
	{"copy", func(b kernel.Backend, o *operands) error { return b.CopyPages(&o.copy) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.copy.Cache}
	}},
	{"rotate", func(b kernel.Backend, o *operands) error { return b.Rotate(&o.rotate) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.rotate.X}
	}},
	{"merge", func(b kernel.Backend, o *operands) error { return b.Merge(&o.merge) }, func(o *operands) []*tensor.View {
		return []*tensor.View{&o.merge.OutA, &o.merge.LSEA, &o.merge.OutB, &o.merge.LSEB, &o.merge.Out, &o.merge.LSE}
	}},
}

// operandFaults spoil what is not a view.
var operandFaults = map[string][]struct {
	name  string
	spoil func(o *operands)
}{
	"append": {
		{"slot-too-large", func(o *operands) { o.appendKV.Slots[0] = 8 }},
		{"slot-negative", func(o *operands) { o.appendKV.Slots[0] = -2 }},
		{"slots-short", func(o *operands) { o.appendKV.Slots = o.appendKV.Slots[:2] }},
		{"zero", func(o *operands) { o.appendKV = kernel.AppendArgs{} }},
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
		{"zero", func(o *operands) { o.rotate = kernel.RotateArgs{} }},
	},
	"merge": {
		{"policy", func(o *operands) { o.merge.Policy = 7 }},
		{"zero", func(o *operands) { o.merge = kernel.MergeArgs{} }},
	},
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
