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

// prefillSelector chooses blocks from queries and keys.
type prefillSelector interface {
	Select(kernel.Backend, *attention.Selection, tensor.View) (kernel.BlockSparse, error)
}

// prefillWith chooses with any prefill selector.
func prefillWith(b kernel.Backend, s *selecting, m any) (kernel.BlockSparse, error) {
	if moba, ok := m.(attention.MoBA); ok {
		means := tensor.New(tensor.F32, s.key.Shape[0], s.key.Shape[2], s.key.Shape[3])
		if err := moba.Means(b, &s.in, s.key, means, nil); err != nil {
			return kernel.BlockSparse{}, err
		}
		return moba.Select(b, &s.in, s.key, means)
	}
	return m.(prefillSelector).Select(b, &s.in, s.key)
}

// prefillsWith chooses with the settings of the module table.
func prefillsWith(b kernel.Backend, m any) error {
	_, err := prefillWith(b, newSelecting(rand.New(rand.NewPCG(1, 1)), 70, 300, 64, 4, 2, 8), m)
	return err
}

// attended is the output and the LSE of causal attention over the blocks of m, or dense.
func (s *selecting) attended(t *testing.T, b kernel.Backend, mask attention.Mask, m kernel.BlockSparse) (out, lse []float32) {
	t.Helper()
	tokens, heads, dim := s.in.Query.Shape[0], s.in.Query.Shape[1], s.in.Query.Shape[2]
	a, err := attention.New(b, attention.Config{Heads: int(heads), KVHeads: s.in.KVHeads, HeadDim: int(dim), PageSize: s.in.PageSize, Mask: mask, Scale: float64(s.in.Scale)})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Plan(attention.Step{QueryLens: []int{int(tokens)}, KV: pagedKV{s}, Blocks: m}); err != nil {
		t.Fatal(err)
	}
	args := kernel.Args{Query: s.in.Query, Key: s.key, Value: s.key, Out: tensor.New(tensor.F32, tokens, heads, dim), LSE: tensor.New(tensor.F32, tokens, heads)}
	if err := a.Run(&args); err != nil {
		t.Fatal(err)
	}
	return args.Out.F32s(), args.LSE.F32s()
}

func causalBlocks() attention.Mask {
	m := attention.Causal()
	m.Kinds |= kernel.MaskBlocks
	return m
}

// withBudget are the prefill selectors with a share of what they could see.
func withBudget(block, keys int, share float64) []any {
	lines := func(p attention.MInferencePattern) attention.MInference {
		n := 1 + int(share*float64(keys))
		h := attention.MInferenceHead{Pattern: p, First: n, Second: n}
		if p == attention.BlockSparse {
			h.Second = 0
		}
		return attention.MInference{Block: block, Last: 5, Heads: []attention.MInferenceHead{h}}
	}
	return []any{
		attention.MoBA{Chunk: block, Chunks: 1 + int(share*float64(keys))},
		lines(attention.AShape), lines(attention.VerticalSlash), lines(attention.BlockSparse),
		attention.FlexPrefill{Block: block, Share: share, Divergence: 1, MinBlocks: 1},
		attention.FlexPrefill{Block: block, Share: share, Divergence: 0, MinBlocks: 1},
		attention.XAttention{Block: block, Stride: block / 2, Threshold: share},
		attention.SpargeAttn{Block: block, Alike: -1, Share: share},
		attention.SampleAttention{Block: block, Rows: 4, Share: share, Window: 1},
	}
}

func TestPrefillOfAllIsDense(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(11, 1))
	for range 6 {
		size := 1 + r.IntN(20)
		tokens := 1 + r.IntN(200)
		s := newSelecting(r, tokens, tokens+r.IntN(200), size, 4, 2, 8)
		want, _ := s.attended(t, b, attention.Causal(), kernel.BlockSparse{})
		for _, m := range withBudget(2*size, int(s.in.SeqLens[0]), 1) {
			lists, err := prefillWith(b, s, m)
			if err != nil {
				t.Fatalf("%+v: %v", m, err)
			}
			if got, _ := s.attended(t, b, causalBlocks(), lists); !slices.Equal(got, want) {
				t.Fatalf("%+v of %d keys, %d queries, pages of %d: not the bits of dense attention", m, s.in.SeqLens[0], tokens, size)
			}
		}
	}
}

// More budget never hides a block, so it recalls no less.
func TestPrefillRecallGrowsWithBudget(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	s := newSelecting(rand.New(rand.NewPCG(12, 1)), 90, 240, 4, 4, 2, 8)
	_, dense := s.attended(t, b, attention.Causal(), kernel.BlockSparse{})
	shares := []float64{0.01, 0.05, 0.2, 0.5, 0.9, 1}
	last := make([]float64, len(withBudget(8, 240, 1)))
	first := slices.Clone(last)
	for _, share := range shares {
		for i, m := range withBudget(8, 240, share) {
			lists, err := prefillWith(b, s, m)
			if err != nil {
				t.Fatal(err)
			}
			_, lse := s.attended(t, b, causalBlocks(), lists)
			mass := 0.0
			for k, x := range lse {
				mass += math.Exp(float64(x)-float64(dense[k])) / float64(len(lse))
			}
			if mass < last[i]-1e-6 {
				t.Errorf("%+v recalls %v, with less %v", m, mass, last[i])
			}
			if last[i] = mass; share == shares[0] {
				first[i] = mass
			}
		}
	}
	for i, mass := range first {
		if mass > 0.99 {
			t.Errorf("%+v recalls %v: it leaves nothing out", withBudget(8, 240, shares[0])[i], mass)
		}
	}
}

// scoresOf are Scale·q·k of a head in float64, −Inf of later keys.
func (s *selecting) scoresOf(h int) [][]float64 {
	tokens, keys, dim := int(s.in.Query.Shape[0]), int(s.in.SeqLens[0]), int(s.in.Query.Shape[2])
	out := make([][]float64, tokens)
	for r := range out {
		out[r] = make([]float64, keys)
		for j := range out[r] {
			if j > keys-tokens+r {
				out[r][j] = math.Inf(-1)
				continue
			}
			for d := range dim {
				out[r][j] += float64(s.in.Scale) * float64(s.in.Query.At(int64(r), int64(h), int64(d))) * s.keyAt(j, h, d)
			}
		}
	}
	return out
}

func (s *selecting) keyAt(j, h, d int) float64 {
	g := h / (int(s.in.Query.Shape[1]) / s.in.KVHeads)
	return float64(s.key.At(int64(s.pages[j/s.in.PageSize]), int64(j%s.in.PageSize), int64(g), int64(d)))
}

func softmaxed(x []float64) []float64 {
	out, sum := make([]float64, len(x)), 0.0
	for i, v := range x {
		out[i] = math.Exp(v - slices.Max(x))
		sum += out[i]
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

// byWeight are indices, the largest first.
func byWeight(x []float64) []int {
	out := make([]int, len(x))
	for i := range out {
		out[i] = i
	}
	slices.SortStableFunc(out, func(a, b int) int {
		switch {
		case x[a] > x[b]:
			return -1
		case x[a] < x[b]:
			return 1
		}
		return 0
	})
	return out
}

// fewest are the indices that make a share of the sum.
func fewest(x []float64, share float64) []int {
	total, sum := 0.0, 0.0
	for _, v := range x {
		total += v
	}
	order := byWeight(x)
	for n, i := range order {
		if sum += x[i]; sum >= share*total {
			return order[:n+1]
		}
	}
	return order
}

// cells says which pairs of a query (by index) and a key a head is to see.
type cells map[[2]int]bool

// blocksOf checks lists against the union over a group of the blocks that hold a
// cell, and the own one.
func (s *selecting) blocksOf(t *testing.T, name string, lists kernel.BlockSparse, block int, heads []cells) {
	t.Helper()
	tokens, keys := int(s.in.Query.Shape[0]), int(s.in.SeqLens[0])
	group := len(heads) / s.in.KVHeads
	row := 0
	for g := range s.in.KVHeads {
		for x := (keys - tokens) / block; x*block < keys; x++ {
			want := []int32{}
			for y := 0; y <= x; y++ {
				seen := y == x
				for _, c := range heads[g*group : (g+1)*group] {
					for i := max(x*block, keys-tokens); i < min((x+1)*block, keys); i++ {
						for j := y * block; j < min((y+1)*block, keys); j++ {
							seen = seen || c[[2]int{i, j}]
						}
					}
				}
				if seen {
					want = append(want, int32(y))
				}
			}
			if got := lists.Indices[lists.Indptr[row]:lists.Indptr[row+1]]; !slices.Equal(got, want) {
				t.Fatalf("%s: %d keys, %d queries, KV head %d, query block %d of %d: %v, want %v", name, keys, tokens, g, x, block, got, want)
			}
			row++
		}
	}
	if row != len(lists.Indptr)-1 {
		t.Fatalf("%s: %d rows, want %d", name, len(lists.Indptr)-1, row)
	}
}

// each calls f with the cases of the tests of rules.
func eachPrefill(f func(b kernel.Backend, s *selecting, block int)) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(13, 1))
	for range 15 {
		size, tokens := 1+r.IntN(5), 1+r.IntN(60)
		f(b, newSelecting(r, tokens, tokens+r.IntN(100), size, 4, 1<<r.IntN(3), 8), size*(1+r.IntN(3)))
	}
}

func TestMInferenceSeesTheLinesOfTheRule(t *testing.T) {
	eachPrefill(func(b kernel.Backend, s *selecting, block int) {
		tokens, keys := int(s.in.Query.Shape[0]), int(s.in.SeqLens[0])
		for _, p := range []attention.MInferenceHead{{attention.VerticalSlash, 33, 32}, {attention.VerticalSlash, 1, 1}, {attention.AShape, 5, 9}} {
			m := attention.MInference{Block: block, Last: 7, Heads: []attention.MInferenceHead{p}}
			lists, err := m.Select(b, &s.in, s.key)
			if err != nil {
				t.Fatal(err)
			}
			heads := make([]cells, 4)
			for h := range heads {
				columns, slashes := make([]float64, keys), make([]float64, keys)
				scores := s.scoresOf(h)
				for r := max(tokens-7, 0); r < tokens; r++ {
					for j, w := range softmaxed(scores[r]) {
						if o := keys - tokens + r - j; o >= 0 {
							columns[j] += w
							slashes[o] += w
						}
					}
				}
				for k := range min(30, keys) {
					columns[k], slashes[k] = math.Inf(1), math.Inf(1)
				}
				columnSet, slashSet := map[int]bool{}, map[int]bool{}
				for _, j := range byWeight(columns)[:min(p.First, keys)] {
					columnSet[j] = true
				}
				for _, o := range byWeight(slashes)[:min(p.Second, keys)] {
					slashSet[o] = true
				}
				heads[h] = cells{}
				for i := keys - tokens; i < keys; i++ {
					for j := 0; j <= i; j++ {
						see := columnSet[j] || slashSet[i-j]
						if p.Pattern == attention.AShape {
							see = j < p.First || i-j < p.Second
						}
						heads[h][[2]int{i, j}] = see
					}
				}
			}
			s.blocksOf(t, fmt.Sprintf("%+v", p), lists, block, heads)
		}
	})
}

// AShape of single keys is the mask of StreamingLLM: sinks and a window.
func TestAShapeOfSingleKeysIsSinksAndWindow(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	s := newSelecting(rand.New(rand.NewPCG(14, 1)), 60, 90, 1, 4, 2, 8)
	m := attention.MInference{Block: 1, Last: 1, Heads: []attention.MInferenceHead{{attention.AShape, 4, 20}}}
	lists, err := m.Select(b, &s.in, s.key)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := s.attended(t, b, causalBlocks(), lists)
	want, _ := s.attended(t, b, attention.WindowSinks(20, 4), kernel.BlockSparse{})
	if !slices.Equal(got, want) {
		t.Error("not the bits of a window with sinks")
	}
}

func TestSampleAttentionSeesTheColumnsOfTheRule(t *testing.T) {
	eachPrefill(func(b kernel.Backend, s *selecting, block int) {
		tokens, keys := int(s.in.Query.Shape[0]), int(s.in.SeqLens[0])
		m := attention.SampleAttention{Block: block, Rows: 6, Share: 0.5, Window: 3}
		lists, err := m.Select(b, &s.in, s.key)
		if err != nil {
			t.Fatal(err)
		}
		heads := make([]cells, 4)
		for h := range heads {
			columns, scores := make([]float64, keys), s.scoresOf(h)
			n := min(6, tokens)
			for k := range n {
				for j, w := range softmaxed(scores[tokens-1-k*(tokens/n)]) {
					columns[j] += w
				}
			}
			heads[h] = cells{}
			chosen := fewest(columns, 0.5)
			for i := keys - tokens; i < keys; i++ {
				for j := max(i-2, 0); j <= i; j++ {
					heads[h][[2]int{i, j}] = true
				}
				for _, j := range chosen {
					heads[h][[2]int{i, j}] = true
				}
			}
		}
		s.blocksOf(t, fmt.Sprintf("%+v", m), lists, block, heads)
	})
}

func TestXAttentionSeesTheBlocksOfTheRule(t *testing.T) {
	eachPrefill(func(b kernel.Backend, s *selecting, block int) {
		tokens, keys := int(s.in.Query.Shape[0]), int(s.in.SeqLens[0])
		for stride := 1; stride <= block; stride++ {
			if block%stride != 0 {
				continue
			}
			m := attention.XAttention{Block: block, Stride: stride, Threshold: 0.6}
			lists, err := m.Select(b, &s.in, s.key)
			if err != nil {
				t.Fatal(err)
			}
			heads := make([]cells, 4)
			for h := range heads {
				heads[h] = cells{}
				worth := map[int][]float64{}
				for x := (keys - tokens) / stride; x*stride < keys; x++ {
					row := make([]float64, x+1)
					for y := range row {
						for n := range stride {
							i, j := x*stride+stride-1-n, y*stride+n
							if i >= keys || i < keys-tokens || j >= keys {
								continue
							}
							for d := range 8 {
								row[y] += float64(s.in.Scale) / float64(stride) * float64(s.in.Query.At(int64(i-keys+tokens), int64(h), int64(d))) * s.keyAt(j, h, d)
							}
						}
					}
					qb := x * stride / block
					if worth[qb] == nil {
						worth[qb] = make([]float64, qb+1)
					}
					for y, w := range softmaxed(row) {
						worth[qb][y*stride/block] += w
					}
				}
				for qb, w := range worth {
					for i := max(qb*block, keys-tokens); i < min((qb+1)*block, keys); i++ {
						heads[h][[2]int{i, 0}] = true
						for _, y := range fewest(w, 0.6) {
							heads[h][[2]int{i, y * block}] = true
						}
					}
				}
			}
			s.blocksOf(t, fmt.Sprintf("%+v", m), lists, block, heads)
		}
	})
}
