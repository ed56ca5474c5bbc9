package kerneltest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// setting is a small valid call of a kernel, to be spoiled in one place.
type setting struct {
	spec  kernel.Spec
	batch kernel.Batch
	args  kernel.Args
	grads kernel.BackwardArgs
	stats kernel.ColumnStatsArgs

	*memory
	blocks map[string]*block
}

// newSetting is a Batch of two sequences, of 2 queries and 5 keys, and 1 and 3.
func newSetting(m *memory, pageSize int, codec kernel.Codec) (*setting, error) {
	const tokens, keys = 3, 8
	s := &setting{memory: m, blocks: map[string]*block{}}
	s.spec = kernel.Spec{Heads: 2, KVHeads: 1, HeadDim: 4, ValueDim: 6, DType: tensor.F32, KVDType: tensor.F32, PageSize: pageSize,
		Terms: 1, RotaryDim: 4, Scale: 0.5, Backward: pageSize == 0, ColumnStats: true,
		Masks: kernel.MaskPrefix | kernel.MaskDocument | kernel.MaskTree | kernel.MaskBlocks}
	rows := kernel.RowMap{Count: 8}
	s.batch = kernel.Batch{
		QueryStart: []int32{0, 2, 3}, SeqLens: []int32{5, 3}, KeyStart: []int32{0, 5},
		Terms:      []kernel.Term{{Region: kernel.Region{Diff: kernel.Range{Lo: 0, Hi: kernel.MaxBound}, Key: kernel.All}, RowQ: rows, RowK: rows}},
		ScoreScale: []float32{0.7, 0.7, 0.7},
		PrefixLens: []int32{1, 1}, Documents: make([]int32, keys),
		Tree:   kernel.TreeMask{Start: []int32{0, 2}, Bits: []uint64{1, 3, 1}},
		Blocks: kernel.BlockSparse{QueryBlock: 8, KeyBlock: 8, RowStart: []int32{0, 1}, Indptr: []int32{0, 1, 2}, Indices: []int32{0, 0}},
	}
	s.batch.Rotary, _ = angles(8, 4)
	key, value := []int64{keys, 1, 4}, []int64{keys, 1, 6}
	if pageSize > 0 {
		s.batch.KeyStart = nil
		s.batch.Pages = kernel.BlockTable{Indptr: []int32{0, 3, 5}, Indices: []int32{4, 0, 2, 1, 3}}
		key, value = []int64{5, int64(pageSize), 1, 4}, []int64{5, int64(pageSize), 1, 6}
	}
	if codec != kernel.NoCodec {
		if err := s.code(codec); err != nil {
			return nil, err
		}
	}
	for _, v := range []struct {
		name   string
		view   *tensor.View
		output bool
		shape  []int64
	}{
		{"Query", &s.args.Query, false, []int64{tokens, 2, 4}}, {"Key", &s.args.Key, false, key}, {"Value", &s.args.Value, false, value},
		{"Out", &s.args.Out, true, []int64{tokens, 2, 6}}, {"LSE", &s.args.LSE, true, []int64{tokens, 2}},
		{"DOut", &s.grads.DOut, false, []int64{tokens, 2, 6}}, {"DQuery", &s.grads.DQuery, true, []int64{tokens, 2, 4}},
		{"DKey", &s.grads.DKey, true, key}, {"DValue", &s.grads.DValue, true, value}, {"ColumnStats", &s.stats.Out, true, []int64{keys, 2}},
	} {
		if !v.view.IsZero() { // keys and values of few bits
			continue
		}
		b, _, err := m.filled(v.name, tensor.F32, Layout{}, v.output, 1, v.shape...)
		if err != nil {
			return nil, err
		}
		if *v.view, err = m.hand(b); err != nil {
			return nil, err
		}
	}
	a, g := &s.args, &s.grads
	g.Query, g.Key, g.Value, g.Out, g.LSE = a.Query, a.Key, a.Value, a.Out, a.LSE
	s.stats = kernel.ColumnStatsArgs{Query: a.Query, Key: a.Key, KeyScale: a.KeyScale, CodedKey: a.CodedKey, LSE: a.LSE, Out: s.stats.Out, Power: 1}
	return s, nil
}

// coding has keys per channel and values in groups.
func coding(c kernel.Codec, group int) kernel.Coding {
	return kernel.Coding{Key: kernel.Quantizer{Codec: c}, Value: kernel.Quantizer{Codec: c, Group: group}}
}

// code makes FP8 plain pages with scales of those there are, and codes two
// pages beside them, one of an index that no plain page has.
func (s *setting) code(codec kernel.Codec) error {
	s.spec.Coding, s.spec.KVDType = coding(codec, 3), tensor.F8E4M3
	s.batch.Pages.Coded = []bool{false, false, true, true, false}
	s.batch.Pages.Indices = []int32{4, 0, 6, 0, 3}
	size := int64(s.spec.PageSize)
	for _, v := range []struct {
		name  string
		dtype tensor.DType
		view  *tensor.View
		shape []int64
	}{
		{"Key", tensor.F8E4M3, &s.args.Key, []int64{5, size, 1, 4}}, {"Value", tensor.F8E4M3, &s.args.Value, []int64{5, size, 1, 6}},
		{"KeyScale", tensor.F32, &s.args.KeyScale, []int64{1}}, {"ValueScale", tensor.F32, &s.args.ValueScale, []int64{1}},
		{"CodedKey.Codes", tensor.U8, &s.args.CodedKey.Codes, []int64{7, size, 1, 4}},
		{"CodedKey.Scale", tensor.F16, &s.args.CodedKey.Scale, []int64{7, 1, 4}},
		{"CodedKey.Zero", tensor.F16, &s.args.CodedKey.Zero, []int64{7, 1, 4}},
		{"CodedValue.Codes", tensor.U8, &s.args.CodedValue.Codes, []int64{7, size, 1, 6}},
		{"CodedValue.Scale", tensor.F16, &s.args.CodedValue.Scale, []int64{7, size, 1, 2}},
		{"CodedValue.Zero", tensor.F16, &s.args.CodedValue.Zero, []int64{7, size, 1, 2}},
	} {
		b, err := s.put(v.name, v.dtype, Layout{}, false, true, v.shape...)
		if err != nil {
			return err
		}
		b.fill(make([]float32, b.view.Len()))
		if *v.view, err = s.hand(b); err != nil {
			return err
		}
	}
	return nil
}

// codedViews are the views of a setting with a codec, by name.
func (s *setting) codedViews() map[string]*tensor.View {
	k, v := &s.args.CodedKey, &s.args.CodedValue
	return map[string]*tensor.View{
		"Key": &s.args.Key, "Value": &s.args.Value, "KeyScale": &s.args.KeyScale, "ValueScale": &s.args.ValueScale,
		"CodedKey.Codes": &k.Codes, "CodedKey.Scale": &k.Scale, "CodedKey.Zero": &k.Zero,
		"CodedValue.Codes": &v.Codes, "CodedValue.Scale": &v.Scale, "CodedValue.Zero": &v.Zero,
	}
}

// fault spoils one thing.
type fault struct {
	name  string
	page  int // PageSize
	codec kernel.Codec
	spoil func(s *setting)
}

func specFaults() []fault {
	set := func(name string, f func(*kernel.Spec)) fault {
		return fault{name: name, spoil: func(s *setting) { f(&s.spec) }}
	}
	paged := func(name string, f func(*kernel.Coding)) fault {
		return set(name, func(s *kernel.Spec) {
			s.PageSize, s.Backward, s.Coding = 2, false, coding(kernel.Int8, 3)
			f(&s.Coding)
		})
	}
	return []fault{
		set("no-heads", func(s *kernel.Spec) { s.Heads = 0 }),
		set("no-kvheads", func(s *kernel.Spec) { s.KVHeads = 0 }),
		set("kvheads-do-not-divide", func(s *kernel.Spec) { s.Heads, s.KVHeads = 5, 2 }),
		set("no-headdim", func(s *kernel.Spec) { s.HeadDim, s.RotaryDim = 0, 0 }),
		set("headdim-577", func(s *kernel.Spec) { s.HeadDim = 577 }),
		set("valuedim-0", func(s *kernel.Spec) { s.ValueDim = 0 }),
		set("dtype", func(s *kernel.Spec) { s.DType = 0 }),
		set("kvdtype", func(s *kernel.Spec) { s.KVDType = 77 }),
		set("pagesize-negative", func(s *kernel.Spec) { s.PageSize, s.Backward = -1, false }),
		set("terms-0", func(s *kernel.Spec) { s.Terms = 0 }),
		set("terms-9", func(s *kernel.Spec) { s.Terms = 9 }),
		set("rotarydim-odd", func(s *kernel.Spec) { s.RotaryDim = 3 }),
		set("rotarydim-large", func(s *kernel.Spec) { s.RotaryDim = 6 }),
		set("rotarydim-negative", func(s *kernel.Spec) { s.RotaryDim = -2 }),
		set("rotarylayout", func(s *kernel.Spec) { s.RotaryLayout = 9 }),
		set("keystorage", func(s *kernel.Spec) { s.KeyStorage = 9 }),
		set("policy", func(s *kernel.Spec) { s.Policy = 9 }),
		set("masks", func(s *kernel.Spec) { s.Masks = 0x80 }),
		set("scores", func(s *kernel.Spec) { s.Scores = 0x80 }),
		set("scale-nan", func(s *kernel.Spec) { s.Scale = math.NaN() }),
		set("scale-infinite", func(s *kernel.Spec) { s.Scale = math.Inf(1) }),
		set("softcap-0", func(s *kernel.Spec) { s.Scores = kernel.ScoreSoftCap }),
		set("backward-of-pages", func(s *kernel.Spec) { s.PageSize = 2 }),
		set("dtype-f8", func(s *kernel.Spec) { s.DType = tensor.F8E4M3 }),
		set("dtype-u8", func(s *kernel.Spec) { s.DType = tensor.U8 }),
		set("kvdtype-u8", func(s *kernel.Spec) { s.KVDType = tensor.U8 }),
		set("backward-of-f8", func(s *kernel.Spec) { s.KVDType = tensor.F8E5M2 }),
		set("codec-contiguous", func(s *kernel.Spec) { s.Backward, s.Coding = false, coding(kernel.Int8, 3) }),
		set("codec-backward", func(s *kernel.Spec) { s.PageSize, s.Coding = 2, coding(kernel.Int8, 3) }),
		paged("codec", func(c *kernel.Coding) { c.Key.Codec = 5 }),
		paged("codec-int4-dims", func(c *kernel.Coding) { *c = coding(kernel.Int4, 3) }),
		paged("codec-int2-dims", func(c *kernel.Coding) { c.Key.Codec = kernel.Int2 }),
		paged("codec-of-keys-alone", func(c *kernel.Coding) { c.Value = kernel.Quantizer{} }),
		paged("codec-of-values-alone", func(c *kernel.Coding) { c.Key = kernel.Quantizer{} }),
		paged("group-negative", func(c *kernel.Coding) { c.Value.Group = -3 }),
		paged("group-does-not-divide", func(c *kernel.Coding) { c.Value.Group = 4 }),
		paged("key-group-does-not-divide", func(c *kernel.Coding) { c.Key.Group = 3 }),
		paged("rms-without-levels", func(c *kernel.Coding) { c.Key.RMS = true }),
		paged("outliers-negative", func(c *kernel.Coding) { c.Key.Outliers = -1 }),
		paged("outliers-too-many", func(c *kernel.Coding) { c.Key.Outliers = 9 }),
		paged("rank-negative", func(c *kernel.Coding) { c.Value.Rank = -1 }),
		paged("rank-too-large", func(c *kernel.Coding) { c.Value.Rank = 3 }),
		set("group-without-codec", func(s *kernel.Spec) { s.Coding.Value.Group = 3 }),
	}
}

func batchFaults() []fault {
	set := func(name string, f func(*kernel.Batch)) fault {
		return fault{name: name, spoil: func(s *setting) { f(&s.batch) }}
	}
	pages := func(name string, f func(*kernel.Batch)) fault {
		return fault{name: "pages/" + name, page: 2, spoil: func(s *setting) { f(&s.batch) }}
	}
	coded := func(name string, f func(*kernel.Batch)) fault {
		return fault{name: "coded/" + name, page: 2, codec: kernel.Int8, spoil: func(s *setting) { f(&s.batch) }}
	}
	return []fault{
		set("zero", func(b *kernel.Batch) { *b = kernel.Batch{} }),
		set("querystart-short", func(b *kernel.Batch) { b.QueryStart = b.QueryStart[:2] }),
		set("querystart-not-from-0", func(b *kernel.Batch) { b.QueryStart[0] = 1 }),
		set("querystart-descends", func(b *kernel.Batch) { b.QueryStart[1] = 4 }),
		set("seqlens-negative", func(b *kernel.Batch) { b.SeqLens[0] = -1 }),
		set("keystart-missing", func(b *kernel.Batch) { b.KeyStart = nil }),
		set("keystart-negative", func(b *kernel.Batch) { b.KeyStart[0] = -1 }),
		set("keystart-too-far", func(b *kernel.Batch) { b.KeyStart[1] = 6 }),
		set("keystart-overflows", func(b *kernel.Batch) { b.KeyStart[1] = math.MaxInt32 }),
		set("seqlens-too-long", func(b *kernel.Batch) { b.SeqLens[1], b.Documents = 4, make([]int32, 9) }),
		set("terms-none", func(b *kernel.Batch) { b.Terms, b.ScoreScale = nil, nil }),
		set("terms-too-many", func(b *kernel.Batch) {
			b.Terms, b.ScoreScale = append(b.Terms, b.Terms[0]), append(b.ScoreScale, b.ScoreScale...)
		}),
		set("scorescale-short", func(b *kernel.Batch) { b.ScoreScale = b.ScoreScale[:2] }),
		set("rows-beyond-table", func(b *kernel.Batch) { b.Terms[0].RowQ.Count = 9 }),
		set("rows-none", func(b *kernel.Batch) { b.Terms[0].RowK.Count = 0 }),
		set("rows-negative", func(b *kernel.Batch) { b.Terms[0].RowK.Base = -1 }),
		set("rows-overflow", func(b *kernel.Batch) { b.Terms[0].RowK.Base = math.MaxInt32 }),
		set("rows-div-negative", func(b *kernel.Batch) { b.Terms[0].RowQ.Div = -2 }),
		set("rows-mod-negative", func(b *kernel.Batch) { b.Terms[0].RowQ.Mod = -2 }),
		set("table-missing", func(b *kernel.Batch) { b.Rotary = kernel.RotaryTable{} }),
		set("table-sines-missing", func(b *kernel.Batch) { b.Rotary.Sin = nil }),
		set("chunk-size-negative", func(b *kernel.Batch) { b.Terms[0].Region.Chunk[1].Size = -3 }),
		set("positions-query-short", func(b *kernel.Batch) { b.Positions = &kernel.Positions{Query: make([]int32, 2)} }),
		set("positions-key-short", func(b *kernel.Batch) { b.Positions = &kernel.Positions{Key: make([]int32, 7)} }),
		set("prefix-short", func(b *kernel.Batch) { b.PrefixLens = b.PrefixLens[:1] }),
		set("documents-short", func(b *kernel.Batch) { b.Documents = b.Documents[:7] }),
		set("documents-decrease", func(b *kernel.Batch) { b.Documents[0] = 1 }),
		set("more-queries-than-keys", func(b *kernel.Batch) { b.SeqLens[0], b.Documents = 1, b.Documents[:4] }),
		set("tree-start-missing", func(b *kernel.Batch) { b.Tree.Start = nil }),
		set("tree-start-negative", func(b *kernel.Batch) { b.Tree.Start[0] = -1 }),
		set("tree-bits-short", func(b *kernel.Batch) { b.Tree.Bits = b.Tree.Bits[:2] }),
		set("blocks-size-0", func(b *kernel.Batch) { b.Blocks.QueryBlock = 0 }),
		set("blocks-rowstart-missing", func(b *kernel.Batch) { b.Blocks.RowStart = nil }),
		set("blocks-rowstart-negative", func(b *kernel.Batch) { b.Blocks.RowStart[0] = -1 }),
		set("blocks-rowstart-too-far", func(b *kernel.Batch) { b.Blocks.RowStart[1] = 2 }),
		set("blocks-indptr-descends", func(b *kernel.Batch) { b.Blocks.Indptr[1] = 3 }),
		set("blocks-indices-descend", func(b *kernel.Batch) { b.Blocks.Indptr = []int32{0, 2, 2} }),
		pages("indptr-short", func(b *kernel.Batch) { b.Pages.Indptr = b.Pages.Indptr[:2] }),
		pages("indptr-descends", func(b *kernel.Batch) { b.Pages.Indptr[1] = 6 }),
		pages("too-few", func(b *kernel.Batch) { b.Pages.Indptr[1] = 2 }),
		pages("index-negative", func(b *kernel.Batch) { b.Pages.Indices[1] = -1 }),
		pages("index-too-large", func(b *kernel.Batch) { b.Pages.Indices[1] = 5 }),
		pages("zero", func(b *kernel.Batch) { b.Pages = kernel.BlockTable{} }),
		pages("coded-without-codec", func(b *kernel.Batch) { b.Pages.Coded = []bool{false, false, true, false, false} }),
		coded("flags-short", func(b *kernel.Batch) { b.Pages.Coded = b.Pages.Coded[:4] }),
		coded("flags-long", func(b *kernel.Batch) { b.Pages.Coded = append(b.Pages.Coded, false) }),
		coded("index-negative", func(b *kernel.Batch) { b.Pages.Indices[2] = -1 }),
		coded("index-too-large", func(b *kernel.Batch) { b.Pages.Indices[2] = 7 }),
		coded("plain-index-too-large", func(b *kernel.Batch) { b.Pages.Indices[0] = 5 }),
	}
}

// viewFaults spoil a view of a call; every view of every call is spoiled in
// each of these ways.
var viewFaults = []struct {
	name  string
	spoil func(v *tensor.View)
}{
	{"missing", func(v *tensor.View) { *v = tensor.View{} }},
	{"without-buffer", func(v *tensor.View) { v.Buf = nil }},
	{"dtype", func(v *tensor.View) { v.DType = 0 }},
	{"rank", func(v *tensor.View) { v.Rank-- }},
	{"rank-5", func(v *tensor.View) { v.Rank = 5 }},
	{"last-dimension", func(v *tensor.View) { v.Shape[v.Rank-1]++ }},
	{"heads", func(v *tensor.View) { v.Shape[1]-- }},
	{"negative-rows", func(v *tensor.View) { v.Shape[0] = -1 }},
	{"offset-negative", func(v *tensor.View) { v.Offset = -1 }},
	{"beyond-buffer", func(v *tensor.View) { v.Offset += 1000 }},
	{"stride-beyond-buffer", func(v *tensor.View) { v.Stride[0] *= 3 }},
	{"stride-overflows", func(v *tensor.View) { v.Stride[0] = math.MaxInt64 / 2 }},
	{"stride-negative", func(v *tensor.View) { v.Stride[0] = -1 }},
}

func (t *builder) errors() {
	e := func(name string, check func(*trial)) { t.operation("errors", name, check) }
	for _, f := range specFaults() {
		e("spec/"+f.name, func(t *trial) { t.spoiled(f, atAttention) })
	}
	for _, f := range batchFaults() {
		e("batch/"+f.name, func(t *trial) { t.spoiled(f, atPlan) })
	}
	for _, page := range []int{0, 2} {
		kind := map[int]string{0: "contiguous", 2: "paged"}[page]
		for i, name := range []string{"Query", "Key", "Value", "Out", "LSE"} {
			e("run/"+kind+"/"+name, func(t *trial) {
				t.spoiledViews(page, kernel.NoCodec, func(s *setting) *tensor.View {
					return []*tensor.View{&s.args.Query, &s.args.Key, &s.args.Value, &s.args.Out, &s.args.LSE}[i]
				}, atRun)
			})
		}
		e("valid/"+kind, func(t *trial) { t.valid(page, kernel.NoCodec) })
	}
	e("valid/coded", func(t *trial) { t.valid(2, kernel.Int8) })
	for _, name := range slices.Sorted(maps.Keys(new(setting).codedViews())) {
		e("run/coded/"+name, func(t *trial) {
			t.spoiledViews(2, kernel.Int8, func(s *setting) *tensor.View { return s.codedViews()[name] }, atRun)
		})
	}
	e("run/coded/features-apart", func(t *trial) {
		for _, name := range []string{"CodedKey.Codes", "CodedKey.Scale", "CodedKey.Zero", "CodedValue.Codes", "CodedValue.Scale", "CodedValue.Zero"} {
			t.spoiled(fault{name: name, page: 2, codec: kernel.Int8, spoil: func(s *setting) {
				v := s.codedViews()[name]
				v.Stride[v.Rank-1] = 0
			}}, atRun)
		}
	})
	e("run/scale-of-f32", func(t *trial) {
		t.spoiled(fault{name: "KeyScale", page: 2, spoil: func(s *setting) { s.args.KeyScale = tensor.New(tensor.F32, 1) }}, atRun)
	})
	for i, name := range []string{"Query", "Key", "Value", "Out", "LSE", "DOut", "DQuery", "DKey", "DValue"} {
		e("backward/"+name, func(t *trial) {
			t.spoiledViews(0, kernel.NoCodec, func(s *setting) *tensor.View {
				g := &s.grads
				return []*tensor.View{&g.Query, &g.Key, &g.Value, &g.Out, &g.LSE, &g.DOut, &g.DQuery, &g.DKey, &g.DValue}[i]
			}, atBackward)
		})
	}
	e("backward/shared-rows", func(t *trial) {
		t.spoiled(fault{name: "KeyStart", spoil: func(s *setting) { s.batch.KeyStart[1] = 4 }}, atBackward)
	})
	for i, name := range []string{"Slopes", "RelBias", "PrefixBias", "SinkLogit"} {
		e("run/score-tables/"+name, func(t *trial) {
			t.spoiled(fault{name: name, spoil: func(s *setting) { s.spec.Scores = kernel.ScoreSlopes << i }}, atRun)
		})
	}
	t.statsErrors()
	e("order", (*trial).order)
	t.operationErrors()
}

// where an error must show at the latest.
type stage int

const (
	atAttention stage = iota
	atPlan
	atRun
	atBackward
	atColumnStats
)

// call goes through a setting's stages to the last and returns the first
// error, and the stage that gave it.
func (t *trial) call(s *setting, last stage) (stage, error) {
	s.spec.Policy = max(s.spec.Policy, t.policy)
	k, err := t.backend.Attention(s.spec)
	if err != nil {
		return atAttention, err
	}
	defer k.Close()
	t.result.Kernel = k.Name()
	if err := k.Plan(&s.batch); err != nil {
		if run := k.Run(&s.args); !errors.Is(run, kernel.ErrNoPlan) {
			t.wrong("Run after a Plan that failed gives %v, want %v", run, kernel.ErrNoPlan)
		}
		return atPlan, err
	}
	switch last {
	case atBackward:
		return last, k.Backward(&s.grads)
	case atColumnStats:
		return last, k.ColumnStats(&s.stats)
	}
	return atRun, k.Run(&s.args)
}

func (t *trial) spoiled(f fault, last stage) {
	t.with(func(m *memory) error {
		s, err := newSetting(m, f.page, f.codec)
		if err != nil {
			return err
		}
		f.spoil(s)
		var at stage
		err = guard(func() (err error) { at, err = t.call(s, last); return err })
		var panicked *panicError
		switch {
		case errors.As(err, &panicked):
			t.wrong("%s: %v", f.name, err)
		case err == nil:
			t.wrong("%s: no error", f.name)
		case last == atAttention && at != atAttention:
			t.wrong("%s: the error came after a kernel was chosen: %v", f.name, err)
		case last == atAttention:
			var refusal *kernel.UnsupportedError
			if !errors.As(err, &refusal) || len(refusal.Reasons) == 0 {
				t.wrong("%s: the error is %T (%v), want an UnsupportedError with reasons", f.name, err, err)
			}
		case at == atAttention: // it may not support the setting at all
			return err
		}
		return m.untouched()
	})
}

func (t *trial) spoiledViews(page int, codec kernel.Codec, view func(*setting) *tensor.View, last stage) {
	for _, f := range viewFaults {
		t.spoiled(fault{f.name, page, codec, func(s *setting) {
			v := view(s)
			if scale := v == &s.args.KeyScale || v == &s.args.ValueScale; scale && (f.name == "missing" || f.name == "heads" || f.name == "stride-beyond-buffer" || f.name == "stride-overflows") {
				v.Shape[0]++ // optional, and of one dimension and element
				return
			}
			if optional := v == &s.args.LSE && last == atRun; optional && (f.name == "missing" || f.name == "without-buffer") {
				v = &s.args.Out
			}
			if f.name == "heads" && v.Rank == 4 {
				v.Shape[2]--
				return
			}
			f.spoil(v)
		}}, last)
	}
}

// valid: what the faults spoil is right to begin with, and an empty Batch is
// no fault.
func (t *trial) valid(page int, codec kernel.Codec) {
	t.with(func(m *memory) error {
		s, err := newSetting(m, page, codec)
		if err != nil {
			return err
		}
		last := atRun
		if page == 0 {
			last = atBackward
		}
		if _, err := t.call(s, last); err != nil {
			return err
		}
		if _, err := t.call(s, atColumnStats); err != nil {
			return err
		}
		s.batch = kernel.Batch{QueryStart: []int32{0}, Terms: s.batch.Terms, Rotary: s.batch.Rotary, Blocks: kernel.BlockSparse{QueryBlock: 1, KeyBlock: 1}}
		if page > 0 {
			s.batch.Pages = kernel.BlockTable{Indptr: []int32{0}}
		}
		for _, v := range []*tensor.View{&s.args.Query, &s.args.Out, &s.args.LSE, &s.stats.Query, &s.stats.LSE, &s.stats.Out} {
			v.Shape[0] = 0
		}
		for _, last := range []stage{atRun, atColumnStats} {
			if _, err := t.call(s, last); err != nil {
				return fmt.Errorf("a Batch of no sequences: %w", err)
			}
		}
		return nil
	})
}

// order: Run, Backward and ColumnStats want a Plan, and nothing works after Close.
func (t *trial) order() {
	t.with(func(m *memory) error {
		s, err := newSetting(m, 0, kernel.NoCodec)
		if err != nil {
			return err
		}
		s.spec.Policy = t.policy
		k, err := t.backend.Attention(s.spec)
		if err != nil {
			return err
		}
		t.result.Kernel = k.Name()
		for name, c := range map[string]struct{ got, want error }{
			"Run before Plan":      {k.Run(&s.args), kernel.ErrNoPlan},
			"Backward before Plan": {k.Backward(&s.grads), kernel.ErrNoPlan},
			"Stats before Plan":    {k.ColumnStats(&s.stats), kernel.ErrNoPlan},
			"Close":                {k.Close(), nil},
			"Plan after Close":     {k.Plan(&s.batch), kernel.ErrClosed},
			"Run after Close":      {k.Run(&s.args), kernel.ErrClosed},
			"Backward after Close": {k.Backward(&s.grads), kernel.ErrClosed},
			"Stats after Close":    {k.ColumnStats(&s.stats), kernel.ErrClosed},
		} {
			if !errors.Is(c.got, c.want) {
				t.wrong("%s gives %v, want %v", name, c.got, c.want)
			}
		}
		return m.untouched()
	})
}
