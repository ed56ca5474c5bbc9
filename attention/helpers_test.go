package attention_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// backend is the cpu backend with a number of workers, closed with the test.
func backend(t testing.TB, workers int) *cpu.Backend {
	b := cpu.New(cpu.Options{Workers: workers})
	t.Cleanup(b.Close)
	return b
}

// plain is RoPE as its authors gave it: frequencies 10000^(−2k/dim).
type plain struct {
	dim    int
	layout kernel.RotaryLayout
	factor float64 // 0: 1
}

func (p plain) Rotation(int) (kernel.Rotation, error) {
	r := kernel.Rotation{Dim: p.dim, Layout: p.layout, Factor: p.factor, InvFreq: make([]float64, p.dim/2)}
	if p.factor == 0 {
		r.Factor = 1
	}
	for k := range r.InvFreq {
		r.InvFreq[k] = math.Pow(10000, -2*float64(k)/float64(p.dim))
	}
	return r, nil
}

// input is a step with its tensors. Key and Value hold the keys of all
// sequences one after another, whatever the Config's pages; run lays them out.
type input struct {
	config            attention.Config
	step              attention.Step
	query, key, value tensor.View
	scores            kernel.ScoreArgs
}

// clone shares the tensors.
func (in input) clone() input {
	in.step.QueryLens, in.step.KeyLens = slices.Clone(in.step.QueryLens), slices.Clone(in.step.KeyLens)
	return in
}

func sum(x []int) (n int) {
	for _, v := range x {
		n += v
	}
	return n
}

// normal fills a new tensor with values of about unit size.
func normal(r *rand.Rand, dtype tensor.DType, shape ...int64) tensor.View {
	v := tensor.New(dtype, shape...)
	for i := range v.Len() {
		x := float32(r.NormFloat64())
		if dtype == tensor.F32 {
			v.F32s()[i] = x
		} else {
			v.Bits()[i] = dtype.FromF32(x)
		}
	}
	return v
}

// fill makes the tensors for a Config and Step whose KeyLens are set.
func (in *input) fill(r *rand.Rand) {
	c := &in.config
	dtype, kv, dv := c.DType, c.KVDType, c.ValueDim
	if dtype == 0 {
		dtype = tensor.F32
	}
	if kv == 0 {
		kv = dtype
	}
	if dv == 0 {
		dv = c.HeadDim
	}
	heads, rows := int64(c.Heads), int64(sum(in.step.KeyLens))
	in.query = normal(r, dtype, int64(sum(in.step.QueryLens)), heads, int64(c.HeadDim))
	in.key = normal(r, kv, rows, int64(c.KVHeads), int64(c.HeadDim))
	in.value = normal(r, kv, rows, int64(c.KVHeads), int64(dv))
	in.scores.Slopes = tensor.FromF32(attention.ALiBiSlopes(c.Heads))
	in.scores.RelBias = normal(r, tensor.F32, heads, 1+r.Int64N(40))
	in.scores.PrefixBias = normal(r, tensor.F32, rows, heads)
	in.scores.SinkLogit = normal(r, tensor.F32, heads)
}

// result holds the widened outputs; widening keeps bits apart.
type result struct {
	out, lse  []float32
	heads, dv int
}

// rows is the part of tokens lo <= t < hi.
func (r result) rows(lo, hi int) result {
	n := r.heads * r.dv
	return result{r.out[lo*n : hi*n], r.lse[lo*r.heads : hi*r.heads], r.heads, r.dv}
}

func (r result) append(s result) result {
	return result{append(r.out, s.out...), append(r.lse, s.lse...), s.heads, s.dv}
}

// run computes a step; it fails the test on any error.
func run(t testing.TB, b kernel.Backend, in input) result {
	t.Helper()
	out, err := try(b, in)
	if err != nil {
		t.Fatalf("%v\nconfig %+v\nqueries %v, keys %v", err, in.config, in.step.QueryLens, in.step.KeyLens)
	}
	return out
}

func try(b kernel.Backend, in input) (result, error) {
	a, err := attention.New(b, in.config)
	if err != nil {
		return result{}, err
	}
	defer a.Close()
	if in.config.PageSize > 0 && in.step.KV == nil {
		store := newPages(in)
		in.step.KV, in.step.KeyLens = store, nil
		in.key, in.value = store.key, store.value
	}
	if err := a.Plan(in.step); err != nil {
		return result{}, err
	}
	spec := a.Spec()
	out := tensor.New(spec.DType, int64(sum(in.step.QueryLens)), int64(spec.Heads), int64(spec.ValueDim))
	lse := tensor.New(tensor.F32, int64(sum(in.step.QueryLens)), int64(spec.Heads))
	poison(out)
	poison(lse)
	if err := a.Run(&kernel.Args{Query: in.query, Key: in.key, Value: in.value, Out: out, LSE: lse, ScoreArgs: in.scores}); err != nil {
		return result{}, err
	}
	return result{widen(out), widen(lse), spec.Heads, spec.ValueDim}, nil
}

func widen(v tensor.View) []float32 {
	if v.DType == tensor.F32 {
		return v.F32s()[:v.Len()]
	}
	out := make([]float32, v.Len())
	for i, u := range v.Bits()[:v.Len()] {
		out[i] = v.DType.ToF32(u)
	}
	return out
}

// poison fills a row-major v with NaN.
func poison(v tensor.View) {
	for i := v.Offset; i < v.Offset+v.Len(); i++ {
		if v.DType == tensor.F32 {
			v.F32s()[i] = float32(math.NaN())
		} else {
			v.Bits()[i] = v.DType.FromF32(float32(math.NaN()))
		}
	}
}

// pages is a paged store of the keys and values of an input: pages in random
// order, and NaN wherever no key lies.
type pages struct {
	size       int
	storage    kernel.KeyStorage
	lens       []int32
	table      kernel.BlockTable
	key, value tensor.View
}

func newPages(in input) *pages {
	p := &pages{size: in.config.PageSize, storage: in.config.KeyStorage, table: kernel.BlockTable{Indptr: []int32{0}}}
	total := 0
	for _, n := range in.step.KeyLens {
		p.lens = append(p.lens, int32(n))
		total += (n + p.size - 1) / p.size
		p.table.Indptr = append(p.table.Indptr, int32(total))
	}
	r := rand.New(rand.NewPCG(7, uint64(total)))
	for _, page := range r.Perm(total + 2)[:total] { // two pages belong to nobody
		p.table.Indices = append(p.table.Indices, int32(page))
	}
	lay := func(rows tensor.View) tensor.View {
		paged := tensor.New(rows.DType, int64(total+2), int64(p.size), rows.Shape[1], rows.Shape[2])
		poison(paged)
		row := int64(0)
		for s, n := range in.step.KeyLens {
			for j := range n {
				page := int64(p.table.Indices[int(p.table.Indptr[s])+j/p.size])
				copyRow(paged, page*int64(p.size)+int64(j%p.size), rows, row)
				row++
			}
		}
		return paged
	}
	p.key, p.value = lay(in.key), lay(in.value)
	return p
}

// copyRow copies a row of heads and features between row-major tensors.
func copyRow(dst tensor.View, to int64, src tensor.View, from int64) {
	n := src.Shape[src.Rank-2] * src.Shape[src.Rank-1]
	if src.DType == tensor.F32 {
		copy(dst.F32s()[to*n:][:n], src.F32s()[from*n:][:n])
	} else {
		copy(dst.Bits()[to*n:][:n], src.Bits()[from*n:][:n])
	}
}

func (p *pages) KeyStorage() kernel.KeyStorage { return p.storage }
func (p *pages) PageSize() int                 { return p.size }

func (p *pages) LowerKV(dst *kernel.Batch) error {
	dst.SeqLens = append(dst.SeqLens[:0], p.lens...)
	dst.Pages.Indptr = append(dst.Pages.Indptr[:0], p.table.Indptr...)
	dst.Pages.Indices = append(dst.Pages.Indices[:0], p.table.Indices...)
	return nil
}

func (p *pages) KeyPositions([]int32) []int32 { return nil }

// sameBits fails unless two results have the same bits.
func sameBits(t testing.TB, what string, got, want result) {
	t.Helper()
	if err := diffBits("Out", got.out, want.out, want.dv); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if err := diffBits("LSE", got.lse, want.lse, 1); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func diffBits(name string, got, want []float32, dim int) error {
	if len(got) != len(want) {
		return fmt.Errorf("%s has %d elements, want %d", name, len(got), len(want))
	}
	for i := range got {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) && !(got[i] != got[i] && want[i] != want[i]) {
			return fmt.Errorf("%s of row %d, feature %d is %v (%#x), want %v (%#x)", name, i/dim, i%dim,
				got[i], math.Float32bits(got[i]), want[i], math.Float32bits(want[i]))
		}
	}
	return nil
}

// near fails unless two results differ by at most tolerance, absolutely.
func near(t testing.TB, what string, got, want result, tolerance float64) {
	t.Helper()
	for _, x := range []struct {
		name      string
		got, want []float32
	}{{"Out", got.out, want.out}, {"LSE", got.lse, want.lse}} {
		if len(x.got) != len(x.want) {
			t.Fatalf("%s: %s has %d elements, want %d", what, x.name, len(x.got), len(x.want))
		}
		for i := range x.got {
			if x.got[i] == x.want[i] { // −Inf too
				continue
			}
			if d := math.Abs(float64(x.got[i]) - float64(x.want[i])); !(d <= tolerance) {
				t.Fatalf("%s: %s[%d] is %v, want %v within %v", what, x.name, i, x.got[i], x.want[i], tolerance)
			}
		}
	}
}

// modules is every position module, with settings small enough that short
// sequences reach all their Terms.
func modules() []attention.Position {
	return []attention.Position{
		attention.Absolute{}, attention.NoPE{},
		attention.ReRoPE{Window: 4}, attention.ReRoPE{Window: 70},
		attention.LeakyReRoPE{Window: 4, Factor: 2}, attention.LeakyReRoPE{Window: 9, Factor: 3.5},
		attention.SelfExtend{Group: 2, Window: 4}, attention.SelfExtend{Group: 3, Window: 9},
		attention.DCA{Chunk: 6, Local: 2}, attention.DCA{Chunk: 48, Local: 8}, attention.DCA{Chunk: 7, Local: 0}, attention.DCA{Chunk: 7, Local: 5},
		attention.STRING{Shift: 5, Window: 2}, attention.STRING{Shift: 40, Window: 8},
		attention.LMInfinite{Global: 2, Window: 5}, attention.LMInfinite{Global: 0, Window: 30},
		attention.StreamingLLM{Sinks: 2, Recent: 4}, attention.StreamingLLM{Sinks: 4, Recent: 60}, attention.StreamingLLM{Recent: 3},
	}
}
