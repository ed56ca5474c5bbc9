package attention_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// good is a small valid Config.
func good() attention.Config {
	return attention.Config{Heads: 4, KVHeads: 2, HeadDim: 8, Mask: attention.Causal()}
}

func wantError(t *testing.T, what string, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want one with %q", what, parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: error %q, want one with %q", what, err, part)
		}
	}
}

func TestNewNamesEveryFault(t *testing.T) {
	b := backend(t, 1)
	for name, c := range map[string]struct {
		change func(*attention.Config)
		want   []string
	}{
		"nothing":         {func(c *attention.Config) { *c = attention.Config{} }, []string{"Heads 0", "KVHeads 0", "HeadDim 0", "Mask has no regions"}},
		"heads":           {func(c *attention.Config) { c.KVHeads = 3 }, []string{"KVHeads 3 does not divide Heads 4"}},
		"negative heads":  {func(c *attention.Config) { c.Heads = -4 }, []string{"Heads -4, want 1 to 4096"}},
		"head dimension":  {func(c *attention.Config) { c.HeadDim = 577 }, []string{"HeadDim 577, want 1 to 576"}},
		"value dimension": {func(c *attention.Config) { c.ValueDim = -1 }, []string{"ValueDim -1"}},
		"types":           {func(c *attention.Config) { c.DType, c.KVDType = 9, 8 }, []string{"DType DType(9)", "KVDType DType(8)", "bf16"}},
		"few bits":        {func(c *attention.Config) { c.DType, c.KVDType = tensor.F8E4M3, tensor.U8 }, []string{"DType f8e4m3", "KVDType u8, want f32, f16, bf16, f8e4m3 or f8e5m2"}},
		"codec":           {func(c *attention.Config) { c.Coding = kernel.KIVI(kernel.Int8, 64) }, []string{"Coding int8+int8/g64 of contiguous keys"}},
		"codec of 4 bits": {func(c *attention.Config) {
			c.Coding, c.PageSize, c.HeadDim, c.ValueDim = kernel.KIVI(kernel.Int4, 6), 4, 6, 6
		}, []string{"HeadDim 6 with Codec int4, want a multiple of 8", "ValueDim 6"}},
		"value groups": {func(c *attention.Config) {
			c.Coding, c.PageSize, c.Coding.Value.Group = kernel.KIVI(kernel.Int8, 8), 4, 3
		}, []string{"Coding.Value.Group 3, want 0 or a divisor of ValueDim"}},
		"page size":          {func(c *attention.Config) { c.PageSize = -16 }, []string{"PageSize -16"}},
		"scale":              {func(c *attention.Config) { c.Scale = math.NaN() }, []string{"Scale NaN"}},
		"infinite scale":     {func(c *attention.Config) { c.Scale = math.Inf(1) }, []string{"Scale +Inf"}},
		"soft cap":           {func(c *attention.Config) { c.Score.SoftCap = -2 }, []string{"SoftCap -2"}},
		"log-n":              {func(c *attention.Config) { c.Score.LogN = 1 }, []string{"LogN 1"}},
		"policy":             {func(c *attention.Config) { c.Policy = 7 }, []string{"Policy", "exact or fast"}},
		"key storage":        {func(c *attention.Config) { c.KeyStorage = 3 }, []string{"KeyStorage", "pre-RoPE or post-RoPE"}},
		"mask kinds":         {func(c *attention.Config) { c.Mask.Kinds = 0x80 }, []string{"Masks 0x80 has unknown bits"}},
		"window":             {func(c *attention.Config) { c.Mask = attention.Window(-1) }, []string{"Mask region 0"}},
		"long window":        {func(c *attention.Config) { c.Mask = attention.Window(math.MaxInt) }, []string{"Mask region 0"}},
		"sinks":              {func(c *attention.Config) { c.Mask = attention.WindowSinks(4, -1) }, []string{"Mask region 1"}},
		"chunk":              {func(c *attention.Config) { c.Mask = attention.Chunked(-3) }, []string{"chunk size"}},
		"position":           {func(c *attention.Config) { c.Position = attention.ReRoPE{} }, []string{"Position rerope: Window is 0"}},
		"position, no terms": {func(c *attention.Config) { c.Position = literal{} }, []string{"literal has no terms"}},
		"terms":              {func(c *attention.Config) { c.Position = literal(make([]attention.Term, 9)); everywhere(c) }, []string{"9 terms, want 1 to 8"}},
		"rotary":             {func(c *attention.Config) { c.Rotary = plain{dim: 16} }, []string{"Rotary: rotates 16 features", "HeadDim 8"}},
		"odd rotary":         {func(c *attention.Config) { c.Rotary = plain{dim: 3} }, []string{"Rotary: rotates 3 features"}},
		"rotary's own error": {func(c *attention.Config) { c.Rotary = failing{} }, []string{"Rotary: out of frequencies"}},
		"paged backward":     {func(c *attention.Config) { c.Backward, c.PageSize = true, 4 }, []string{"Backward with PageSize 4"}},
		"post-RoPE keys": {func(c *attention.Config) {
			c.Position, c.Rotary, c.KeyStorage = attention.ReRoPE{Window: 4}, plain{dim: 8}, kernel.PostRoPE
		}, []string{"post-RoPE", "rerope"}},
		"chunks of all sizes": {func(c *attention.Config) { c.Mask = chunks(5, 7); c.Position = attention.DCA{Chunk: 6, Local: 2} }, []string{"more than two chunk sizes"}},
	} {
		config := good()
		c.change(&config)
		a, err := attention.New(b, config)
		wantError(t, name, err, append(c.want, "attention: ")...)
		var e *attention.ConfigError
		if err != nil && (!errors.As(err, &e) || len(e.Problems) == 0) {
			t.Errorf("%s: %T, want a *ConfigError", name, err)
		}
		if a != nil {
			t.Errorf("%s: an Attention beside an error", name)
		}
	}
	_, err := attention.New(nil, good())
	wantError(t, "no backend", err, "backend is nil")
}

func everywhere(c *attention.Config) {
	for i := range c.Position.(literal) {
		c.Position.(literal)[i].Region = kernel.Everywhere
	}
}

func chunks(a, b int32) attention.Mask {
	r := kernel.Everywhere
	r.Chunk[0] = kernel.ChunkRange{Size: a, Range: kernel.Range{Lo: 0, Hi: 1}}
	r.Chunk[1] = kernel.ChunkRange{Size: b, Range: kernel.Range{Lo: 0, Hi: 1}}
	return attention.Mask{Regions: []kernel.Region{r}}
}

type failing struct{}

func (failing) Rotation(int) (kernel.Rotation, error) {
	return kernel.Rotation{}, errors.New("out of frequencies")
}

func TestAndOfThreeChunkSizesIsAnError(t *testing.T) {
	_, err := chunks(5, 7).And(attention.Chunked(3))
	wantError(t, "three chunk sizes", err, "attention: Mask.And", "two chunk sizes")
}

// codedTable is a KVSource that says which pages are coded.
type codedTable struct {
	attention.KVSource
	coded []bool
}

func (p *codedTable) LowerKV(dst *kernel.Batch) error {
	dst.Pages.Coded = append(dst.Pages.Coded, p.coded...)
	return p.KVSource.LowerKV(dst)
}

// broken is a KVSource with faults of its own.
type broken struct {
	pages
	err error
}

func (b *broken) LowerKV(dst *kernel.Batch) error {
	if b.err != nil {
		return b.err
	}
	return b.pages.LowerKV(dst)
}

func TestPlanRefusesBadSteps(t *testing.T) {
	b := backend(t, 1)
	const over = math.MaxInt32
	own := errors.New("the pages are gone")
	table := func(indptr, indices []int32, lens ...int32) *broken {
		return &broken{pages: pages{size: 4, lens: lens, table: kernel.BlockTable{Indptr: indptr, Indices: indices}}}
	}
	masked := func(m attention.Mask) func(*attention.Config) { return func(c *attention.Config) { c.Mask = m } }
	paged := func(c *attention.Config) { c.PageSize = 4 }
	coded := func(c *attention.Config) { c.PageSize, c.Coding = 4, kernel.KIVI(kernel.Int8, 8) }
	for name, c := range map[string]struct {
		config func(*attention.Config) // nil: good
		step   attention.Step
		want   string
	}{
		"nothing":              {nil, attention.Step{}, "QueryLens is empty"},
		"negative queries":     {nil, attention.Step{QueryLens: []int{3, -1}}, "QueryLens[1] is -1"},
		"too many queries":     {nil, attention.Step{QueryLens: []int{over, 1}}, "QueryLens[1] is 1 after 2147483647"},
		"queries past int32":   {nil, attention.Step{QueryLens: []int{past()}}, "QueryLens[0]"},
		"negative keys":        {nil, attention.Step{QueryLens: []int{1}, KeyLens: []int{-1}}, "-1 keys"},
		"too many keys":        {nil, attention.Step{QueryLens: []int{1}, KeyLens: []int{past()}}, "keys from row 0"},
		"too many keys in all": {nil, attention.Step{QueryLens: []int{1, 1}, KeyLens: []int{over, 1}}, "rows below 2³¹"},
		"far rows":             {nil, attention.Step{QueryLens: []int{1}, KeyLens: []int{2}, KeyStarts: []int{over - 1}}, "rows below 2³¹"},
		"negative rows":        {nil, attention.Step{QueryLens: []int{1}, KeyLens: []int{2}, KeyStarts: []int{-1}}, "from row -1"},
		"sequences of keys":    {nil, attention.Step{QueryLens: []int{1, 1}, KeyLens: []int{1}}, "KeyLens has 1 sequences, want 2"},
		"sequences of rows":    {nil, attention.Step{QueryLens: []int{1}, KeyStarts: []int{0, 0}}, "KeyStarts has 2 sequences, want 1"},
		"negative length":      {nil, attention.Step{QueryLens: []int{1}, Length: -1}, "Length is -1"},
		"query positions":      {nil, attention.Step{QueryLens: []int{3}, QueryPos: make([]int32, 2)}, "2 query positions, want 3"},
		"key positions":        {nil, attention.Step{QueryLens: []int{3}, KeyPos: make([]int32, 4)}, "4 key positions, want 3"},
		"ranks and positions":  {nil, attention.Step{QueryLens: []int{3}, KeyPos: make([]int32, 3), ByRank: true}, "ByRank"},
		"no pages":             {paged, attention.Step{QueryLens: []int{3}}, "want Step.KV"},
		"page size":            {paged, attention.Step{QueryLens: []int{3}, KV: &pages{size: 8}}, "pages of 8 tokens, want Config.PageSize 4"},
		"pages and lengths":    {paged, attention.Step{QueryLens: []int{3}, KeyLens: []int{3}, KV: &pages{size: 4}}, "want nil with Step.KV"},
		"sequences of pages":   {paged, attention.Step{QueryLens: []int{3}, KV: table([]int32{0, 1, 2}, []int32{0, 1}, 3, 3)}, "2 sequences, want 1"},
		"source's own error":   {paged, attention.Step{QueryLens: []int{3}, KV: &broken{pages: pages{size: 4}, err: own}}, "the pages are gone"},
		"too few pages":        {paged, attention.Step{QueryLens: []int{3}, KV: table([]int32{0, 1}, []int32{0}, 5)}, "pages of sequence 0 is 1, want 2"},
		"negative page":        {paged, attention.Step{QueryLens: []int{3}, KV: table([]int32{0, 1}, []int32{-1}, 4)}, "Indices[0] is -1"},
		"table short":          {paged, attention.Step{QueryLens: []int{3}, KV: table([]int32{0}, nil, 4)}, "Indptr"},
		"table past its end":   {paged, attention.Step{QueryLens: []int{3}, KV: table([]int32{0, 9}, []int32{0}, 4)}, "Indptr"},
		"negative paged keys":  {paged, attention.Step{QueryLens: []int{3}, KV: table([]int32{0, 1}, []int32{0}, -4)}, "SeqLens[0] is -4"},
		"coded pages":          {paged, attention.Step{QueryLens: []int{3}, KV: &codedTable{table([]int32{0, 1}, []int32{0}, 4), []bool{true}}}, "Coded[0] is true, want false: Spec.Coding is none"},
		"flags of pages":       {coded, attention.Step{QueryLens: []int{3}, KV: &codedTable{table([]int32{0, 1}, []int32{0}, 4), []bool{true, false}}}, "Coded is of length 2, want length 1"},
		"key storage": {func(c *attention.Config) { c.PageSize, c.Rotary = 4, plain{dim: 8} },
			attention.Step{QueryLens: []int{3}, KV: &pages{size: 4, storage: kernel.PostRoPE}}, "post-RoPE keys, want pre-RoPE"},
		"prefixes":             {masked(attention.PrefixLM()), attention.Step{QueryLens: []int{3}}, "PrefixLens"},
		"negative prefix":      {masked(attention.PrefixLM()), attention.Step{QueryLens: []int{3}, PrefixLens: []int{-1}}, "PrefixLens[0] is -1"},
		"documents":            {masked(attention.Documents()), attention.Step{QueryLens: []int{3}, Documents: make([]int32, 2)}, "Documents"},
		"falling documents":    {masked(attention.Documents()), attention.Step{QueryLens: []int{2}, Documents: []int32{2, 1}}, "Documents[1]"},
		"queries without keys": {masked(attention.Documents()), attention.Step{QueryLens: []int{3}, KeyLens: []int{1}, Documents: []int32{0}}, "at most its 1 keys"},
		"tree":                 {masked(attention.Tree()), attention.Step{QueryLens: []int{3}}, "Tree.Start"},
		"short tree":           {masked(attention.Tree()), attention.Step{QueryLens: []int{3}, Tree: kernel.TreeMask{Start: []int32{0}, Bits: []uint64{1}}}, "start of 3 words in 1"},
		"blocks":               {masked(attention.Blocks()), attention.Step{QueryLens: []int{3}}, "block sizes"},
		"block rows":           {masked(attention.Blocks()), attention.Step{QueryLens: []int{3}, Blocks: kernel.BlockSparse{QueryBlock: 2, KeyBlock: 2, RowStart: []int32{0}, Indptr: []int32{0, 0}}}, "start of 2 rows in 1"},
	} {
		config := good()
		if c.config != nil {
			c.config(&config)
		}
		a, err := attention.New(b, config)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := a.Plan(attention.Step{QueryLens: []int{1}}); config.PageSize == 0 && config.Mask.Kinds == 0 && err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		err = a.Plan(c.step)
		wantError(t, name, err, "attention: ", c.want)
		if err := a.Run(&kernel.Args{}); !errors.Is(err, kernel.ErrNoPlan) {
			t.Errorf("%s: Run after it: %v, want ErrNoPlan", name, err)
		}
		a.Close()
	}
	a, _ := attention.New(b, attention.Config{Heads: 1, KVHeads: 1, HeadDim: 1, PageSize: 4, Mask: attention.Causal()})
	if err := a.Plan(attention.Step{QueryLens: []int{3}, KV: &broken{pages: pages{size: 4}, err: own}}); !errors.Is(err, own) {
		t.Errorf("%v does not wrap the source's error", err)
	}
}

func TestRunRefusesBadTensors(t *testing.T) {
	b := backend(t, 1)
	config := good()
	config.Score = attention.Score{Slopes: true, RelBias: true, PrefixBias: true, SinkLogit: true}
	a, err := attention.New(b, config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Run(&kernel.Args{}); !errors.Is(err, kernel.ErrNoPlan) {
		t.Errorf("Run before Plan: %v, want ErrNoPlan", err)
	}
	in := input{config: config, step: attention.Step{QueryLens: []int{3}, KeyLens: []int{5}}}
	in.fill(rand.New(rand.NewPCG(5, 1)))
	if err := a.Plan(in.step); err != nil {
		t.Fatal(err)
	}
	args := func() kernel.Args {
		return kernel.Args{Query: in.query, Key: in.key, Value: in.value, ScoreArgs: in.scores,
			Out: tensor.New(tensor.F32, 3, 4, 8), LSE: tensor.New(tensor.F32, 3, 4)}
	}
	whole := args()
	if err := a.Run(&whole); err != nil {
		t.Fatalf("the arguments that each case changes: %v", err)
	}
	if whole.LSE = (tensor.View{}); a.Run(&whole) != nil {
		t.Error("LSE is not optional")
	}
	views := func(x *kernel.Args) map[string]*tensor.View {
		return map[string]*tensor.View{
			"Query": &x.Query, "Key": &x.Key, "Value": &x.Value, "Out": &x.Out, "LSE": &x.LSE,
			"Slopes": &x.Slopes, "RelBias": &x.RelBias, "PrefixBias": &x.PrefixBias, "SinkLogit": &x.SinkLogit,
		}
	}
	whole = args()
	for name := range views(&whole) {
		for fault, change := range map[string]func(v *tensor.View){
			"absent":          func(v *tensor.View) { *v = tensor.View{} },
			"type":            func(v *tensor.View) { v.DType = tensor.BF16 },
			"no type":         func(v *tensor.View) { v.DType = 0 },
			"rank":            func(v *tensor.View) { v.Rank-- },
			"rank 9":          func(v *tensor.View) { v.Rank = 9 },
			"rank -1":         func(v *tensor.View) { v.Rank = -1 },
			"too short":       func(v *tensor.View) { v.Shape[0]-- },
			"negative shape":  func(v *tensor.View) { v.Shape[0] = -v.Shape[0] },
			"dimension":       func(v *tensor.View) { v.Shape[v.Rank-1]++ },
			"offset":          func(v *tensor.View) { v.Offset = 1 << 40 },
			"negative offset": func(v *tensor.View) { v.Offset = -1 },
			"stride":          func(v *tensor.View) { v.Stride[0] = 1 << 40 },
			"wrapping stride": func(v *tensor.View) { v.Stride[0] = math.MaxInt64 },
			"negative stride": func(v *tensor.View) { v.Stride[0] = -1 },
			"no buffer":       func(v *tensor.View) { v.Buf = nil },
			"small buffer":    func(v *tensor.View) { v.Buf = tensor.NewHost(1) },
			"other device":    func(v *tensor.View) { v.Buf = elsewhere{v.Buf.Size()} },
		} {
			if name == "LSE" && (fault == "absent" || fault == "no buffer") {
				continue
			}
			if name == "RelBias" && fault == "dimension" { // any number of entries, but not past the buffer
				fault += " past the buffer"
			}
			x := args()
			change(views(&x)[name])
			err := a.Run(&x)
			wantError(t, name+": "+fault, err)
			if fault != "other device" {
				wantError(t, name+": "+fault, err, name)
			}
		}
	}
	var shape *kernel.ShapeError
	x := args()
	x.Key.Shape[1] = 4
	if err := a.Run(&x); !errors.As(err, &shape) || shape.Tensor != "Key" {
		t.Errorf("KV heads: %v, want a *ShapeError of Key", err)
	}
	if err := a.Backward(&kernel.BackwardArgs{}); err == nil {
		t.Error("Backward without Config.Backward: no error")
	}
	if err := a.ColumnStats(&kernel.ColumnStatsArgs{}); err == nil {
		t.Error("ColumnStats without Config.ColumnStats: no error")
	}
}

type elsewhere struct{ bytes int64 }

func (elsewhere) Device() string { return "elsewhere" }
func (e elsewhere) Size() int64  { return e.bytes }

func TestRunRefusesPagesOutsideTheCache(t *testing.T) {
	b := backend(t, 1)
	config := good()
	config.PageSize = 4
	in := input{config: config, step: attention.Step{QueryLens: []int{3}, KeyLens: []int{9}}}
	in.fill(rand.New(rand.NewPCG(5, 2)))
	store := newPages(in)
	store.table.Indices[1] = int32(store.key.Shape[0])
	in.step.KV, in.step.KeyLens, in.key, in.value = store, nil, store.key, store.value
	_, err := try(b, in)
	wantError(t, "page outside the cache", err, "Indices[1] is 5", "below the 5 pages")
}

func TestClosedAttentionIsAnError(t *testing.T) {
	a, err := attention.New(backend(t, 1), good())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Plan(attention.Step{QueryLens: []int{1}}); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Run(&kernel.Args{}); !errors.Is(err, kernel.ErrClosed) {
		t.Errorf("Run after Close: %v, want ErrClosed", err)
	}
	if err := a.Plan(attention.Step{QueryLens: []int{1}}); !errors.Is(err, kernel.ErrClosed) {
		t.Errorf("Plan after Close: %v, want ErrClosed", err)
	}
}

// Rows without keys, and steps without rows, have documented results.
func TestNothingToSee(t *testing.T) {
	b := backend(t, 2)
	for name, step := range map[string]attention.Step{
		"no tokens":                 {QueryLens: []int{0}, KeyLens: []int{0}},
		"keys without queries":      {QueryLens: []int{0}, KeyLens: []int{7}},
		"queries without keys":      {QueryLens: []int{3}, KeyLens: []int{0}},
		"more queries than keys":    {QueryLens: []int{5}, KeyLens: []int{2}},
		"empty sequences among all": {QueryLens: []int{0, 3, 0, 4, 1}, KeyLens: []int{0, 3, 2, 0, 6}},
	} {
		for _, p := range modules() {
			for _, sink := range []bool{false, true} {
				in := input{config: good(), step: step}
				in.config.Position, in.config.Rotary, in.config.Score.SinkLogit = p, plain{dim: 8}, sink
				in.fill(rand.New(rand.NewPCG(5, 3)))
				got := run(t, b, in)
				newReference(t, in).check(t, got, 1e-5)
				if name == "queries without keys" {
					for i, x := range got.out {
						if math.Float32bits(x) != 0 {
							t.Fatalf("%s: Out[%d] is %v, want +0", name, i, x)
						}
					}
					for i, x := range got.lse {
						if want := float64(in.scores.SinkLogit.At(int64(i % 4))); !sink && !math.IsInf(float64(x), -1) || sink && math.Abs(float64(x)-want) > 1e-6 {
							t.Fatalf("%s: LSE[%d] is %v with sink %v", name, i, x, sink)
						}
					}
				}
			}
		}
	}
}

// A NaN or an infinity reaches the rows that see it, and no other.
func TestNotANumberStaysInItsRows(t *testing.T) {
	b := backend(t, 2)
	const n, at = 150, 70
	for name, x := range map[string]float32{"NaN": float32(math.NaN()), "+Inf": float32(math.Inf(1)), "-Inf": float32(math.Inf(-1))} {
		for _, where := range []string{"Query", "Key", "Value"} {
			in := input{config: good(), step: attention.Step{QueryLens: []int{n}, KeyLens: []int{n}}}
			in.config.Mask = attention.Window(40)
			in.config.Position, in.config.Rotary = attention.ReRoPE{Window: 10}, plain{dim: 4}
			in.fill(rand.New(rand.NewPCG(5, 4)))
			want := run(t, b, in)
			bad := in
			switch where {
			case "Query":
				bad.query = packed(in.query, 0, n)
				bad.query.Set(x, at, 2, 1)
			case "Key":
				bad.key = packed(in.key, 0, n)
				bad.key.Set(x, at, 1, 1)
			case "Value":
				bad.value = packed(in.value, 0, n)
				bad.value.Set(x, at, 1, 1)
			}
			got := run(t, b, bad)
			touched := 0
			for i := range n {
				for h := range 4 {
					sees := where == "Query" && i == at && h == 2 || where != "Query" && i >= at && i < at+40 && h/2 == 1
					row := i*4 + h
					err := diffBits("Out", got.out[row*8:][:8], want.out[row*8:][:8], 8)
					if err != nil {
						touched++
					}
					if !sees && err != nil {
						t.Fatalf("%s in %s of token %d: row %d, head %d: %v", name, where, at, i, h, err)
					}
					if sees && name == "NaN" && !anyNaN(got.out[row*8:][:8]) {
						t.Fatalf("%s in %s of token %d does not reach row %d, head %d", name, where, at, i, h)
					}
				}
			}
			if touched == 0 {
				t.Errorf("%s in %s changes nothing", name, where)
			}
		}
	}
}

func anyNaN(x []float32) bool {
	for _, v := range x {
		if v != v {
			return true
		}
	}
	return false
}
