package attention_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Two computations that must agree, on random Configs and Steps. Where both
// are the same function of each row under the Exact policy, they agree to bits.

func TestMetaPageSize(t *testing.T) {
	b := backend(t, 2)
	random(t, 25, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 1+r.IntN(3), anyMask)
		in.config.PageSize = 0
		want := run(t, b, in)
		for _, size := range []int{1, 3, 16, 64, 100, 1000} {
			in.config.PageSize = size
			sameBits(t, fmt.Sprintf("pages of %d, %+v", size, in.config), run(t, b, in), want)
		}
	})
}

func TestMetaChunkedPrefill(t *testing.T) {
	b := backend(t, 2)
	random(t, 40, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 1, causalMask)
		n := in.step.QueryLens[0]
		want := run(t, b, in)
		chunk := pick(r, 1, 1, 7, 64, 100)
		if chunk == 1 && n > 140 {
			chunk = 33
		}
		var got result
		for lo := 0; lo < n; lo += chunk {
			got = got.append(run(t, b, in.part(lo, min(lo+chunk, n))))
		}
		sameBits(t, fmt.Sprintf("chunks of %d of %d, %+v", chunk, n, in.config), got, want)
	})
}

func TestMetaRowAlone(t *testing.T) {
	b := backend(t, 2)
	random(t, 40, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 2+r.IntN(3), anyMask)
		// the one thing of a step that its sequences share
		in.step.Length = pick(r, 0, 700)
		all, at := run(t, b, in), 0
		for s, n := range in.step.QueryLens {
			one := in.sequence(s)
			one.step.Length = in.step.Length
			sameBits(t, fmt.Sprintf("sequence %d of %v, %+v", s, in.step.QueryLens, in.config), run(t, b, one), all.rows(at, at+n))
			at += n
		}
	})
}

func TestMetaWorkers(t *testing.T) {
	one, many := backend(t, 1), []kernel.Backend{backend(t, 2), backend(t, 3), backend(t, 8)}
	random(t, 40, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 1+r.IntN(3), anyMask)
		want := run(t, one, in)
		for _, b := range many {
			sameBits(t, fmt.Sprintf("%+v", in.config), run(t, b, in), want)
		}
	})
}

// A decode over many keys is the case whose keys are split over workers.
func TestMetaWorkersOnOneLongDecode(t *testing.T) {
	one, many := backend(t, 1), backend(t, 4)
	random(t, 2, func(t *testing.T, r *rand.Rand) {
		in := input{config: randomConfig(r), step: attention.Step{QueryLens: []int{1}, KeyLens: []int{6000 + r.IntN(1000)}}}
		in.config.Mask, in.config.HeadDim, in.config.Rotary = attention.Causal(), 16, plain{dim: 16}
		in.fill(r)
		sameBits(t, fmt.Sprintf("%+v", in.config), run(t, many, in), run(t, one, in))
	})
}

func TestMetaGQARepeats(t *testing.T) {
	b := backend(t, 2)
	random(t, 40, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 1+r.IntN(2), anyMask)
		repeated := in
		repeated.config.KVHeads = in.config.Heads
		repeat := func(v tensor.View) tensor.View {
			out := tensor.New(v.DType, v.Shape[0], int64(in.config.Heads), v.Shape[2])
			group := int64(in.config.Heads / in.config.KVHeads)
			for j := range v.Shape[0] {
				for h := range int64(in.config.Heads) {
					for d := range v.Shape[2] {
						out.Set(v.At(j, h/group, d), j, h, d)
					}
				}
			}
			return out
		}
		repeated.key, repeated.value = repeat(in.key), repeat(in.value)
		sameBits(t, fmt.Sprintf("%+v", in.config), run(t, b, repeated), run(t, b, in))
	})
}

// Masks that hide nothing, or hide the same, for the lengths at hand.
func TestMetaWindowCoversAll(t *testing.T) {
	b := backend(t, 2)
	random(t, 15, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 1+r.IntN(3), func(*rand.Rand) attention.Mask { return attention.Causal() })
		longest := 1
		for s, n := range in.step.KeyLens {
			longest = max(longest, n)
			in.step.PrefixLens[s] = 0
		}
		clear(in.step.Documents)
		causal := run(t, b, in)
		in.step.Tree = ancestors(in.step.QueryLens)
		in.step.Blocks = allBlocks(in.step, 1+r.Int32N(70), 1+r.Int32N(70), in.config.KVHeads, r.IntN(2) == 0)
		for name, m := range map[string]attention.Mask{
			"window": attention.Window(longest), "window and sinks": attention.WindowSinks(longest, 3),
			"few keys between window and sinks": attention.WindowSinks(max(1, longest-5), 5),
			"one chunk":                         attention.Chunked(longest), "no prefix": attention.PrefixLM(),
			"one document":      and(t, attention.Causal(), attention.Documents()),
			"a chain as a tree": attention.Tree(), "all blocks": and(t, attention.Causal(), attention.Blocks()),
			"twice": and(t, attention.Causal(), attention.Causal()),
			"cut in regions": {Regions: []kernel.Region{
				{Diff: kernel.Range{Lo: 0, Hi: 3}, Key: kernel.All},
				{Diff: kernel.Range{Lo: 3, Hi: kernel.MaxBound}, Key: kernel.All},
			}},
		} {
			covers := in
			covers.config.Mask = m
			sameBits(t, fmt.Sprintf("%s, %+v", name, in.config), run(t, b, covers), causal)
		}

		in.config.Mask = attention.Bidirectional()
		whole := run(t, b, in)
		copy(in.step.PrefixLens, in.step.KeyLens)
		in.config.Mask = attention.PrefixLM()
		sameBits(t, fmt.Sprintf("all prefix, %+v", in.config), run(t, b, in), whole)
	})
}

func and(t *testing.T, a, b attention.Mask) attention.Mask {
	t.Helper()
	m, err := a.And(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// ancestors is the TreeMask of sequences that branch nowhere.
func ancestors(queries []int) kernel.TreeMask {
	var m kernel.TreeMask
	for _, n := range queries {
		m.Start = append(m.Start, int32(len(m.Bits)))
		for q := range n {
			row := make([]uint64, (n+63)/64)
			for c := range q + 1 {
				row[c/64] |= 1 << (c % 64)
			}
			m.Bits = append(m.Bits, row...)
		}
	}
	return m
}

// allBlocks lists every block of keys for every block of queries.
func allBlocks(s attention.Step, queryBlock, keyBlock int32, kvHeads int, perHead bool) kernel.BlockSparse {
	m := kernel.BlockSparse{QueryBlock: queryBlock, KeyBlock: keyBlock, PerHead: perHead, Indptr: []int32{0}}
	for q, keys := range s.KeyLens {
		m.RowStart = append(m.RowStart, int32(len(m.Indptr)-1))
		b := kernel.Batch{QueryStart: []int32{0, int32(s.QueryLens[q])}, SeqLens: []int32{int32(keys)}}
		rows := m.QueryBlocks(&b, 0)
		if perHead {
			rows *= int64(kvHeads)
		}
		for range rows {
			for k := int32(0); k*keyBlock < int32(keys); k++ {
				m.Indices = append(m.Indices, k)
			}
			m.Indptr = append(m.Indptr, int32(len(m.Indices)))
		}
	}
	return m
}

// merge joins results in F32.
func merge(t *testing.T, b kernel.Backend, x, y result) result {
	t.Helper()
	view := func(r result) (out, lse tensor.View) {
		rows := int64(len(r.lse) / r.heads)
		return tensor.FromF32(r.out, rows, int64(r.heads), int64(r.dv)), tensor.FromF32(r.lse, rows, int64(r.heads))
	}
	z := result{make([]float32, len(x.out)), make([]float32, len(x.lse)), x.heads, x.dv}
	var args kernel.MergeArgs
	args.OutA, args.LSEA = view(x)
	args.OutB, args.LSEB = view(y)
	args.Out, args.LSE = view(z)
	if err := attention.Merge(b, &args); err != nil {
		t.Fatal(err)
	}
	return z
}

// mergeTolerance is for scores and values of about unit size: a few roundings
// of the weights each way.
const mergeTolerance = 2e-5

func mergeable(r *rand.Rand) input {
	in := randomInput(r, 1+r.IntN(2), anyMask)
	in.config.DType, in.config.KVDType = tensor.F32, tensor.F32
	in.config.Score.SinkLogit = false // it would count in each part
	in.fill(r)
	return in
}

func TestMetaMerge(t *testing.T) {
	b := backend(t, 2)
	random(t, 40, func(t *testing.T, r *rand.Rand) {
		in := mergeable(r)
		want := run(t, b, in)
		lo := r.Int32N(100)
		hi := lo + r.Int32N(100)
		part := func(keys kernel.Range) result {
			cut := in
			cut.config.Mask = and(t, in.config.Mask, attention.Mask{Regions: []kernel.Region{{Diff: kernel.All, Key: keys}}})
			if len(cut.config.Mask.Regions) == 0 { // the mask and the keys do not meet
				cut.config.Mask.Regions = []kernel.Region{{}}
			}
			return run(t, b, cut)
		}
		x, y, z := part(kernel.Range{Lo: 0, Hi: lo}), part(kernel.Range{Lo: lo, Hi: hi}), part(kernel.Range{Lo: hi, Hi: kernel.MaxBound})
		what := fmt.Sprintf("keys cut at %d and %d, %+v", lo, hi, in.config)
		near(t, what, merge(t, b, merge(t, b, x, y), z), want, mergeTolerance)
		near(t, what+" from the right", merge(t, b, x, merge(t, b, y, z)), want, mergeTolerance)
		near(t, what+" backwards", merge(t, b, merge(t, b, z, y), x), want, mergeTolerance)

		nothing := part(kernel.Range{Lo: 0, Hi: 0})
		sameBits(t, what+": with no keys", merge(t, b, want, nothing), want)
		sameBits(t, what+": no keys with it", merge(t, b, nothing, want), want)
	})
}

// alone is a module of one Term of another.
type alone struct {
	attention.Position
	term int
}

func (a alone) Terms(length int) ([]attention.Term, error) {
	terms, err := a.Position.Terms(length)
	if err != nil {
		return nil, err
	}
	return terms[a.term : a.term+1], nil
}

// One pass over all Terms is what others compute with one call a Term, merged.
func TestMetaTermsMerge(t *testing.T) {
	b := backend(t, 2)
	random(t, 40, func(t *testing.T, r *rand.Rand) {
		in := mergeable(r)
		in.config.Mask = attention.Causal()
		if in.config.HeadDim > 1 {
			in.config.Rotary = plain{dim: in.config.HeadDim &^ 1}
		}
		want := run(t, b, in)
		var got result
		for term := range termsOf(t, in.config.Position, 1) {
			one := in
			one.config.Position = alone{in.config.Position, term}
			if x := run(t, b, one); term == 0 {
				got = x
			} else {
				got = merge(t, b, got, x)
			}
		}
		near(t, fmt.Sprintf("%+v", in.config), got, want, mergeTolerance)
	})
}

func TestMetaRoPEShiftInvariance(t *testing.T) {
	b := backend(t, 2)
	random(t, 30, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 1+r.IntN(2), anyMask)
		in.config.DType, in.config.KVDType = tensor.F32, tensor.F32
		in.config.HeadDim, in.config.Rotary = 16, plain{dim: 16, layout: pick(r, kernel.HalfSplit, kernel.Interleaved)}
		// the modules whose distances are those of positions, not of their values
		in.config.Position = pick[attention.Position](r, attention.Absolute{}, attention.ReRoPE{Window: 9},
			attention.STRING{Shift: 20, Window: 3}, attention.LMInfinite{Global: 3, Window: 20})
		in.fill(r)
		want := run(t, b, in)
		by := r.Int32N(10000)
		for s, n := range in.step.KeyLens {
			for j := range n {
				in.step.KeyPos = append(in.step.KeyPos, int32(j)+by)
			}
			for q := range in.step.QueryLens[s] {
				in.step.QueryPos = append(in.step.QueryPos, int32(n-in.step.QueryLens[s]+q)+by)
			}
		}
		near(t, fmt.Sprintf("by %d, %+v", by, in.config), run(t, b, in), want, 1e-5)
	})
}

func TestMetaPreEqualsPostRoPE(t *testing.T) {
	b := backend(t, 2)
	random(t, 30, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 1+r.IntN(3), anyMask)
		in.config.KVDType = tensor.F32 // a rotated key is not rounded then
		in.config.HeadDim = pick(r, 8, 12, 20)
		rotary := plain{dim: 8, layout: pick(r, kernel.HalfSplit, kernel.Interleaved)}
		in.config.Rotary = rotary
		in.config.Position = pick[attention.Position](r, attention.Absolute{}, attention.DCA{Chunk: 30, Local: 9},
			attention.STRING{Shift: 20, Window: 3}, attention.StreamingLLM{Sinks: 3, Recent: 20})
		in.fill(r)
		want := run(t, b, in)

		post := in
		post.config.KeyStorage = kernel.PostRoPE
		post.key = packed(in.key, 0, int(in.key.Shape[0]))
		rotation, _ := rotary.Rotation(1)
		to := termsOf(t, in.config.Position, 1)[0].PosK
		args := kernel.RotateArgs{X: post.key, Dim: rotation.Dim, Layout: rotation.Layout}
		half := rotation.Dim / 2
		for _, n := range in.step.KeyLens {
			for j := range n {
				args.Rows = append(args.Rows, int32(len(args.Rows)))
				cos, sin := make([]float32, half), make([]float32, half)
				rotation.Fill(cos, sin, [3]float64{to.At(int64(j))}, kernel.KeySide)
				args.Table.Cos, args.Table.Sin = append(args.Table.Cos, cos...), append(args.Table.Sin, sin...)
			}
		}
		if err := b.Rotate(&args); err != nil {
			t.Fatal(err)
		}
		sameBits(t, fmt.Sprintf("%+v", in.config), run(t, b, post), want)
	})
}

// Whatever lies in keys that no query sees, it does not reach a result.
func TestMetaUnseenKeysAreNotRead(t *testing.T) {
	b := backend(t, 2)
	random(t, 30, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 1+r.IntN(2), causalMask)
		// few queries behind many keys leave keys before a window unseen
		for s, n := range in.step.QueryLens {
			in.step.QueryLens[s] = min(n, 3)
		}
		in.config.Mask = attention.WindowSinks(1+r.IntN(20), r.IntN(4))
		in.fill(r)
		want := run(t, b, in)
		row := int64(0)
		for s, n := range in.step.KeyLens {
			for j := range n {
				if !seen(in.config.Mask, n-in.step.QueryLens[s], n, j) {
					poison(in.key.Slice(0, row, row+1))
					poison(in.value.Slice(0, row, row+1))
				}
				row++
			}
		}
		sameBits(t, fmt.Sprintf("%+v", in.config), run(t, b, in), want)
	})
}

func seen(m attention.Mask, i0, i1, j int) bool {
	for i := i0; i < i1; i++ {
		for k := range m.Regions {
			if m.Regions[k].Contains(int64(i), int64(j), 0) {
				return true
			}
		}
	}
	return false
}
