package prefix_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// toy is a transformer of attention alone, x += Wo·attention(Wq·x, Wk·x, Wv·x)
// in each layer, over a cache.
type toy struct {
	*model
	rotary         rope.Default
	wq, wk, wv, wo []tensor.View // of each layer
}

const width = heads * headDim

func newToy(t testing.TB, storage kernel.KeyStorage, d tensor.DType) *toy {
	t.Helper()
	m := &model{t: t, backend: cpu.New(cpu.Options{Workers: 1}), rng: rand.New(rand.NewPCG(7, 8))}
	var err error
	m.cache, err = kvcache.New(m.backend, kvcache.Config{Layers: 3, Pages: 40, PageSize: pageSize, KVHeads: kvHeads, HeadDim: headDim, ValueDim: headDim, DType: d, KeyStorage: storage})
	m.must(err)
	y := &toy{model: m, rotary: rope.Default{Base: rope.Base{HeadDim: headDim, Theta: 1e4}}}
	for range 3 {
		y.wq, y.wk = append(y.wq, m.random(tensor.F32, 1, width, width)), append(y.wk, m.random(tensor.F32, 1, width, kvHeads*headDim))
		y.wv, y.wo = append(y.wv, m.random(tensor.F32, 1, width, kvHeads*headDim)), append(y.wo, m.random(tensor.F32, 1, width, width))
	}
	return y
}

// embed gives a token the same row wherever it is.
func (y *toy) embed(tokens []int32) tensor.View {
	x := tensor.New(tensor.F32, int64(len(tokens)), 1, width)
	for i, tok := range tokens {
		rng := rand.New(rand.NewPCG(uint64(tok), 9))
		for d := range width {
			x.Set(float32(rng.NormFloat64()), int64(i), 0, int64(d))
		}
	}
	return x
}

// times is x·w/8, as [rows, n/headDim, headDim], each row by itself.
func times(x, w tensor.View) tensor.View {
	n := w.Shape[2]
	out := tensor.New(tensor.F32, x.Shape[0], n/headDim, headDim)
	in, weights, to := x.F32s(), w.F32s(), out.F32s()
	for i := range int(x.Shape[0]) {
		for d := range width {
			for k := range int(n) {
				to[i*int(n)+k] += in[i*width+d] / 8 * weights[d*int(n)+k]
			}
		}
	}
	return out
}

// turn rotates keys to positions.
func (y *toy) turn(key tensor.View, positions []int32) {
	y.t.Helper()
	r, err := y.rotary.Rotation(4096)
	y.must(err)
	args := kernel.RotateArgs{X: key, Dim: r.Dim, Layout: r.Layout}
	cos, sin := make([]float32, r.Dim/2), make([]float32, r.Dim/2)
	for i, p := range positions {
		r.Fill(cos, sin, [3]float64{float64(p)}, kernel.KeySide)
		args.Table.Cos, args.Table.Sin = append(args.Table.Cos, cos...), append(args.Table.Sin, sin...)
		args.Rows = append(args.Rows, int32(i))
	}
	y.must(y.backend.Rotate(&args))
}

// forward computes tokens whose slots are given, and returns the last rows.
func (y *toy) forward(tokens, slots, positions []int32, source attention.KVSource, lens []int) tensor.View {
	y.t.Helper()
	c := y.cache.Config()
	a, err := attention.New(y.backend, attention.Config{Heads: heads, KVHeads: kvHeads, HeadDim: headDim, KVDType: c.DType, PageSize: pageSize, Mask: attention.Causal(), KeyStorage: c.KeyStorage, Rotary: y.rotary})
	y.must(err)
	defer a.Close()
	y.must(a.Plan(attention.Step{KV: source, QueryLens: lens, Length: 4096}))
	x := y.embed(tokens)
	for layer := range c.Layers {
		key := times(x, y.wk[layer])
		if c.KeyStorage == kernel.PostRoPE {
			y.turn(key, positions)
		}
		y.must(y.cache.Append(layer, slots, key, times(x, y.wv[layer])))
		args := kernel.Args{Query: times(x, y.wq[layer]), Out: tensor.New(tensor.F32, x.Shape[0], heads, headDim)}
		y.must(y.cache.Bind(layer, &args))
		y.must(a.Run(&args))
		out := times(args.Out, y.wo[layer])
		for i, o := range out.F32s() {
			x.F32s()[i] += o
		}
	}
	return x
}

// prefill is a sequence of tokens from position first on, and its last rows.
func (y *toy) prefill(tokens []int32, first int32) (kvcache.ID, tensor.View) {
	y.t.Helper()
	id := y.cache.NewSequence()
	positions := make([]int32, len(tokens))
	for j := range positions {
		positions[j] = first + int32(j)
	}
	slots, err := y.cache.ExtendAt([]kvcache.ID{id}, []int{len(tokens)}, positions, nil)
	y.must(err)
	return id, y.forward(tokens, slots, positions, y.cache.Sequences(id), []int{len(tokens)})
}

// modules computes passages apart, each from position 0, and frees their
// sequences.
func (y *toy) modules(first int32, passages ...[]int32) (parts []prefix.Placed) {
	y.t.Helper()
	at := int32(0)
	for _, tokens := range passages {
		id, _ := y.prefill(tokens, first)
		m, err := prefix.NewModule(y.cache, id, 0, len(tokens))
		y.must(err)
		y.must(y.cache.Free(id))
		parts = append(parts, prefix.Placed{Module: m, At: at})
		at += int32(len(tokens))
	}
	return parts
}

func passage(seed uint64, n int) []int32 {
	rng, tokens := rand.New(rand.NewPCG(seed, 10)), make([]int32, n)
	for i := range tokens {
		tokens[i] = rng.Int32N(1000)
	}
	return tokens
}

// furthest is the largest difference of two sequences' keys and values in a
// layer.
func (y *toy) furthest(layer int, a, b kvcache.ID) (furthest float64) {
	y.t.Helper()
	keyA, valueA, err := y.cache.Gather(layer, a)
	y.must(err)
	keyB, valueB, err := y.cache.Gather(layer, b)
	y.must(err)
	for _, pair := range [][2]tensor.View{{keyA, keyB}, {valueA, valueB}} {
		for j := range pair[0].Shape[0] {
			for h := range pair[0].Shape[1] {
				for d := range pair[0].Shape[2] {
					furthest = max(furthest, math.Abs(float64(pair[0].At(j, h, d)-pair[1].At(j, h, d))))
				}
			}
		}
	}
	return furthest
}

// TestComposeTurnsKeys: the keys of the first layer, which know nothing of what
// is before them, are those of the whole prompt: by bits where they are cached
// unrotated, else but for rounding. What follows differs, until all tokens but
// the first passage's are computed anew.
func TestComposeTurnsKeys(t *testing.T) {
	for _, tt := range []struct {
		storage kernel.KeyStorage
		dtype   tensor.DType
		first   int32
		within  float64
	}{
		{kernel.PreRoPE, tensor.F32, 0, 0}, {kernel.PreRoPE, tensor.BF16, 100, 0},
		{kernel.PostRoPE, tensor.F32, 0, 1e-5}, {kernel.PostRoPE, tensor.F32, 900, 1e-4}, {kernel.PostRoPE, tensor.F16, 0, 2e-2},
	} {
		y := newToy(t, tt.storage, tt.dtype)
		one, two, three := passage(1, 2*pageSize), passage(2, pageSize), passage(3, 3*pageSize)
		prompt := slices.Concat(one, two, three)
		whole, want := y.prefill(prompt, 0)
		parts := y.modules(tt.first, one, two, three)
		used := y.cache.Stats().Free
		r, err := y.rotary.Rotation(4096)
		y.must(err)
		id, err := prefix.Compose(y.cache, y.backend, &r, parts)
		y.must(err)
		copies := 0
		if tt.storage == kernel.PostRoPE {
			copies = 4
			if tt.first != 0 {
				copies = 6
			}
		}
		if got := used - y.cache.Stats().Free; got != copies {
			t.Errorf("%+v: Compose took %d pages, want %d", tt, got, copies)
		}
		if d := y.furthest(0, id, whole); d > tt.within {
			t.Errorf("%+v: first layer is %g from that of the whole prompt", tt, d)
		}
		if d := y.furthest(2, id, whole); d < 0.1 {
			t.Errorf("%+v: last layer is %g from that of the whole prompt: passages see one another", tt, d)
		}
		if positions, err := y.cache.Positions(id, nil); err != nil || !slices.IsSorted(positions) || positions[len(prompt)-1] != int32(len(prompt)-1) {
			t.Errorf("positions %v, %v", positions, err)
		}

		// The first passage came first when it was computed: its rows are right.
		var tokens []int32
		for j := len(one); j < len(prompt); j++ {
			tokens = append(tokens, int32(j))
		}
		slots, err := y.cache.Rewrite(id, tokens, nil)
		y.must(err)
		again, err := prefix.NewRecompute(y.cache, id, tokens)
		y.must(err)
		got := y.forward(prompt[len(one):], slots, tokens, again, again.QueryLens())
		if tt.first == 0 { // at other positions it is right but for rounding
			for layer := range 3 {
				if d := y.furthest(layer, id, whole); d != 0 {
					t.Errorf("%+v: layer %d, computed anew, is %g from that of the whole prompt", tt, layer, d)
				}
			}
			if !slices.Equal(got.F32s(), want.F32s()[len(one)*width:]) {
				t.Errorf("%+v: other rows than those of the whole prompt", tt)
			}
		}
		y.must(y.cache.Free(id))
		for _, p := range parts {
			y.must(y.cache.Release(p.Pages...))
		}
		y.must(y.cache.CheckIntegrity())
		if s := y.cache.Stats(); s.Used != 6 || s.Cached != 0 {
			t.Errorf("in the end %+v", s)
		}
	}
}

// TestRecomputeSeesWhatItsTokenSees: the rows of tokens anywhere are those of
// forks cut after each.
func TestRecomputeSeesWhatItsTokenSees(t *testing.T) {
	for name, config := range map[string]kvcache.Config{
		"plain": {DType: tensor.F32}, "post-RoPE": {DType: tensor.F16, KeyStorage: kernel.PostRoPE},
		"coded": {DType: tensor.F16, Coding: kernel.KIVI(kernel.Int8, headDim), CodedPages: 64},
	} {
		m := newModel(t, config)
		id := m.start(100)
		if !config.Coded() {
			m.must(m.cache.Drop(id, pageSize, 2*pageSize)) // positions are not the ordinals
		}
		m.grow(id, 1)
		tokens := []int32{0, 7, 8, 9, 31, 32, 63, 80, 84}
		r, err := prefix.NewRecompute(m.cache, id, tokens)
		m.must(err)
		if !slices.Equal(r.QueryLens(), []int{1, 3, 2, 1, 1, 1}) {
			t.Fatalf("runs of %v", r.QueryLens())
		}
		query := m.random(tensor.F32, int64(len(tokens)), heads, headDim)
		got, _ := m.attend(attention.Causal(), attention.Step{KV: r, QueryLens: r.QueryLens()}, query)
		for i, j := range tokens {
			var one kernel.Batch
			m.must(m.cache.Sequences(id).LowerKV(&one))
			n := int(j) + 1
			want, _ := m.attend(attention.Causal(), attention.Step{KV: cutAt{m.cache.Sequences(id), n}, QueryLens: []int{1}}, query.Slice(0, int64(i), int64(i)+1))
			if !slices.Equal(got.F32s()[i*width:(i+1)*width], want.F32s()) {
				t.Errorf("%s: token %d has another row", name, j)
			}
		}
		for _, bad := range [][]int32{{-1}, {3, 3}, {4, 3}, {int32(len(m.history(id)))}} {
			if _, err := prefix.NewRecompute(m.cache, id, bad); !errors.As(err, new(*prefix.ValueError)) {
				t.Errorf("tokens %v: %v", bad, err)
			}
		}
	}
}

// cutAt is a view of one sequence up to n keys.
type cutAt struct {
	*kvcache.View
	n int
}

func (c cutAt) LowerKV(dst *kernel.Batch) error {
	err := c.View.LowerKV(dst)
	pages := (c.n + pageSize - 1) / pageSize
	dst.SeqLens[0], dst.Pages.Indptr[1], dst.Pages.Indices = int32(c.n), int32(pages), dst.Pages.Indices[:pages]
	if len(dst.Pages.Coded) > 0 {
		dst.Pages.Coded = dst.Pages.Coded[:pages]
	}
	return err
}

func (c cutAt) KeyPositions(dst []int32) []int32 {
	if p := c.View.KeyPositions(dst); p != nil {
		return p[:c.n]
	}
	return nil
}

// TestDeviationFindsWhatChanged: the tokens chosen are those whose rows differ.
func TestDeviationFindsWhatChanged(t *testing.T) {
	m := newModel(t, kvcache.Config{DType: tensor.F32})
	found := m.random(tensor.BF16, 50, kvHeads, headDim)
	fresh := tensor.New(tensor.F32, 50, kvHeads, headDim)
	want := []int32{3, 4, 17, 30, 49}
	for j := range int64(50) {
		for h := range int64(kvHeads) {
			for d := range int64(headDim) {
				x := found.At(j, h, d)
				if slices.Contains(want, int32(j)) {
					x += 0.25 * float32(1+j)
				} else {
					x += 0.125
				}
				fresh.Set(x, j, h, d)
			}
		}
	}
	deviation := make([]float64, 50)
	m.must(prefix.Deviation(deviation, found, fresh))
	if got := prefix.Highest(deviation, 5); !slices.Equal(got, want) {
		t.Errorf("tokens %v, want %v", got, want)
	}
	if got := prefix.Highest([]float64{1, math.NaN(), 2, 2, 0}, 3); !slices.Equal(got, []int32{1, 2, 3}) {
		t.Errorf("tokens %v, want a NaN and the first of equal ones", got)
	}
	if got := prefix.Highest(deviation, 99); len(got) != 50 || prefix.Highest(deviation, -1) == nil && len(prefix.Highest(deviation, -1)) != 0 {
		t.Errorf("%d tokens of 50", len(got))
	}
	if err := prefix.Deviation(deviation[:49], found, fresh); !errors.As(err, new(*prefix.ValueError)) {
		t.Errorf("rows of another number: %v", err)
	}
	if got := prefix.FirstTokens([]int{5, 2, 6}, 3); !slices.Equal(got, []int32{5, 6, 7, 8, 9}) {
		t.Errorf("first tokens %v", got)
	}
}

// TestReuseRefuses: what is refused leaves the cache as it was.
func TestReuseRefuses(t *testing.T) {
	y := newToy(t, kernel.PostRoPE, tensor.F32)
	parts := y.modules(0, passage(1, 2*pageSize), passage(2, pageSize))
	r, err := y.rotary.Rotation(4096)
	y.must(err)
	gap := y.cache.NewSequence()
	positions := make([]int32, pageSize)
	_, err = y.cache.ExtendAt([]kvcache.ID{gap}, []int{pageSize}, positions, nil)
	y.must(err)
	before := y.cache.Stats()
	if _, err := prefix.NewModule(y.cache, gap, 0, pageSize); !errors.As(err, new(*prefix.ValueError)) {
		t.Errorf("positions that do not follow one another: %v", err)
	}
	if _, err := prefix.NewModule(y.cache, gap, 0, 1); !errors.As(err, new(*kvcache.ValueError)) {
		t.Errorf("a part of a page: %v", err)
	}
	twice := []prefix.Placed{parts[0], {Module: parts[0].Module, At: 99}}
	far := []prefix.Placed{{Module: parts[0].Module, At: math.MaxInt32 - pageSize}}
	for _, tt := range []struct {
		what   string
		ops    kernel.Ops
		r      *kernel.Rotation
		parts  []prefix.Placed
		target any
	}{
		{"no ops", nil, &r, parts, new(*prefix.ValueError)},
		{"no rotation", y.backend, nil, parts, new(*prefix.ValueError)},
		{"a module twice", y.backend, &r, twice, new(*kvcache.PageError)},
		{"too far", y.backend, &r, far, new(*prefix.ValueError)},
		{"before 0", y.backend, &r, []prefix.Placed{{Module: parts[0].Module, At: -1}}, new(*prefix.ValueError)},
	} {
		if _, err := prefix.Compose(y.cache, tt.ops, tt.r, tt.parts); !errors.As(err, tt.target) || y.cache.Stats() != before {
			t.Errorf("%s: %v, %+v", tt.what, err, y.cache.Stats())
		}
	}
	y.fill(34 * pageSize) // leaves too little for a copy
	before = y.cache.Stats()
	if _, err := prefix.Compose(y.cache, y.backend, &r, []prefix.Placed{{Module: parts[0].Module, At: 5}, {Module: parts[1].Module, At: 100}}); !errors.As(err, new(*kvcache.OutOfPagesError)) || y.cache.Stats() != before {
		t.Errorf("a full cache: %v, %+v", err, y.cache.Stats())
	}
	y.must(y.cache.CheckIntegrity())
}

func (y *toy) fill(n int) {
	y.t.Helper()
	id := y.cache.NewSequence()
	_, err := y.cache.Extend([]kvcache.ID{id}, []int{n}, nil)
	y.must(err)
}

// TestPartialRecompute: a quarter of the tokens, those of the highest deviation
// in the second layer, bring the last layer nearer to that of the whole prompt
// than the quarter of the lowest.
func TestPartialRecompute(t *testing.T) {
	y := newToy(t, kernel.PreRoPE, tensor.F32)
	one, two := passage(4, 2*pageSize), passage(5, 4*pageSize)
	prompt := slices.Concat(one, two)
	whole, _ := y.prefill(prompt, 0)
	parts := y.modules(0, one, two)
	deviation := func(layer int, id kvcache.ID) []float64 {
		sum := make([]float64, len(prompt))
		keyA, valueA, err := y.cache.Gather(layer, id)
		y.must(err)
		keyB, valueB, err := y.cache.Gather(layer, whole)
		y.must(err)
		y.must(prefix.Deviation(sum, keyA, keyB))
		y.must(prefix.Deviation(sum, valueA, valueB))
		return sum
	}
	total := func(tokens func(deviation []float64) []int32) (sum float64) {
		id, err := prefix.Compose(y.cache, nil, nil, parts)
		y.must(err)
		chosen := tokens(deviation(1, id))
		slots, err := y.cache.Rewrite(id, chosen, nil)
		y.must(err)
		again, err := prefix.NewRecompute(y.cache, id, chosen)
		y.must(err)
		ids := make([]int32, len(chosen))
		for i, j := range chosen {
			ids[i] = prompt[j]
		}
		if len(ids) > 0 {
			y.forward(ids, slots, chosen, again, again.QueryLens())
		}
		for _, x := range deviation(2, id) {
			sum += x
		}
		y.must(y.cache.Free(id))
		return sum
	}
	quarter := len(two) / 4
	none := total(func([]float64) []int32 { return nil })
	highest := total(func(d []float64) []int32 { return prefix.Highest(d, quarter) })
	lowest := total(func(d []float64) []int32 {
		for j := range d {
			if d[j] = -d[j]; j < len(one) {
				d[j] = math.Inf(-1) // these are right
			}
		}
		return prefix.Highest(d, quarter)
	})
	first := total(func([]float64) []int32 { return prefix.FirstTokens([]int{len(one), len(two)}, quarter) })
	t.Logf("squared distance of the last layer: %.0f of none, %.0f of the highest, %.0f of the lowest, %.0f of the first", none, highest, lowest, first)
	if highest > 0.8*none || highest > lowest || first >= none {
		t.Error("it does not grow with what is left out")
	}
}
